"""Every bound against numbers worked out by hand."""

from types import SimpleNamespace

import pytest
from floors import (
    Rates,
    Work,
    decode_step_operations,
    learner_operations,
    learner_seconds,
    prefill_operations,
    rollout_seconds,
    rounding_seconds,
    update_seconds,
)

SHAPE = SimpleNamespace(body=100, head=10, parameters=115, queries=4, layers=3)
WORK = Work(prompts=2, completions=4, prompt_tokens=5, completion_tokens=3)


def test_a_prompt_counts_once_and_a_last_token_is_not_forwarded():
    assert WORK.sequences == 8
    assert WORK.packed_tokens == 2 * 5 + 8 * 2 == 26
    assert WORK.scored_tokens == 24


def test_operations():
    assert prefill_operations(SHAPE, WORK) == 2 * 100 * 10 + 2 * 10 * 2 == 2040
    assert decode_step_operations(SHAPE, WORK) == 2 * 110 * 8 == 1760
    assert learner_operations(SHAPE, WORK) == 6 * 100 * 26 + 6 * 10 * 24 == 17_040


def test_what_all_prompts_begin_with_counts_once_and_is_attended_to_by_all_else():
    work = Work(prompts=2, completions=4, prompt_tokens=5, completion_tokens=3, shared_tokens=4)
    assert work.packed_tokens == 4 + 2 * 1 + 8 * 2 == 22
    products = 100 * 22 + 10 * 24 + 18 * 4 * (2 * 4) * 3  # 18 queries, 4 keys, scores and sums of 4 features, 3 layers
    assert learner_operations(SHAPE, work) == 6 * products
    assert learner_operations(SHAPE, work, recompute=True) == 8 * products


def test_seconds_where_operations_limit():
    rates = Rates(flops=10.0, bandwidth=1e9)
    assert learner_seconds(SHAPE, WORK, rates) == pytest.approx(1704.0)
    assert rollout_seconds(SHAPE, WORK, rates) == pytest.approx(204.0 + 2 * 176.0)  # prefill yields the first token
    optimizer = 28 * 115 / 1e9
    assert update_seconds(SHAPE, WORK, rates) == pytest.approx(204.0 + 352.0 + 1704.0 + optimizer, rel=1e-12)


def test_seconds_where_memory_limits():
    rates = Rates(flops=1e9, bandwidth=10.0)
    read = 2 * 110 / 10  # bf16 weights, once a step
    assert rollout_seconds(SHAPE, WORK, rates) == pytest.approx(3 * read)
    assert rounding_seconds(SHAPE, rates) == pytest.approx(6 * 110 / 10)
    assert update_seconds(SHAPE, WORK, rates) == pytest.approx(3 * read + 17_040 / 1e9 + 28 * 115 / 10)


def test_more_rows_of_a_memory_bound_step_cost_nothing():
    rates = Rates(flops=1e9, bandwidth=10.0)
    twice = Work(prompts=4, completions=4, prompt_tokens=5, completion_tokens=3)
    assert rollout_seconds(SHAPE, twice, rates) == rollout_seconds(SHAPE, WORK, rates)
