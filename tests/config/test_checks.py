"""Every rule on configuration values: the complaint names the key, the value and the way out."""

from dataclasses import fields
from typing import Any

import pytest

from cpu_grpo.config.checks import check
from cpu_grpo.config.schema import Evaluation, Example, Pipeline, Rewards, Task, Train, Trainer, Validation, Variant
from cpu_grpo.errors import UserError
from cpu_grpo.tasks.answers.grader import KINDS
from cpu_grpo.tasks.answers.marks import MARKS

NO_REWARD = Rewards(correct=0.0)


def pipeline(**variants: Variant) -> Pipeline:
    return Pipeline(task=Task(kind="chain_sum"), variants=variants or {"quick": Variant(name="quick")})


def complaint(config: Pipeline | Train) -> str:
    with pytest.raises(UserError) as caught:
        check(config)
    message = str(caught.value)
    assert "\n" not in message
    return message


def set_key(config: Any, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    node = config
    for name in parents:
        node = node[name] if isinstance(node, dict) else getattr(node, name)
    setattr(node, last, value)


def test_defaults_pass():
    check(pipeline())
    check(Train(name="quick", task=Task(kind="chain_sum")))


@pytest.mark.parametrize(
    ("key", "value", "fix"),
    [
        ("seed", -1, "use 0 or more"),
        ("seed", 2**31, "or less"),
        ("task.train", 0, "use 1 or more"),
        ("task.validation", 0, "use 1 or more"),
        ("task.test", 0, "use 1 or more"),
        ("task.max_prompt_length", 0, "use 1 or more"),
        ("evaluation.limit", -1, "use 0 or more"),
        ("evaluation.batch_size", 0, "use 1 or more"),
        ("tracking.samples_every", 0, "use 1 or more"),
        ("variants.quick.problems", -3, "use 0 or more"),
        ("variants.quick.keep_prompt_tokens", -1, "use 0 or more"),
        ("variants.quick.hardware.threads", -2, "use 0 or more"),
        ("variants.quick.trainer.learning_rate", -1e-5, "use 0 or more"),
        ("variants.quick.trainer.learning_rate", 1.5, "use 1 or less"),
        ("variants.quick.trainer.learning_rate", float("nan"), "use 0 or more"),
        ("variants.quick.trainer.per_device_train_batch_size", 0, "use 1 or more"),
        ("variants.quick.trainer.gradient_accumulation_steps", 0, "use 1 or more"),
        ("variants.quick.trainer.num_generations", 1, "use 2 or more"),
        ("variants.quick.trainer.num_generations", 0, "use 2 or more"),
        ("variants.quick.trainer.max_steps", -2, "use -1 or more"),
        ("variants.quick.trainer.temperature", 0.0, "use 0.001 or more"),
        ("variants.quick.trainer.temperature", 11.0, "use 10 or less"),
        ("variants.quick.trainer.top_p", 1.1, "use 1 or less"),
        ("variants.quick.trainer.beta", -0.1, "use 0 or more"),
    ],
)
def test_out_of_bounds(key, value, fix):
    config = pipeline()
    set_key(config, key, value)
    message = complaint(config)
    assert f"{key}={value}" in message
    assert fix in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 0),
        ("seed", 2**31 - 1),
        ("variants.quick.trainer.learning_rate", 1.0),
        ("variants.quick.trainer.num_generations", 2),
        ("variants.quick.trainer.max_steps", -1),
        ("variants.quick.trainer.temperature", 10.0),
    ],
)
def test_bounds_are_inclusive(key, value):
    config = pipeline()
    set_key(config, key, value)
    check(config)


@pytest.mark.parametrize("key", ["task.levels", "variants.quick.levels"])
def test_each_level_of_a_list_is_checked(key):
    config = pipeline()
    set_key(config, key, [1, 0])
    message = complaint(config)
    assert f"{key}=0" in message
    assert "use 1 or more" in message


@pytest.mark.parametrize(
    ("key", "value", "choices"),
    [
        ("model.source", "zip", ("wheel", "hub", "gguf", "path")),
        ("task.kind", "chainsum", ("chain_sum", "gsm_symbolic", "gsm8k", "jsonl")),
        ("task.extraction", "loose", ("strict", "flexible")),
        ("evaluation.split", "training", ("train", "validation", "test")),
        ("variants.quick.trainer.loss_type", "ppo", ("grpo", "dr_grpo", "dapo", "bnpo")),
        ("variants.quick.trainer.scale_rewards", "all", ("group", "batch", "none")),
        ("variants.quick.trainer.lr_scheduler_type", "step", ("constant", "linear", "cosine")),
        ("variants.quick.hardware.precision", "fp16", ("auto", "fp32", "bf16")),
    ],
)
def test_not_a_choice(key, value, choices):
    config = pipeline()
    set_key(config, key, value)
    message = complaint(config)
    assert f"{key}={value}" in message
    assert all(choice in message for choice in choices)


def test_group_size_must_divide_the_batch():
    trainer = Trainer(per_device_train_batch_size=3, gradient_accumulation_steps=2, num_generations=4)
    message = complaint(pipeline(quick=Variant(trainer=trainer)))
    assert "variants.quick.trainer.num_generations=4" in message
    assert "batch of 6" in message
    assert "per_device_train_batch_size 3" in message
    assert "gradient_accumulation_steps 2" in message
    assert "multiple of the group size" in message


def test_group_size_may_span_micro_batches():
    trainer = Trainer(per_device_train_batch_size=1, gradient_accumulation_steps=8, num_generations=4)
    check(pipeline(quick=Variant(trainer=trainer)))


def test_zero_steps():
    message = complaint(pipeline(quick=Variant(trainer=Trainer(max_steps=0))))
    assert "variants.quick.trainer.max_steps=0" in message
    assert "use 1 or more, or -1" in message


@pytest.mark.parametrize(
    ("validation", "key"),
    [
        (Validation(keep="best"), "validation.keep=best needs"),
        (Validation(patience=3), "validation.patience=3 needs"),
    ],
)
def test_validation_is_not_asked_for_in_part(validation, key):
    message = complaint(Train(task=Task(kind="chain_sum"), validation=validation))
    assert key in message and "set validation.every" in message


def test_no_reward_at_all():
    message = complaint(pipeline(quick=Variant(rewards=NO_REWARD)))
    assert "variants.quick.rewards" in message
    assert "all 0" in message
    assert "give at least one a weight" in message


def test_one_reward_of_any_kind_is_enough():
    check(pipeline(quick=Variant(rewards=Rewards(correct=0.0, length=0.5))))


@pytest.mark.parametrize(
    ("train", "key"),
    [
        (Train(task=Task(kind="chain_sum"), rewards=NO_REWARD), "rewards"),
        (Train(task=Task(kind="chain_sum"), trainer=Trainer(max_steps=0)), "trainer.max_steps=0"),
        (Train(task=Task(kind="chain_sum"), trainer=Trainer(num_generations=5)), "trainer.num_generations=5"),
        (Train(task=Task(kind="chain_sum"), trainer=Trainer(num_generations=1)), "trainer.num_generations=1"),
    ],
)
def test_a_single_variants_keys_are_named_as_on_the_command_line(train, key):
    assert complaint(train).startswith(key)


def test_only_the_faulty_variant_is_named():
    message = complaint(pipeline(good=Variant(), faulty=Variant(trainer=Trainer(max_steps=0))))
    assert "variants.faulty." in message
    assert "good" not in message


def test_start_from_an_unknown_variant():
    message = complaint(pipeline(first=Variant(), second=Variant(init_from="frist")))
    assert "variants.second.init_from=frist" in message
    assert "use one of base, first, second" in message


def test_start_through_another_variant_to_an_unknown_one_names_the_link_that_is_wrong():
    message = complaint(pipeline(second=Variant(init_from="first"), first=Variant(init_from="nothing")))
    assert "variants.first.init_from=nothing" in message


def test_start_from_itself():
    message = complaint(pipeline(own=Variant(init_from="own")))
    assert "variants.own.init_from=own" in message
    assert "circle" in message
    assert "from base" in message


@pytest.mark.timeout(10)
def test_start_in_a_circle():
    message = complaint(
        pipeline(a=Variant(init_from="b"), b=Variant(init_from="c"), c=Variant(init_from="a")),
    )
    assert "variants.c.init_from=a" in message
    assert "circle" in message
    assert "from base" in message


@pytest.mark.timeout(10)
def test_start_that_leads_into_a_circle():
    message = complaint(pipeline(a=Variant(init_from="b"), b=Variant(init_from="b")))
    assert "variants.b.init_from=b" in message
    assert "circle" in message


def test_a_chain_down_to_base_passes():
    check(pipeline(c=Variant(init_from="b"), b=Variant(init_from="a"), a=Variant()))


def test_evaluation_of_an_unknown_model():
    config = pipeline()
    config.evaluation = Evaluation(models=["base", "quik"])
    message = complaint(config)
    assert "evaluation.models=quik" in message
    assert "base" in message
    assert "quick" in message
    assert "slash" in message


def test_evaluation_of_a_directory_passes():
    config = pipeline()
    config.evaluation = Evaluation(models=["quick", "models/mine", "./mine"])
    check(config)


def test_a_learner_in_8_bits_is_for_frozen_weights():
    config = pipeline()
    config.engine.learner = "int8"
    for scheme in ("full", "lean", "auto"):
        config.memory.scheme = scheme
        told = complaint(config)
        assert "engine.learner=int8" in told and f"memory.scheme=lora, and it is {scheme}" in told
        assert told.endswith("use engine.learner=auto.")
    config.memory.scheme = "lora"
    check(config)


@pytest.mark.parametrize("kind", [Pipeline, Train])
def test_jsonl_needs_a_path(kind):
    message = complaint(kind(task=Task(kind="jsonl")))
    assert "task.path" in message
    assert "empty" in message
    assert "task.path=FILE" in message


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("engine.name", "trl", "variants.quick.method=supervised needs the fast engine, and engine.name is trl"),
        ("variants.quick.trainer.temperature", 0.7, "trainer.temperature=0.7 would flatten"),
        ("variants.quick.keep_prompt_tokens", 16, "variants.quick.keep_prompt_tokens=16 cuts prompts"),
    ],
)
def test_supervised_training_is_refused_where_it_would_learn_something_else(key, value, told):
    config = pipeline(quick=Variant(method="supervised"))
    check(config)
    set_key(config, key, value)
    assert told in complaint(config)


@pytest.mark.parametrize("template", ["Answer!", "{Question}"])
def test_a_template_without_its_question_and_no_marks_are_told(template):
    config = pipeline()
    config.task.template = template
    assert "has no {question}: say where the question goes" in complaint(config)
    config.task.template, config.task.marks = "{question}", []
    assert "task.marks is empty" in complaint(config)


def test_the_choices_of_a_task_are_the_kinds_and_marks_that_there_are():
    choices = {item.name: item.metadata.get("choices") for item in fields(Task)}
    assert choices["answer"] == tuple(KINDS) and choices["marks"] == MARKS


@pytest.mark.parametrize("empty", ["question", "answer"])
def test_an_example_needs_a_question_and_an_answer(empty):
    config = pipeline()
    config.task.examples = [Example("1 + 1 =", "2"), Example("2 + 2 =", "4")]
    setattr(config.task.examples[1], empty, " ")
    message = complaint(config)
    assert "task.examples[1]" in message and "empty" in message


@pytest.mark.parametrize("custom", ["my_rewards.py:brevity", ["my_rewards.py:brevity", "a.package:shape"], None, []])
@pytest.mark.parametrize("seconds", [0.01, 10.0])
def test_custom_rewards_pass(custom, seconds):
    check(pipeline(quick=Variant(rewards=Rewards(custom=custom, seconds=seconds))))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"custom": "brevity"}, "custom=brevity names no function: write FILE.py:FUNCTION or package.module:FUNCTION."),
        ({"custom": "my_rewards.py"}, "custom=my_rewards.py names no function"),
        ({"custom": "my_rewards.py:"}, "custom=my_rewards.py: names no function"),
        ({"custom": [5]}, "custom=5 names no function"),
        ({"custom": {"a": "b"}}, "custom={'a': 'b'} names no function"),
        (
            {"custom": ["a.py:f", "b.py:f"]},
            "custom has two functions named f, and rewards are logged by name: rename one",
        ),
        ({"custom": ["a.py:f", "a.py:g"], "custom_weights": 0.5}, "has 2 reward functions and variants.quick.rewards"),
        (
            {"custom_weights": [1.0]},
            "custom has 0 reward functions and variants.quick.rewards.custom_weights 1 weights",
        ),
        (
            {"custom": "a.py:f", "custom_weights": "much"},
            "custom_weights=much is no weight: use a number from -1000 to",
        ),
        ({"custom": "a.py:f", "custom_weights": float("nan")}, "custom_weights=nan is no weight"),
        ({"custom": "a.py:f", "custom_weights": True}, "custom_weights=True is no weight"),
        ({"seconds": 0.0}, "seconds=0.0 is too small: use 0.01 or more"),
        ({"faults": 1.5}, "faults=1.5 is too large: use 1 or less"),
    ],
)
def test_custom_rewards_that_make_no_sense(changes, told):
    message = complaint(pipeline(quick=Variant(rewards=Rewards(**changes))))
    assert message.startswith("variants.quick.rewards.") and told in message


def test_a_custom_reward_is_something_to_learn_from():
    check(pipeline(quick=Variant(rewards=Rewards(correct=0.0, custom="a.py:f"))))
    message = complaint(pipeline(quick=Variant(rewards=Rewards(correct=0.0, custom="a.py:f", custom_weights=0.0))))
    assert "variants.quick.rewards are all 0" in message
