"""Bounds and cross-field rules, told so that the reader knows which key to change and to what."""

import dataclasses
from typing import Any, get_args, get_origin

from cpu_grpo.config.names import FORMS
from cpu_grpo.config.schema import Engine, Pipeline, Rewards, Task, Train, Trainer, Variant
from cpu_grpo.config.study_schema import StudyJob
from cpu_grpo.errors import UserError
from cpu_grpo.text import one_line, shown
from cpu_grpo.units import in_bytes

FILES_BY_KEY = ("variants", "study.arms")  # whose keys become names of files
LARGEST_WEIGHT = 1000  # of a reward function of the user's, in size


def check(config: Pipeline | Train | StudyJob) -> None:
    """Raises UserError for the first value that is out of bounds or contradicts another."""
    _check_fields(config, "")
    if isinstance(config, StudyJob):
        _check_study(config)
        return
    _check_task(config.task)
    if config.memory.limit and in_bytes(config.memory.limit) is None:
        raise UserError(f"memory.limit={config.memory.limit} is no amount of memory: write it as 4GiB or 3.5GB.")
    if config.engine.learner == "int8" and config.memory.scheme != "lora":
        raise UserError(
            f"engine.learner=int8 is for the frozen weights of memory.scheme=lora, and it is {config.memory.scheme}: "
            "use engine.learner=auto."
        )
    _check_validation(config)
    if isinstance(config, Pipeline):
        for name, variant in config.variants.items():
            _check_variant(variant, f"variants.{name}.", config.engine)
            _check_start(name, variant, config.variants)
            if variant.name not in ("", name):
                raise UserError(f"variants.{name}.name={variant.name} differs from its key: use {name} for both.")
        if not config.evaluation.models:
            raise UserError("evaluation.models is empty, so there is nothing to compare: name base or a variant.")
        known = {"base", *config.variants}
        unknown = [name for name in config.evaluation.models if name not in known and "/" not in name]
        if unknown:
            raise UserError(
                f"evaluation.models={unknown[0]} is neither base, a variant ({', '.join(sorted(config.variants))}) nor "
                "a directory: correct it, or name the directory with a slash."
            )
    else:
        _check_variant(config, "", config.engine)
        _require_names(("name", config.name))


def _check_fields(node: Any, prefix: str) -> None:
    for item in dataclasses.fields(node):
        value = getattr(node, item.name)
        key = prefix + item.name
        _check_kind(key, item.type, value)
        if dataclasses.is_dataclass(value):
            _check_fields(value, key + ".")
        elif isinstance(value, dict):
            for name, child in value.items():
                if key in FILES_BY_KEY:
                    _check_text(f"a key of {key}", name, "name")
                if dataclasses.is_dataclass(child):
                    _check_fields(child, f"{key}.{name}.")
        else:
            for place, single in enumerate(value if isinstance(value, list) else [value]):
                if dataclasses.is_dataclass(single):
                    _check_fields(single, f"{key}[{place}].")
                else:
                    _check_value(key, single, item.metadata)


def _check_kind(key: str, kind: Any, value: Any) -> None:
    """OmegaConf looks neither into lists of lists nor at what interpolations of lists and groups come to."""
    if kind is Any:  # a rule of its own looks at it
        return
    origin, inner = get_origin(kind), get_args(kind)
    wanted: Any = (int, float) if kind is float else origin or kind
    if not isinstance(value, wanted):
        told = one_line(str(value), 60)
        raise UserError(f"{key}={told} is of another kind than {(origin or kind).__name__}: correct it.")
    if origin is list:
        for own in value:
            _check_kind(key, inner[0], own)
    if origin is dict:
        for name, own in value.items():
            _check_kind(f"{key}.{name}", inner[1], own)


def _check_value(key: str, value: Any, metadata: Any) -> None:
    low, high, choices = metadata.get("low"), metadata.get("high"), metadata.get("choices")
    if isinstance(value, str) and (value or not metadata["may_be_empty"]):
        _check_text(key, value, metadata["form"])
    if choices and value not in choices:
        raise UserError(f"{key}={value} is not a choice: use {', '.join(choices)}.")
    if low is not None and not value >= low:
        raise UserError(f"{key}={value} is too small: use {low} or more ({metadata['help']}).")
    if high is not None and not value <= high:
        raise UserError(f"{key}={value} is too large: use {high} or less ({metadata['help']}).")


def _check_text(key: str, value: str, form: str) -> None:
    fits, rule = FORMS[form]
    if not fits(value):
        raise UserError(f"{key}={shown(value)} is no {form} that can be used here: use {rule}.")


def _require_names(*named: tuple[str, str]) -> None:
    """Where a file's name is made of it, it cannot be left empty."""
    for key, name in named:
        if not name:
            raise UserError(f"{key} is empty, and files are called after it: give it a name.")


def _check_study(config: StudyJob) -> None:
    study = config.study
    _require_names(("study.name", study.name), ("budget.name", config.budget.name), ("arm", config.arm))
    named = [("study.reference", study.reference), ("arm", config.arm)]
    if study.forgetting.level:
        named += [
            ("study.forgetting.before", study.forgetting.before),
            ("study.forgetting.after", study.forgetting.after),
        ]
    named += [("study.faster_by_name", arm) for names in study.faster_by_name for arm in names]
    named += [("a key of study.asks", arm) for arm in study.asks]
    for key, arm in named:
        if arm not in study.arms:
            known = ", ".join(study.arms)
            raise UserError(f"{key}={arm} is no arm of the study {study.name}: use one of {known}.")
    for arm, right in study.published.right.items():
        if not 0 <= right <= study.published.problems:
            raise UserError(
                f"study.published.right.{arm}={right} is not within the {study.published.problems} problems: "
                "correct it, or study.published.problems."
            )


def _check_validation(config: Pipeline | Train) -> None:
    settings = config.validation
    if settings.every and config.engine.name != "fast":
        raise UserError(f"validation.every={settings.every} needs the fast engine: use 0, or engine=fast.")
    if not settings.every and (settings.keep == "best" or settings.patience):
        key = f"keep={settings.keep}" if settings.keep == "best" else f"patience={settings.patience}"
        raise UserError(f"validation.{key} needs validations: set validation.every to the updates between two.")


def _check_task(task: Task) -> None:
    if task.kind == "jsonl" and task.path in ("", "???"):
        raise UserError("task.path is empty: name the JSONL file with your problems, task.path=FILE.")
    if task.template and "{question}" not in task.template:
        raise UserError(f"task.template={shown(task.template)} has no {{question}}: say where the question goes.")
    if not task.marks:
        raise UserError("task.marks is empty, so no answer could be found strictly: name one, such as ['####'].")
    for place, example in enumerate(task.examples):
        if not example.question.strip() or not example.answer.strip():
            raise UserError(f"task.examples[{place}] has an empty question or answer: fill it in or leave it out.")


def _check_variant(variant: Variant | Train, prefix: str, engine: Engine) -> None:
    trainer: Trainer = variant.trainer
    batch = trainer.per_device_train_batch_size * trainer.gradient_accumulation_steps
    if batch % trainer.num_generations:
        raise UserError(
            f"{prefix}trainer.num_generations={trainer.num_generations} does not divide the batch of {batch} "
            f"completions (per_device_train_batch_size {trainer.per_device_train_batch_size} x "
            f"gradient_accumulation_steps {trainer.gradient_accumulation_steps}): make it a multiple of the group size."
        )
    if trainer.max_steps == 0:
        raise UserError(f"{prefix}trainer.max_steps=0 trains nothing: use 1 or more, or -1 to count in epochs.")
    if variant.method == "supervised":
        if engine.name != "fast":
            raise UserError(f"{prefix}method=supervised needs the fast engine, and engine.name is {engine.name}.")
        if trainer.temperature != 1:
            raise UserError(
                f"{prefix}trainer.temperature={trainer.temperature} would flatten what method=supervised imitates: "
                "use 1.0."
            )
        if variant.keep_prompt_tokens:
            raise UserError(
                f"{prefix}keep_prompt_tokens={variant.keep_prompt_tokens} cuts prompts that method=supervised tells "
                "solutions by: use 0."
            )
    _check_custom(variant.rewards, f"{prefix}rewards.")
    if not any(variant.rewards.weights().values()):
        raise UserError(f"{prefix}rewards are all 0, so nothing can be learnt: give at least one a weight.")


def _check_custom(rewards: Rewards, prefix: str) -> None:
    names: list[str] = []
    for place in rewards.custom:
        module, _, name = str(place).rpartition(":")
        if not module or not name.isidentifier():
            raise UserError(
                f"{prefix}custom={place} names no function: write FILE.py:FUNCTION or package.module:FUNCTION."
            )
        if name in names:
            raise UserError(
                f"{prefix}custom has two functions named {name}, and rewards are logged by name: rename one of them."
            )
        names.append(name)
    weights = rewards.custom_weights
    for weight in weights:
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not abs(weight) <= LARGEST_WEIGHT:
            raise UserError(
                f"{prefix}custom_weights={weight} is no weight: use a number from -{LARGEST_WEIGHT} to "
                f"{LARGEST_WEIGHT}."
            )
    if weights and len(weights) != len(names):
        raise UserError(
            f"{prefix}custom has {len(names)} reward functions and {prefix}custom_weights {len(weights)} weights: give "
            "one weight for each function, or none for 1 each."
        )


def _check_start(name: str, variant: Variant, variants: dict[str, Variant]) -> None:
    seen = [name]
    start = variant.init_from
    while start != "base":
        if start not in variants:
            known = ", ".join(["base", *variants])
            raise UserError(
                f"variants.{seen[-1]}.init_from={start} is no variant of this pipeline: use one of {known}."
            )
        if start in seen:
            raise UserError(f"variants.{seen[-1]}.init_from={start} closes a circle: start {name} from base.")
        seen.append(start)
        start = variants[start].init_from
