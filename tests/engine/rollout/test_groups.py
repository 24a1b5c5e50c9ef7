"""Prompts as a trainer lists them, as requests of the rollout engine and back."""

from hypothesis import given
from hypothesis import strategies as st

from cpu_grpo.engine.rollout import Completion, in_order, members_of, requests_of

PROMPTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=2), min_size=1, max_size=12)


@given(PROMPTS, st.booleans())
def test_every_place_gets_a_completion_of_its_own_prompt(prompts, share):
    members = members_of(prompts)
    requests = requests_of(members, share)
    found = [[Completion([*request.prompt, request.first + n]) for n in range(request.count)] for request in requests]
    completions = in_order(found, members)
    assert [completion.ids[:-1] for completion in completions] == prompts
    # Numbers among a prompt's completions are what its draws depend on: in the list's order, shared or not.
    for prompt, places in members.items():
        assert [completions[place].ids[-1] for place in places] == list(range(len(places))), prompt
    assert len(requests) == (len(members) if share else len(prompts))
