"""What the results say: gains over the base model, the best model, examples, figures for machines."""

from dataclasses import dataclass, replace
from typing import Any

from cpu_grpo.config.schema import Pipeline
from cpu_grpo.experiment.statistics import Paired, holm, paired_difference
from cpu_grpo.report.results import Answer, Evaluation, Results, Training


@dataclass(frozen=True)
class Row:
    """One compared model; what was not run is None. `gain` is None too where the problems are not the base's.

    `p_corrected` is McNemar's p-value of the gain, corrected by Holm for all models that are compared with the base;
    `smallest` is the gain that would have been found among so many.
    """

    name: str
    evaluation: Evaluation | None
    training: Training | None
    gain: Paired | None
    trainable: bool
    p_corrected: float | None = None
    smallest: float | None = None


@dataclass(frozen=True)
class Example:
    """A problem before and after training."""

    kind: str
    before: Answer
    after: Answer


def compare(results: Results, config: Pipeline) -> list[Row]:
    """The base first, then the other models in the configuration's order, each paired with the base."""
    base = results.evaluations.get("base")
    names = ["base", *(name for name in config.evaluation.models if name != "base")]
    rows = []
    for name in names:
        evaluation = results.evaluations.get(name)
        gain = gain_over(base, evaluation, config.seed) if name != "base" else None
        rows.append(Row(name, evaluation, results.trainings.get(name), gain, name in config.variants))
    return _corrected(rows)


def _corrected(rows: list[Row]) -> list[Row]:
    """The rows with p-values, and gains that would have been found, which may be read together."""
    gains = {row.name: row.gain for row in rows if row.gain}
    p_values = dict(zip(gains, holm([gain.p_value for gain in gains.values()]), strict=True))
    return [
        replace(row, p_corrected=p_values[row.name], smallest=row.gain.smallest(len(gains))) if row.gain else row
        for row in rows
    ]


def gain_over(base: Evaluation | None, other: Evaluation | None, seed: int) -> Paired | None:
    """The other's gain, problem by problem; None where they were not both asked the same ones, by the same measure."""
    if base is None or other is None:
        return None
    before = {answer.id: answer.right for answer in base.answers}
    after = {answer.id: answer.right for answer in other.answers}
    same_measure = (base.split, base.extraction) == (other.split, other.extraction)
    if not before or before.keys() != after.keys() or not same_measure:
        return None
    return paired_difference(list(before.values()), [after[key] for key in before], seed=seed)


def best(rows: list[Row]) -> Row | None:
    """The model with the largest paired gain, be it negative."""
    gained = [(row.gain.difference, row) for row in rows if row.gain]
    return max(gained, key=lambda pair: pair[0])[1] if gained else None


def better(rows: list[Row]) -> list[Row]:
    """The models whose gain's whole interval is above zero."""
    return [row for row in rows if row.gain and row.gain.low > 0]


def surely_better(rows: list[Row]) -> list[Row]:
    """The models whose gain is more than chance after Holm's correction."""
    compared = [(row, row.gain, row.p_corrected) for row in rows]
    return [row for row, gain, p in compared if gain and p is not None and gain.difference > 0 and p < 0.05]


def worse(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.gain and row.gain.high < 0]


def examples(rows: list[Row], most: int = 10) -> tuple[list[Example], dict[str, int]]:
    """Up to `most` problems before and after the best model's training, and how many there are of each kind.

    A third of each kind where there are enough; spaced evenly through the file, so that nobody picked them.
    """
    base, top = rows[0].evaluation, best(rows)
    if base is None or top is None or top.evaluation is None:
        return [], {}
    after = {answer.id: answer for answer in top.evaluation.answers}
    kinds: dict[str, list[Example]] = {"mended": [], "broken": [], "unchanged": []}
    for answer in base.answers:
        kind = _kind(answer.right, after[answer.id].right)
        kinds[kind].append(Example(kind, answer, after[answer.id]))
    quota = dict.fromkeys(kinds, 0)
    while sum(quota.values()) < most and any(quota[kind] < len(kinds[kind]) for kind in kinds):
        for kind in kinds:
            if quota[kind] < len(kinds[kind]) and sum(quota.values()) < most:
                quota[kind] += 1
    chosen = [example for kind, found in kinds.items() for example in _spaced(found, quota[kind])]
    return chosen, {kind: len(found) for kind, found in kinds.items()}


def _kind(before: bool, after: bool) -> str:
    if before == after:
        return "unchanged"
    return "mended" if after else "broken"


def _spaced(found: list[Example], wanted: int) -> list[Example]:
    return [found[index * len(found) // wanted] for index in range(wanted)]


def metrics(rows: list[Row]) -> dict[str, Any]:
    """The figures for machines; a figure that was not measured is absent, not null."""
    found: dict[str, Any] = {}
    if rows[0].evaluation:
        found["base_accuracy"] = rows[0].evaluation.accuracy
    top = best(rows)
    if top and top.gain and top.evaluation:
        found |= {"best_model": top.name, "best_accuracy": top.evaluation.accuracy}
        found |= {f"best_{key}": value for key, value in _gain_figures(top.gain).items()}
    if any(row.gain for row in rows):
        found["significant_gains"] = len(better(rows))
    for row in rows:
        if row.evaluation:
            found[row.name] = accuracy_figures(row)
    return found


def accuracy_figures(row: Row) -> dict[str, float]:
    """A model's accuracy and, where it could be paired, its gain over the base."""
    if row.evaluation is None:
        return {}
    own = {
        "accuracy": row.evaluation.accuracy,
        "low": row.evaluation.accuracy_low,
        "high": row.evaluation.accuracy_high,
    }
    return own | (_gain_figures(row.gain) if row.gain else {})


def _gain_figures(gain: Paired) -> dict[str, float]:
    return {"gain": gain.difference, "gain_low": gain.low, "gain_high": gain.high}
