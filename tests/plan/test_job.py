"""How an update is cut into pieces, counted by hand."""

from cpu_grpo.engine.shape import Shape
from cpu_grpo.plan.job import Job
from cpu_grpo.plan.memory import Scheme, learner_bytes

SHAPE = Shape(576, 30, 9, 3, 64, 1536, 49152)
FULL = Scheme("full", recompute=False)


def job(**changes):
    """12 groups of 8 completions of 18 tokens; with its prompt, a group has 379 tokens, and 10 fit into 4096."""
    settings = {"prompts": 12, "group": 8, "prompt_tokens": 235, "completion_tokens": 18, "micro_batch": 96}
    return Job(**settings | {"micro_batch_tokens": 4096, "rows": 128, "updates": 3} | changes)


def test_a_micro_batch_is_cut_into_whole_groups():
    assert (job().completions_at_once, job().last_completions, job().parts) == (80, 16, 2)
    assert (job(prompts=10).completions_at_once, job(prompts=10).last_completions, job(prompts=10).parts) == (80, 80, 1)


def test_completions_that_are_not_taken_are_in_no_piece():
    assert (job(learn_from=4).learnt, job(learn_from=9).learnt, job(learn_from=4).as_it_came(18, 0.5).learnt) == (
        48,
        96,
        24,
    )


def test_what_all_prompts_begin_with_counts_once():
    """223 tokens, and 156 of each group: 24 groups fit into 4096, 25 would not."""
    asked = job(prompts=30, micro_batch=240, shared_tokens=223)
    assert (asked.completions_at_once, asked.last_completions, asked.parts) == (24 * 8, 6 * 8, 2)
    assert asked.packed(24 * 8) == 223 + 24 * (12 + 8 * 17)


def test_completions_without_advantage_are_in_no_piece():
    came = job().as_it_came(18, 0.5)
    assert (came.learnt, came.completions_at_once, came.parts) == (48, 48, 1)
    assert job().as_it_came(18, 0.0).learnt == 1


def test_gradients_of_parts_before_count_beside_the_parts_that_come_after_them():
    one, small, whole, three = (
        learner_bytes(SHAPE, job(prompts=prompts, micro_batch=8 * prompts), FULL, 4, SHAPE.parameters)
        for prompts in (10, 11, 20, 30)
    )
    assert one == small  # the second part, of one group, needs less than the first, though gradients are there
    assert whole - one == 4 * SHAPE.parameters
    assert three == whole
