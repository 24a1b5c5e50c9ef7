"""Prompts as a trainer lists them, once for each completion, as requests; and the completions in the list's order."""

from itertools import chain

from cpu_grpo.engine.rollout.schedule import Completion, Request

Members = dict[tuple[int, ...], list[int]]  # prompt -> its places in the list


def members_of(prompt_ids: list[list[int]]) -> Members:
    """Equal prompts are one group."""
    members: Members = {}
    for place, ids in enumerate(prompt_ids):
        members.setdefault(tuple(ids), []).append(place)
    return members


def requests_of(members: Members, share: bool) -> list[Request]:
    """A request for each group; without sharing one for each completion."""
    sizes = [[len(own)] if share else [1] * len(own) for own in members.values()]
    return [
        Request(list(prompt), size, sum(own[:number]))
        for prompt, own in zip(members, sizes, strict=True)
        for number, size in enumerate(own)
    ]


def in_order(found: list[list[Completion]], members: Members) -> list[Completion]:
    """What `generate` found for `requests_of`, in the list's order."""
    places = [place for own in members.values() for place in own]
    placed = dict(zip(places, chain.from_iterable(found), strict=True))
    return [placed[place] for place in range(len(places))]
