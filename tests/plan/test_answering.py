"""What an evaluation will take: steps as the engine makes them, seconds by hand, memory that is refused."""

from dataclasses import replace

import pytest

from cpu_grpo.engine.decoder import decoder
from cpu_grpo.engine.rollout import Request, Sampling, generate, generation, packed
from cpu_grpo.engine.shape import Shape, of_decoder
from cpu_grpo.errors import UserError
from cpu_grpo.plan.answering import Pace, Plan, Work, decoding_steps, pace_of, peak_bytes, require_memory, seconds
from cpu_grpo.plan.choice import Budget

WORK = Work(prompts=[10, 12], shared=4, count=1, rows=2, limit=5)


@pytest.mark.parametrize(
    ("steps", "rows", "expected"),
    [
        ([], 4, 0),
        ([[0], [0]], 4, 0),
        ([[3], [3], [3]], 1, 9),
        ([[3], [3], [3]], 3, 3),
        ([[5], [1], [2]], 2, 5),  # the second's row is free from step 2 on, so the third is done with step 4
        ([[2], *[[9]] * 7, [4]], 8, 13),  # one free row is less than a quarter of eight
        ([[2], [2], *[[9]] * 6, [4]], 8, 9),
        ([[3, 1], [2, 2]], 3, 4),  # a prompt's answers begin together
    ],
)
def test_steps_by_hand(steps, rows, expected):
    assert decoding_steps(steps, rows) == expected


@pytest.mark.parametrize(("rows", "count"), [(1, 1), (3, 1), (8, 1), (8, 3), (64, 2)])
def test_steps_are_those_that_the_engine_makes(tiny_model, monkeypatch, rows, count):
    made = []

    def counted(*given):
        made.append(1)
        return decode(*given)

    decode = generation.decode
    monkeypatch.setattr(generation, "decode", counted)
    prompts = [[5 + index, 6, 7] for index in range(20)]
    requests = [Request(prompt, count) for prompt in prompts]
    ends = set(range(0, 400, 9))  # of 512 tokens, so that answers have all sorts of lengths
    model = packed(decoder(tiny_model), "fp32", rows)
    found = generate(model, requests, Sampling(3.0), 24, ends, 1, rows)
    steps = [[len(completion.ids) - 1 for completion in own] for own in found]
    assert len({length for own in steps for length in own}) > 5
    assert decoding_steps(steps, max(rows, count)) == len(made)


def test_seconds_by_hand():
    """16 prompt tokens (4 of them once), and with both rows at once 4 steps: 5 and 3 tokens, the first of each free."""
    assert WORK.prefilled == 4 + 6 + 8
    pace = Pace(rows=2, prefill=0.1, step=1.0, row=0.5, token=0.01)
    rows = 4 * (0.5 + 0.01 * (10 + 2.5)) + 2 * (0.5 + 0.01 * (12 + 1.5))
    assert seconds(WORK, pace, [[5], [3]]) == pytest.approx(1.8 + 4 * 1.0 + rows)
    plan = Plan([WORK], [pace], peak=10**9)
    assert plan.at_most == pytest.approx(seconds(WORK, pace, [[5], [5]]))
    assert (
        plan.compared([[[5], [3]]])["expected_answer_seconds"] < plan.compared([[[5], [3]]])["planned_answer_seconds"]
    )
    assert plan.told().startswith("1.00 GB of memory and ")


def test_the_pace_is_measured_for_the_rows_that_there_will_be(tiny_model):
    prompts = [[5 + index, 6, 7, 8] for index in range(20)]
    work = Work([4] * 20, 0, 2, 16, 24)
    pace = pace_of(packed(decoder(tiny_model), "fp32", 16), prompts, work)
    assert pace.rows == 16 and pace.prefill > 0 and pace.step + pace.row > 0 and pace.token >= 0
    single = pace_of(packed(decoder(tiny_model), "fp32", 1), prompts[:1], Work([4], 0, 1, 1, 1))
    assert single.rows == 1 and single.step > 0 and single.row == single.token == 0


def test_memory_holds_the_model_twice_and_grows_with_rows_and_their_lengths(tiny_model):
    shape = of_decoder(decoder(tiny_model))
    some = peak_bytes(shape, WORK, 4)
    assert some > 2 * 4 * shape.parameters
    wide = replace(WORK, prompts=[10] * 50, rows=50)
    token = 2 * shape.layers * shape.keys * 4
    assert peak_bytes(shape, replace(wide, limit=105), 4) - peak_bytes(shape, wide, 4) >= 50 * 100 * token


def test_an_evaluation_that_does_not_fit_is_refused_with_what_would():
    shape = Shape(576, 30, 9, 3, 64, 1536, 49152)  # SmolLM2-135M
    work = Work([1000] * 200, 900, 1, 64, 224)
    needed = require_memory(shape, work, 2, 2, Budget(10**10, "10.00 GB are free"))
    assert 3e9 < needed < 6e9
    with pytest.raises(UserError, match=r"needs .* GB, and 2\.00 GB are free: use evaluation\.batch_size=(16|8) \("):
        require_memory(shape, work, 2, 2, Budget(2 * 10**9, "2.00 GB are free"))
    with pytest.raises(UserError, match="free some memory or take a smaller model"):
        require_memory(shape, work, 2, 2, Budget(5 * 10**8, "0.50 GB are free"))
