"""The report's plots, as SVG text. Figures are made without pyplot, so that no global state is touched."""

import base64
import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cpu_grpo.report.findings import Row
from cpu_grpo.report.results import Training

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#6b6b6b"
VALIDATION = ("validation_accuracy", "validation_low", "validation_high")  # columns of a run's course
WIDTH = 6.6  # inches; narrow enough to stay legible on a phone


@dataclass(frozen=True)
class Plot:
    """A picture with what it says in words."""

    name: str
    caption: str
    svg: str

    @property
    def data_uri(self) -> str:
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg.encode()).decode()


@dataclass(frozen=True)
class Place:
    """Single runs of something, and their mean with its interval; NaN where there is none."""

    name: str
    single: list[float]
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """Means over a quantity, with their intervals' ends: those below, then those above; the means where none are."""

    name: str
    x: list[float]
    mean: list[float]
    ends: tuple[list[float], list[float]]


@dataclass(frozen=True)
class Line:
    """Points, and the straight line that was fitted to them."""

    points: list[tuple[float, float]]
    intercept: float
    slope: float


@dataclass(frozen=True)
class Panel:
    """One small plot of a column over the updates."""

    title: str
    label: str
    steps: list[float]
    values: list[float]
    colour: str
    bounds: tuple[float, float] | None = None
    reach: tuple[list[float], list[float]] | None = None  # of the intervals, below the values and above


def reward_svg(trainings: list[Training]) -> str:
    """Reward over the updates, a panel a variant: recipes differ in their rewards, so the scales are their own."""
    panels = [_panel(found, "reward", "mean reward (no unit)", BLUE) for found in trainings]
    return _small_multiples([panel for panel in panels if panel.values])


def spread_svg(trainings: list[Training]) -> str:
    """What GRPO can learn from: the spread of rewards within groups, and the share of groups that have none."""
    panels = []
    for found in trainings:
        panels.append(_panel(found, "reward_std", "std. of reward (no unit)", BLUE))
        panels.append(
            _panel(found, "no_spread_share", "groups without spread (%)", ORANGE, scale=100, bounds=(-4, 104))
        )
    return _small_multiples([panel for panel in panels if panel.values])


def validation_svg(trainings: list[Training]) -> str:
    """Accuracy on validation problems as training went on, with 95 % intervals."""
    return _small_multiples([_validation_panel(found) for found in trainings])


def _validation_panel(found: Training) -> Panel:
    course = found.course
    points = zip(*(course[name] for name in ("step", *VALIDATION)), strict=True)
    measured = [point for point in points if not math.isnan(point[1])]
    steps, values, low, high = ([float(number) for number in column] for column in zip(*measured, strict=True))
    reach = (
        [100 * (v - own) for v, own in zip(values, low, strict=True)],
        [100 * (own - v) for v, own in zip(values, high, strict=True)],
    )
    return Panel(found.variant, "accuracy (%)", steps, [100 * value for value in values], BLUE, (-4, 104), reach)


def accuracy_svg(rows: list[Row]) -> str:
    """A dot and its 95 % interval for each evaluated model; the dashed line is the base."""
    found = [(row.name, row.evaluation) for row in rows if row.evaluation]
    if not found:
        return _empty("no model was evaluated")
    figure = _figure(0.9 + 0.36 * len(found))
    axes = figure.subplots()
    for place, (name, evaluation) in enumerate(found):
        low, middle, high = (100 * v for v in (evaluation.accuracy_low, evaluation.accuracy, evaluation.accuracy_high))
        colour = GREY if name == "base" else BLUE
        errors = [[max(0.0, middle - low)], [max(0.0, high - middle)]]
        axes.errorbar(middle, place, xerr=errors, fmt="o", color=colour, capsize=3, markersize=6)
        if name == "base":
            axes.axvline(middle, color=GREY, linewidth=1, linestyle="--", zorder=0)
    _name_places(axes, [name for name, _ in found])
    axes.set_xlabel("accuracy (% of held-out problems), with 95 % interval")
    return _svg(figure)


def places_svg(places: list[Place], label: str) -> str:
    """A line for each: its runs as small dots, their mean and its interval."""
    if not places:
        return _empty("nothing was run")
    figure = _figure(0.9 + 0.4 * len(places))
    axes = figure.subplots()
    for height, place in enumerate(places):
        axes.plot(place.single, [height + 0.2] * len(place.single), "o", color=GREY, markersize=3, alpha=0.7)
        if not math.isnan(place.low):
            axes.plot([place.low, place.high], [height, height], color=BLUE, linewidth=1.5)
        axes.plot([place.mean], [height], "o", color=BLUE, markersize=6)
    _name_places(axes, [place.name for place in places])
    axes.set_ylabel("arm")
    axes.set_xlabel(label)
    return _svg(figure)


def curves_svg(curves: list[Curve], level: float | None, quantity: str, label: str) -> str:
    """A line for each curve, over a quantity that is doubled again and again; dashed: what there was without any."""
    if not curves:
        return _empty("nothing was run")
    figure = _figure(3.2)
    axes = figure.subplots()
    axes.set_xscale("log", base=2)
    for curve, colour, factor in zip(curves, (BLUE, ORANGE), (0.97, 1.03), strict=False):
        x = [factor * own for own in curve.x]  # a little apart, so that intervals do not hide each other
        low, high = ([abs(end - middle) for end, middle in zip(ends, curve.mean, strict=True)] for ends in curve.ends)
        axes.errorbar(
            x, curve.mean, yerr=[low, high], fmt="o-", color=colour, capsize=3, markersize=5, label=curve.name
        )
    if level is not None:
        axes.axhline(level, color=GREY, linewidth=1, linestyle="--", label="base, test problems")
    axes.set_xticks(curves[0].x, [f"{own:g}" for own in curves[0].x])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel(quantity)
    axes.set_ylabel(label)
    axes.legend(fontsize=8, frameon=False)
    return _svg(figure)


def shares_svg(shares: dict[str, float], label: str) -> str:
    """A bar for each share, the largest first."""
    if not shares:
        return _empty("too few trials")
    figure = _figure(0.9 + 0.36 * len(shares))
    axes = figure.subplots()
    ordered = sorted(shares, key=lambda name: -shares[name])
    _bars(axes, [100 * shares[name] for name in ordered], label, BLUE)
    _name_places(axes, ordered)
    axes.set_ylabel("key")
    return _svg(figure)


def trials_svg(points: dict[str, list[tuple[float, float]]], logarithmic: set[str], label: str) -> str:
    """A small plot a key: what a trial's value came to."""
    lines = math.ceil(len(points) / 2)
    figure = _figure(2.2 * lines)
    grid = figure.subplots(lines, 2, squeeze=False).flatten()
    for axes, (key, found) in zip(grid, points.items(), strict=False):
        axes.plot(*zip(*found, strict=True), "o", color=BLUE, markersize=4, alpha=0.8)
        axes.set_xscale("log" if key in logarithmic else "linear")
        axes.set_xlabel(_label(key), fontsize=7.5)
        axes.set_ylabel(label, fontsize=7.5)
    for axes in grid[len(points) :]:
        axes.set_visible(False)
    return _svg(figure)


def growth_svg(line: Line, quantity: str, label: str) -> str:
    """Points and their line, from zero on."""
    figure = _figure(2.8)
    axes = figure.subplots()
    most = max(x for x, _ in line.points)
    axes.plot([0, most], [line.intercept, line.intercept + most * line.slope], color=GREY, linewidth=1, linestyle="--")
    axes.plot(*zip(*line.points, strict=True), "o", color=BLUE, markersize=5, alpha=0.8)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"{quantity} (number)")
    axes.set_ylabel(label)
    return _svg(figure)


def throughput_svg(rows: list[Row]) -> str:
    """How fast each variant trained."""
    found = [(row.name, row.training) for row in rows if row.training]
    if not found:
        return _empty("no variant was trained")
    figure = _figure(0.9 + 0.36 * len(found))
    left, right = figure.subplots(1, 2, sharey=True)
    names = [name for name, _ in found]
    _bars(left, [training.completions_per_second for _, training in found], "completions/s in training", BLUE)
    _bars(right, [training.tokens_per_second for _, training in found], "tokens/s in training", ORANGE)
    _name_places(left, names)
    right.tick_params(labelleft=False)
    return _svg(figure)


def _panel(
    found: Training, column: str, label: str, colour: str, scale: float = 1, bounds: tuple[float, float] | None = None
) -> Panel:
    values = [scale * value for value in found.course.get(column, [])]
    if all(math.isnan(value) for value in values):
        values = []
    steps = found.course.get("step") or [float(index + 1) for index in range(len(values))]
    return Panel(found.variant, label, steps, values, colour, bounds)


def _small_multiples(panels: list[Panel]) -> str:
    if not panels:
        return _empty("no training was recorded")
    lines = math.ceil(len(panels) / 2)
    figure = _figure(2.2 * lines)
    grid = figure.subplots(lines, 2, squeeze=False).flatten()
    for axes, panel in zip(grid, panels, strict=False):
        _draw(axes, panel)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    return _svg(figure)


def _draw(axes: "Axes", panel: Panel) -> None:
    marker = "o" if len(panel.values) <= 40 else ""
    axes.plot(panel.steps, panel.values, color=panel.colour, linewidth=1.4, marker=marker, markersize=2.5)
    if panel.reach:
        axes.errorbar(panel.steps, panel.values, yerr=panel.reach, fmt="none", color=panel.colour, capsize=2)
    axes.set_title(_label(panel.title), fontsize=9, loc="left")
    axes.set_xlabel("update (optimizer steps)", fontsize=7.5)
    axes.set_ylabel(panel.label, fontsize=7.5)
    axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]  # matplotlib's default locator's
    if panel.bounds:
        axes.set_ylim(*panel.bounds)


def _bars(axes: "Axes", values: list[float | None], label: str, colour: str) -> None:
    drawn = axes.barh(range(len(values)), [value or 0.0 for value in values], color=colour, height=0.6)
    texts = [
        "not recorded" if value is None else f"{value:,.3g}" if value < 100 else f"{value:,.0f}" for value in values
    ]
    axes.bar_label(drawn, texts, padding=3, fontsize=8)
    axes.margins(x=0.22)
    axes.set_xlabel(label)


def _name_places(axes: "Axes", names: list[str]) -> None:
    axes.set_yticks(range(len(names)), [_label(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_ylabel("model")


def _label(text: str) -> str:
    """Matplotlib would read dollar signs as mathematics, and a long name would leave no room for the plot."""
    return (text if len(text) <= 28 else "…" + text[-27:]).replace("$", r"\$")


def _figure(height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, max(1.4, height)), layout="constrained")


def _empty(message: str) -> str:
    figure = _figure(1.4)
    figure.text(0.5, 0.5, f"not run: {message}", ha="center", va="center", color=GREY)
    return _svg(figure)


def _svg(figure: "Figure") -> str:
    """The same figure gives the same bytes: fixed ids and no date."""
    import matplotlib

    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8)
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "cpu_grpo"}):
        figure.savefig(stream, format="svg", facecolor="white", metadata={"Date": None})
    return stream.getvalue()
