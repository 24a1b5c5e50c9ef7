"""What a study says of arms with few training problems: from where on they learn those by heart."""

from math import isnan

from cpu_grpo.config.study_schema import StudyJob
from cpu_grpo.experiment.statistics import over_seeds
from cpu_grpo.report.plots import Curve, Plot, curves_svg
from cpu_grpo.report.text import count, p_text, points, seen_text
from cpu_grpo.study.outcomes import Outcome
from cpu_grpo.study.overfitting import Overfitting, overfitting, untrained


def overfitting_answers(found: list[Overfitting]) -> list[str]:
    """Up to which number of problems the gain on them is larger than on test problems, as far as seeds can tell."""
    tested = [own for own in found if not isnan(own.gap.over_seeds.low)]
    if not tested:
        return []
    by_heart = [own for own in tested if own.gap.p_corrected < 0.05 and own.gap.over_seeds.mean > 0]
    if by_heart:
        most = max(by_heart, key=lambda own: own.problems)
        return [f"Overfitting was found with up to {count(most.problems, 'training problem')}: {_gap(most)}."]
    largest = max(tested, key=lambda own: own.gap.over_seeds.mean)
    return [
        f"Where overfitting starts we could not tell; the largest sign of it is {largest.arm}'s: {_gap(largest)}; "
        f"{seen_text(largest.gap.smallest)}."
    ]


def _gap(found: Overfitting) -> str:
    own = found.gap.over_seeds
    return (
        f"there the gain on them was {points(own.mean)} points above that on test problems (95 % interval over "
        f"{count(own.n, 'seed')} {points(own.low)} to {points(own.high)}, {p_text(found.gap.p_corrected)} after Holm's "
        "correction)"
    )


def learning_plots(config: StudyJob, outcomes: list[Outcome]) -> list[Plot]:
    """Accuracy on training and on test problems, by how many training problems there were."""
    found = overfitting(config, outcomes)
    if not found:
        return []
    curves = [
        _curve("their own training problems", found, [own.train for own in found]),
        _curve("test problems", found, [own.test for own in found]),
    ]
    base = untrained(outcomes)
    label = "accuracy (% of problems)"
    return [
        Plot(
            f"study-{config.study.name}-learning",
            "Accuracy by the number of training problems: means with 95 % intervals over seeds.",
            curves_svg(curves, 100 * base.mean if base else None, "training problems (number)", label),
        )
    ]


def _curve(name: str, found: list[Overfitting], values: list[list[float]]) -> Curve:
    means = [over_seeds(own) for own in values]
    ends = [(own.mean, own.mean) if isnan(own.low) else (max(0.0, own.low), min(1.0, own.high)) for own in means]
    return Curve(
        name=name,
        x=[float(own.problems) for own in found],
        mean=[100 * own.mean for own in means],
        ends=([100 * low for low, _ in ends], [100 * high for _, high in ends]),
    )
