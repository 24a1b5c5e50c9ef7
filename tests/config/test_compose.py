"""What conf/ composes to, that params.yaml is that, and how mistakes in either are told."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import OmegaConf

from cpu_grpo.config.compose import compose_pipeline, compose_study, launch, load_params, one_variant, typed
from cpu_grpo.config.schema import Model, Pipeline, Task, Train, Variant
from cpu_grpo.errors import Stopped, UserError
from cpu_grpo.tasks.answers.grader import Grader

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
NEEDED = {  # what these leave to the user
    "model=path": ["model.path=a/directory"],
    "model=gguf": ["model.path=a/file.gguf"],
    "model=hub": ["model.repo=owner/name"],
    "task=jsonl": ["task.path=a/file.jsonl"],
}


def names(group: str) -> list[str]:
    return sorted(path.relative_to(CONF / group).with_suffix("").as_posix() for path in (CONF / group).rglob("*.yaml"))


def compose_train(*overrides: str) -> Train:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return typed(hydra.compose("train", overrides=list(overrides)), Train)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return typed(compose_pipeline([]), Pipeline)


def test_params_yaml_is_what_conf_composes_to():
    recorded = OmegaConf.to_container(OmegaConf.load(ROOT / "params.yaml"))
    composed = OmegaConf.to_container(compose_pipeline([]))
    assert recorded == composed, "params.yaml is not what conf/ composes to: run `python pipelines/compose.py`"


def test_params_yaml_passes_the_checks(pipeline):
    assert load_params(ROOT / "params.yaml") == pipeline


def test_a_missing_params_file_tells_the_command_that_writes_it(tmp_path):
    with pytest.raises(UserError) as caught:
        load_params(tmp_path / "params.yaml")
    assert str(tmp_path / "params.yaml") in str(caught.value)
    assert "python pipelines/compose.py" in str(caught.value)


@pytest.mark.parametrize("name", names("variant"))
def test_every_variant_composes_under_its_files_name(name):
    assert compose_train(f"variant={name}").name == name.replace("/", "_")


@pytest.mark.parametrize("name", [name for name in names("variant") if "/" not in name])
def test_every_own_variant_is_in_a_pipeline_and_evaluated(name, pipeline):
    found = [pipeline, typed(compose_pipeline([], "gsm8k"), Pipeline)]
    assert any(name in own.variants and name in own.evaluation.models for own in found)


def test_another_pipeline_is_composed_by_its_name_and_one_that_is_none_is_told():
    real = typed(compose_pipeline(["task.path=here", "variants.gsm8k.trainer.max_steps=3"], "gsm8k"), Pipeline)
    assert (real.model.name, real.task.kind, real.task.path) == ("qwen2_5_coder_0_5b", "gsm8k", "here")
    assert real.variants["gsm8k"].trainer.max_steps == 3
    with pytest.raises(UserError, match=r"There is no conf/nothing\.yaml: name a pipeline's configuration"):
        compose_pipeline([], "nothing")


def test_a_variant_is_the_same_alone_as_in_the_pipeline(pipeline):
    alone = compose_train("variant=stage2")
    together = one_variant(pipeline, "stage2")
    assert alone.trainer == together.trainer
    assert (alone.init_from, alone.levels, alone.rewards) == (together.init_from, together.levels, together.rewards)


@pytest.mark.slow
@pytest.mark.parametrize(("group", "name"), [(g, n) for g in ("model", "task") for n in names(g)])
@pytest.mark.parametrize("schema", [Pipeline, Train])
def test_every_model_and_task_composes(group, name, schema):
    overrides = [f"{group}={name}", *NEEDED.get(f"{group}={name}", [])]
    config = typed(compose_pipeline(overrides), Pipeline) if schema is Pipeline else compose_train(*overrides)
    expected = "owner/name" if name == "hub" else name
    assert getattr(config, group).name == expected


def test_the_eight_examples_calculate_rightly_and_end_as_asked():
    task = typed(compose_pipeline(["task=gsm8k_8shot"]), Pipeline).task
    assert len(task.examples) == 8
    for example in task.examples:
        sums = re.findall(r"([\d /*+-]+\d) = \$?(\d+)", example.answer)
        assert sums and all(eval(left) == int(right) for left, right in sums)
        assert Grader().strict(example.answer) == sums[-1][1]


def test_a_job_of_hydra_may_compose_a_study():
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        assert compose_study("search", "full").study.name == "search"
        assert hydra.compose("config").seed == compose_pipeline([]).seed  # the job's own still works


def test_a_jsonl_task_without_its_file_is_refused():
    with pytest.raises(UserError, match=r"task\.path"):
        typed(compose_pipeline(["task=jsonl"]), Pipeline)


PUBLISHED = {
    #                        batch, micro-batches, rate, epochs, problems, kept, completion, temperature
    "ultra_fast": (2, 1, 1e-5, 0.25, 8, 256, 128, 0.1),
    "extreme_fast": (2, 1, 1e-4, 0.1, 8, 16, 8, 0.7),
    "hardware_accelerated": (8, 1, 1e-4, 0.1, 8, 24, 12, 0.7),
    "stage1": (1, 2, 1e-5, 2, 20, 128, 64, 0.7),
    "stage2": (1, 2, 5e-6, 2, 40, 128, 64, 0.7),
    "stage3_final": (1, 2, 2e-6, 1, 80, 128, 64, 0.7),
}


def test_the_table_of_published_recipes_is_whole():
    assert {f"published/{name}" for name in PUBLISHED} == {name for name in names("variant") if "/" in name}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipe_has_the_studys_values(name):
    config = compose_train(f"variant=published/{name}")
    trainer = config.trainer
    assert PUBLISHED[name] == (
        trainer.per_device_train_batch_size,
        trainer.gradient_accumulation_steps,
        trainer.learning_rate,
        trainer.num_train_epochs,
        config.problems,
        config.keep_prompt_tokens,
        trainer.max_completion_length,
        trainer.temperature,
    )
    assert (trainer.num_generations, trainer.beta, trainer.top_p, trainer.max_steps) == (2, 0.1, 0.9, -1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_reward_ignores_the_answer(name):
    rewards = compose_train(f"variant=published/{name}").rewards
    assert (rewards.correct, rewards.format) == (0, 0)
    assert (rewards.keywords, rewards.digits, rewards.length) == (1, 1, 1)


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("stage1", "base"),
        ("stage2", "published_stage1"),
        ("stage3_final", "published_stage2"),
        ("ultra_fast", "published_stage3_final"),
    ],
)
def test_published_curriculum_is_a_chain(name, start):
    assert compose_train(f"variant=published/{name}").init_from == start


def test_published_variants_join_the_pipeline_by_their_names():
    stages = ["stage1", "stage2", "stage3_final", "ultra_fast"]
    overrides = [f"+variant@variants.published_{name}=published/{name}" for name in stages]
    config = typed(compose_pipeline(overrides), Pipeline)
    assert config.variants["published_ultra_fast"].init_from == "published_stage3_final"


@pytest.mark.parametrize(
    ("override", "custom"),
    [
        ("rewards.custom=my_rewards.py:brevity", ["my_rewards.py:brevity"]),
        ("rewards.custom=[my_rewards.py:brevity]", ["my_rewards.py:brevity"]),
        (
            "rewards.custom=[../a-b/my_rewards.py:brevity,a.package:shape]",
            ["../a-b/my_rewards.py:brevity", "a.package:shape"],
        ),
    ],
)
def test_reward_functions_need_no_quotes_and_one_alone_no_brackets(override, custom):
    rewards = compose_train(override).rewards
    assert rewards.custom == custom
    assert list(rewards.weights().items())[-len(custom) :] == [(place.split(":")[1], 1.0) for place in custom]
    one = compose_train("rewards.custom=a.py:f", "rewards.custom_weights=2").rewards
    assert (one.weights()["f"], one.weights()["correct"]) == (2, 1.0)


def test_one_variant_takes_its_own_keys_and_the_shared_ones():
    config = Pipeline(
        seed=7,
        model=Model(name="tiny"),
        task=Task(name="sums", kind="chain_sum"),
        variants={"a": Variant(name="a"), "b": Variant(name="b", init_from="a", problems=5)},
    )
    found = one_variant(config, "b")
    assert isinstance(found, Train)
    assert (found.name, found.init_from, found.problems) == ("b", "a", 5)
    assert (found.seed, found.model.name, found.task.name) == (7, "tiny", "sums")


def test_one_variant_of_an_unknown_name_lists_the_known():
    config = Pipeline(variants={"quick": Variant(), "slow": Variant()})
    with pytest.raises(UserError) as caught:
        one_variant(config, "quik")
    assert str(caught.value).startswith("quik ")
    assert "quick, slow" in str(caught.value)


def complaint(key: str, value: Any) -> str:
    composed = OmegaConf.create(OmegaConf.to_container(compose_pipeline([])))
    OmegaConf.update(composed, key, value, merge=False, force_add=True)
    with pytest.raises(UserError) as caught:
        typed(composed, Pipeline)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("sed", "seed"),
        ("task.trian", "train"),
        ("variants.stage1.trainer.learning_rte", "learning_rate"),
        ("variants.stage1.reward", "rewards"),
        ("evaluation.model", "model"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest(key, near):
    message = complaint(key, 1)
    assert message.startswith(f"{key} is not a configuration key")
    assert f"did you mean {near}" in message


def test_an_unknown_key_like_no_other_is_named_too():
    assert complaint("zzzzqqq", 1).startswith("zzzzqqq is not a configuration key")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", "many"),
        ("seed", 1.5),
        ("seed", None),
        ("task.levels", ["easy"]),
        ("model", 5),
        ("model.name", ["a"]),
        ("variants.stage1.trainer.learning_rate", "fast"),
        ("variants.stage1.trainer.mask_truncated_completions", "maybe"),
    ],
)
def test_a_wrong_type_is_told_with_its_key_and_value(key, value):
    message = complaint(key, value)
    assert message.startswith(key)
    assert (value[0] if isinstance(value, list) else str(value)) in message


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("task.levels", [[1]], "task.levels=[1] is of another kind than int"),
        ("task.levels", "${seed}", "task.levels=43 is of another kind than list"),
        ("evaluation.models", [["base"]], "evaluation.models=['base'] is of another kind than str"),
        ("variants.stage1", "${seed}", "variants.stage1=43 is of another kind than Variant"),
    ],
)
def test_a_wrong_type_that_omegaconf_lets_pass_is_told_too(key, value, told):
    assert complaint(key, value) == f"{told}: correct it."


def run_train(directory: Path, *arguments: str) -> str:
    """Runs the train stage with a mistake; returns the one line it must print about it."""
    command = [sys.executable, str(ROOT / "pipelines" / "train.py"), *arguments]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr + done.stdout
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len([line for line in lines if line.startswith("error:")]) == 1, done.stderr
    assert lines[-1].startswith("error:")
    assert "Error executing job" not in done.stderr  # Hydra's, with the whole command line
    assert {path.name for path in directory.iterdir()} <= {"outputs"}
    return lines[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argument", "culprit", "near"),
    [
        ("variant=ultrafast", "ultrafast", "ultra_fast"),
        ("variant=published/stage4", "published/stage4", "published/stage1"),
        ("task=chainsum", "chainsum", "chain_sum"),
        ("trainer.learning_rte=1e-5", "trainer.learning_rte", "learning_rate"),
        ("sed=1", "sed", "seed"),
        ("trainer.learning_rate=fast", "trainer.learning_rate", "fast"),
        ("trainer.max_steps=0", "trainer.max_steps=0", "use 1 or more"),
        ("task=jsonl", "task.path", "task.path=FILE"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_and_leaves_nothing(argument, culprit, near, tmp_path):
    line = run_train(tmp_path, argument)
    assert culprit in line
    assert near in line


@pytest.mark.slow
def test_an_unknown_variant_of_a_params_file_is_one_line(tmp_path):
    line = run_train(tmp_path, "--params", str(ROOT / "params.yaml"), "--variant", "ultrafast")
    assert "ultrafast" in line
    assert "ultra_fast" in line


def launched(stage, keys, tmp_path, monkeypatch):
    """What `launch` ends a stage with."""
    quiet = ["hydra/job_logging=disabled", "hydra/hydra_logging=disabled"]  # which would outlive this test
    monkeypatch.setattr(sys, "argv", ["train.py", *keys, *quiet])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BaseException) as ended:
        launch(stage, "train")
    return ended.value


SWEEP = ["-m", "variant=extreme_fast,ultra_fast"]


@pytest.mark.parametrize("mistake", [UserError("There is no model."), RuntimeError("a bug")], ids=["mistake", "bug"])
def test_a_job_that_fails_keeps_its_command_line_to_itself_and_lets_the_others_run(
    mistake, tmp_path, monkeypatch, capsys
):
    ran = []

    def train(config, root, pipeline_id):
        ran.append(config.name)
        if config.name == "extreme_fast":
            raise mistake

    ended = launched(train, [*SWEEP, "tracking.uri=http://user:secret@localhost:1"], tmp_path, monkeypatch)
    assert ran == ["extreme_fast", "ultra_fast"]
    said = capsys.readouterr().err
    if isinstance(mistake, UserError):
        assert (ended.code, said) == (1, "error: There is no model.\n")
    else:
        assert (ended, said) == (mistake, "")  # Python tells of it, with a traceback


def test_a_signal_stops_the_sweep_too(tmp_path, monkeypatch, capsys):
    def train(config, root, pipeline_id):
        raise Stopped("after update 3 of 9", 143)

    assert launched(train, SWEEP, tmp_path, monkeypatch).code == 143
    assert capsys.readouterr().err == "stopped: after update 3 of 9\n"


@pytest.mark.parametrize("keys", [["variant=extreme_fast"], SWEEP])
def test_ctrl_c_is_one_line_and_stops_the_sweep_too(keys, tmp_path, monkeypatch, capsys):
    def train(config, root, pipeline_id):
        raise KeyboardInterrupt

    assert launched(train, keys, tmp_path, monkeypatch).code == 130
    assert capsys.readouterr().err == "stopped: what was finished is kept\n"


TALKS = """
import os
import time
from cpu_grpo.config import launch

def stage(config, root, pipeline_id):
    print("begun")
    time.sleep(30)
    os._exit(0)  # what was not written until now never is

launch(stage, "train")
"""


def test_what_a_stage_says_is_there_at_once_for_who_reads_along(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-c", TALKS]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "begun\n"
        finally:
            process.kill()
