"""The data card: what is in the splits."""

from collections import Counter
from typing import Any

from cpu_grpo.config.schema import Task
from cpu_grpo.tasks.answers.number import number
from cpu_grpo.tasks.problems import SPLITS, Problem, of_split
from cpu_grpo.tasks.splits import Drawn, PromptLength


def data_card(task: Task, drawn: Drawn, prompt_length: PromptLength) -> dict[str, Any]:
    """Counts, answer ranges and prompt lengths (in tokens) by split, and what was left out."""
    return {
        "task": task.name,
        "answers": task.answer,
        "left_out": {"prompt_too_long": drawn.too_long, "repeated_question": drawn.duplicates},
        "splits": {split: _describe(of_split(drawn.problems, split), prompt_length, task.answer) for split in SPLITS},
    }


def _describe(problems: list[Problem], prompt_length: PromptLength, kind: str) -> dict[str, Any]:
    lengths = sorted(prompt_length(problem) for problem in problems)
    numbers = [number(problem.answer) for problem in problems] if kind == "number" else []
    values = sorted(float(value) for value in numbers if value is not None)
    levels = Counter(problem.difficulty for problem in problems)
    return {
        "problems": len(problems),
        "by_difficulty": {str(level): levels[level] for level in sorted(levels)},
        "numeric_answers": len(values),
        "answer_min": values[0] if values else "none",
        "answer_max": values[-1] if values else "none",
        "prompt_tokens_min": lengths[0],
        "prompt_tokens_median": lengths[len(lengths) // 2],
        "prompt_tokens_max": lengths[-1],
    }
