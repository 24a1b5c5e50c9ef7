"""One variant's training: from a start model and problems to a trained model, its history and its figures."""

import csv
import io
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cpu_grpo.config.schema import Train
from cpu_grpo.engine.schemes.lean import Lean
from cpu_grpo.engine.schemes.lora import adapters, merged
from cpu_grpo.errors import UserError
from cpu_grpo.experiment.progress import UpdateLog
from cpu_grpo.experiment.tracking import Run
from cpu_grpo.files import new_directory, sha256, write_json, write_jsonl, write_text
from cpu_grpo.hardware import DTYPES, ResourceMonitor, Setup
from cpu_grpo.models.loading import RECORD, load_model, model_record
from cpu_grpo.plan.foresight import Foresight
from cpu_grpo.plan.memory import scheme_of
from cpu_grpo.tasks.problems import Problem, of_split
from cpu_grpo.tasks.prompts import prompt, prompt_ids
from cpu_grpo.tasks.rewards import reward_functions
from cpu_grpo.units import in_bytes
from cpu_grpo.workspace.layout import Layout


@dataclass
class Trained:
    """What a training run leaves behind, besides the model directory."""

    figures: dict[str, Any]
    history: list[dict[str, float]]
    samples: list[dict[str, Any]]


def train_variant(
    config: Train,
    hardware: Setup,
    start: Path,
    problems: list[Problem],
    target: Path,
    run: Run,
    plan: Foresight | None = None,
) -> Trained:
    """Trains `config`'s variant from the model in `start` and saves it to `target`, whole or not at all.

    What has been learnt when memory runs out is saved beside `target`, as `unfinished` names it.

    Args:
        plan: what the run is expected to take, to be recorded beside what it took.

    Raises:
        UserError: too few problems for one update, a start model that cannot be loaded, or no memory left.
    """
    from transformers import PrinterCallback, set_seed

    with ResourceMonitor() as monitor:
        run.tag("hardware", "\n".join(hardware.reasons))
        set_seed(config.seed)
        begin = time.perf_counter()
        model, tokenizer = load_model(start, DTYPES["fp32" if config.memory.scheme == "full" else "bf16"])
        load_seconds = time.perf_counter() - begin
        functions, weights = reward_functions(config.rewards)
        log = UpdateLog(run, monitor, config.tracking.samples_every)
        with new_directory(target) as directory:
            trainer = trainer_class(config, hardware)(
                model=model,
                reward_funcs=functions,
                args=grpo_config(config, hardware, weights, directory),
                train_dataset=training_set(config, problems, tokenizer),
                processing_class=tokenizer,
                callbacks=[log],
                **scheme(config, model),
            )
            trainer.remove_callback(PrinterCallback)
            log.watch(trainer)
            keep = partial(_keep, tokenizer, config, start, unfinished(target))
            if config.engine.name == "fast":
                trainer.shortage.alarm = partial(keep, trainer.accelerator.unwrap_model(trainer.model))
            begin = time.perf_counter()
            try:
                trainer.train()
            except MemoryError as error:
                keep(_whole(config, trainer))
                raise UserError(
                    f"Memory ran out in update {len(log.history) + 1} ({error}): what was learnt until then is in "
                    f"{unfinished(target)}; free some memory and go on from it with init_from={unfinished(target)}, or "
                    "ask `python -m cpu_grpo.plan` for a configuration that takes less."
                ) from error
            train_seconds = time.perf_counter() - begin
            save(_whole(config, trainer), tokenizer, directory, config, start)
    shutil.rmtree(unfinished(target), ignore_errors=True)
    figures = summarise(config, log.history, monitor, hardware, load_seconds, train_seconds)
    figures |= comparison(plan, log.history) if plan else {}
    return Trained(figures | {"mlflow_run_id": run.run_id}, log.history, log.samples)


def unfinished(target: Path) -> Path:
    """Where a run's weights are kept while memory is short."""
    return target.with_name(f"{target.name}-unfinished")


def _keep(tokenizer: Any, config: Train, start: Path, target: Path, model: Any) -> None:
    """Saves the weights as the last update left them; of a model with adapters, these alone."""
    with new_directory(target) as directory:
        save(model, tokenizer, directory, config, start)


def _whole(config: Train, trainer: Any) -> Any:
    """The trained model; adapters are added to it, so that nothing can be trained any more."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    return merged(model, config.seed) if config.memory.scheme == "lora" else model


def scheme(config: Train, model: Any) -> dict[str, Any]:
    """What the trainer is given for the memory scheme."""
    settings = config.trainer
    if config.memory.scheme == "lean":
        return {
            "optimizers": (Lean(model.parameters(), settings.learning_rate, settings.weight_decay, config.seed), None)
        }
    if config.memory.scheme == "lora":
        return {"peft_config": adapters(config.memory.lora_rank, config.memory.lora_alpha)}
    return {}


def trainer_class(config: Train, hardware: Setup) -> Callable[..., Any]:
    """What makes the trainer: stock TRL's, or ours with the engine's options."""
    engine = config.engine
    if engine.name == "trl":
        from trl import GRPOTrainer

        return GRPOTrainer
    from cpu_grpo.engine.trainer import CPUGRPOTrainer, FastOptions

    options = FastOptions(
        hardware.precision,
        engine.micro_batch_tokens,
        engine.rows,
        engine.importance_cap,
        scheme_of(config).shared,
        engine.share_prefixes,
        engine.skip_useless,
        in_bytes(config.memory.limit) or 0,
    )
    return partial(CPUGRPOTrainer, fast=options)


def chosen_problems(config: Train, problems: list[Problem]) -> list[Problem]:
    """The training problems that one pass of the variant takes."""
    chosen = [p for p in of_split(problems, "train") if not config.levels or p.difficulty in config.levels]
    chosen = chosen[: config.problems or None] * config.copies
    settings = config.trainer
    prompts = settings.per_device_train_batch_size * settings.gradient_accumulation_steps // settings.num_generations
    if len(chosen) < prompts:
        raise UserError(
            f"Variant {config.name} has {len(chosen)} training problems (levels {config.levels or 'all'}, problems "
            f"{config.problems or 'all'}, copies {config.copies}) and one update takes {prompts}: allow more problems, "
            "other levels or copies, or use smaller batches."
        )
    return chosen


def training_set(config: Train, problems: list[Problem], tokenizer: Any) -> Any:
    """The variant's problems as the data set that TRL takes: columns prompt and answer."""
    from datasets import Dataset

    rows = []
    for problem in chosen_problems(config, problems):
        text = prompt(problem, config.task, tokenizer)
        if config.keep_prompt_tokens:
            text = tokenizer.decode(prompt_ids(text, tokenizer)[-config.keep_prompt_tokens :])
        rows.append({"prompt": text, "answer": problem.answer})
    return Dataset.from_list(rows)


def grpo_config(config: Train, hardware: Setup, reward_weights: list[float], directory: Path) -> Any:
    """Our trainer settings as TRL's own config."""
    from trl import GRPOConfig

    settings = asdict(config.trainer)
    settings["min_p"] = settings["min_p"] or None
    settings["gradient_checkpointing"] |= config.memory.scheme != "full"
    return GRPOConfig(
        **settings,
        output_dir=str(directory),
        reward_weights=reward_weights,
        seed=config.seed,
        data_seed=config.seed,
        bf16=hardware.precision == "bf16",
        use_cpu=True,
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
    )


def save(model: Any, tokenizer: Any, directory: Path, config: Train, start: Path) -> None:
    """Weights, tokenizer and source.json."""
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    record = {
        "origin": f"variant {config.name} from {config.init_from}",
        "revision": model_record(start).get("revision", ""),
        "sha256": {path.name: sha256(path) for path in sorted(directory.iterdir()) if path.is_file()},
    }
    write_json(directory / RECORD, record)


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
    write_json(figures, trained.figures)
    columns = list(dict.fromkeys(key for row in trained.history for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(trained.history)
    write_text(history, text.getvalue())
    write_jsonl(samples, trained.samples)
    return [figures, history, samples]


def _usual(updates: list[Any]) -> list[Any]:
    """All but the first, which checks the engine and touches fresh memory, unless there is no other."""
    return updates[1:] or updates


def _mean(rows: list[dict[str, float]], key: str) -> float:
    return sum(row[key] for row in rows) / len(rows)
