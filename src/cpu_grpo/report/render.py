"""The report: one page's content, written as HTML, as Markdown and as figures for machines."""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import jinja2

from cpu_grpo.config.compose import compose_study
from cpu_grpo.config.schema import Pipeline
from cpu_grpo.experiment.statistics import RESAMPLES
from cpu_grpo.files import write_json, write_text
from cpu_grpo.report.feasibility import feasibility
from cpu_grpo.report.findings import Example, Row, accuracy_figures, best, compare, examples, metrics
from cpu_grpo.report.plots import VALIDATION, Plot, accuracy_svg, reward_svg, spread_svg, throughput_svg, validation_svg
from cpu_grpo.report.provenance import provenance_table
from cpu_grpo.report.results import Results, read_results
from cpu_grpo.report.section import Section
from cpu_grpo.report.studies import sections
from cpu_grpo.report.summary import summary
from cpu_grpo.report.tables import (
    Table,
    card_table,
    difficulty_table,
    evaluation_plan_table,
    markdown,
    nowhere,
    plan_table,
    sampled_table,
    variants_table,
)
from cpu_grpo.report.text import SHOWN, markdown_block, markdown_inline
from cpu_grpo.text import visible

ACCURACY = ("accuracy", "low", "high", "gain", "gain_low", "gain_high")
PUBLISHED = "recipes"  # the study whose arms have figures of the published recipes
COSTS = ("updates", "completions_per_second", "tokens_per_second", "peak_rss_bytes", "cpu_use", "wall_seconds")


@dataclass(frozen=True)
class Page:
    """Everything that a reader sees, in order."""

    title: str
    summary: list[str]
    variants: Table
    difficulty: Table
    sampled: Table
    plan: Table
    evaluation_plan: Table
    plots: list[Plot]
    feasibility: Section
    studies: list[Section]
    examples: list[Example]
    examples_text: str
    card: Table
    method: list[str]
    provenance: Table


def write_report(root: Path, config: Pipeline, address: Callable[[str], str] = nowhere) -> list[Path]:
    """Writes reports/ below `root` from the results there. Returns the files.

    Args:
        address: of an MLflow run, by its id; empty where it is not known.
    """
    results = read_results(root, config)
    rows = compare(results, config)
    page = make_page(rows, results, config, sections(root, config.studies, address), address)
    reports = root / "reports"
    plots = [*page.plots, *(plot for study in page.studies for plot in study.plots)]
    texts = {f"plots/{plot.name}.svg": plot.svg for plot in plots}
    texts |= {"report.md": to_markdown(page), "report.html": to_html(page), "accuracy.csv": accuracy_csv(rows)}
    for name, text in texts.items():
        write_text(reports / name, text)
    write_json(reports / "metrics.json", metrics(rows))
    return [reports / name for name in (*texts, "metrics.json")]


def make_page(
    rows: list[Row], results: Results, config: Pipeline, studies: list[Section], address: Callable[[str], str]
) -> Page:
    """All of it, from what was read."""
    chosen, counts = examples(rows)
    return Page(
        title=f"GRPO on {config.task.name} with {config.model.name}",
        summary=[*summary(rows, results, config), _studies_text(studies)],
        variants=variants_table(rows),
        difficulty=difficulty_table(rows),
        sampled=sampled_table(rows),
        plan=plan_table(rows),
        evaluation_plan=evaluation_plan_table(rows),
        plots=_plots(rows, results),
        feasibility=feasibility(rows, compose_study(PUBLISHED, "full").study.published),
        studies=studies,
        examples=chosen,
        examples_text=_examples_text(rows, counts),
        card=card_table(results.card),
        method=_method(rows, config),
        provenance=provenance_table(rows, results, config, address),
    )


def _studies_text(studies: list[Section]) -> str:
    """Which of them there is something to read of."""
    run = ", ".join(study.name for study in studies if study.table.rows)
    not_run = ", ".join(study.name for study in studies if not study.table.rows)
    told = f"Studies with answers below: {run or 'none'}"
    return f"{told}; not run: {not_run}." if not_run else f"{told}."


def _plots(rows: list[Row], results: Results) -> list[Plot]:
    trainings = list(results.trainings.values())
    validated = [found for found in trainings if VALIDATION[0] in found.course]
    curves = [
        Plot(
            "validation",
            "Accuracy on validation problems as training went on, with 95 % intervals; no update learns from them.",
            validation_svg(validated),
        )
    ]
    return [
        Plot(
            "accuracy",
            "Accuracy on held-out problems, with 95 % intervals; dashed: the base model.",
            accuracy_svg(rows),
        ),
        Plot("throughput", "Throughput in training.", throughput_svg(rows)),
        Plot(
            "reward", "Mean reward of each update's completions; each recipe has its own scale.", reward_svg(trainings)
        ),
        Plot("spread", "Spread of rewards, and the share of groups that have none.", spread_svg(trainings)),
        *(curves if validated else []),
    ]


def _examples_text(rows: list[Row], counts: dict[str, int]) -> str:
    top = best(rows)
    if top is None:
        return "Not run: completions before and after training need the base model's and a trained model's results."
    numbers = ", ".join(f"{number} {kind}" for kind, number in counts.items())
    return (
        f"The base model against {top.name} on the same problems: {numbers}. "
        "Shown are some of each kind, spaced evenly through the file and not picked by hand."
    )


def _method(rows: list[Row], config: Pipeline) -> list[str]:
    evaluations = [row.evaluation for row in rows if row.evaluation]
    sentences = [
        "Intervals of accuracies are Wilson's at 95 %.",
        "A gain is the difference to the base model on the same problems; its interval is the percentile bootstrap "
        f"over problems ({RESAMPLES:,} resamples, seed {config.seed}), and p is McNemar's exact test, "
        "corrected by Holm for all models that are compared with the base.",
        "Each interval is that of one model alone: the best of several looks a little better than it is.",
    ]
    extractions = sorted({evaluation.extraction for evaluation in evaluations})
    if extractions:
        sentences.append(f"Accuracy and gain use {' and '.join(extractions)} extraction of the answer.")
    if evaluations and all(evaluation.split == "test" for evaluation in evaluations):
        sentences.append("The test split was read only for this comparison, never in training or in choosing recipes.")
    return sentences


def to_html(page: Page) -> str:
    """One file that needs no other: styles and plots are inside, and every text is escaped."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["visible"] = visible
    template = files("cpu_grpo.report").joinpath("template.html.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(page=page, shown=SHOWN)


def to_markdown(page: Page) -> str:
    parts = [f"# {markdown_inline(page.title)}", markdown_inline(" ".join(page.summary))]
    parts += ["## Variants", _table(page.variants), "## Accuracy by difficulty", _table(page.difficulty)]
    parts += ["## Sampled answers", _table(page.sampled)] if page.sampled.rows else []
    parts += ["## Plots"]
    parts += [_picture(plot) for plot in page.plots]
    parts += [part for study in (page.feasibility, *page.studies) for part in _study(study)]
    parts += ["## Completions before and after", markdown_inline(page.examples_text)]
    parts += [_example(example) for example in page.examples]
    plans = [_table(table) for table in (page.plan, page.evaluation_plan) if table.rows]
    parts += ["## Planned and measured", *plans] if plans else []
    parts += ["## Data", _table(page.card), "## Method", " ".join(page.method)]
    parts += ["## Provenance", _table(page.provenance)]
    return "\n\n".join(parts) + "\n"


def _picture(plot: Plot) -> str:
    return f"![{plot.caption}](plots/{plot.name}.svg)\n\n{plot.caption}"


def _study(study: Section) -> list[str]:
    answers = "\n".join(f"- {markdown_inline(answer)}" for answer in study.answers)
    parts = [f"## {markdown_inline(study.heading)}", answers]
    if study.table.rows:
        parts += [*(_picture(plot) for plot in study.plots), _table(study.table)]
    return [*parts, markdown_inline(study.method)]


def _table(table: Table) -> str:
    return f"{markdown_inline(table.caption)}\n\n{markdown(table)}" if table.rows else "Not run."


def _example(example: Example) -> str:
    parts = [f"### {example.kind.capitalize()}", markdown_block(example.before.question)]
    parts += [f"Right answer: {markdown_inline(example.before.answer)}"]
    for name, answer in (("Before", example.before), ("After", example.after)):
        parts += [f"{name} ({'right' if answer.right else 'wrong'}):", markdown_block(answer.completion)]
    return "\n\n".join(parts)


def accuracy_csv(rows: list[Row]) -> str:
    """A line for each evaluated model, with what its training cost; the base has no gain over itself."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, ("model", *ACCURACY, *COSTS), restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        if row.evaluation:
            costs = {name: getattr(row.training, name) for name in COSTS} if row.training else {}
            writer.writerow({"model": row.name, **accuracy_figures(row), **costs})
    return stream.getvalue()
