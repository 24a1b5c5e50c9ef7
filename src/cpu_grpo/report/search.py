"""The section of a study that looks for good values: what matters, and what the best trials had."""

from cpu_grpo.config.study_schema import StudyJob
from cpu_grpo.report.plots import Plot, shares_svg, trials_svg
from cpu_grpo.report.section import Section, notices, sources
from cpu_grpo.report.tables import Cell, Table
from cpu_grpo.report.text import duration, interval_text, percent
from cpu_grpo.study.outcomes import Outcome
from cpu_grpo.study.search import SPLIT, importances


def search_section(config: StudyJob, outcomes: list[Outcome]) -> Section:
    """Of a search's trials."""
    name, shares = config.study.name, importances(config.study, outcomes)
    points = {
        key: [(outcome.values[key], 100 * outcome.marks[SPLIT].accuracy) for outcome in outcomes]
        for key in config.study.search
    }
    logarithmic = {key for key, own in config.study.search.items() if own.log}
    return Section(
        name=name,
        question=config.study.question,
        answers=[*notices(config, outcomes), _best(outcomes), *_importance(shares)],
        table=_table(config, outcomes),
        plots=[
            Plot(
                f"study-{name}-importance",
                "How much of the accuracy's variance over trials each key explains.",
                shares_svg(shares, "share of the variance (%)"),
            ),
            Plot(
                f"study-{name}-trials",
                f"Every trial's accuracy on {SPLIT} problems by each of its values.",
                trials_svg(points, logarithmic, "accuracy (%)"),
            ),
        ],
        method=f"{config.study.method} Importances are functional ANOVA's. {sources(config, outcomes)}",
    )


def _best(outcomes: list[Outcome]) -> str:
    found = max(outcomes, key=lambda outcome: outcome.marks[SPLIT].accuracy)
    values = ", ".join(f"{key} {value:g}" for key, value in found.values.items())
    marks = found.marks[SPLIT]
    interval = interval_text(*marks.interval)
    return (
        f"The best of {len(outcomes)} trials had {values}: {percent(marks.accuracy)} ({interval} of {len(marks.right)} "
        f"{SPLIT} problems). The best of several looks better than it is, so it has to be run on problems of its own."
    )


def _importance(shares: dict[str, float]) -> list[str]:
    if not shares:
        return ["Too few trials tell what matters."]
    told = ", ".join(f"{key} {share:.0%}" for key, share in sorted(shares.items(), key=lambda item: -item[1]))
    return [f"Of the accuracy's variance over trials, as far as so few can tell: {told}."]


def _table(config: StudyJob, outcomes: list[Outcome]) -> Table:
    """The trials, the best first."""
    header = ["Trial", *config.study.search, f"Accuracy on {SPLIT} problems", "Groups without spread", "Wall time"]
    body: list[list[Cell]] = []
    for outcome in sorted(outcomes, key=lambda outcome: -outcome.marks[SPLIT].accuracy):
        marks = outcome.marks[SPLIT]
        values = [(f"{outcome.values[key]:.3g}",) for key in config.study.search]
        accuracy = (percent(marks.accuracy), interval_text(*marks.interval), f"n = {len(marks.right)}")
        costs = [(percent(outcome.figures["no_spread_share"]),), (duration(outcome.figures["wall_seconds"]),)]
        body.append([(str(outcome.seed),), *values, accuracy, *costs])
    return Table("Every trial, the best first, with 95 % intervals over problems.", header, body)
