"""A variant's configuration as TRL takes it: trainer class, settings, memory scheme and data set."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from cpu_grpo.config.redaction import redacted_values
from cpu_grpo.config.schema import Train
from cpu_grpo.engine.schemes.lean import Lean
from cpu_grpo.engine.schemes.lora import adapters
from cpu_grpo.errors import UserError
from cpu_grpo.hardware import Setup
from cpu_grpo.plan.memory import scheme_of
from cpu_grpo.plan.saving import KEPT
from cpu_grpo.tasks.problems import Problem, of_split
from cpu_grpo.tasks.prompts import prompt, prompt_ids
from cpu_grpo.units import in_bytes


def recipe(config: Train) -> dict[str, Any]:
    """What is told of how the variant was trained wherever its model goes: all but what is this machine's alone."""
    told = {key: value for key, value in asdict(config).items() if key not in ("tracking", "checkpoint", "evaluation")}
    asked = {key: value for key, value in told["task"].items() if key not in ("path", "examples") and value}
    found: dict[str, Any] = redacted_values(told | {"model": config.model.name, "task": asked})
    return found


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


def trainer_class(config: Train, hardware: Setup, problems: list[Problem], tokenizer: Any) -> Callable[..., Any]:
    """What makes the trainer: stock TRL's, or ours with the engine's options."""
    engine = config.engine
    if engine.name == "trl":
        from trl import GRPOTrainer

        return GRPOTrainer
    from cpu_grpo.engine.kernels.products import int8_available
    from cpu_grpo.engine.options import FastOptions
    from cpu_grpo.engine.rounding import NO_BYTES
    from cpu_grpo.engine.trainer import CPUGRPOTrainer

    for key in ("rollout", "learner"):
        if getattr(engine, key) == "int8" and not int8_available():
            raise UserError(f"engine.{key} is int8, {NO_BYTES}: use engine.{key}=auto.")
    options = FastOptions(
        hardware.precision,
        engine.micro_batch_tokens,
        engine.rows,
        engine.importance_cap,
        scheme_of(config).shared,
        engine.share_prefixes,
        engine.skip_useless,
        in_bytes(config.memory.limit) or 0,
        config.learn_from,
        config.learn_better,
        engine.rollout,
        engine.learner,
    )
    if config.method == "supervised":
        from cpu_grpo.experiment.supervised import SupervisedTrainer, solutions_of

        solutions = solutions_of(config, chosen_problems(config, problems), tokenizer)
        return partial(SupervisedTrainer, fast=options, solutions=solutions)
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
    """The variant's problems as the data set that TRL takes.

    Its columns are prompt, answer (the first, if several are right) and accepted (all of them).
    """
    from datasets import Dataset

    rows = []
    for problem in chosen_problems(config, problems):
        text = prompt(problem, config.task, tokenizer)
        if config.keep_prompt_tokens:
            text = tokenizer.decode(prompt_ids(text, tokenizer)[-config.keep_prompt_tokens :])
        rows.append({"prompt": text, "answer": problem.answer, "accepted": problem.accepted})
    return Dataset.from_list(rows)


def grpo_config(config: Train, hardware: Setup, reward_weights: list[float], directory: Path) -> Any:
    """Our trainer settings as TRL's own config."""
    from trl import GRPOConfig

    settings = asdict(config.trainer)
    settings["min_p"] = settings["min_p"] or None
    settings["gradient_checkpointing"] = scheme_of(config).recompute
    return GRPOConfig(
        **settings,
        output_dir=str(directory),
        reward_weights=reward_weights,
        seed=config.seed,
        data_seed=config.seed,
        bf16=hardware.precision == "bf16",
        use_cpu=True,
        dataloader_pin_memory=False,
        save_strategy="no",  # callbacks decide when
        save_total_limit=KEPT,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
    )
