"""Supervised training, to compare with: the same trainer, whose completions are worked solutions.

With an advantage of 1 for each of their tokens, the gradient of GRPO's loss is that of their negative log-likelihood.
"""

from typing import Any

import torch

from cpu_grpo.config.schema import Train
from cpu_grpo.engine.trainer import CPUGRPOTrainer
from cpu_grpo.errors import UserError
from cpu_grpo.tasks.answers.marks import written
from cpu_grpo.tasks.problems import Problem
from cpu_grpo.tasks.prompts import prompt, prompt_ids

Solutions = dict[tuple[int, ...], list[int]]  # token ids by those of the prompt


class SupervisedTrainer(CPUGRPOTrainer):
    """Learns solutions in place of the model's own completions. A group is as many copies of one, which cost as much as
    one of them."""

    def __init__(self, *args: Any, solutions: Solutions, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._solutions = solutions

    def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any) -> tuple[list[list[int]], None]:
        return [self._solutions[tuple(ids)] for ids in prompt_ids], None

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        output = super()._generate_and_score_completions(inputs)
        output["advantages"] = torch.ones_like(output["advantages"])
        return output


def solutions_of(config: Train, problems: list[Problem], tokenizer: Any) -> Solutions:
    """Of training problems: the worked solution, the answer behind the task's first mark, and the end token; cut off
    where a completion would be.

    Raises:
        UserError: a problem has none.
    """
    found: Solutions = {}
    for problem in problems:
        if not problem.solution:
            raise UserError(
                f"Problem {problem.id} has no worked solution, so method=supervised has nothing to imitate: give each "
                'problem a "solution", or use method=grpo.'
            )
        asked = prompt_ids(prompt(problem, config.task, tokenizer), tokenizer)
        text = f"{problem.solution}\n{written(problem.answer, config.task.marks[0])}"
        ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        found[tuple(asked)] = ids[: config.trainer.max_completion_length]
    return found
