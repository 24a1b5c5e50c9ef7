"""Steps that fit into memory, without a trainer: a made-up memory says what has room."""

from collections import deque

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cpu_grpo.engine.learner.batches import micro_batches, work_of
from cpu_grpo.engine.step_sizes import StepSizes, bytes_to_come


class Room:
    """Has room for so many bytes."""

    def __init__(self, size):
        self.size = size

    def room_for(self, needed):
        return needed <= self.size

    def require(self, needed):
        if needed > self.size:
            raise MemoryError


def test_rows_are_halved_until_they_fit_and_stay_so():
    sizes = StepSizes(rows=64, tokens=100)
    sizes.fit_rows(Room(20), wanted=64, group=8, needed=lambda rows: rows)
    assert sizes.rows == 16
    sizes.fit_rows(Room(1000), wanted=64, group=8, needed=lambda rows: rows)
    assert sizes.rows == 16  # memory that was short once will be again


def test_fewer_completions_than_rows_leave_the_rows_alone():
    sizes = StepSizes(rows=64, tokens=100)
    sizes.fit_rows(Room(20), wanted=16, group=8, needed=lambda rows: rows)
    assert sizes.rows == 64


def test_a_group_stays_together_or_there_is_no_memory():
    sizes = StepSizes(rows=64, tokens=100)
    sizes.fit_rows(Room(8), wanted=64, group=8, needed=lambda rows: rows)
    assert sizes.rows == 8
    with pytest.raises(MemoryError):
        sizes.fit_rows(Room(7), wanted=64, group=8, needed=lambda rows: rows)


def tokens_of(part):
    return work_of(part)[2]


def batch(lengths, prompt=3, group=2):
    """Groups of completions of these lengths, as TRL hands them over."""
    rows = len(lengths)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return {
        "prompt_ids": torch.arange(rows)[:, None].div(group, rounding_mode="floor").expand(rows, prompt),
        "prompt_mask": torch.ones(rows, prompt, dtype=torch.long),
        "completion_ids": torch.arange(rows * max(lengths)).view(rows, -1),
        "completion_mask": mask.long(),
        "advantages": torch.ones(rows),
    }


LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=12)


@given(LENGTHS, st.integers(12, 60), st.sampled_from(["grpo", "dapo", "bnpo"]))
def test_parts_that_fit_hold_every_completion_once_with_its_weight(lengths, room, loss):
    inputs = batch(lengths)
    sizes, waiting = StepSizes(rows=1, tokens=1000), deque(micro_batches(inputs, loss, 1000, skip=False))
    seen, weight = [], 0.0
    while waiting:
        part, share = sizes.next_part(Room(room), waiting, loss, tokens_of)
        assert tokens_of(part) <= room
        seen += part["completion_ids"][:, 0].tolist()
        weight += share
    assert sorted(seen) == inputs["completion_ids"][:, 0].tolist()
    assert weight == pytest.approx(1.0) or loss == "dapo"  # dapo's parts each divide by the whole batch's tokens


def test_a_completion_without_room_is_an_error():
    sizes = StepSizes(rows=1, tokens=1000)
    with pytest.raises(MemoryError):
        sizes.next_part(Room(3), deque([(batch([4, 4]), 1.0)]), "grpo", tokens_of)


def test_bytes_to_come_count_gradients_and_moments_that_are_missing():
    first, second = torch.nn.Parameter(torch.zeros(10)), torch.nn.Parameter(torch.zeros(6))
    first.grad = torch.zeros(10)
    working = 2 * 40
    assert bytes_to_come([first, second], within_backward=True, has_moments=False) == working
    assert bytes_to_come([first, second], within_backward=False, has_moments=True) == working + 24
    assert bytes_to_come([first, second], within_backward=False, has_moments=False) == working + 24 + 2 * 64
