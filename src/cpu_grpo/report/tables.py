"""The report's tables, once for every format."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from cpu_grpo.experiment.statistics import POWER, wilson
from cpu_grpo.report.findings import Row
from cpu_grpo.report.results import Answer, Evaluation, Training
from cpu_grpo.report.text import (
    NOT_RUN,
    NOTHING,
    duration,
    gigabytes,
    interval_text,
    markdown_inline,
    number,
    p_text,
    percent,
    points,
    whole_percent,
)

IN_ADDRESSES = "/:?#[]@!$&'()*+,;=%~ "  # what an address may hold; brackets and ends of lines would end it


@dataclass(frozen=True)
class Link:
    """Words that lead somewhere; just words where `href` is empty."""

    text: str
    href: str


def nowhere(run: str) -> str:
    """The address of any MLflow run where none is known."""
    return ""


Cell = tuple[str | Link, ...]  # the lines of a cell; the first is the important one


@dataclass(frozen=True)
class Table:
    caption: str
    header: list[str]
    rows: list[list[Cell]]


def variants_table(rows: list[Row]) -> Table:
    """Every model with its accuracy, its gain over the base and what it cost."""
    header = ["Model", "Accuracy", "Strict", "Flexible", "Gain over base (points)", "McNemar", "Updates"]
    header += ["completions/s", "tokens/s", "Peak memory", "CPU use", "Load", "Wall time"]
    body: list[list[Cell]] = [[(row.name,), *_accuracy_cells(row), *_training_cells(row)] for row in rows]
    caption = (
        "Accuracy on held-out problems (95 % intervals) and the cost of training. Throughput, memory, CPU use (of the "
        "usable cores), load time and wall time are the training run's. McNemar's p is corrected for all that are "
        f"compared, the least is the gain that {100 * POWER:.0f} % power would have found after that."
    )
    return Table(caption, header, body)


def _accuracy_cells(row: Row) -> list[Cell]:
    found = row.evaluation
    if found is None:
        return [(NOT_RUN,), (NOTHING,), (NOTHING,), (NOTHING,), (NOTHING,)]
    cells: list[Cell] = [
        (percent(found.accuracy), interval_text(found.accuracy_low, found.accuracy_high), f"n = {found.n}"),
        (percent(found.strict_accuracy), interval_text(found.strict_low, found.strict_high)),
        (percent(found.flexible_accuracy), interval_text(found.flexible_low, found.flexible_high)),
    ]
    if row.gain is None or row.smallest is None or row.p_corrected is None:
        return [*cells, (NOTHING,), (NOTHING,)]
    interval = f"{points(row.gain.low)} to {points(row.gain.high)}"
    gain = (points(row.gain.difference), interval, f"least {100 * row.smallest:.1f}")
    return [*cells, gain, (p_text(row.p_corrected), f"{row.gain.gained} mended, {row.gain.lost} broken")]


def _training_cells(row: Row) -> list[Cell]:
    if row.training is None:
        return [(NOT_RUN if row.trainable else NOTHING,), *[(NOTHING,)] * 6]
    cells: list[Cell] = [(text,) for text in (number(row.training.updates, 0), *cost_texts(row.training))]
    return cells


def cost_texts(found: Training) -> list[str]:
    """completions/s, tokens/s, peak memory, CPU use, load time, wall time."""
    return [
        number(found.completions_per_second, 2),
        number(found.tokens_per_second),
        gigabytes(found.peak_rss_bytes),
        whole_percent(found.cpu_use),
        duration(found.load_seconds),
        duration(found.wall_seconds),
    ]


def plan_table(rows: list[Row]) -> Table:
    """What was told before each training run, beside what it took; nothing where nothing was told."""
    trainings = [row.training for row in rows if row.training and row.training.planned_peak_rss_bytes is not None]
    body: list[list[Cell]] = [
        [
            (found.variant,),
            (found.memory or NOTHING,),
            (gigabytes(found.planned_peak_rss_bytes),),
            *_expected(gigabytes, found.expected_peak_rss_bytes, found.peak_rss_bytes),
            (duration(found.planned_update_seconds),),
            *_expected(duration, found.expected_update_seconds, found.update_seconds),
        ]
        for found in trainings
    ]
    header = ["Model", "Memory scheme", "Peak memory, at most", "for what came", "measured", "off by"]
    header += ["An update, at most", "for what came", "measured", "off by"]
    caption = (
        "The plan of each training run, made from the model's sizes and from pieces of an update timed beforehand, "
        "beside what was measured: at most, as all completions may go to their limit, and for the lengths and the "
        "share with an advantage that came, which is what may be off. An update is the median one."
    )
    return Table(caption, header, body)


def evaluation_plan_table(rows: list[Row]) -> Table:
    """What was told before each evaluation, beside what it took; nothing where nothing was told."""
    evaluations = [row.evaluation for row in rows if row.evaluation and row.evaluation.planned_answer_seconds]
    body: list[list[Cell]] = [
        [
            (found.model,),
            *_expected(gigabytes, found.planned_peak_rss_bytes, found.peak_rss_bytes),
            (duration(found.planned_answer_seconds),),
            *_expected(duration, found.expected_answer_seconds, found.answer_seconds),
        ]
        for found in evaluations
    ]
    header = ["Evaluation of", "Peak memory, at most", "measured", "off by"]
    header += ["All answers, at most", "for what came", "measured", "off by"]
    caption = (
        "The plan of each evaluation, made from the model's sizes and from some of its own decoding steps, timed "
        "before the first answer, beside what was measured: at most, as all answers may go to their limit, and for "
        "the lengths that came."
    )
    return Table(caption, header, body)


def _expected(tell: Callable[[float | None], str], expected: float | None, measured: float | None) -> list[Cell]:
    """Expected, measured, and how far off that was."""
    off = f"{100 * (expected / measured - 1):+.0f} %" if expected and measured else NOTHING
    return [(tell(expected),), (tell(measured),), (off,)]


def difficulty_table(rows: list[Row]) -> Table:
    """Accuracy at each difficulty level that occurs."""
    evaluations = [row.evaluation for row in rows if row.evaluation]
    levels = sorted({answer.difficulty for evaluation in evaluations for answer in evaluation.answers})
    body: list[list[Cell]] = []
    for row in rows:
        cells = [_level_cell(row.evaluation, level) for level in levels] or [(NOT_RUN,)]
        body.append([(row.name,), *cells])
    header = ["Model", *(f"Level {level}" for level in levels)] if levels else ["Model", "Accuracy"]
    return Table("Accuracy by the problems' difficulty (1 = easiest), with 95 % intervals.", header, body)


def sampled_table(rows: list[Row]) -> Table:
    """Models that were sampled besides: share of right answers, and the chance that one of k is right."""
    evaluations = [row.evaluation for row in rows if row.evaluation and row.evaluation.samples]
    ks = sorted({k for evaluation in evaluations for k in evaluation.pass_at})
    body: list[list[Cell]] = []
    for found in evaluations:
        interval = interval_text(found.sampled_low or 0.0, found.sampled_high or 1.0)
        own = (percent(found.sampled_accuracy), interval, f"{found.n} problems, {found.samples} samples each")
        body.append([(found.model,), own, *((percent(found.pass_at.get(k)),) for k in ks)])
    caption = (
        "Sampled answers: the share that is right (95 % interval with errors clustered by problem), and pass@k, the "
        "chance that one of k is right, unbiased."
    )
    return Table(caption, ["Model", "Accuracy of samples", *(f"pass@{k}" for k in ks)], body)


def _level_cell(evaluation: Evaluation | None, level: int) -> Cell:
    if evaluation is None:
        return (NOT_RUN,)
    answers: list[Answer] = [answer for answer in evaluation.answers if answer.difficulty == level]
    if not answers:
        return (NOTHING,)
    right = sum(answer.right for answer in answers)
    return (percent(right / len(answers)), interval_text(*wilson(right, len(answers))), f"{right} of {len(answers)}")


def card_table(card: dict[str, Any]) -> Table:
    """The data card, a column a split."""
    splits: dict[str, dict[str, Any]] = card.get("splits", {})
    lines: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("Problems", lambda split: _plain(split.get("problems"))),
        ("By difficulty", lambda split: _levels(split.get("by_difficulty", {}))),
        ("With a numeric answer", lambda split: _plain(split.get("numeric_answers"))),
        ("Answers", lambda split: f"{_plain(split.get('answer_min'))} to {_plain(split.get('answer_max'))}"),
        ("Prompt tokens, least / median / most", _prompt_tokens),
    ]
    body: list[list[Cell]] = [[(name,), *((tell(split),) for split in splits.values())] for name, tell in lines]
    left_out = ", ".join(f"{value} {str(key).replace('_', ' ')}" for key, value in card.get("left_out", {}).items())
    caption = f"Task {card.get('task', NOTHING)}. Left out: {left_out or 'nothing'}."
    return Table(caption, ["", *splits], body if splits else [])


def _prompt_tokens(split: dict[str, Any]) -> str:
    return " / ".join(_plain(split.get(f"prompt_tokens_{which}")) for which in ("min", "median", "max"))


def _levels(counts: dict[str, Any]) -> str:
    return ", ".join(f"level {level}: {_plain(value)}" for level, value in counts.items()) or NOTHING


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}" if abs(value) < 1e6 else f"{value:.3g}"
    return NOTHING if value is None else str(value)


def markdown(table: Table) -> str:
    """A Markdown table with padded columns, which reads well as plain text too."""
    lines = [[markdown_inline(text) for text in table.header]]
    lines += [["; ".join(map(_markdown_line, cell)) for cell in row] for row in table.rows]
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(table.header))]
    padded = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([padded[0], rule, *padded[1:]])


def _markdown_line(line: str | Link) -> str:
    if isinstance(line, str):
        return markdown_inline(line)
    text = markdown_inline(line.text)
    return f"[{text}](<{quote(line.href, safe=IN_ADDRESSES)}>)" if line.href else text
