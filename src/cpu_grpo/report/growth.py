"""The section of a study of costs: how time and memory grow, drawn with what was fitted."""

from math import isnan

from cpu_grpo.config.study_schema import StudyJob
from cpu_grpo.report.plots import Line, Plot, growth_svg
from cpu_grpo.report.section import Section, notices, sources
from cpu_grpo.report.tables import Cell, Table
from cpu_grpo.report.text import NOT_RUN, p_text
from cpu_grpo.study.growth import MEMORY, Growth, growth
from cpu_grpo.study.outcomes import Outcome

LINEAR = 0.05  # a line is contradicted where curvature as large has a smaller chance
WORDS = {"train_seconds": "seconds of training", "update_seconds": "seconds an update", MEMORY: "peak memory"}
SCALES = {MEMORY: (1e-9, "GB")}  # of a figure, and its unit; others are seconds


def growth_section(config: StudyJob, outcomes: list[Outcome]) -> Section:
    """Of a study whose arms lie on axes."""
    name = config.study.name
    found = [
        (label, figure, growth(axis, figure, outcomes))
        for label, axis in config.study.axes.items()
        for figure in (axis.figure, MEMORY)
    ]
    fitted = [(label, figure, own) for label, figure, own in found if own]
    return Section(
        name=name,
        question=config.study.question,
        answers=[*notices(config, outcomes), *(_answer(*own) for own in fitted if own[1] != MEMORY)],
        table=Table(
            "Every run is a point. The exponent b is that of cost ~ quantity^b; a line is contradicted where a "
            f"square term is significant (p < {LINEAR:g}).",
            ["Cost by quantity", "Exponent", "Slope", "At quantity 0, by the line", "Straight line"],
            [_row(label, figure, own) for label, figure, own in found],
        ),
        plots=[
            Plot(
                f"study-{name}-{figure.replace('_', '-')}-{number}",
                f"{WORDS[figure].capitalize()} by {label}: runs, and the fitted line.",
                growth_svg(_line(own, figure), label, f"{WORDS[figure]} ({_scale(figure)[1]})"),
            )
            for number, (label, figure, own) in enumerate(fitted)
        ],
        method=f"{config.study.method} Fits are least squares with Student's intervals. {sources(config, outcomes)}",
    )


def _scale(figure: str) -> tuple[float, str]:
    return SCALES.get(figure, (1, "s"))


def _line(found: Growth, figure: str) -> Line:
    scale, _ = _scale(figure)
    points = [(x, scale * y) for x, y in found.points]
    return Line(points, scale * found.intercept, scale * found.slope[0])


def _answer(label: str, figure: str, found: Growth) -> str:
    told = f"{WORDS[figure].capitalize()} grow as {label} to the power of {_between(*found.exponent)}"
    return f"{told}; {_linearity(found)}."


def _between(estimate: float, low: float, high: float, digits: int = 2) -> str:
    return f"{estimate:.{digits}f} (95 % interval {low:.{digits}f} to {high:.{digits}f})"


def _linearity(found: Growth) -> str:
    if isnan(found.p_curved):
        return "too few runs to test a straight line"
    verdict = "a straight line is contradicted" if found.p_curved < LINEAR else "a straight line is not contradicted"
    return f"{verdict} ({p_text(found.p_curved)})"


def _row(label: str, figure: str, found: Growth | None) -> list[Cell]:
    title: Cell = (f"{WORDS[figure]} by {label}",)
    if found is None:
        return [title, (NOT_RUN,), ("",), ("",), ("",)]
    scale, unit = _scale(figure)
    slope, low, high = (scale * value for value in found.slope)
    exponent, e_low, e_high = found.exponent
    return [
        title,
        (f"{exponent:.2f}", f"{e_low:.2f} to {e_high:.2f}"),
        (f"{slope:.3g} {unit}", f"{low:.3g} to {high:.3g}"),
        (f"{scale * found.intercept:.3g} {unit}",),
        (_linearity(found),),
    ]
