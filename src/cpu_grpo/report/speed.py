"""The section of a study of speed: what each arm does in a second, as a multiple of the reference."""

from math import isnan
from statistics import mean

from cpu_grpo.config.study_schema import StudyJob
from cpu_grpo.experiment.statistics import OverSeeds
from cpu_grpo.report.plots import Place, Plot, places_svg
from cpu_grpo.report.section import Section, notices, sources
from cpu_grpo.report.tables import Cell, Table
from cpu_grpo.report.text import NOTHING, count, gigabytes, number, percent
from cpu_grpo.study.comparison import speeds
from cpu_grpo.study.outcomes import Outcome


def speed_section(config: StudyJob, outcomes: list[Outcome]) -> Section:
    """Of arms that differ in how they use the machine, and in nothing else."""
    found, reference = speeds(config, outcomes), config.study.reference
    name = config.study.name
    return Section(
        name=name,
        question=config.study.question,
        answers=[*notices(config, outcomes), *(_answer(arm, reference, own) for arm, own in found.items())],
        table=_table(config, outcomes, found),
        plots=[
            Plot(
                f"study-{name}",
                f"Completions/s as a multiple of {reference}'s, with 95 % intervals over runs.",
                places_svg(
                    [Place(arm, [], own.mean, own.low, own.high) for arm, own in found.items()], "times as fast"
                ),
            )
        ],
        method=f"{config.study.method} Ratios are of runs with the same seed, geometric means over them with Student's "
        f"interval of their logarithms. {sources(config, outcomes)}",
    )


def _answer(arm: str, reference: str, found: OverSeeds) -> str:
    told = f"{arm} is {found.mean:.2f} times as fast as {reference}"
    if isnan(found.low):
        return f"{told}, in one run."
    return f"{told} (95 % interval over {count(found.n, 'run')} {found.low:.2f} to {found.high:.2f})."


def _table(config: StudyJob, outcomes: list[Outcome], found: dict[str, OverSeeds]) -> Table:
    header = [
        "Arm",
        f"Times as fast as {config.study.reference}",
        "completions/s",
        "tokens/s",
        "CPU use",
        "Peak memory",
    ]
    body: list[list[Cell]] = []
    for arm in config.study.arms:
        figures = [outcome.figures for outcome in outcomes if outcome.arm == arm]
        if figures:
            means = {key: mean(own[key] for own in figures) for key in figures[0]}
            costs = [number(means["completions_per_second"], 2), number(means["tokens_per_second"])]
            costs += [percent(means["cpu_use"]), gigabytes(means["peak_rss_bytes"])]
            body.append([(arm,), _ratio(found.get(arm)), *((text,) for text in costs)])
    return Table("Means over runs; CPU use is of all cores, however few threads an arm has.", header, body)


def _ratio(found: OverSeeds | None) -> Cell:
    if found is None:
        return (NOTHING,)
    if isnan(found.low):
        return (f"{found.mean:.2f}", "one run")
    return (f"{found.mean:.2f}", f"{found.low:.2f} to {found.high:.2f}")
