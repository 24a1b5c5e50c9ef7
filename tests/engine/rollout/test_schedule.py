"""Admissions, seats and moves against ones worked out by hand, and against a mirror of the rows."""

from collections import deque

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cpu_grpo.engine.rollout import schedule
from cpu_grpo.engine.rollout.schedule import Completion, Request, Seat, admissions, fits, leave, seating


def requests_of(*lengths, count=1):
    return [Request([7] * length, count) for length in lengths]


def seat(copy, block=0, group=0, stored=0):
    """A completion with so many tokens in the cache, and one more that is not there yet."""
    tokens = Completion([7] * (stored + 1), [-1.0] * (stored + 1))
    return Seat(request=0, copy=copy, block=block, group=group, start=1, draws=torch.zeros(1), completion=tokens)


def lots(*lengths):
    return list(admissions(requests_of(*lengths)))


@pytest.mark.parametrize(
    ("lengths", "wanted"),
    [
        ((), []),
        ((5,), [[0]]),
        ((5, 1, 9, 2, 3, 4), [[1], [3, 4], [5, 0], [2]]),  # 1 | 2 3 | 4 5 | 9
        ((4, 7, 8), [[0, 1], [2]]),  # 8 is twice 4
        ((8, 8, 8), [[0, 1, 2]]),
        ((9, 6, 9, 6), [[1, 3, 0, 2]]),  # equal lengths stay in order
    ],
)
def test_prompts_in_a_lot_are_less_than_twice_as_long_as_its_shortest(lengths, wanted):
    assert lots(*lengths) == wanted


@pytest.mark.parametrize(
    ("lengths", "wanted"),
    [
        ((4, 4, 4), [[0, 1], [2]]),
        ((5, 5, 5, 5), [[0, 1], [2, 3]]),
        ((3, 4, 5, 5), [[0, 1], [2, 3]]),
        ((30, 20), [[1], [0]]),  # too long for any lot, and still taken
        ((11, 6), [[1], [0]]),
    ],
)
def test_a_lot_holds_ten_tokens_if_that_is_the_limit(monkeypatch, lengths, wanted):
    monkeypatch.setattr(schedule, "PREFILL_TOKENS", 10)
    assert lots(*lengths) == wanted


def test_what_prompts_share_takes_no_room_in_a_lot(monkeypatch):
    monkeypatch.setattr(schedule, "PREFILL_TOKENS", 10)
    assert [list(lot) for lot in admissions(requests_of(8, 8, 9, 8), shared=5)] == [[0, 1, 3], [2]]


@given(st.lists(st.integers(1, 3000), max_size=30))
def test_every_prompt_is_in_one_lot_of_like_lengths(lengths):
    found = lots(*lengths)
    assert sorted(index for lot in found for index in lot) == list(range(len(lengths)))
    for lot in found:
        sizes = [lengths[index] for index in lot]
        assert max(sizes) < 2 * min(sizes)
        assert len(lot) == 1 or sum(sizes) <= schedule.PREFILL_TOKENS


@pytest.mark.parametrize(
    ("free", "taken", "left"),
    [
        (0, [], [[0, 1, 2], [3]]),
        (1, [], [[0, 1, 2], [3]]),  # the third would fit, but waits behind the first
        (2, [0], [[1, 2], [3]]),
        (4, [0], [[1, 2], [3]]),
        (5, [0, 1], [[2], [3]]),
        (6, [0, 1, 2], [[3]]),
        (9, [0, 1, 2], [[3]]),  # the next lot has other lengths
    ],
)
def test_requests_are_taken_in_order_while_there_are_rows_for_their_whole_groups(free, taken, left):
    requests = [Request([7], count) for count in (2, 3, 1, 1)]
    waiting = deque([[0, 1, 2], [3]])
    assert fits(waiting, requests, free) == taken
    assert list(waiting) == left


def test_nothing_is_taken_when_nobody_waits():
    assert fits(deque(), [], 5) == []


def test_rows_are_told_apart_by_block_and_group():
    seats = [seat(0, 4, 1), seat(1, 2, 0), seat(2, 4, 0), seat(3, 4, 1), seat(4, 2, 0)]
    assert seating(seats, 4, 3) == [[2], [0, 3], []]
    assert seating(seats, 2, 1) == [[1, 4]]
    assert seating(seats, 3, 2) == [[], []]


@pytest.mark.parametrize(
    ("finished", "moves", "left"),
    [
        ([], [], [0, 1, 2, 3, 4]),
        ([4], [], [0, 1, 2, 3]),
        ([1], [(4, 1, 40)], [0, 4, 2, 3]),
        ([1, 3], [(4, 3, 40), (3, 1, 40)], [0, 4, 2]),  # the last row moves twice, each time with all its tokens
        ([3, 1], [(4, 3, 40), (3, 1, 40)], [0, 4, 2]),
        ([0, 4], [(3, 0, 30)], [3, 1, 2]),
        ([0, 1, 2, 3, 4], [], []),
    ],
)
def test_the_last_rows_take_the_places_of_finished_ones(finished, moves, left):
    seats = [seat(copy, stored=10 * copy) for copy in range(5)]
    assert leave(seats, finished) == moves
    assert [s.copy for s in seats] == left


@given(st.lists(st.tuples(st.integers(0, 50), st.booleans()), min_size=1, max_size=20))
def test_survivors_keep_their_identity_and_all_their_tokens_and_few_are_moved(rows):
    seats = [seat(copy, stored=stored) for copy, (stored, _) in enumerate(rows)]
    finished = [row for row, (_, done) in enumerate(rows) if done]
    cache = [[(copy, token) for token in range(stored)] for copy, (stored, _) in enumerate(rows)]
    moves = leave(seats, finished)
    for source, target, count in moves:
        cache[target][:count] = cache[source][:count]
    assert sorted(s.copy for s in seats) == [row for row, (_, done) in enumerate(rows) if not done]
    for row, survivor in enumerate(seats):
        assert cache[row][: survivor.stored] == [(survivor.copy, token) for token in range(rows[survivor.copy][0])]
    assert len(moves) <= len(finished)


@pytest.mark.parametrize(("prompt", "count"), [([], 1), ([5], 0)])
def test_a_request_for_nothing_is_refused(prompt, count):
    with pytest.raises(ValueError, match="a prompt and a count from 1"):
        Request(prompt, count)
