"""Which completions the learner takes, by hand; and that the gradient is the same on average."""

from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cpu_grpo.engine.selection import fair_share


@pytest.mark.parametrize(
    ("advantages", "keep", "found"),
    [
        ([3.0, -1.0, -1.0, -1.0], 2, [3.0, -3.0, 0.0, 0.0]),  # one worse stands for three
        ([3.0, -1.0, -1.0, -1.0], 3, [3.0, -1.5, -1.5, 0.0]),
        ([1.0, 1.0, 1.0, -3.0], 2, [3.0, 0.0, 0.0, -3.0]),
        ([1.0, -1.0, 1.0, -1.0], 2, [2.0, -2.0, 0.0, 0.0]),
        ([0.0, 0.0, 0.0, 0.0], 2, [0.0, 0.0, 0.0, 0.0]),
        ([2.0, 0.0, -1.0, -1.0], 3, [2.0, 0.0, -1.0, -1.0]),  # what has no advantage takes no place
        ([1.0, 2.0, -3.0, 0.0, 0.0, 0.0], 5, [1.0, 2.0, -3.0, 0.0, 0.0, 0.0]),
    ],
)
def test_by_hand(advantages, keep, found):
    assert fair_share(torch.tensor(advantages), len(advantages), keep).tolist() == found


def test_groups_are_apart():
    both = fair_share(torch.tensor([3.0, -1.0, -1.0, -1.0, 1.0, 1.0, 1.0, -3.0]), 4, 2)
    assert both.tolist() == [3.0, -3.0, 0.0, 0.0, 3.0, 0.0, 0.0, -3.0]


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=5), st.data())
def test_over_all_orders_each_completion_weighs_what_it_weighed(advantages, data):
    keep = data.draw(st.integers(1 if min(advantages) >= 0 or max(advantages) <= 0 else 2, len(advantages)))
    group = len(advantages)
    total = torch.zeros(group)
    orders = list(permutations(range(group)))
    for order in orders:
        found = fair_share(torch.tensor([float(advantages[i]) for i in order]), group, keep)
        assert int((found != 0).sum()) == min(keep, sum(own != 0 for own in advantages))
        total[list(order)] += found
    assert torch.allclose(total / len(orders), torch.tensor(advantages).float(), atol=1e-5)
