"""Names that become files and folders: what could lead elsewhere, or could not be made, is refused with its key."""

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpu_grpo.config.checks import check
from cpu_grpo.config.compose import compose_pipeline, compose_run, compose_study, launch
from cpu_grpo.config.names import is_hub_name, is_name, is_place
from cpu_grpo.config.schema import Evaluation, Model, Pipeline, Task, Tracking, Train, Variant
from cpu_grpo.errors import UserError

BAD = {
    "above": "../../x",
    "absolute": "/etc/x",
    "this folder": ".",
    "the folder above": "..",
    "hidden": ".x",
    "a folder": "a/b",
    "Windows's folder": "a\\b",
    "Windows's drive": "c:x",
    "a null": "a\x00b",
    "two lines": "a\nb",
    "an escape": "a\x1b[2J",
    "reordered": "a\u202eb",
    "half a character": "a\ud800",
    "too long": "x" * 300,
    "too long in bytes": "\u4e94" * 50,
    "a device": "CON",
    "a device with an end": "nul.txt",
    "an option": "-rf",
    "a command": "$(id)",
    "another command": "a;b",
    "a pattern": "a*",
    "a space before": " a",
    "two spaces": "a  b",
    "a dot behind": "a.",
}
GOOD = [
    "a",
    "stage3_final",
    "published_stage1",
    "1.5B",
    "x-1",
    "lr=1e-5",
    "größe",
    "a b",
    "v1.0+cpu",
    "16_rows",
    "x" * 100,
]


@pytest.mark.parametrize("name", BAD.values(), ids=BAD)
def test_no_name(name):
    assert not is_name(name)


@pytest.mark.parametrize("name", GOOD)
def test_a_name(name):
    assert is_name(name) and is_hub_name(name) and is_hub_name(f"owner/{name}") and is_place(f"../{name}/")
    assert not is_hub_name(f"{name}/") and not is_hub_name(f"a/b/{name}") and not is_hub_name(f"../{name}")


@given(st.text())
def test_whatever_is_a_name_stays_below_its_folder(text):
    if is_name(text):
        assert (Path("models") / text).parts == ("models", text)
        assert len(f".{text}.samples.jsonl.4194304-abcdefgh".encode()) < 255


SUM = Task(kind="chain_sum")
CASES = {
    "name": lambda bad: Train(name=bad, task=SUM),
    "variants": lambda bad: Pipeline(task=SUM, variants={bad: Variant()}),
    "variants.a.name": lambda bad: Pipeline(task=SUM, variants={"a": Variant(name=bad)}),
    "model.name": lambda bad: Train(name="a", task=SUM, model=Model(name=bad)),
    "task.name": lambda bad: Train(name="a", task=Task(kind="chain_sum", name=bad)),
    "init_from": lambda bad: Train(name="a", task=SUM, init_from=f"models/{bad}"),
    "evaluation.models": lambda bad: Pipeline(task=SUM, evaluation=Evaluation(models=["base", f"./{bad}"])),
}
DIRECTORIES = {"init_from", "evaluation.models"}  # which may lie anywhere, and have any owner
PASSES = {("model.name", "a/b"), ("init_from", ".")} | {
    (key, BAD[kind]) for key in DIRECTORIES for kind in ("above", "absolute", "a folder")
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
@pytest.mark.parametrize("key", CASES)
def test_a_bad_name_is_refused_with_its_key_and_what_would_do(key, bad):
    if (key, bad) in PASSES:
        check(CASES[key](bad))
        return
    with pytest.raises(UserError) as caught:
        check(CASES[key](bad))
    message = str(caught.value)
    assert key in message and "letters, digits and" in message
    assert message.isprintable() and len(message) < 400


@pytest.mark.parametrize("key", ["name", "init_from", "evaluation.models", "tracking.experiment"])
def test_what_files_are_called_after_cannot_be_empty(key):
    configs = {
        "name": Train(task=SUM),
        "init_from": Train(name="a", task=SUM, init_from=""),
        "evaluation.models": Pipeline(task=SUM, evaluation=Evaluation(models=[""])),
        "tracking.experiment": Train(name="a", task=SUM, tracking=Tracking(experiment=" ")),
    }
    with pytest.raises(UserError, match=key):
        check(configs[key])


@pytest.mark.parametrize("bad", ["a\nb", "\x00", "x" * 300])
def test_an_experiment_is_one_line(bad):
    with pytest.raises(UserError, match=r"tracking.experiment=.* use one line of at most 250 characters"):
        check(Train(name="a", task=SUM, tracking=Tracking(experiment=bad)))


def test_no_text_has_control_characters():
    with pytest.raises(UserError, match=r"model.path='a\\x00b' is no text that can be used here"):
        check(Train(name="a", task=SUM, model=Model(path="a\x00b")))
    check(Train(name="a", task=Task(kind="chain_sum", instruction="one\n\ttwo")))


@pytest.mark.parametrize(("place", "key"), [("name", "study.name"), ("budget", "budget.name"), ("arms", "study.arms")])
def test_a_studys_names_are_checked(place, key):
    config = compose_study("progressive", "quick")
    check(config)
    if place == "name":
        config.study.name = "../x"
    elif place == "budget":
        config.budget.name = "../x"
    else:
        config.study.arms["../x"] = []
    with pytest.raises(UserError, match=rf"{key}.*'\.\./x' is no name that can be used here"):
        check(config)


# Files of the configuration


@pytest.fixture
def outside(tmp_path):
    """A file that Hydra would take for a variant, from where conf/variant is."""
    (tmp_path / "mine.yaml").write_text("# @package _global_\nname: taken\n")
    return "/".join([".."] * 20) + f"{tmp_path.as_posix()}/mine"


@pytest.mark.parametrize("compose", [compose_run, lambda keys: compose_pipeline(["+variant@variants.a=x", *keys])])
def test_a_variant_outside_of_conf_is_refused(compose, outside):
    if compose is compose_run:
        with pytest.raises(UserError, match=r"variant=.*/mine leads out of conf/variant: name a file in there"):
            compose([f"variant={outside}"])
    else:
        with pytest.raises(UserError, match=r"leads out of conf/"):
            compose_pipeline([f"+variant@variants.a={outside}"])


def test_a_stage_refuses_a_variant_outside_of_conf(outside, tmp_path, monkeypatch, capsys):
    def train(config, root, pipeline_id):
        pytest.fail("ran")

    quiet = ["hydra/job_logging=disabled", "hydra/hydra_logging=disabled"]
    monkeypatch.setattr(sys, "argv", ["train.py", f"variant={outside}", *quiet])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        launch(train, "train")
    assert stopped.value.code == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: variant=") and "leads out of conf/variant" in message


def test_a_variant_in_a_folder_of_conf_is_taken():
    assert compose_run(["variant=published/stage1"]).name == "published_stage1"
