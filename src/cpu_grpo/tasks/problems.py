"""The problem: the one type that passes from data to training and evaluation."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cpu_grpo.errors import UserError
from cpu_grpo.files import read_jsonl, write_jsonl
from cpu_grpo.tasks.answers import is_number
from cpu_grpo.text import shown

SPLITS = ("train", "validation", "test")
LONGEST = 1000  # characters of an id, and of an answer
HARDEST = 1_000_000


@dataclass(frozen=True)
class Problem:
    """A question with its reference answer.

    `difficulty` is the task's level (1 = easiest); `split` is train, validation or test, or empty before splitting.
    """

    id: str
    question: str
    answer: str
    difficulty: int = 1
    split: str = ""

    def __post_init__(self) -> None:
        if not self.question.strip() or not self.answer.strip():
            raise UserError(f"Problem {self.id} has an empty question or answer: fill it in.")


def problem_from_row(row: dict[str, Any], where: str, default_id: str) -> Problem:
    """A problem from a JSON object; `where` (file and line) opens every complaint.

    Raises:
        UserError: a field is missing or of the wrong type.
    """
    for name in ("question", "answer"):
        if name not in row:
            raise UserError(f'{where} has no field "{name}": add it.')
    question, answer = row["question"], row["answer"]
    if not isinstance(question, str):
        raise UserError(f'{where}: "question" is not text: put it in quotes.')
    if not isinstance(answer, str | int | float) or isinstance(answer, bool):
        raise UserError(f'{where}: "answer" is neither text nor a number: mend it.')
    if str(answer).strip() and not is_number(str(answer)):
        raise UserError(
            f'{where}: "answer" is {shown(str(answer))}, and answers are compared as numbers: give a number.'
        )
    own_id = default_id if row.get("id") is None else row["id"]
    if not isinstance(own_id, str | int | float):
        raise UserError(f'{where}: "id" is neither text nor a number: mend it, or leave it out.')
    own_id = str(own_id)
    for name, text in (("id", own_id), ("answer", str(answer))):
        if len(text) > LONGEST:
            raise UserError(f'{where}: "{name}" has {len(text):,} characters: shorten it to {LONGEST}.')
    if any("\ud800" <= character <= "\udfff" for character in own_id + question + str(answer)):
        raise UserError(f"{where} holds half a character (a lone surrogate): mend that text.")
    difficulty = row.get("difficulty", 1)
    if not isinstance(difficulty, int) or isinstance(difficulty, bool) or not 1 <= difficulty <= HARDEST:
        raise UserError(f'{where}: "difficulty" is not a whole number from 1, the easiest, to {HARDEST}.')
    split = row.get("split", "")
    if split not in ("", *SPLITS):
        told = shown(split) if isinstance(split, str) else type(split).__name__
        raise UserError(f'{where}: "split" is {told}: use one of {", ".join(SPLITS)}, or leave it out.')
    try:
        return Problem(own_id, question, str(answer), difficulty, split)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def read_problems(path: Path) -> list[Problem]:
    return [Problem(**row) for row in read_jsonl(path)]


def write_problems(path: Path, problems: list[Problem]) -> None:
    write_jsonl(path, [asdict(problem) for problem in problems])


def of_split(problems: list[Problem], split: str) -> list[Problem]:
    return [problem for problem in problems if problem.split == split]
