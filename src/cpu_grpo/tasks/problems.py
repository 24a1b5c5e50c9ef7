"""The problem: the one type that passes from data to training and evaluation."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cpu_grpo.errors import UserError
from cpu_grpo.files import read_jsonl, write_jsonl
from cpu_grpo.text import shown

Message = dict[str, str]  # role and content
Flaw = Callable[[str], str]

SPLITS = ("train", "validation", "test")
LONGEST = 1000  # characters of an id, and of an answer
HARDEST = 1_000_000


@dataclass(frozen=True)
class Problem:
    """A question with its reference answer.

    Attributes:
        answer: the reference, or the first of several.
        difficulty: the task's level (1 = easiest).
        split: train, validation or test, or empty before splitting.
        also: further answers that are right.
        history: the turns of the conversation before the question.
        solution: how a teacher gets to the answer, without its mark; empty where nobody has written that.
    """

    id: str
    question: str
    answer: str
    difficulty: int = 1
    split: str = ""
    also: tuple[str, ...] = ()
    history: tuple[Message, ...] = ()
    solution: str = ""

    def __post_init__(self) -> None:
        if not self.question.strip() or not self.answer.strip():
            raise UserError(f"Problem {self.id} has an empty question or answer: fill it in.")

    @property
    def accepted(self) -> list[str]:
        """All answers that are right."""
        return [self.answer, *self.also]


def problem_from_row(row: dict[str, Any], where: str, default_id: str, flaw: Flaw) -> Problem:
    """A problem from a JSON object; `where` (file and line) opens every complaint.

    Args:
        flaw: why a reference answer can never be matched; empty where it can.

    Raises:
        UserError: a field is missing or of the wrong type, or no answer can be right.
    """
    question, history = _asked(row, where)
    answers = _answers(row, where, flaw)
    own_id = default_id if row.get("id") is None else row["id"]
    if not isinstance(own_id, str | int | float):
        raise UserError(f'{where}: "id" is neither text nor a number: mend it, or leave it out.')
    own_id = str(own_id)
    for name, text in (("id", own_id), *(("answer", answer) for answer in answers)):
        if len(text) > LONGEST:
            raise UserError(f'{where}: "{name}" has {len(text):,} characters: shorten it to {LONGEST}.')
    texts = [own_id, question, *answers, *(turn["content"] for turn in history), str(row.get("solution", ""))]
    if any("\ud800" <= character <= "\udfff" for text in texts for character in text):
        raise UserError(f"{where} holds half a character (a lone surrogate): mend that text.")
    difficulty = row.get("difficulty", 1)
    if not isinstance(difficulty, int) or isinstance(difficulty, bool) or not 1 <= difficulty <= HARDEST:
        raise UserError(f'{where}: "difficulty" is not a whole number from 1, the easiest, to {HARDEST}.')
    split = row.get("split", "")
    if split not in ("", *SPLITS):
        told = shown(split) if isinstance(split, str) else type(split).__name__
        raise UserError(f'{where}: "split" is {told}: use one of {", ".join(SPLITS)}, or leave it out.')
    solution = row.get("solution", "")
    if not isinstance(solution, str):
        raise UserError(f'{where}: "solution" is not text: put it in quotes, or leave it out.')
    try:
        return Problem(own_id, question, answers[0], difficulty, split, tuple(answers[1:]), history, solution)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _asked(row: dict[str, Any], where: str) -> tuple[str, tuple[Message, ...]]:
    """The question, and the turns before it."""
    if ("question" in row) == ("messages" in row):
        told = 'both "question" and' if "question" in row else 'neither "question" nor'
        raise UserError(f'{where} has {told} "messages": give one of them.')
    if "question" in row:
        if not isinstance(row["question"], str):
            raise UserError(f'{where}: "question" is not text: put it in quotes.')
        return row["question"], ()
    turns = row["messages"]
    if not isinstance(turns, list) or not turns or not all(_is_turn(turn) for turn in turns):
        raise UserError(f'{where}: "messages" is no list of {{"role": ..., "content": ...}}: mend it.')
    *history, last = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
    if last["role"] != "user" or any(turn["role"] == "system" for turn in history[1:]):
        raise UserError(
            f'{where}: "messages" ends in what the {last["role"]} says: let it end in what the user asks, and begin in '
            "what the system says, if anything."
        )
    return last["content"], tuple(history)


def _is_turn(turn: Any) -> bool:
    known = isinstance(turn, dict) and turn.get("role") in ("system", "user", "assistant")
    return known and isinstance(turn.get("content"), str)


def _answers(row: dict[str, Any], where: str, flaw: Flaw) -> list[str]:
    """The answers that are right, as text."""
    if "answer" not in row:
        raise UserError(f'{where} has no field "answer": add it.')
    given = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
    if not given or not all(isinstance(own, str | int | float) and not isinstance(own, bool) for own in given):
        raise UserError(f'{where}: "answer" is neither text nor a number, nor a list of them: mend it.')
    answers = [str(own) for own in given]
    for answer in answers:
        if answer.strip() and len(answer) <= LONGEST and (told := flaw(answer)):
            raise UserError(f'{where}: "answer" is {shown(answer)}, {told}.')
    return answers


def read_problems(path: Path) -> list[Problem]:
    return [
        Problem(**row | {"also": tuple(row.get("also", ())), "history": tuple(row.get("history", ()))})
        for row in read_jsonl(path)
    ]


def write_problems(path: Path, problems: list[Problem]) -> None:
    write_jsonl(path, [asdict(problem) for problem in problems])


def of_split(problems: list[Problem], split: str) -> list[Problem]:
    return [problem for problem in problems if problem.split == split]
