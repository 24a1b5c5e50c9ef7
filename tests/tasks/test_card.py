"""The data card of a handful of problems, worked by hand."""

from cpu_grpo.config.schema import Task
from cpu_grpo.tasks.card import data_card
from cpu_grpo.tasks.problems import Problem
from cpu_grpo.tasks.splits import Drawn


def words(problem: Problem) -> int:
    return len(problem.question.split())


def problem(id: str, question: str, answer: str, difficulty: int, split: str) -> Problem:
    return Problem(id, question, answer, difficulty, split)


DRAWN = Drawn(
    problems=[
        problem("a", "one two three", "-3.5", 2, "train"),
        problem("b", "one", "1,000", 1, "train"),
        problem("c", "one two three four five six", "1/2", 2, "train"),
        problem("d", "one two", "blue", 1, "validation"),
        problem("e", "one two three four", "7", 10, "test"),
        problem("f", "one two three four", "yes", 2, "test"),
    ],
    too_long=4,
    duplicates=2,
)


def test_card_by_hand():
    assert data_card(Task(name="mixed"), DRAWN, words) == {
        "task": "mixed",
        "answers": "number",
        "left_out": {"prompt_too_long": 4, "repeated_question": 2},
        "splits": {
            "train": {
                "problems": 3,
                "by_difficulty": {"1": 1, "2": 2},
                "numeric_answers": 3,
                "answer_min": -3.5,
                "answer_max": 1000.0,
                "prompt_tokens_min": 1,
                "prompt_tokens_median": 3,
                "prompt_tokens_max": 6,
            },
            "validation": {
                "problems": 1,
                "by_difficulty": {"1": 1},
                "numeric_answers": 0,
                "answer_min": "none",
                "answer_max": "none",
                "prompt_tokens_min": 2,
                "prompt_tokens_median": 2,
                "prompt_tokens_max": 2,
            },
            "test": {
                "problems": 2,
                "by_difficulty": {"2": 1, "10": 1},
                "numeric_answers": 1,
                "answer_min": 7.0,
                "answer_max": 7.0,
                "prompt_tokens_min": 4,
                "prompt_tokens_median": 4,
                "prompt_tokens_max": 4,
            },
        },
    }


def test_levels_are_listed_in_numeric_order():
    card = data_card(Task(), DRAWN, words)
    assert list(card["splits"]["test"]["by_difficulty"]) == ["2", "10"]
