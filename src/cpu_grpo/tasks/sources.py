"""Where each kind of task gets its problems."""

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpu_grpo.config.schema import Task
from cpu_grpo.errors import UserError
from cpu_grpo.files import fingerprint, numbered_rows, read_jsonl
from cpu_grpo.tasks.judge import Judge, grader_of
from cpu_grpo.tasks.problems import Problem, problem_from_row

Rows = Iterator[tuple[str, int, str, dict[str, Any]]]  # split, place in it, where that is, and the row itself

REMEDY = {
    "number": "give a number, or say task.answer=text (or choice, math, regex)",
    "text": "write it in one line, with a letter or a digit",
    "choice": "give the option's letter, or say task.answer=text",
    "math": "write it as LaTeX, or say task.answer=text",
    "regex": "mend it",
}
CHUNK = 2000
CHAIN_SUM_LEVELS = {1: (2, 1), 2: (3, 1), 3: (2, 2), 4: (3, 2)}  # level -> reasoning-gym's (terms, digits)


@dataclass(frozen=True)
class Generator:
    """A task without end: `stream(seed, level)` yields problems, repeats and other levels among them."""

    levels: tuple[int, ...]
    stream: Callable[[int, int], Iterator[Problem]]


def chain_sum(seed: int, level: int) -> Iterator[Problem]:
    terms, digits = CHAIN_SUM_LEVELS[level]
    options = {"min_terms": terms, "max_terms": terms, "min_digits": digits, "max_digits": digits}
    for row in _reasoning_gym("chain_sum", seed, options):
        expression = row["metadata"]["expression"].replace(" ", "")
        yield Problem(f"chain_sum:{expression}", row["question"], row["answer"], level)


def gsm_symbolic(seed: int, level: int) -> Iterator[Problem]:
    """Word problems; their level is the number of equations in the worked solution."""
    for row in _reasoning_gym("gsm_symbolic", seed, {}):
        difficulty = solution_level(row["metadata"]["answer_cot"])
        yield Problem(f"gsm_symbolic:{fingerprint(row['question'])}", row["question"], row["answer"], difficulty)


GENERATORS = {
    "chain_sum": Generator(tuple(CHAIN_SUM_LEVELS), chain_sum),
    "gsm_symbolic": Generator((1, 2, 3), gsm_symbolic),
}


def solution_level(solution: str) -> int:
    """1 for a worked solution of up to two equations, 2 for three or four, 3 for more."""
    equations = len(re.findall(r"=\s*[$€]?-?\d", solution))
    return 1 if equations <= 2 else 2 if equations <= 4 else 3


def _reasoning_gym(name: str, seed: int, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    import reasoning_gym

    # reasoning-gym draws problem i from seed + i, so data sets that start CHUNK apart never overlap.
    for start in itertools.count(0, CHUNK):
        yield from reasoning_gym.create_dataset(name, seed=seed + start, size=CHUNK, **options)


def gsm8k(task: Task) -> list[Problem]:
    """GSM8K's train and test problems, from a local directory or the hub, marked `train` and `test`."""
    rows = _gsm8k_local(Path(task.path)) if task.path else _gsm8k_hub(task)
    problems = []
    for split, index, where, row in rows:
        for name in ("question", "answer"):
            if not isinstance(row.get(name), str):
                raise UserError(f'{where} has no text field "{name}": is this GSM8K?')
        solution, mark, answer = row["answer"].rpartition("####")
        if not mark:
            raise UserError(f"{where}: the answer has no #### before its number: is this GSM8K?")
        difficulty = max(1, solution.count("<<"))  # GSM8K marks each calculation <<a+b=c>>
        problems.append(
            Problem(
                f"gsm8k:{split}:{index}",
                row["question"].strip(),
                answer.strip(),
                difficulty,
                split,
                solution=re.sub(r"<<[^<>\n]*>>", "", solution).strip(),
            )
        )
    return problems


def published_place(problem: Problem) -> int:
    """A GSM8K test problem's place in the published order, in which evaluations take them; 0 for all others."""
    found = re.fullmatch(r"gsm8k:test:([0-9]{1,9})", problem.id)
    return int(found[1]) if found else 0


def _gsm8k_local(directory: Path) -> Rows:
    for split in ("train", "test"):
        path = directory / f"{split}.jsonl"
        for index, row in enumerate(read_jsonl(path)):
            yield split, index, f"{path}, problem {index + 1}", row


def _gsm8k_hub(task: Task) -> Rows:
    from datasets import load_dataset

    try:
        data = load_dataset(task.repo, "main", revision=task.revision)
    except Exception as error:  # datasets raises a dozen unrelated types for one cause: not to be had
        raise UserError(
            f"The data set {task.repo} at revision {task.revision} could not be loaded ({type(error).__name__}): check "
            "both and the connection, or use local files with task.path=DIRECTORY."
        ) from error
    for split in ("train", "test"):
        for index, row in enumerate(data[split]):
            yield split, index, f"{task.repo}, {split} problem {index + 1}", row


def jsonl(task: Task) -> list[Problem]:
    """A user's own problems, one JSON object a line.

    Raises:
        UserError: a line is none, or has an answer that the task's kind of answers can never match.
    """
    path = Path(task.path)
    with Judge(grader_of(task)) as judge:

        def flaw(reference: str) -> str:
            told = judge.flaw(reference)
            return f"and task.answer={task.answer}, but {told}: {REMEDY[task.answer]}" if told else ""

        return [
            problem_from_row(row, f"{path}, line {number}", f"{path.stem}:{number}", flaw)
            for number, row in numbered_rows(path)
        ]
