"""What becomes of rewards that a function fails to give: counted, kept with their completions, told; too many stop it.

The rule: it is scored 0. Failures are an exception, a hang, the end of the process, NaN, infinity, what is no number,
and a list of another length. None is no failure, as in TRL: the reward does not apply to the completion, adds nothing
to its sum and is left out of the reward's mean. It is counted, kept and told as well, as it may be a mistake.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from cpu_grpo.errors import UserError
from cpu_grpo.experiment.tracking import warn
from cpu_grpo.tasks.reward_process import Fault

NONE = "none"  # the kind that is no failure
LATEST = 64  # completions that the share of failures is taken of, at least
KEPT = 100  # completions kept of each function and kind
TEXT = 10_000  # characters kept of each text
Score = float | Fault


class Faults:
    """Those of a run.

    Attributes:
        path: the file that they are kept in, a line of JSON each; there is none without faults.
    """

    def __init__(self, path: Path, allowed: float) -> None:
        """`allowed`: share of a function's latest completions that it may fail on."""
        self.path = path
        self._allowed = allowed
        self._latest: dict[str, list[Score]] = {}
        self._count: Counter[tuple[str, str]] = Counter()
        self._said: set[str] = set()

    def note(self, name: str, update: int, scores: list[Score], texts: list[dict[str, Any]]) -> None:
        """Counts, keeps and tells a function's faults in one update.

        Args:
            texts: for each completion, what is kept of it.

        Raises:
            UserError: there are too many by now.
        """
        for score, text in zip(scores, texts, strict=True):
            if isinstance(score, Fault):
                self._keep(name, update, score, text)
        size = max(LATEST, len(scores))
        latest = self._latest[name] = (self._latest.get(name, []) + scores)[-size:]
        failures = [score for score in latest if isinstance(score, Fault) and score.kind != NONE]
        if len(failures) > self._allowed * size:
            ((often, _),) = Counter(failure.kind for failure in failures).most_common(1)
            example = next(failure for failure in failures if failure.kind == often)
            raise UserError(
                f"The reward {name} failed on {len(failures)} of the latest {len(latest)} completions, mostly by "
                f"{often} ({example.message}), and rewards.faults allows {self._allowed:.0%} of {size}: mend it, or "
                f"allow more; the completions are in {self.path}."
            )

    def forget(self) -> None:
        """Removes what an earlier run of the same name has kept."""
        self.path.unlink(missing_ok=True)

    def say(self, sentence: str, once: str) -> None:
        """Warns, once for what `once` stands for."""
        if once not in self._said:
            self._said.add(once)
            warn(sentence)

    def _keep(self, name: str, update: int, fault: Fault, text: dict[str, Any]) -> None:
        meant = "as in TRL, it does not apply" if fault.kind == NONE else "it is scored 0"
        self.say(
            f"the reward {name} has no value for a completion ({fault.message}): {meant}; see {self.path}.",
            once=f"{name}, {fault.kind}",
        )
        self._count[name, fault.kind] += 1
        if self._count[name, fault.kind] > KEPT:
            return
        row = {"update": update, "function": name, "kind": fault.kind, "message": fault.message}
        row |= {key: value[:TEXT] if isinstance(value, str) else value for key, value in text.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8", newline="\n") as stream:
            stream.write(json.dumps(row) + "\n")
