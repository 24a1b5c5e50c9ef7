"""Whether extracted answers are right: told at once or, where that may take for ever, by a process with a limit."""

from types import TracebackType
from typing import Any

from cpu_grpo.config.schema import Task
from cpu_grpo.tasks.answers.grader import SLOW, Grader
from cpu_grpo.tasks.reward_process import Fault, RewardProcess, scores
from cpu_grpo.tasks.rewards import READABLE, SAME

SECONDS = 10.0  # that all of a batch's comparisons, or a reference's reading, may take


def grader_of(task: Task) -> Grader:
    """What a task's answers are."""
    return Grader(task.answer, tuple(task.marks))


class Judge:
    """A task's grader, as a context that holds its process if it needs one. An answer whose comparison fails or takes
    too long is not right."""

    def __init__(self, grader: Grader) -> None:
        self.grader = grader
        self._process = RewardProcess([], grader) if grader.kind in SLOW else None

    def __enter__(self) -> "Judge":
        if self._process:
            self._process.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._process:
            self._process.__exit__(kind, error, trace)

    def right(self, found: list[str | None], accepted: list[list[str]]) -> list[bool]:
        """Of each extracted answer, whether it is one of those accepted there."""
        if self._process is None:
            return [self.grader.same(own, right) for own, right in zip(found, accepted, strict=True)]
        lists: dict[str, list[Any]] = {"completions": found, "accepted": accepted}
        return [not isinstance(score, Fault) and score == 1 for score in scores(self._process, SAME, lists, SECONDS)]

    def flaw(self, reference: str) -> str:
        """Why no answer can ever match a reference; empty where one can."""
        if self._process is None:
            return self.grader.flaw(reference)
        (score,) = scores(self._process, READABLE, {"completions": [reference]}, SECONDS)
        return "" if score == 1 else "that cannot be read"
