"""How much better a model gets at the problems that it was trained on than at others, by how many those were."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from cpu_grpo.config.study_schema import Study, StudyJob
from cpu_grpo.experiment.statistics import OverSeeds, over_seeds
from cpu_grpo.study.comparison import Difference, corrected
from cpu_grpo.study.outcomes import Outcome


@dataclass(frozen=True)
class Overfitting:
    """Of an arm over its seeds. `gap` is the gain over the base on its own training problems, less that on others.

    A difference of gains, as an arm's few training problems may be harder or easier than the test problems are.
    """

    arm: str
    problems: int
    train: list[float]  # accuracy of each seed, on the arm's own training problems
    test: list[float]
    gap: Difference


def trained_on(study: Study, arm: str) -> int:
    """How many of the training problems an arm's last stage uses; 0: all."""
    words = [word for keys in study.arms[arm][-1:] for word in shlex.split(keys)]
    return int(dict(word.split("=", 1) for word in words).get("problems", 0))


def overfitting(config: StudyJob, outcomes: Sequence[Outcome]) -> list[Overfitting]:
    """Of every arm that says how many problems it is trained on, the fewest first; only seeds that the base has."""
    base = {outcome.seed: outcome for outcome in outcomes if outcome.arm == "base"}
    own = {
        arm: [found for found in outcomes if found.arm == arm and found.seed in base]
        for arm in sorted(config.study.arms, key=lambda arm: trained_on(config.study, arm))
        if trained_on(config.study, arm)
    }
    own = {arm: found for arm, found in own.items() if found}
    gaps = corrected({arm: over_seeds([_gap(base[one.seed], one) for one in found]) for arm, found in own.items()})
    return [
        Overfitting(
            arm=arm,
            problems=trained_on(config.study, arm),
            train=[one.marks["train"].accuracy for one in found],
            test=[one.marks["test"].accuracy for one in found],
            gap=gaps[arm],
        )
        for arm, found in own.items()
    ]


def _gap(base: Outcome, other: Outcome) -> float:
    """The base is evaluated on all training problems, the arm on the first of them that it was trained on."""
    after = other.marks["train"]
    before = base.marks["train"].first(len(after.right))
    gain = other.marks["test"].accuracy - base.marks["test"].accuracy
    return after.accuracy - before.accuracy - gain


def untrained(outcomes: Sequence[Outcome]) -> OverSeeds | None:
    """The base's accuracy on test problems; None where it was not evaluated."""
    found = [outcome.marks["test"].accuracy for outcome in outcomes if outcome.arm == "base"]
    return over_seeds(found) if found else None
