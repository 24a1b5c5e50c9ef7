"""Whether GRPO is practical on this machine: what the trainings took, beside what was published of the same recipes."""

from collections.abc import Iterable, Mapping

from cpu_grpo.config.study_schema import Published
from cpu_grpo.report.findings import Row, surely_better
from cpu_grpo.report.results import Training
from cpu_grpo.report.section import Section
from cpu_grpo.report.tables import Cell, Table
from cpu_grpo.report.text import NOTHING, count, duration, gigabytes, number, whole_percent

HOUR = 3600


def feasibility(rows: list[Row], published: Published) -> Section:
    """Of the pipeline's trainings.

    Args:
        published: what was reported, by the names of the published arms: `published_` before the recipe's.
    """
    trained = [row for row in rows if row.training]
    trainings = [row.training for row in trained if row.training]
    return Section(
        name="feasibility",
        question="Is GRPO practical on this machine?",
        answers=[*_gains(trained), *_speed(trainings), *_memory(trainings), *_use(trainings, published)]
        if trained
        else ["Not run: no training has results."],
        table=_table(trainings, published),
        plots=[],
        method="Every figure is of one training run, from its first update to its last; wall time has loading and "
        f"saving besides. As published: {published.of}, by recipes of the same names whose values differ from ours.",
    )


def _gains(trained: list[Row]) -> list[str]:
    """How long it took to be sure of a gain."""
    compared, gained = [row for row in trained if row.gain], surely_better(trained)
    if not compared:
        return []
    told = (
        f"{len(gained)} of {count(len(compared), 'trained model')} gained by more than chance after Holm's correction"
    )
    trainings = {row.name: row.training for row in trained if row.training}
    seconds = {row.name: _with_those_before(row.name, trainings) for row in gained}
    if not seconds:
        return [f"{told}."]
    first = min(seconds, key=lambda name: seconds[name])
    return [f"{told}; {first} took the least time, {duration(seconds[first])} of training with what it starts from."]


def _with_those_before(name: str, trainings: Mapping[str, Training]) -> float:
    """Seconds of a model's training and of those that it goes on from."""
    own = trainings.get(name)
    return (own.wall_seconds or 0) + _with_those_before(own.init_from or "", trainings) if own else 0.0


def _speed(trainings: list[Training]) -> list[str]:
    known = [(own.completions_per_second, own.variant) for own in trainings if own.completions_per_second]
    if not known:
        return []
    slow, fast = (chosen(known, key=lambda pair: pair[0]) for chosen in (min, max))
    told = [f"{speed * HOUR:,.0f} completions by {variant}" for speed, variant in (slow, fast)]
    return [f"An hour is worth {told[0]}, the slowest, and {told[1]}, the fastest."]


def _memory(trainings: list[Training]) -> list[str]:
    most = max((own.peak_rss_bytes or 0 for own in trainings), default=0)
    return [f"Every training had room in {gigabytes(most)} of memory, its libraries included."] if most else []


def _use(trainings: list[Training], published: Published) -> list[str]:
    known = [own.cpu_use for own in trainings if own.cpu_use is not None]
    if not known:
        return []
    reported = f"; as published, {_range(published.cpu_use.values())}" if published.cpu_use else ""
    return [f"Training kept the cores busy {_range(known)} of the time{reported}."]


def _range(shares: Iterable[float]) -> str:
    found = sorted(shares)
    return f"{100 * found[0]:.0f} to {whole_percent(found[-1])}"


def _table(trainings: list[Training], published: Published) -> Table:
    header = ["Recipe", "completions/s", "as published", "An update", "Updates an hour", "Peak memory"]
    header += ["CPU use", "as published", "Wall time", "as published"]
    body: list[list[Cell]] = []
    for own in trainings:
        seconds = own.update_seconds
        texts = [
            number(own.completions_per_second, 2),
            number(_reported(published.completions_per_second, own), 3),
            duration(seconds),
            number(HOUR / seconds, 0) if seconds else NOTHING,
            gigabytes(own.peak_rss_bytes),
            whole_percent(own.cpu_use),
            whole_percent(_reported(published.cpu_use, own)),
            duration(own.wall_seconds),
            duration(_reported(published.wall_seconds, own)),
        ]
        body.append([(own.variant,), *((text,) for text in texts)])
    caption = "What each recipe takes here, and what was published of its namesake. An update is the median one."
    return Table(caption, header, body)


def _reported(values: Mapping[str, float], training: Training) -> float | None:
    return values.get(f"published_{training.variant}")
