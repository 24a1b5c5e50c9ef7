"""A run's reward functions as TRL calls them: they ask the process of the reward code, and bear with its failures."""

from pathlib import Path
from types import TracebackType
from typing import Any

from cpu_grpo.config.schema import Rewards
from cpu_grpo.errors import UserError
from cpu_grpo.experiment.faults import NONE, Faults, Score
from cpu_grpo.experiment.progress import COLUMNS, FAULTS
from cpu_grpo.tasks.answers.grader import Grader
from cpu_grpo.tasks.reward_process import Fault, RewardProcess, scores
from cpu_grpo.tasks.rewards import COMPONENTS, RewardFunction, chosen, text_of

NEEDED = ("completions", "accepted")  # by our own components


class Rewarding:
    """The functions of a run, as a context that holds their process.

    Each call may take `seconds`. Where it fails as a whole, each completion is asked for alone, in an even share of
    four times the limit, so that a bad one spoils no other; `faults` has the rule for what fails even so.

    The user's functions get what TRL's do, by name: prompts and completions (texts, or messages where the model has a
    chat template), completion_ids, answer, accepted (the list of all answers that are right) and trainer_state (its
    numbers, such as global_step). `log_extra`, `log_metric` and environments stay behind, as they don't leave the
    training's process. DVC knows nothing of the functions' files: whoever uses one in the pipeline adds it to the
    `deps` of dvc.yaml's train stage.

    Attributes:
        weights: TRL's `reward_weights`, in the functions' order.
        faults: what they failed to give.
    """

    def __init__(self, rewards: Rewards, grader: Grader, record: Path) -> None:
        """`record`: the file for completions that a function fails on.

        Raises:
            UserError: a function has a name that means something else in the results.
        """
        chosen_weights = chosen(rewards)
        self.weights = list(chosen_weights.values())
        self.faults = Faults(record, rewards.faults)
        self._names = list(chosen_weights)
        self._seconds = rewards.seconds
        if rewards.closeness and grader.kind != "number":
            print(f"notice: rewards.closeness compares numbers, so with task.answer={grader.kind} it is 0 throughout.")
        self._process = RewardProcess(rewards.custom, grader)
        for place in rewards.custom:
            name = place.rpartition(":")[2]
            if name in COLUMNS:
                raise UserError(
                    f"rewards.custom={place}: a column of the results is called {name}, so a reward cannot be: rename "
                    "the function."
                )

    def __enter__(self) -> "Rewarding":
        """Raises UserError where a function cannot be loaded."""
        self._process.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.__exit__(kind, error, trace)

    @property
    def code(self) -> str:
        """Stands for the user's reward code; empty where there is none."""
        return self._process.code

    @property
    def functions(self) -> list[RewardFunction]:
        """TRL's `reward_funcs`."""
        return [self._function(name) for name in self._names]

    def _function(self, name: str) -> RewardFunction:
        custom = name not in COMPONENTS

        def function(
            completions: list[Any], trainer_state: Any = None, log_metric: Any = None, **others: Any
        ) -> list[float | None]:
            lists = {"completions": completions} | {k: v for k, v in others.items() if isinstance(v, list)}
            sent = lists if custom else {key: lists[key] for key in NEEDED}
            fixed = {"trainer_state": _plain(trainer_state)} if custom else {}
            found = self._scores(name, sent, fixed)
            count = sum(isinstance(score, Fault) for score in found)
            if log_metric and (custom or count):
                log_metric(FAULTS + name, count)
            self.faults.note(name, getattr(trainer_state, "global_step", 0) + 1, found, _texts(lists))
            return [_value(score) for score in found]

        function.__name__ = name  # TRL names the logged metric after the function
        return function

    def _scores(self, name: str, lists: dict[str, list[Any]], fixed: dict[str, Any]) -> list[Score]:
        """Of every completion: from one call, or from a call for each if that fails."""
        count = len(lists["completions"])

        def fails_together(reason: str) -> None:
            self.faults.say(
                f"the reward {name} fails on {count} completions together ({reason}) but on none alone, which takes "
                "longer: mend it, or raise rewards.seconds if it needs the time.",
                once=f"{name}, together",
            )

        return scores(self._process, name, lists, self._seconds, fixed, fails_together)


def _value(score: Score) -> float | None:
    """What TRL is told."""
    if isinstance(score, Fault):
        return None if score.kind == NONE else 0.0
    return score


def _plain(state: Any) -> dict[str, Any]:
    """A trainer's state without what only its own process has."""
    return {key: value for key, value in vars(state).items() if isinstance(value, int | float)} if state else {}


def _texts(lists: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """What tells each completion: itself, its prompt and the reference answer."""
    known = {"completion": [text_of(completion) for completion in lists["completions"]]}
    if prompts := lists.get("prompts"):
        known["prompt"] = [asked if isinstance(asked, str) else asked[-1]["content"] for asked in prompts]
    if answers := lists.get("answer"):
        known["answer"] = answers
    return [dict(zip(known, row, strict=True)) for row in zip(*known.values(), strict=True)]
