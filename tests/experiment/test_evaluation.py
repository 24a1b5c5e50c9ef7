"""Greedy evaluation against transformers' own generation, and the marking of completions."""

from dataclasses import replace

import pytest
import torch

from cpu_grpo.config.schema import Evaluation, Shared, Task
from cpu_grpo.errors import UserError
from cpu_grpo.experiment.candidate import candidate, greedy, until_end
from cpu_grpo.experiment.evaluation import (
    accuracies,
    answer_all,
    encoded,
    held_out,
    mark_all,
    sample_all,
    sampled_accuracies,
)
from cpu_grpo.experiment.statistics import wilson
from cpu_grpo.tasks.answers.grader import Grader
from cpu_grpo.tasks.problems import Problem


@pytest.fixture
def config():
    return Shared(task=Task(name="t", max_completion_length=8), evaluation=Evaluation(batch_size=2))


def ready(config, model, tokenizer):
    settings = config.evaluation
    return candidate(model, tokenizer, "fp32", settings.batch_size, config.engine.name == "fast")


def ask(how, config, model, tokenizer, asked):
    return how(config, ready(config, model, tokenizer), asked, encoded(config, tokenizer, asked))


def problems():
    return [Problem(f"p{i}", "1 + " * i + f"{i} =", str(i), split="test") for i in range(1, 6)]


def test_batched_greedy_equals_one_at_a_time(tiny_model, tokenizer):
    prompts = [[5, 6, 7, 8, 9, 10], [11, 12], [13, 14, 15]]
    for prompt, found in zip(prompts, greedy(tiny_model, tokenizer, prompts, 8), strict=True):
        alone = tiny_model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)[
            0, len(prompt) :
        ].tolist()
        assert found == until_end(alone, {tokenizer.eos_token_id})


@pytest.mark.parametrize("engine", ["fast", "trl"])
def test_results_keep_the_order_of_the_problems(config, tiny_model, tokenizer, engine):
    config.engine.name = engine
    results = ask(answer_all, config, tiny_model, tokenizer, problems())
    assert [result.id for result in results] == ["p1", "p2", "p3", "p4", "p5"]
    assert all(problem.question in result.prompt for problem, result in zip(problems(), results, strict=True))


def test_both_engines_give_the_same_results(config, any_model, tokenizer):
    fast = ask(answer_all, config, any_model, tokenizer, problems())
    config.engine.name = "trl"
    assert ask(answer_all, config, any_model, tokenizer, problems()) == fast


def test_a_model_that_the_engine_does_not_know_is_evaluated_with_a_warning(config, tokenizer):
    from transformers import LlamaForCausalLM

    from conftest import tiny_config

    model = LlamaForCausalLM(tiny_config(tokenizer, hidden_act="gelu")).eval()
    with pytest.warns(UserWarning, match="its activation is gelu"):
        results = ask(answer_all, config, model, tokenizer, problems())
    assert len(results) == 5


@pytest.mark.parametrize(
    ("text", "strict", "flexible", "clipped"),
    [
        ("2 + 5 is 7\n#### 7<|im_end|>", True, True, False),
        ("the answer is 7<|im_end|>", False, True, False),
        ("#### 7 of 9 apples<|im_end|>", True, False, False),
        ("7", False, True, True),
        ("", False, False, True),
    ],
)
def test_marking(tiny_model, tokenizer, text, strict, flexible, clipped):
    ids = tokenizer(text)["input_ids"]
    for headline in ("strict", "flexible"):
        answering = candidate(tiny_model, tokenizer, "fp32", 4)
        (result,) = mark_all(Task(extraction=headline), [Problem("p", "2 + 5 =", "7")], ["asked"], [ids], answering)
        assert (result.strict_right, result.flexible_right, result.clipped) == (strict, flexible, clipped)
        assert result.right == (strict if headline == "strict" else flexible)
        assert "<|im_end|>" not in result.completion


def test_accuracies_count_each_extraction(tiny_model, tokenizer):
    texts = ["#### 7", "7", "8", "#### 7 of 9"]
    asked = [Problem(str(i), "q", "7") for i in range(4)]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    results = mark_all(Task(extraction="strict"), asked, [""] * 4, ids, candidate(tiny_model, tokenizer, "fp32", 4))
    figures = accuracies(results, "strict")
    assert (figures["n"], figures["accuracy"], figures["strict_accuracy"], figures["flexible_accuracy"]) == (
        4,
        0.5,
        0.5,
        0.5,
    )
    assert (figures["accuracy_low"], figures["accuracy_high"]) == tuple(wilson(2, 4))


def test_only_the_asked_split_is_read(config):
    mixed = [Problem("a", "q1", "1", split="train"), *problems(), Problem("b", "q2", "1", split="validation")]
    assert [p.id for p in held_out(config, mixed)] == ["p1", "p2", "p3", "p4", "p5"]
    config.evaluation.limit = 2
    assert [p.id for p in held_out(config, mixed)] == ["p1", "p2"]
    config.evaluation.split = "validation"
    assert [p.id for p in held_out(config, mixed)] == ["b"]


def test_samples_are_marked_problem_by_problem(config, tiny_model, tokenizer):
    config.evaluation.samples = 3
    found = ask(sample_all, config, tiny_model, tokenizer, problems())
    assert [len(own) for own in found] == [3] * 5
    assert found == ask(sample_all, config, tiny_model, tokenizer, problems())


def test_at_no_temperature_to_speak_of_every_sample_is_the_greedy_one(config, tiny_model, tokenizer):
    config.evaluation.samples, config.evaluation.temperature = 2, 1e-3
    asked = problems()
    greedy_completions = [result.completion for result in ask(answer_all, config, tiny_model, tokenizer, asked)]
    answers = [Grader().flexible(completion) for completion in greedy_completions]
    asked = [replace(p, answer=answer or "none") for p, answer in zip(asked, answers, strict=True)]
    asked[0] = replace(asked[0], answer="123456")  # wrong, whatever the model says
    expected = [result.right for result in ask(answer_all, config, tiny_model, tokenizer, asked)]
    assert not expected[0]
    sampled = ask(sample_all, config, tiny_model, tokenizer, asked)
    assert [[result.right for result in own] for own in sampled] == [[right, right] for right in expected]


def test_no_samples_are_taken_unless_asked_for(config, tiny_model, tokenizer):
    assert ask(sample_all, config, tiny_model, tokenizer, problems()) == []
    assert sampled_accuracies([]) == {}


def test_samples_need_the_fast_engine(config, tiny_model, tokenizer):
    config.evaluation.samples, config.engine.name = 2, "trl"
    with pytest.raises(UserError, match=r"evaluation\.samples=2 needs the fast engine: use 0, or engine=fast"):
        ask(sample_all, config, tiny_model, tokenizer, problems())


def test_sampled_figures_by_hand():
    """Two problems of four samples: 3 and 1 right."""
    found = sampled_accuracies([[True, True, True, False], [False, False, True, False]])
    assert found["sampled_accuracy"] == found["pass_at_1"] == 0.5
    assert found["pass_at_2"] == pytest.approx((1 + (1 - 3 / 6)) / 2)  # of C(4, 2) = 6 pairs, C(3, 2) = 3 are wrong
    assert found["pass_at_4"] == 1 and "pass_at_8" not in found
    assert (found["sampled_low"], found["sampled_high"]) == (0, 1)  # two problems tell little
