"""Does the cost of an update grow in proportion to its work? A least-squares line, how well it fits, and a plot."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cpu_grpo.report.plots import BLUE, ORANGE


@dataclass(frozen=True)
class Line:
    """seconds = intercept + slope * tokens; `r_squared` is the share of the variance that it explains."""

    intercept: float
    slope: float
    r_squared: float


def fit(tokens: list[float], seconds: list[float]) -> Line:
    """The least-squares line through points that are not all alike."""
    x, y = np.array(tokens), np.array(seconds)
    slope, intercept = np.polyfit(x, y, 1)
    unexplained = ((y - intercept - slope * x) ** 2).sum()
    return Line(float(intercept), float(slope), float(1 - unexplained / ((y - y.mean()) ** 2).sum()))


def plot(path: Path, samples: dict[int, list[float]], line: Line, title: str) -> None:
    """Every sample (tokens an update -> seconds) and the line, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for tokens, seconds in samples.items():
        axes.plot([tokens] * len(seconds), seconds, "o", color=BLUE)
    ends = np.array([0, max(samples)])
    label = f"{line.intercept:.2f} s + {1000 * line.slope:.2f} s per 1000 tokens, R$^2$ = {line.r_squared:.4f}"
    axes.plot(ends, line.intercept + line.slope * ends, color=ORANGE, label=label)
    axes.set(xlabel="completion tokens an update", ylabel="seconds an update", title=title)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial.png")
    figure.savefig(partial, dpi=150)
    partial.replace(path)
