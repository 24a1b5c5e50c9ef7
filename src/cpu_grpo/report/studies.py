"""A section for each study: its question, the answer that the outcomes allow, table, plot and method."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from math import isnan
from pathlib import Path

import numpy as np

from cpu_grpo.config.compose import compose_study, study_names
from cpu_grpo.config.study_schema import StudyJob
from cpu_grpo.experiment.statistics import POWER, OverSeeds
from cpu_grpo.report.growth import growth_section
from cpu_grpo.report.overfitting import learning_plots, overfitting_answers
from cpu_grpo.report.plots import Place, Plot, places_svg
from cpu_grpo.report.published import published_answer, published_cell
from cpu_grpo.report.search import search_section
from cpu_grpo.report.section import Section, notices, sources, sources_table
from cpu_grpo.report.speed import speed_section
from cpu_grpo.report.tables import Cell, Table, nowhere
from cpu_grpo.report.text import NOTHING, count, duration, gigabytes, number, p_text, percent, points, seen_text
from cpu_grpo.study.comparison import Arm, Difference, arms, forgotten, speed_ratios, typical_ratio
from cpu_grpo.study.outcomes import Outcome, read_outcomes
from cpu_grpo.study.overfitting import overfitting

STATISTICS = (
    "Intervals over seeds are Student's; each seed has training and test problems of its own, so that they hold the "
    "chance of problems, sampling and training together."
)
SAME = (
    "All arms and seeds answer the same test problems. Intervals hold the chance of these and of the seeds (crossed "
    "random effects, Satterthwaite's degrees of freedom); of one seed, that of problems alone."
)
BUDGETS = ("full", "quick")  # the first that has outcomes is shown


def sections(root: Path, results: str = StudyJob.results, address: Callable[[str], str] = nowhere) -> list[Section]:
    """Of every study in conf/study, run or not.

    Args:
        results: where outcomes are, below `root`.
        address: of an MLflow run, by its id; empty where it is not known.
    """
    return [section(root, name, results, address) for name in study_names()]


def section(
    root: Path,
    name: str,
    results: str = StudyJob.results,
    address: Callable[[str], str] = nowhere,
    budgets: tuple[str, ...] = BUDGETS,
) -> Section:
    """Of one study; arguments are those of `sections`.

    Args:
        budgets: whose outcomes may be shown, the most wanted first.
    """
    budget = next((own for own in budgets if (root / results / name / own).is_dir()), budgets[0])
    config = replace(compose_study(name, budget), results=results)
    if outcomes := read_outcomes(replace(config, results=str(root / results))):
        return replace(_kind(config)(config, outcomes), sources=sources_table(config, outcomes, address))
    how = f"Not run yet: `make study NAME={name} BUDGET=full` does."
    return Section(name, config.study.question, [how], Table("", [], []), [], config.study.method)


def _kind(config: StudyJob) -> Callable[[StudyJob, list[Outcome]], Section]:
    if config.study.search:
        return search_section
    if config.study.axes:
        return growth_section
    return comparison_section if config.study.splits else speed_section


def comparison_section(config: StudyJob, outcomes: list[Outcome]) -> Section:
    """Of arms that are compared over seeds."""
    found = arms(config, outcomes)
    return Section(
        name=config.study.name,
        question=config.study.question,
        answers=[
            *notices(config, outcomes),
            *_answers(config, found),
            *_forgotten(config, outcomes),
            *overfitting_answers(overfitting(config, outcomes)),
            *_false_names(config, outcomes),
            *([published_answer(config.study.published, "base")] if config.study.published.problems else []),
        ],
        table=_table(config, found),
        plots=[
            Plot(
                f"study-{config.study.name}",
                "Accuracy on test problems: small dots are seeds, large ones means with 95 % intervals over seeds.",
                places_svg([_place(arm, outcomes) for arm in found], "accuracy (% of held-out problems)"),
            ),
            *learning_plots(config, outcomes),
        ],
        method=f"{config.study.method} {_statistics(config)} {sources(config, outcomes)}",
    )


def _statistics(config: StudyJob) -> str:
    return SAME if config.study.same_problems else STATISTICS


def _answers(config: StudyJob, found: list[Arm]) -> list[str]:
    """Every arm against the reference, by each extraction where these stand beside each other."""
    reference, extractions = config.study.reference, config.study.extractions
    if not extractions:
        return [_answer(arm.name, arm.difference, reference) for arm in found if arm.difference and arm.name != "base"]
    return [
        _answer(f"{arm.name} ({extraction} extraction)", difference, reference)
        for arm in found
        for extraction, (_, difference) in arm.extracted.items()
        if difference
    ]


def _answer(arm: str, difference: Difference, reference: str) -> str:
    """One arm against the reference."""
    own = difference.over_seeds
    told = f"{arm} against {reference}: {points(own.mean)} points"
    if isnan(own.low):
        return f"{told} with one seed, which tells nothing of the next."
    told += f" (95 % interval over {count(own.n, 'seed')} {points(own.low)} to {points(own.high)}, "
    told += f"{p_text(difference.p_corrected)} after Holm's correction)"
    if difference.p_corrected < 0.05:
        return f"{told}: {'better' if own.mean > 0 else 'worse'}."
    return f"{told}: we could not tell; {seen_text(difference.smallest)}."


def _forgotten(config: StudyJob, outcomes: list[Outcome]) -> list[str]:
    """What the later stages did to what the first had taught, in a sentence where that was run."""
    asked, found = config.study.forgetting, forgotten(config, outcomes)
    if found is None:
        return []
    told = f"On level {asked.level} alone, {asked.after} against {asked.before}: {points(found.mean)} points"
    if isnan(found.low):
        return [f"{told} with one seed."]
    told += f" (95 % interval {points(found.low)} to {points(found.high)}, {p_text(found.p_value)})"
    if found.p_value < 0.05:
        return [f"{told}: the later stages made {'it forget' if found.mean < 0 else 'it better still'}."]
    return [f"{told}: we could not tell that it forgot; {seen_text(found.smallest())}."]


def _false_names(config: StudyJob, outcomes: list[Outcome]) -> list[str]:
    """Arms that were slower, every time, than the one that their name promises to beat."""
    said = []
    for slow, fast in (pair for names in config.study.faster_by_name for pair in pairwise(names)):
        ratios = speed_ratios(config, outcomes, fast, slow)
        if not ratios or max(ratios) >= 1:
            continue
        found = typical_ratio(ratios)
        told = f"{fast} makes {found.mean:.2f} times the completions/s of {slow}"
        if isnan(found.low):
            said.append(f"{told} with one seed, in spite of its name.")
            continue
        told += f" (95 % interval over {count(found.n, 'seed')} {found.low:.2f} to {found.high:.2f})"
        chance = "" if found.high < 1 else "; that it is more than chance could not be told"
        said.append(f"{told}: it was slower each time, in spite of its name{chance}.")
    return said


def _table(config: StudyJob, found: list[Arm]) -> Table:
    levels = sorted({level for arm in found for level in arm.levels})
    others = [split for split in config.study.splits if split != "test"]
    reference = config.study.reference
    published = config.study.published
    header = ["Arm"]
    for extraction in config.study.extractions:
        header += [f"{extraction.capitalize()} extraction", f"Against {reference}, {extraction} (points)"]
    header += [
        *(["Accuracy"] if not config.study.extractions else []),
        *([f"First {published.problems} problems"] if any(arm.first for arm in found) else []),
        *(["As published"] if published.problems else []),
        *(f"On {split} problems" for split in others),
    ]
    if not config.study.extractions:
        header += ["Gain over base (points)"] + ([f"Against {reference} (points)"] if reference != "base" else [])
    header += [f"Level {level}" for level in levels] if len(levels) > 1 else []
    header += ["Groups without spread", "Cut off", "Gradient norm", "completions/s", "Peak memory", "Wall time"]
    body = []
    for arm in found:
        row: list[Cell] = [(arm.name,)]
        for extraction in config.study.extractions:
            accuracy, difference = arm.extracted.get(extraction, (None, None))
            row += [_accuracy(accuracy) if accuracy else (NOTHING,), _difference(difference)]
        if not config.study.extractions:
            row += [(*_accuracy(arm.accuracy["test"]), f"{arm.problems} problems")]
        row += [_accuracy(arm.first)] if arm.first else []
        row += [published_cell(published, arm.name)] if published.problems else []
        row += [_accuracy(arm.accuracy[split]) for split in others]
        if not config.study.extractions:
            row += [_difference(arm.gain)] + ([_difference(arm.difference)] if reference != "base" else [])
        row += [_accuracy(arm.levels[level]) for level in levels] if len(levels) > 1 else []
        body.append(row + [(text,) for text in _costs(arm)])
    caption = (
        "Means over seeds with 95 % intervals over seeds. A difference is on the same problems, seed by seed; its p is "
        f"corrected for all that are compared, the least is what {100 * POWER:.0f} % power would have found after that."
    )
    return Table(caption, header, body)


def _accuracy(found: OverSeeds) -> Cell:
    runs = count(found.n, "seed")
    if isnan(found.low):
        return (percent(found.mean), runs)
    return (percent(found.mean), f"{100 * max(0, found.low):.1f} to {100 * min(1, found.high):.1f} %", runs)


def _difference(found: Difference | None) -> Cell:
    if found is None:
        return (NOTHING,)
    own = found.over_seeds
    if isnan(own.low):
        return (points(own.mean), "one seed")
    interval = f"{points(own.low)} to {points(own.high)}"
    return (points(own.mean), interval, f"{p_text(found.p_corrected)}, least {100 * found.smallest:.1f}")


def _costs(arm: Arm) -> list[str]:
    figures = arm.figures
    return [
        percent(figures.get("no_spread_share")),
        percent(figures.get("clipped_share")),
        number(figures.get("grad_norm"), 2),
        number(figures.get("completions_per_second"), 2),
        gigabytes(figures.get("peak_rss_bytes")),
        duration(figures.get("wall_seconds")),
    ]


def _place(arm: Arm, outcomes: list[Outcome]) -> Place:
    own = arm.accuracy["test"]
    single = [100 * outcome.marks["test"].accuracy for outcome in outcomes if outcome.arm == arm.name]
    low, high = (100 * float(np.clip(end, 0, 1)) for end in (own.low, own.high))  # NaN, of one seed, stays NaN
    return Place(arm.name, single, 100 * own.mean, low, high)
