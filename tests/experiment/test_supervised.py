"""Supervised training by GRPO's trainer: the gradient of the solutions' likelihood, and a model that says them."""

import pytest
import torch
from datasets import Dataset

from cpu_grpo.config.schema import Task, Train, Trainer
from cpu_grpo.engine.options import FastOptions
from cpu_grpo.errors import UserError
from cpu_grpo.experiment.candidate import greedy
from cpu_grpo.experiment.supervised import SupervisedTrainer, solutions_of
from cpu_grpo.tasks.problems import Problem
from cpu_grpo.tasks.prompts import prompt, prompt_ids
from trainers import settings

TASK = Task(marks=["answer is", "####"])
PROBLEMS = [Problem(f"p{i}", f"{i} + {i} =", str(2 * i), solution=f"It is {2 * i}.") for i in range(4)]


def trained(model, tokenizer, directory, **changes):
    config = Train(task=TASK, trainer=Trainer(max_completion_length=60))
    solutions = solutions_of(config, PROBLEMS, tokenizer)
    rows = [{"prompt": prompt(problem, TASK, tokenizer), "answer": problem.answer} for problem in PROBLEMS]
    trainer = SupervisedTrainer(
        solutions=solutions,
        fast=FastOptions("fp32"),
        model=model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=settings(directory, num_generations=2, max_completion_length=60, loss_type="dapo", **changes),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    return solutions


def test_a_solution_ends_in_the_tasks_first_mark_and_the_end_token(tokenizer):
    config = Train(task=TASK, trainer=Trainer(max_completion_length=60))
    (asked, ids), *_ = solutions_of(config, PROBLEMS[3:], tokenizer).items()
    assert list(asked) == prompt_ids(prompt(PROBLEMS[3], TASK, tokenizer), tokenizer)
    assert tokenizer.decode(ids) == "It is 6.\nThe answer is 6.<|im_end|>"
    config.trainer.max_completion_length = 5
    assert list(solutions_of(config, PROBLEMS[3:], tokenizer).values()) == [ids[:5]]


def test_a_problem_without_a_solution_is_told(tokenizer):
    with pytest.raises(UserError, match=r"Problem p has no worked solution.*give each problem a \"solution\""):
        solutions_of(Train(task=TASK), [Problem("p", "q", "1")], tokenizer)


def test_one_update_is_a_step_along_the_solutions_likelihood(tiny_model, tokenizer, tmp_path):
    start = {name: own.detach().clone() for name, own in tiny_model.named_parameters()}
    changes = {"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 1e9, "max_steps": 1}
    solutions = trained(tiny_model, tokenizer, tmp_path, **changes)
    ends = {name: own.detach().clone() for name, own in tiny_model.named_parameters()}
    with torch.no_grad():
        for name, own in tiny_model.named_parameters():
            own.copy_(start[name])
    tiny_model.zero_grad()
    total, tokens = 0.0, 0
    for asked, ids in solutions.items():
        logits = tiny_model(torch.tensor([[*asked, *ids]])).logits[0, len(asked) - 1 : -1]
        total = total + torch.nn.functional.cross_entropy(logits, torch.tensor(ids), reduction="sum")
        tokens += len(ids)
    (total / tokens).backward()
    for name, own in tiny_model.named_parameters():
        assert torch.allclose(ends[name], start[name] - own.grad, atol=1e-5), name


@pytest.mark.slow
def test_a_model_learns_to_say_the_solutions(tiny_model, tokenizer, tmp_path):
    solutions = trained(tiny_model, tokenizer, tmp_path, learning_rate=1e-2, max_steps=60)
    asked = [list(ids) for ids in solutions]
    assert greedy(tiny_model.eval(), tokenizer, asked, 60) == list(solutions.values())
