"""What prompts begin with."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpu_grpo.engine.prefix import common_prefix


@pytest.mark.parametrize(
    ("prompts", "length"),
    [
        ([], 0),
        ([[1, 2, 3]], 0),
        ([[1, 2, 3], [1, 2, 4]], 2),
        ([[1, 2, 3], [4, 2, 3]], 0),
        ([[1, 2], [1, 2, 3], [1, 2, 4]], 1),  # the last token of each stays
        ([[5], [5, 6]], 0),
        ([[1, 2, 3], [1, 2, 3]], 2),
    ],
)
def test_by_hand(prompts, length):
    assert common_prefix(prompts) == length


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=2, max_size=5))
def test_it_is_the_longest_that_leaves_every_prompt_a_token(prompts):
    length = common_prefix(prompts)
    assert len({tuple(prompt[:length]) for prompt in prompts}) == 1
    assert length < min(map(len, prompts))
    longer = {tuple(prompt[: length + 1]) for prompt in prompts}
    assert len(longer) > 1 or length + 1 == min(map(len, prompts))
