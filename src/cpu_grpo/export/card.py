"""The model card: what a model is, how it was made, what it was measured to do, and under which licence it is.

Front matter: huggingface.co/docs/hub/model-cards. What is not known is said to be unknown.
"""

import json
from dataclasses import dataclass
from typing import Any

from cpu_grpo.export.results import Measured, measured
from cpu_grpo.export.source import Source
from cpu_grpo.files import flatten
from cpu_grpo.report.results import Evaluation
from cpu_grpo.report.tables import Cell, Table, markdown
from cpu_grpo.report.text import gain_text, interval_text, markdown_inline, percent
from cpu_grpo.units import duration, gigabytes

UNKNOWN = "unknown"
GENERATED = ("problems that the library reasoning-gym generates", "Apache-2.0, the generator's")
DATA = {  # by kind of task: what the problems are, and their licence
    "chain_sum": GENERATED,
    "gsm_symbolic": GENERATED,
    "gsm8k": ("GSM8K (Cobbe et al. 2021, github.com/openai/grade-school-math)", "MIT"),
    "jsonl": ("the user's own problems", UNKNOWN),
}
LIBRARY = {"gguf": "gguf", "ollama": "gguf", "safetensors": "transformers", "adapter": "peft"}
RELATION = {"gguf": "quantized", "ollama": "quantized", "safetensors": "finetune", "adapter": "adapter"}
USE = {
    "gguf": "```sh\nllama-cli -m {file}\n```",
    "ollama": "```sh\nollama create {name} -f Modelfile\nollama run {name}\n```",
    "safetensors": "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
    'model = AutoModelForCausalLM.from_pretrained(".")\ntokenizer = AutoTokenizer.from_pretrained(".")\n```',
    "adapter": "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
    'base = AutoModelForCausalLM.from_pretrained("{start}")\nmodel = PeftModel.from_pretrained(base, ".")\n```',
}


@dataclass(frozen=True)
class Contents:
    """What an export holds."""

    kind: str
    dtype: str
    file: str  # the GGUF file's name


def card(source: Source, contents: Contents) -> str:
    """README.md.

    Raises:
        UserError: a result file is damaged.
    """
    found = measured(source)
    parts = [
        f"---\n{_front_matter(source, contents, found)}\n---",
        f"# {markdown_inline(source.name)}",
        _what(source, contents),
        USE[contents.kind].format(file=contents.file, name=source.name, start=source.start),
        "## Results",
        *_results(source, found),
        "## Training",
        *_training(source, found),
        "## Data",
        _data(source),
        "## Licence",
        _licence(source),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(source: Source, contents: Contents, found: Measured) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    base = {"base_model": source.hub_base, "base_model_relation": RELATION[contents.kind]} if source.hub_base else {}
    own, kind = found.evaluation, _task(source).get("kind")
    results = own and [
        EvalResult(
            task_type="text-generation",
            dataset_type=str(kind or own.task or UNKNOWN),
            dataset_name=str(own.task or UNKNOWN),
            dataset_split=own.split,
            metric_type="accuracy",
            metric_name=f"accuracy of greedy answers, {own.extraction} extraction",
            metric_value=own.accuracy,
            metric_args={"n": own.n, "interval_95": [own.accuracy_low, own.accuracy_high]},
        )
    ]
    data = ModelCardData(
        license=source.base["license"].lower() or UNKNOWN,
        library_name=LIBRARY[contents.kind],
        pipeline_tag="text-generation",
        tags=["cpu-grpo", *(["grpo"] if source.trained and source.recipe.get("method", "grpo") == "grpo" else [])],
        datasets=["openai/gsm8k"] if kind == "gsm8k" else None,
        model_name=source.name,
        eval_results=results or None,
        **base,
    )
    return str(data.to_yaml())


def _what(source: Source, contents: Contents) -> str:
    made = {
        "gguf": f"A GGUF file in {contents.dtype}",
        "ollama": f"A GGUF file in {contents.dtype} with a Modelfile for Ollama",
        "safetensors": f"Weights in {contents.dtype} as safetensors",
        "adapter": f"LoRA adapters for {source.start}",
    }[contents.kind]
    origin = markdown_inline(source.base["origin"] or UNKNOWN)
    revision = markdown_inline(source.base["revision"] or UNKNOWN)
    how = (
        f"{markdown_inline(str(source.record.get('origin')))}, trained by cpu-grpo"
        if source.trained
        else "not trained by cpu-grpo"
    )
    return (
        f"{made}, exported by cpu-grpo: {how}. The model that everything began from: {origin} (revision {revision}). "
        f"SHA-256 of the weights it was exported from, shortened: {source.weights_hash}."
    )


def _results(source: Source, found: Measured) -> list[str]:
    if found.evaluation is None:
        why = "An evaluation under this name was of other weights" if found.others else "It was not evaluated"
        return [f"{why}, so nothing is known of how good it is."]
    rows = [_row(source.name, found.evaluation), *([_row("base", found.base)] if found.base else [])]
    table = Table("", ["model", "task", "split", "problems", "right", "95 % interval"], rows)
    gain = [f"Gain over the base model on the same problems: {gain_text(found.gain)}."] if found.gain else []
    return [
        markdown(table),
        *gain,
        "Greedy answers of the weights before export, which other number types change a little. Intervals are "
        "Wilson's; one training run is one run, and another seed gives another figure.",
    ]


def _row(name: str, found: Evaluation) -> list[Cell]:
    interval = interval_text(found.accuracy_low, found.accuracy_high)
    cells = (name, found.task or UNKNOWN, found.split, str(found.n), percent(found.accuracy), interval)
    return [(cell,) for cell in cells]


def _training(source: Source, found: Measured) -> list[str]:
    if not source.trained:
        return ["None: this is the base model as it came."]
    course, parts = found.training, []
    if course:
        figures = [
            ("updates", course.updates),
            ("completions", course.completions),
            ("tokens", course.tokens),
            ("reward, first third", course.reward_first and round(course.reward_first, 3)),
            ("reward, last third", course.reward_last and round(course.reward_last, 3)),
            ("wall time", course.wall_seconds and duration(course.wall_seconds)),
            ("peak memory", course.peak_rss_bytes and gigabytes(course.peak_rss_bytes)),
            ("threads", course.threads),
            ("precision", course.precision),
        ]
        rows = [[(name,), (str(value),)] for name, value in figures if value is not None]
        parts.append(markdown(Table("", ["what it came to", ""], [list(row) for row in rows])))
    else:
        parts.append("What the run came to is not known: its results are not beside the model.")
    if source.recipe:
        told = {key: value for key, value in source.recipe.items() if key not in ("task", "description")}
        lines = [[(key,), (_value(value),)] for key, value in flatten(told).items()]
        parts.append(markdown(Table("", ["recipe", ""], [list(line) for line in lines])))
    else:
        parts.append("The recipe was not kept with the model.")
    return parts


def _value(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _task(source: Source) -> dict[str, Any]:
    found = source.recipe.get("task")
    return found if isinstance(found, dict) else {}


def _data(source: Source) -> str:
    if not source.trained:
        return "No data of ours."
    task = _task(source)
    what, licence = DATA.get(str(task.get("kind")), (UNKNOWN, UNKNOWN))
    return (
        f"Training problems: {what}; task {markdown_inline(str(task.get('name') or UNKNOWN))}, seed "
        f"{source.recipe.get('seed', UNKNOWN)}. Licence of the data: {licence}. Train, validation and test problems "
        "share no question."
    )


def _licence(source: Source) -> str:
    licence = source.base["license"]
    if licence:
        return f"The base model's own files name {licence}, and what is made of it stays under that."
    return "The licence of the base model is unknown: its files name none. Look it up before you pass this model on."
