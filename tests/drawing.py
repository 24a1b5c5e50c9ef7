"""What tests of drawing problems share: rows of a file, prompt lengths, and what a bad task is told."""

from typing import Any

import pytest

from cpu_grpo.config.schema import Task
from cpu_grpo.errors import UserError
from cpu_grpo.tasks.problems import Problem
from cpu_grpo.tasks.splits import draw


def words(problem: Problem) -> int:
    return len(problem.question.split())


def assert_disjoint(problems: list[Problem]) -> None:
    assert len({problem.id for problem in problems}) == len(problems)
    assert len({" ".join(problem.question.casefold().split()) for problem in problems}) == len(problems)


def row(question: str, answer: Any = "1", **fields: Any) -> dict[str, Any]:
    return {"question": question, "answer": answer} | fields


def complaint(task: Task) -> str:
    with pytest.raises(UserError) as caught:
        draw(task, 1, words)
    assert "\n" not in str(caught.value)
    return str(caught.value)
