"""Which completion sits in which row of the batch: bookkeeping without model calls."""

from collections import deque
from dataclasses import dataclass, field

import torch

PREFILL_TOKENS = 4096  # of prompts that go through the model together


@dataclass(frozen=True)
class Request:
    """One prompt and how many completions of it are wanted.

    Completions depend on their numbers among their prompt's: a request for some of them may begin after others.
    """

    prompt: list[int]
    count: int = 1
    first: int = 0  # number of the first of them

    def __post_init__(self) -> None:
        if not self.prompt or self.count < 1:
            raise ValueError(f"A request needs a prompt and a count from 1, not {self.prompt} and {self.count}.")


@dataclass
class Completion:
    """Sampled tokens, the end token included, and each one's log-prob under the policy at the sampling temperature."""

    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)


@dataclass
class Seat:
    """A completion in the making."""

    request: int
    copy: int
    block: int  # serial number of the prompt block
    group: int  # place in it
    start: int  # the prompt's length
    draws: torch.Tensor  # (limit,) its uniforms
    completion: Completion = field(default_factory=Completion)
    level: float = 0.0  # its highest score at the last step

    @property
    def stored(self) -> int:
        """Tokens whose keys and values are in the cache: all but the newest."""
        return len(self.completion.ids) - 1


def admissions(requests: list[Request], shared: int = 0) -> deque[list[int]]:
    """The requests by prompt length, in lots that are prefilled together.

    In a lot the longest prompt is less than twice as long as the shortest, so that little of its storage is empty.

    Args:
        shared: tokens that all prompts begin with, which are not prefilled with them.
    """
    lots: deque[list[int]] = deque()
    order = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt))
    tokens, shortest = 0, 0
    for index in order:
        length = len(requests[index].prompt)
        if not lots or tokens + length - shared > PREFILL_TOKENS or length >= 2 * shortest:
            lots.append([])
            tokens, shortest = 0, length
        lots[-1].append(index)
        tokens += length - shared
    return lots


def fits(lots: deque[list[int]], requests: list[Request], free: int) -> list[int]:
    """Takes from the first lot the requests whose completions find a free row."""
    taken = []
    while lots and lots[0] and requests[lots[0][0]].count <= free:
        index = lots[0].pop(0)
        free -= requests[index].count
        taken.append(index)
    if lots and not lots[0]:
        lots.popleft()
    return taken


def seating(seats: list[Seat], block: int, groups: int) -> list[list[int]]:
    """The rows that continue each of the block's prompts."""
    rows: list[list[int]] = [[] for _ in range(groups)]
    for row, seat in enumerate(seats):
        if seat.block == block:
            rows[seat.group].append(row)
    return rows


def leave(seats: list[Seat], finished: list[int]) -> list[tuple[int, int, int]]:
    """Removes finished rows, filling their places from the end.

    Returns:
        the moves that the cache must make, in this order: from, to, and how many tokens it holds of the one that moves.
    """
    moves = []
    for row in sorted(finished, reverse=True):
        last = seats.pop()
        if row != len(seats):
            seats[row] = last
            moves.append((len(seats), row, last.stored))
    return moves
