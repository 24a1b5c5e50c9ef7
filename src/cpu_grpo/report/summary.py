"""The report in a few plain sentences, each made from the numbers."""

from cpu_grpo.config.schema import Pipeline
from cpu_grpo.report.findings import Row, best, better, surely_better, worse
from cpu_grpo.report.results import Results
from cpu_grpo.report.text import count, duration, gain_text, gigabytes, interval_text, p_text, percent

HOPELESS = 0.1  # accuracy below which most groups have no right answer to learn from


def summary(rows: list[Row], results: Results, config: Pipeline) -> list[str]:
    """What was trained, what came of it, what is missing, what it cost."""
    sentences = [_what(rows, results, config), *_split_notice(rows), _base_sentence(rows), *_best_sentences(rows)]
    missing = [row.name for row in rows if row.evaluation is None]
    if missing:
        sentences.append(f"Not run: {', '.join(missing)}.")
    unpaired = [row.name for row in rows[1:] if row.evaluation and rows[0].evaluation and row.gain is None]
    if unpaired:
        sentences.append(f"Evaluated on other problems than the base, so not compared with it: {', '.join(unpaired)}.")
    return [*sentences, *_cost(rows)]


def _what(rows: list[Row], results: Results, config: Pipeline) -> str:
    trained = [row for row in rows if row.training]
    splits = results.card.get("splits", {})
    problems = splits.get("train", {}).get("problems")
    source = f"up to {problems} problems of {config.task.name}" if problems else config.task.name
    measured = next((row.evaluation for row in rows if row.evaluation), None)
    held_out = f"{measured.n} problems held out from training" if measured else "held-out problems, which was not run"
    return (
        f"{config.model.name} was trained with GRPO by {count(len(trained), 'recipe')} on {source}; "
        f"the comparison is on {held_out}."
    )


def _split_notice(rows: list[Row]) -> list[str]:
    splits = {row.evaluation.split for row in rows if row.evaluation} - {"test"}
    if not splits:
        return []
    return [f"These are problems of the {' and '.join(sorted(splits))} split, for choosing recipes: no final result."]


def _base_sentence(rows: list[Row]) -> str:
    base = rows[0].evaluation
    if base is None:
        return "The base model was not evaluated, so no gain can be told."
    interval = interval_text(base.accuracy_low, base.accuracy_high)
    told = f"Untrained, the model solves {percent(base.accuracy)} of them (95 % interval {interval})."
    if base.accuracy_high >= HOPELESS:
        return told
    return (
        f"{told} That is next to none, and GRPO learns from answers that are better than others: this task needs a "
        "more able model (for GSM8K, one of 500 million parameters or more)."
    )


def _best_sentences(rows: list[Row]) -> list[str]:
    top = best(rows)
    if top is None or top.gain is None or top.p_corrected is None or top.evaluation is None:
        return []
    told = f"{gain_text(top.gain)}, exact McNemar {p_text(top.p_corrected)} after Holm's correction"
    accuracy = percent(top.evaluation.accuracy)
    if top.gain.difference > 0:
        sentence = f"{top.name} gained most: {told}; it solves {accuracy}."
    else:
        sentence = f"No trained model gained; the nearest, {top.name}, differs by {told}, and solves {accuracy}."
    if top.gain.low <= 0 <= top.gain.high:
        sentence += " That interval includes zero, so chance alone may explain it."
    compared = [row for row in rows if row.gain]
    sentences = [
        sentence,
        f"{len(better(rows))} of {count(len(compared), 'trained model')} "
        f"{'has' if len(better(rows)) == 1 else 'have'} a gain whose interval excludes zero; "
        f"{len(surely_better(rows))} by more than chance after Holm's correction.",
    ]
    names = ", ".join(row.name for row in worse(rows))
    if names:
        sentences.append(f"Worse than the base, by an interval that excludes zero: {names}.")
    return sentences


def _cost(rows: list[Row]) -> list[str]:
    trainings = [row.training for row in rows if row.training]
    evaluations = [row.evaluation for row in rows if row.evaluation]
    sentences = []
    if trainings:
        made = sum(training.completions or 0 for training in trainings)
        wall = sum(training.wall_seconds or 0 for training in trainings)
        peak = max(training.peak_rss_bytes or 0 for training in trainings)
        text = f"Training took {duration(wall)} in all for {count(made, 'completion')}"
        sentences.append(f"{text}, with at most {gigabytes(peak)} of memory." if peak else f"{text}.")
    if evaluations:
        wall = sum(evaluation.wall_seconds or 0 for evaluation in evaluations)
        sentences.append(f"Evaluation took {duration(wall)} in all.")
    return sentences
