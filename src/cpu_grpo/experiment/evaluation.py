"""Accuracy of a model on held-out problems, greedy and sampled, with intervals and a record of every problem."""

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cpu_grpo.config.schema import Hardware, Shared, Task
from cpu_grpo.engine.prefix import common_prefix
from cpu_grpo.engine.rollout import Request, Sampling, generate
from cpu_grpo.engine.shape import of_directory, stored_bytes
from cpu_grpo.errors import UserError
from cpu_grpo.experiment.candidate import Candidate, candidate
from cpu_grpo.experiment.statistics import clustered, pass_at_k, wilson
from cpu_grpo.hardware import DTYPES, ResourceMonitor, setup
from cpu_grpo.models.loading import load_tokenizer, load_weights
from cpu_grpo.plan.answering import Work, plan_of, require_memory
from cpu_grpo.plan.choice import budget
from cpu_grpo.tasks.judge import Judge, grader_of
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
    """Every problem's result, and the figures: accuracies with 95 % intervals, throughput, memory, the plan.

    Raises:
        UserError: memory is too short, or samples are asked for that this model cannot give.
    """
    with ResourceMonitor() as monitor:
        hardware = setup(Hardware())
        dtype, fast = DTYPES[hardware.precision], config.engine.name == "fast"
        tokenizer = load_tokenizer(directory)
        prompts = encoded(config, tokenizer, problems)
        needs = foreseen_bytes(config, directory, prompts, dtype.itemsize) if fast else 0
        begin = time.perf_counter()
        model = load_weights(directory, dtype)
        answering = candidate(model, tokenizer, hardware.precision, config.evaluation.batch_size, fast)
        load_seconds = time.perf_counter() - begin
        plan = plan_of(answering.engine, prompts, works(config, prompts), needs) if answering.engine else None
        if plan:
            print(f"plan: {plan.told()}")
        begin = time.perf_counter()
        results = answer_all(config, answering, problems, prompts)
        seconds = time.perf_counter() - begin
        sampled = sample_all(config, answering, problems, prompts)
        answer_seconds = time.perf_counter() - begin
    figures = accuracies(results, config.task.extraction)
    figures |= sampled_accuracies([[result.right for result in own] for own in sampled])
    figures |= {
        "clipped_share": sum(result.clipped for result in results) / len(results),
        "completions_per_second": len(results) / seconds,
        "tokens_per_second": sum(result.tokens for result in results) / seconds,
        "answer_seconds": answer_seconds,
        "peak_rss_bytes": monitor.peak_rss,
        "cpu_use": monitor.cpu_use,
        "load_seconds": load_seconds,
        "wall_seconds": monitor.wall_seconds,
        "engine": config.engine.name,
        "precision": hardware.precision,
        "threads": hardware.threads,
    }
    return results, figures | (plan.compared(lengths([[result] for result in results], sampled)) if plan else {})


def lengths(*answered: list[list[Result]]) -> list[list[list[int]]]:
    """Tokens of the answers, by work, prompt and answer."""
    return [[[result.tokens for result in own] for own in results] for results in answered if results]


def encoded(config: Shared, tokenizer: Any, problems: list[Problem]) -> list[list[int]]:
    """The problems' prompts as token ids."""
    return [prompt_ids(prompt(problem, config.task, tokenizer), tokenizer) for problem in problems]


def works(config: Shared, prompts: list[list[int]]) -> list[Work]:
    """What there is to answer: all prompts greedily, and as many times again as samples are asked for."""
    tokens, shared = [len(ids) for ids in prompts], common_prefix(prompts)
    settings, limit = config.evaluation, config.task.max_completion_length
    counts = [1] + [settings.samples] * (settings.samples > 0)
    return [Work(tokens, shared, count, settings.batch_size, limit) for count in counts]


def foreseen_bytes(config: Shared, directory: Path, prompts: list[list[int]], compute: int) -> int:
    """Memory at most; 0 where it cannot be told.

    Raises:
        UserError: there is not as much.
    """
    shape = of_directory(directory)
    if shape is None:
        return 0
    stored, room = stored_bytes(directory), budget(config.memory.limit)
    return max(require_memory(shape, work, compute, stored, room) for work in works(config, prompts))


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


def answer_all(config: Shared, answering: Candidate, problems: list[Problem], prompts: list[list[int]]) -> list[Result]:
    """Greedy completions of all problems' prompts, marked; in the problems' order."""
    limit, rows = config.task.max_completion_length, config.evaluation.batch_size
    with tqdm(total=len(problems), unit="completion", disable=not sys.stderr.isatty()) as bar:
        completions = answering.greedy(prompts, limit, rows, bar.update)
    return mark_all(config.task, problems, [answering.tokenizer.decode(ids) for ids in prompts], completions, answering)


def sample_all(
    config: Shared, answering: Candidate, problems: list[Problem], prompts: list[list[int]]
) -> list[list[Result]]:
    """`evaluation.samples` sampled completions of each problem, marked; nothing where none are asked for.

    Raises:
        UserError: the fast engine, which alone samples here, is turned off or does not know the model.
    """
    settings, limit = config.evaluation, config.task.max_completion_length
    if not settings.samples:
        return []
    if answering.engine is None:
        raise UserError(f"evaluation.samples={settings.samples} needs the fast engine: use 0, or engine=fast.")
    requests = [Request(ids, settings.samples) for ids in prompts]
    sampling, rows = Sampling(settings.temperature), settings.batch_size
    with tqdm(total=len(problems) * settings.samples, unit="completion", disable=not sys.stderr.isatty()) as bar:
        groups = generate(answering.engine, requests, sampling, limit, answering.ends, config.seed, rows, bar.update)
    owners = [problem for problem, group in zip(problems, groups, strict=True) for _ in group]
    ids = [completion.ids for group in groups for completion in group]
    marked = iter(mark_all(config.task, owners, [""] * len(ids), ids, answering))
    return [[next(marked) for _ in group] for group in groups]


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


def mark_all(
    task: Task, problems: list[Problem], asked: list[str], completions: list[list[int]], answering: Candidate
) -> list[Result]:
    """The result of each completion, given as token ids, of the problem at its place."""
    texts = [answering.tokenizer.decode(ids, skip_special_tokens=True) for ids in completions]
    with Judge(grader_of(task)) as judge:
        accepted = [problem.accepted for problem in problems]
        strict = [judge.grader.strict(text) for text in texts]
        flexible = [judge.grader.flexible(text) for text in texts]
        strict_right, flexible_right = judge.right(strict, accepted), judge.right(flexible, accepted)
    return [
        Result(
            id=problem.id,
            difficulty=problem.difficulty,
            question=problem.question,
            answer=problem.answer,
            prompt=asked[place],
            completion=texts[place],
            strict=strict[place],
            flexible=flexible[place],
            strict_right=strict_right[place],
            flexible_right=flexible_right[place],
            right=(strict_right if task.extraction == "strict" else flexible_right)[place],
            tokens=len(ids),
            clipped=not ids or ids[-1] not in answering.ends,
        )
        for place, (problem, ids) in enumerate(zip(problems, completions, strict=True))
    ]


def rows(results: list[Result]) -> list[dict[str, Any]]:
    return [asdict(result) for result in results]
