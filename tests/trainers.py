"""Trainers of tiny models: what the tests of the drop-in share."""

from datasets import Dataset
from trl import GRPOConfig


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


def make(kind, model, tokenizer, directory, options=None, **changes):
    return kind(
        **(options or {}),
        model=model,
        reward_funcs=many_letters,
        args=settings(directory, **changes),
        train_dataset=questions(),
        processing_class=tokenizer,
    )
