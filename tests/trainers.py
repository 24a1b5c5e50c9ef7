"""Trainers of tiny models: what the tests of the drop-in share."""

from types import SimpleNamespace

import torch
from datasets import Dataset
from peft import LoraConfig
from trl import GRPOConfig

from cpu_grpo import FastOptions, Lean
from cpu_grpo.models.loading import load_model


def settings(directory, **changes):
    values = {
        "output_dir": str(directory),
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 6,
        "max_steps": 2,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "report_to": [],
        "logging_steps": 1,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }
    return GRPOConfig(**(values | changes))


def questions():
    return Dataset.from_list([{"prompt": f"{i} + {i} =", "answer": str(2 * i)} for i in range(8)])


def many_letters(completions, **columns):
    return [float(sum(character.isalpha() for character in completion)) for completion in completions]


def with_scheme(scheme, directory, **fast):
    """A model as a memory scheme holds it, and a trainer's options, `fast` among them, and settings for that."""
    model, _ = load_model(directory, torch.float32 if scheme == "full" else torch.bfloat16)
    options = {"fast": FastOptions("fp32", **fast)}
    if scheme == "lean":
        options["optimizers"] = (Lean(model.parameters(), 1e-3, seed=1), None)
    if scheme == "lora":
        options["peft_config"] = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    return model, options, {} if scheme == "full" else {"gradient_checkpointing": True}


def untracked(metrics=lambda *_: None):
    """In place of a tracking run: it records nothing, but metrics where asked."""
    nothing = {name: lambda *_: None for name in ("tag", "table", "artifact")}
    return SimpleNamespace(run_id="none", last_step=0, metrics=metrics, **nothing)


def make(kind, model, tokenizer, directory, options=None, **changes):
    return kind(
        **(options or {}),
        model=model,
        reward_funcs=many_letters,
        args=settings(directory, **changes),
        train_dataset=questions(),
        processing_class=tokenizer,
    )
