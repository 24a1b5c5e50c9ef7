"""One measured figure beside its theoretical bound and its goal, and the table of all."""

from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

HEADER = ["row", "measure", "workload", "ours", "other", "bound", "result", "goal", "met"]
NOT_RUN = "not run"


@dataclass(frozen=True)
class Figure:
    """`ours`, `other` and `bound` are medians in `unit`; `value` is what the goal is about, in `value_unit`."""

    measure: str
    workload: str
    ours: float | None = None
    other: float | None = None  # the baseline's
    bound: float | None = None  # the theoretical floor of seconds, or ceiling of rates and shares, for ours
    unit: str = "s"
    value: float | None = None
    value_unit: str = "x"
    goal: float | None = None
    at_most: bool = False  # the goal is an upper limit
    missing: str = NOT_RUN  # what to say where there is no value
    note: str = ""

    @property
    def met(self) -> bool | None:
        if self.value is None or self.goal is None:
            return None
        return self.value <= self.goal if self.at_most else self.value >= self.goal

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"met": self.met}


def absolute(measure: str, workload: str, value: float | None, unit: str, **fields: Any) -> Figure:
    """A figure of ours whose goal is about the figure itself; `fields` are further ones of it."""
    return Figure(measure, workload, ours=value, unit=unit, value=value, value_unit=unit, **fields)


def ratio(ours: list[float], other: list[float], rates: bool = False) -> dict[str, float | None]:
    """The fields `ours`, `other` and `value` from samples; how many times as fast ours is. Seconds, unless `rates`."""
    mine, theirs = (median(samples) if samples else None for samples in (ours, other))
    if mine is None or theirs is None:
        return {"ours": mine, "other": theirs}
    return {"ours": mine, "other": theirs, "value": mine / theirs if rates else theirs / mine}


def table(rows: dict[str, list[Figure]]) -> str:
    """Markdown, columns aligned; notes below."""
    lines, notes = [HEADER], []
    for row, figures in rows.items():
        for figure in figures:
            lines.append([row, *_cells(figure)])
            if figure.note:
                notes.append(f"- {row}, {figure.measure}: {figure.note}")
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    lines.insert(1, ["-" * width for width in widths])
    padded = ("| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines)
    return "\n".join([*padded, "", *dict.fromkeys(notes)])


def _cells(figure: Figure) -> list[str]:
    sign = "<=" if figure.at_most else ">="
    goal = "" if figure.goal is None else f"{sign} {_number(figure.goal, figure.value_unit)}"
    result = figure.missing if figure.value is None else _number(figure.value, figure.value_unit)
    met = {None: "", True: "yes", False: "no"}[figure.met]
    measured = [_number(value, figure.unit) for value in (figure.ours, figure.other, figure.bound)]
    return [figure.measure, figure.workload, *measured, result, goal, met]


def _number(value: float | None, unit: str) -> str:
    """Three significant digits and the unit."""
    if value is None:
        return ""
    if unit == "%":
        return f"{100 * value:.1f} %"
    text = f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{text}x" if unit == "x" else f"{text} {unit}".strip()
