"""Which completions the learner takes, by hand; and that the gradient is the same on average."""

from itertools import permutations, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cpu_grpo.engine.selection import better, fair_share


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


@pytest.mark.parametrize("learnt", [lambda own: own, better], ids=["all", "better"])
@pytest.mark.parametrize("right", [[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]], ids=str)
def test_over_all_groups_the_better_ones_point_where_all_do(right, learnt):
    """A policy of three answers, by enumeration: the gradient of its share of right ones, times something positive."""
    scores = torch.tensor([0.3, -0.5, 1.0], dtype=torch.float64, requires_grad=True)
    chances, rewards = scores.softmax(0), torch.tensor(right, dtype=torch.float64)
    (wanted,) = torch.autograd.grad(chances @ rewards, scores, retain_graph=True)
    loss = torch.zeros((), dtype=torch.float64)
    for group in product(range(3), repeat=4):
        answers = list(group)
        advantages = rewards[answers] - rewards[answers].mean()
        loss = loss + chances[answers].prod().detach() * (learnt(advantages) * chances[answers].log()).sum()
    (found,) = torch.autograd.grad(loss, scores)
    assert found @ wanted > 0
    torch.testing.assert_close(found / found.norm(), wanted / wanted.norm())
