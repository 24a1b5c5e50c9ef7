"""A training run's figures: what it came to, what was expected of it, and the files that keep both."""

import csv
import io
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpu_grpo.config.schema import Train
from cpu_grpo.files import sha256, write_jsonl, write_sealed, write_text
from cpu_grpo.hardware import ResourceMonitor, Setup
from cpu_grpo.plan.foresight import Foresight
from cpu_grpo.workspace.layout import Layout


@dataclass
class Trained:
    """What a training run leaves behind, besides the model directory."""

    figures: dict[str, Any]
    history: list[dict[str, float]]
    samples: list[dict[str, Any]]


def summarise(
    config: Train,
    history: list[dict[str, float]],
    monitor: ResourceMonitor,
    hardware: Setup,
    load_seconds: float,
    train_seconds: float,
) -> dict[str, Any]:
    """A run's figures: the row of the variants table."""
    completions = sum(row["completions"] for row in history)
    tokens = sum(row["completions"] * row["completion_length"] for row in history)
    third = max(1, len(history) // 3)
    return {
        "variant": config.name,
        "description": config.description,
        "init_from": config.init_from,
        "updates": len(history),
        "completions": int(completions),
        "tokens": round(tokens),
        "wall_seconds": monitor.wall_seconds,
        "load_seconds": load_seconds,
        "train_seconds": train_seconds,
        "update_seconds": statistics.median(row["seconds"] for row in _usual(history)),
        "completions_per_second": completions / train_seconds,
        "tokens_per_second": tokens / train_seconds,
        "peak_rss_bytes": monitor.peak_rss,
        "cpu_use": monitor.cpu_use,
        # Single updates are noisy: the first and last third of the run tell more.
        "reward_first": _mean(history[:third], "reward"),
        "reward_last": _mean(history[-third:], "reward"),
        "no_spread_share": _mean(history, "no_spread_share"),
        "clipped_share": _mean(history, "clipped_share"),
        "grad_norm": _mean(history, "grad_norm"),
        "engine": config.engine.name,
        "memory": config.memory.scheme,
        "precision": hardware.precision,
        "threads": hardware.threads,
        "fp32_gflops": hardware.fp32_rate,
        "bf16_gflops": hardware.bf16_rate,
        "seed": config.seed,
    }


def comparison(plan: Foresight, history: list[dict[str, float]]) -> dict[str, float]:
    """What was expected, to be read beside what came: bytes, and seconds of an update.

    `planned_` is for completions that all go to their limit and have an advantage, as nothing else is known before a
    run; `expected_` for the lengths and advantages that came.
    """
    came = [plan.option.job.as_it_came(row["completion_length"], 1 - row["no_spread_share"]) for row in history]
    return {
        "planned_peak_rss_bytes": plan.option.peak.total,
        "expected_peak_rss_bytes": max(plan.peak_of(job).total for job in came),
        "planned_update_seconds": plan.seconds.update,
        "expected_update_seconds": statistics.median(plan.seconds_of(job).update for job in _usual(came)),
    }


def write_results(layout: Layout, trained: Trained) -> list[Path]:
    """Writes figures, history and samples; returns the files."""
    name = trained.figures["variant"]
    figures, history = layout.training / f"{name}.json", layout.training / f"{name}.csv"
    samples = layout.training / f"{name}.samples.jsonl"
    columns = list(dict.fromkeys(key for row in trained.history for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(trained.history)
    write_text(history, text.getvalue())
    write_jsonl(samples, trained.samples)
    write_sealed(figures, trained.figures | {"sha256.csv": sha256(history)})
    return [figures, history, samples]


def _usual(updates: list[Any]) -> list[Any]:
    """All but the first, which checks the engine and touches fresh memory, unless there is no other."""
    return updates[1:] or updates


def _mean(rows: list[dict[str, float]], key: str) -> float:
    return sum(row[key] for row in rows) / len(rows)
