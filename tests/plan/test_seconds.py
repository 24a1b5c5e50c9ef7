import pytest

from cpu_grpo.engine.shape import Shape
from cpu_grpo.plan.job import Job
from cpu_grpo.plan.rehearsal import Cost, Costs
from cpu_grpo.plan.seconds import update_seconds

SHAPE = Shape(8, 10, 2, 1, 4, 16, 100)  # 10 layers
COSTS = Costs(
    lay_out=Cost(0.01, 0.1),
    prefill=Cost(0.02, 0.2),
    step=Cost(0.001, 0.01),
    thin_step=Cost(0.0005, 0.005),
    round=Cost(0.01, 0.1),
    learn=Cost(0.1, 1.0),
    optimize=Cost(0.03, 0.2),
    prefilled=100,
    learnt=50,
    thin_rows=2,
    write_rate=1e6,
)


def job(**changes):
    settings = {"prompts": 4, "group": 2, "prompt_tokens": 25, "completion_tokens": 11, "micro_batch": 8}
    return Job(**settings | {"micro_batch_tokens": 4096, "rows": 128, "updates": 3} | changes)


def test_an_update_is_the_sum_of_its_pieces():
    found = update_seconds(SHAPE, job(), COSTS)
    # lay out 0.2, prefill 0.4 for the 100 tokens that were timed, 10 steps of 0.02
    assert found.rollout == pytest.approx(0.2 + 0.4 + 10 * 0.02)
    # round 0.2; 4 prompts of 25 and 8 completions of 10 tokens: 180 tokens at 2 s for 50
    assert found.learner == pytest.approx(0.2 + 2.0 * 180 / 50)
    assert found.optimizer == pytest.approx(0.5)
    assert found.update == pytest.approx(found.rollout + found.learner + 0.5)


def test_completions_that_do_not_fit_into_the_rows_take_their_turn():
    once, twice = (update_seconds(SHAPE, job(rows=rows), COSTS).rollout for rows in (8, 4))
    assert twice - once == pytest.approx(10 * 0.02)


def test_what_prompts_have_in_common_is_computed_once():
    found = update_seconds(SHAPE, job(shared_tokens=20), COSTS)
    assert found.rollout == pytest.approx(0.2 + 0.4 * (20 + 4 * 5) / 100 + 0.2)
    assert found.learner == pytest.approx(0.2 + 2.0 * (20 + 4 * 5 + 80) / 50)


def test_a_rollout_serves_several_updates():
    assert update_seconds(SHAPE, job(iterations=2), COSTS).rollout == pytest.approx(0.8 / 2)


def test_weights_are_rounded_once_a_micro_batch_of_trl():
    one, four = (update_seconds(SHAPE, job(micro_batch=size), COSTS).learner for size in (8, 2))
    assert four - one == pytest.approx(3 * 0.2)


def test_small_budgets_compute_a_prompt_more_than_once():
    # 25 tokens of a prompt and 11 of a completion: one completion at a time
    found = update_seconds(SHAPE, job(micro_batch_tokens=36), COSTS)
    assert found.learner == pytest.approx(0.2 + 2.0 * 8 * (25 + 10) / 50)


def test_completions_that_end_leave_rows_empty_and_the_learner_without_work():
    # A step of 8 rows takes 0.02 and one of 2 rows 0.01: 1/600 a row, 1/150 by itself. 10 steps, 5 of them for a row.
    found = update_seconds(SHAPE, job().as_it_came(6, 1.0), COSTS)
    assert found.rollout == pytest.approx(0.2 + 0.4 + 10 / 150 + 5 * 8 / 600)
    assert found.learner == pytest.approx(0.2 + 2.0 * (4 * 25 + 8 * 5) / 50)


def test_the_learner_sees_no_completions_without_advantage():
    assert update_seconds(SHAPE, job().as_it_came(11, 0.5), COSTS).learner == pytest.approx(0.2 + 2.0 * 90 / 50)
