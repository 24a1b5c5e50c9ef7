"""Accuracy of a model on held-out problems, greedy and sampled, with intervals and a record of every problem."""

import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from cpu_grpo.config.schema import Hardware, Shared
from cpu_grpo.decoder import UnsupportedModel, decoder
from cpu_grpo.errors import UserError
from cpu_grpo.hardware import DTYPES, ResourceMonitor, setup
from cpu_grpo.models import load_model
from cpu_grpo.rollout import PackedDecoder, Request, Sampling, generate, packed
from cpu_grpo.statistics import clustered, pass_at_k, wilson
from cpu_grpo.tasks.answers import flexible, same, strict
from cpu_grpo.tasks.problems import Problem, of_split
from cpu_grpo.tasks.prompts import prompt, prompt_ids


@dataclass(frozen=True)
class Result:
    """One problem's outcome; `right` follows the task's headline extraction."""

    id: str
    difficulty: int
    question: str
    answer: str
    prompt: str
    completion: str
    strict: str | None
    flexible: str | None
    strict_right: bool
    flexible_right: bool
    right: bool
    tokens: int
    clipped: bool


def held_out(config: Shared, problems: list[Problem]) -> list[Problem]:
    """The problems that the evaluation asks for."""
    return of_split(problems, config.evaluation.split)[: config.evaluation.limit or None]


def evaluate_model(config: Shared, directory: Path, problems: list[Problem]) -> tuple[list[Result], dict[str, Any]]:
    """Every problem's result, and the figures: accuracies with 95 % intervals, throughput, memory."""
    with ResourceMonitor() as monitor:
        hardware = setup(Hardware())
        begin = time.perf_counter()
        model, tokenizer = load_model(directory, DTYPES[hardware.precision])
        load_seconds = time.perf_counter() - begin
        begin = time.perf_counter()
        results = answer_all(config, model, tokenizer, problems, hardware.precision)
        seconds = time.perf_counter() - begin
        sampled = sample_all(config, model, tokenizer, problems, hardware.precision)
    figures = accuracies(results, config.task.extraction) | sampled_accuracies(sampled)
    figures |= {
        "clipped_share": sum(result.clipped for result in results) / len(results),
        "completions_per_second": len(results) / seconds,
        "tokens_per_second": sum(result.tokens for result in results) / seconds,
        "peak_rss_bytes": monitor.peak_rss,
        "cpu_use": monitor.cpu_use,
        "load_seconds": load_seconds,
        "wall_seconds": monitor.wall_seconds,
        "engine": config.engine.name,
        "precision": hardware.precision,
        "threads": hardware.threads,
    }
    return results, figures


def accuracies(results: list[Result], extraction: str) -> dict[str, Any]:
    """Accuracy by each extraction with its Wilson interval; `accuracy` is the headline's."""
    n = len(results)
    figures: dict[str, Any] = {"extraction": extraction, "n": n}
    for name, right in (
        ("accuracy", [result.right for result in results]),
        ("strict", [result.strict_right for result in results]),
        ("flexible", [result.flexible_right for result in results]),
    ):
        interval = wilson(sum(right), n)
        key = name if name == "accuracy" else f"{name}_accuracy"
        figures |= {key: sum(right) / n, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return figures


def answer_all(config: Shared, model: Any, tokenizer: Any, problems: list[Problem], precision: str) -> list[Result]:
    """Greedy completions of all problems, marked; in the problems' order."""
    encoded = [prompt_ids(prompt(problem, config.task, tokenizer), tokenizer) for problem in problems]
    ends = end_tokens(model, tokenizer)
    limit, rows = config.task.max_completion_length, config.evaluation.batch_size
    with tqdm(total=len(problems), unit="completion", disable=not sys.stderr.isatty()) as bar:
        if config.engine.name == "fast" and (packed_model := pack(model, precision, rows)):
            requests = [Request(ids) for ids in encoded]
            groups = generate(packed_model, requests, Sampling(temperature=0), limit, ends, 0, rows, bar.update)
            completions = [completion.ids for (completion,) in groups]
        else:
            completions = plain_greedy(model, tokenizer, encoded, limit, rows, bar.update)
    return [
        mark(problem, tokenizer.decode(ids), completion, tokenizer, ends, config.task.extraction)
        for problem, ids, completion in zip(problems, encoded, completions, strict=True)
    ]


def sample_all(config: Shared, model: Any, tokenizer: Any, problems: list[Problem], precision: str) -> list[list[bool]]:
    """Of each problem, which of `evaluation.samples` sampled completions are right; empty where none are asked for.

    Raises:
        UserError: the fast engine, which alone samples here, is turned off or does not know the model.
    """
    settings = config.evaluation
    if not settings.samples:
        return []
    packed_model = pack(model, precision, settings.batch_size) if config.engine.name == "fast" else None
    if packed_model is None:
        raise UserError(f"evaluation.samples={settings.samples} needs the fast engine: use 0, or engine=fast.")
    encoded = [prompt_ids(prompt(problem, config.task, tokenizer), tokenizer) for problem in problems]
    requests = [Request(ids, settings.samples) for ids in encoded]
    sampling, limit = Sampling(settings.temperature), config.task.max_completion_length
    ends = end_tokens(model, tokenizer)
    with tqdm(total=len(problems) * settings.samples, unit="completion", disable=not sys.stderr.isatty()) as bar:
        groups = generate(packed_model, requests, sampling, limit, ends, config.seed, settings.batch_size, bar.update)
    return [
        [mark(problem, "", completion.ids, tokenizer, ends, config.task.extraction).right for completion in completions]
        for problem, completions in zip(problems, groups, strict=True)
    ]


def sampled_accuracies(sampled: list[list[bool]]) -> dict[str, Any]:
    """Share of right samples, its interval clustered by problem, and pass@k for k = 1, 2, 4, ... samples."""
    if not sampled:
        return {}
    samples = len(sampled[0])
    low, high = clustered(sampled) if len(sampled) > 1 else (0.0, 1.0)
    figures: dict[str, Any] = {
        "samples": samples,
        "sampled_accuracy": sum(map(sum, sampled)) / (len(sampled) * samples),
        "sampled_low": low,
        "sampled_high": high,
    }
    for k in (2**power for power in range(samples.bit_length())):
        figures[f"pass_at_{k}"] = sum(pass_at_k(samples, sum(own), k) for own in sampled) / len(sampled)
    return figures


def pack(model: Any, precision: str, rows: int) -> PackedDecoder | None:
    """The model for our rollout engine, or None with a warning if the engine does not know it."""
    try:
        return packed(decoder(model), precision, rows)
    except UnsupportedModel as error:
        warnings.warn(f"transformers generates instead of the fast engine: {error}.", stacklevel=2)
        return None


def plain_greedy(
    model: Any, tokenizer: Any, prompts: list[list[int]], limit: int, rows: int, finished: Callable[[int], None]
) -> list[list[int]]:
    """Greedy completions by transformers, `rows` at a time; prompts of like length together, so that few are padded."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    completions: dict[int, list[int]] = {}
    for start in range(0, len(order), rows):
        batch = order[start : start + rows]
        for index, ids in zip(batch, greedy(model, tokenizer, [prompts[i] for i in batch], limit), strict=True):
            completions[index] = ids
        finished(len(batch))
    return [completions[index] for index in range(len(prompts))]


@torch.inference_mode()
def greedy(model: Any, tokenizer: Any, prompts: list[list[int]], limit: int) -> list[list[int]]:
    """Greedy completions (token ids, the end token included) of prompts decoded together by transformers."""
    width = max(map(len, prompts))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])  # (B, P)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])  # (B, P)
    out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=limit, do_sample=False, pad_token_id=pad)
    ends = end_tokens(model, tokenizer)
    return [until_end(row, ends) for row in out[:, width:].tolist()]


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Every token that ends a completion, the model's and the tokenizer's."""
    declared = model.generation_config.eos_token_id
    declared = declared if isinstance(declared, list) else [declared]
    return {token for token in [*declared, tokenizer.eos_token_id] if token is not None}


def until_end(ids: list[int], ends: set[int]) -> list[int]:
    """The ids up to and with the first end token."""
    for place, token in enumerate(ids):
        if token in ends:
            return ids[: place + 1]
    return ids


def mark(
    problem: Problem, asked: str, completion_ids: list[int], tokenizer: Any, ends: set[int], extraction: str
) -> Result:
    """The result of one completion."""
    completion = tokenizer.decode(completion_ids, skip_special_tokens=True)
    found = {"strict": strict(completion), "flexible": flexible(completion)}
    right = {name: same(value, problem.answer) for name, value in found.items()}
    return Result(
        id=problem.id,
        difficulty=problem.difficulty,
        question=problem.question,
        answer=problem.answer,
        prompt=asked,
        completion=completion,
        strict=found["strict"],
        flexible=found["flexible"],
        strict_right=right["strict"],
        flexible_right=right["flexible"],
        right=right[extraction],
        tokens=len(completion_ids),
        clipped=not completion_ids or completion_ids[-1] not in ends,
    )


def rows(results: list[Result]) -> list[dict[str, Any]]:
    return [asdict(result) for result in results]
