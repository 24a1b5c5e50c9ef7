"""What others have published of a study's arms, and what so few problems could have shown."""

from cpu_grpo.config.study_schema import Published
from cpu_grpo.experiment.statistics import least_p_value, wilson
from cpu_grpo.report.tables import Cell
from cpu_grpo.report.text import NOTHING, interval_text, p_text, percent


def published_cell(published: Published, arm: str) -> Cell:
    """An arm's published accuracy, with the interval that it was published without."""
    right, n = published.right.get(arm), published.problems
    if right is None:
        return (NOTHING,)
    return (percent(right / n), interval_text(*wilson(right, n)), f"n = {n}")


def published_answer(published: Published, base: str) -> str:
    """The published models against the published base, by the most favourable pairing of their problems."""
    n, before = published.problems, published.right[base]
    others = {arm: right for arm, right in published.right.items() if arm != base}
    told = [f"{arm} {percent(right / n)}" for arm, right in others.items()]
    least = min(least_p_value(before, right) for right in others.values())
    could = (
        "it shows no difference, however the problems fell"
        if least > 0.05
        else "whether that is a difference depends on which problems they were"
    )
    return (
        f"Published, on {n} problems and without intervals: {base} {percent(before / n)}, {', '.join(told)}. Which "
        "problems each solved was not published; were it the most favourable ones, McNemar's exact test would give "
        f"{p_text(least)} at the least: {could}."
    )
