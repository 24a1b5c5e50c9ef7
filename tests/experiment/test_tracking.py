"""MLflow: who belongs to whom, what a death looks like, and what happens without a server."""

import json
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from urllib.parse import unquote

import pytest
from mlflow import MlflowClient

from cpu_grpo.config import invocation
from cpu_grpo.config.schema import Pipeline, Shared, Tracking
from cpu_grpo.errors import UserError
from cpu_grpo.experiment import spool, tracking
from cpu_grpo.experiment.store import MlflowStore
from cpu_grpo.experiment.tracking import flatten, log_report, run_address, start_run
from cpu_grpo.files import write_json, write_text

pytestmark = pytest.mark.slow


def here():
    """The current directory's store. Absolute, as MLflow keeps a store open by its address."""
    return f"sqlite:///{Path('mlflow.db').absolute().as_posix()}"


@pytest.fixture
def store(workspace):
    return here()


@pytest.fixture
def config(store):
    return Shared(tracking=Tracking(uri=store, experiment="test"))


def runs(status=None):
    client = MlflowClient(here())
    found = client.search_runs([client.get_experiment_by_name("test").experiment_id])
    return [run for run in found if status is None or run.info.status == status]


def named(name):
    return next(run for run in runs() if run.info.run_name == name)


def test_the_stages_of_a_pipeline_run_share_a_parent(config):
    for name, pipeline in (("train a", "sweep /x"), ("train b", "sweep /x"), ("train c", "sweep /y"), ("train d", "")):
        with start_run(config, name, "train", pipeline, {}):
            pass
    parents = [named(f"train {letter}").data.tags.get("mlflow.parentRunId") for letter in "abcd"]
    assert parents[0] == parents[1] != parents[2]
    assert parents[2] is not None and parents[3] is None


def test_params_metrics_and_tags_arrive(config):
    with start_run(config, "r", "train", "", {"variant": "v"}) as run:
        run.params(config)
        run.tag("hardware", "threads 2")
        for step in (1, 2):
            run.metrics({"reward": step / 4, "kl": 0.5}, step)
        run.table([{"completion": "a"}, {"completion": "b"}], "samples.json")
    found = named("r")
    assert found.info.status == "FINISHED"
    assert found.data.params["tracking.experiment"] == "test"
    assert found.data.metrics["reward"] == 0.5
    assert found.data.tags["variant"] == "v" and found.data.tags["hardware"] == "threads 2"
    assert found.data.tags["version.trl"] == "1.16.0"
    client = MlflowClient(here())
    assert [m.value for m in client.get_metric_history(found.info.run_id, "reward")] == [0.25, 0.5]
    assert {"config.json", "samples.json"} <= {item.path for item in client.list_artifacts(found.info.run_id)}


def test_a_run_that_raises_is_failed_and_so_is_its_pipeline(config):
    with pytest.raises(KeyError), start_run(config, "r", "train", "sweep /x", {}):
        raise KeyError("x")
    assert len(runs("FAILED")) == 2


def test_a_run_whose_process_was_killed_is_failed_by_the_next(config):
    script = f"""
        import os
        from cpu_grpo.config.schema import Shared, Tracking
        from cpu_grpo.experiment.tracking import start_run
        config = Shared(tracking=Tracking(uri="{config.tracking.uri}", experiment="test"))
        start_run(config, "killed", "train", "", {{}})
        os._exit(9)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 9, done.stderr
    assert named("killed").info.status == "RUNNING"
    with start_run(config, "next", "train", "", {}):
        assert named("killed").info.status == "FAILED"
        assert named("next").info.status == "RUNNING"


def test_a_store_of_this_machine_that_cannot_be_opened_is_told_at_once(workspace):
    Path("broken.db").write_text("no database")
    config = Shared(tracking=Tracking(uri="sqlite:///broken.db", experiment="test"))
    with pytest.raises(UserError, match=r"tracking\.uri=sqlite:///broken\.db cannot be opened \(.*not a database.*\)"):
        start_run(config, "r", "train", "", {})
    assert not list(workspace.glob("cache/tracking/*"))


def test_a_pipelines_run_has_the_report_its_plots_and_a_comparison_of_its_trainings(store, workspace):
    config = Pipeline(tracking=Tracking(uri=store, experiment="test"))
    trained = []
    for name, stage in (("train a", "train"), ("train b", "train"), ("evaluate a", "evaluate")):
        with start_run(config, name, stage, "sweep /x", {"stage": stage}) as run:
            trained += [run.run_id] * (stage == "train")
    write_text(workspace / "reports/accuracy.csv", "model,accuracy,gain\nbase,0.25,\na,0.5,0.25\n")
    write_text(workspace / "reports/plots/reward.svg", "<svg/>")
    write_json(workspace / "reports/metrics.json", {"base_accuracy": 0.25, "a": {"gain": 0.25}})
    files = [workspace / "reports/accuracy.csv", workspace / "reports/plots/reward.svg"]
    log_report(config, workspace, "sweep /x", files)
    (parent,) = [run for run in runs() if run.data.tags.get("pipeline") == "sweep /x"]
    assert parent.data.metrics == {"base_accuracy": 0.25, "a.gain": 0.25}
    client = MlflowClient(store)
    assert [item.path for item in client.list_artifacts(parent.info.run_id, "report/plots")] == [
        "report/plots/reward.svg"
    ]
    table = client.load_table(parent.info.experiment_id, "comparison.json")
    assert table["model"].tolist() == ["base", "a"] and table["gain"].tolist() == ["", "0.25"]
    note = unquote(parent.data.tags["mlflow.note.content"])
    experiment = client.get_experiment(parent.info.experiment_id)
    assert f'#/compare-runs?runs={json.dumps(trained)}&experiments=["{experiment.experiment_id}"]' in note
    assert f"#/experiments/{experiment.experiment_id}/runs?viewStateShareKey=variants" in note
    assert experiment.tags["mlflow.note.content"] in note


def test_the_experiments_page_has_its_runs_by_variant(config):
    with start_run(config, "r", "train", "", {"variant": "v"}):
        pass
    experiment = MlflowClient(here()).get_experiment_by_name("test")
    view = json.loads(experiment.tags["mlflow.sharedViewState.variants"])
    assert view["groupBy"]["groupByKeys"] == [{"mode": "tag", "groupByData": "variant"}]
    assert experiment.tags["mlflow.note.content"].endswith("/runs?viewStateShareKey=variants)")


@pytest.fixture
def trained(workspace, tiny_directory):
    """A model directory as training leaves it."""
    model = workspace / "models" / "first"
    shutil.copytree(tiny_directory, model)
    write_json(model / "source.json", {"origin": "variant first from base", "sha256": {}})
    return model


def test_a_trained_model_is_a_version_in_the_registry_and_answers(config, trained):
    for _ in range(2):
        with start_run(config, "train first", "train", "", {"variant": "first", "task": "sums"}) as run:
            run.register(trained, "first")
    client = MlflowClient(here())
    versions = sorted(client.search_model_versions("name = 'first'"), key=lambda version: int(version.version))
    assert [int(version.version) for version in versions] == [1, 2]
    assert versions[-1].run_id == run.run_id
    assert versions[-1].tags["variant"] == "first" and versions[-1].tags["task"] == "sums"
    import mlflow

    mlflow.set_tracking_uri(here())
    loaded = mlflow.pyfunc.load_model(f"models:/first/{versions[-1].version}")
    signature = loaded.metadata.signature.to_dict()
    assert "string" in signature["inputs"] and "string" in signature["outputs"] and "max_tokens" in signature["params"]
    short, other = (loaded.predict(["1 + 1?", "2 + 2?"], params={"max_tokens": tokens}) for tokens in (3, 30))
    assert len(short) == len(other) == 2 and other[0] != other[1]
    assert all(len(few) < len(many) for few, many in zip(short, other, strict=True))


def test_a_record_that_comes_twice_registers_once(config, trained):
    with start_run(config, "train first", "train", "", {}) as run:
        run.register(trained, "first")
        run.register(trained, "first")
    assert len(MlflowClient(here()).search_model_versions("name = 'first'")) == 1


def test_a_model_that_was_replaced_meanwhile_is_not_registered_for_the_run(config, trained, monkeypatch, capsys):
    with start_run(config, "train first", "train", "", {}) as run:
        begun = threading.Event()
        right = MlflowStore._register

        def late(*arguments):
            begun.wait(60)
            right(*arguments)

        monkeypatch.setattr(MlflowStore, "_register", late)
        run.register(trained, "first")
        write_json(trained / "source.json", {"origin": "variant first from another"})
        begun.set()
    assert MlflowClient(here()).search_model_versions("name = 'first'") == []
    assert named("train first").info.status == "FINISHED"
    assert "models/first was made anew before it could be registered" in capsys.readouterr().err


def test_no_run_waits_for_a_registry_that_hangs_and_the_next_registers_its_model(config, trained, monkeypatch, capsys):
    hung, right = threading.Event(), MlflowStore._register

    def hang(*_):
        hung.wait(300)
        raise ConnectionError("gone")

    monkeypatch.setattr(MlflowStore, "_register", hang)
    monkeypatch.setattr(tracking, "LOCAL_PATIENCE", 0.5)
    with start_run(config, "train first", "train", "", {}) as run:
        run.register(trained, "first")
    assert "records of this run wait in cache/tracking/" in capsys.readouterr().err  # and the run is over
    hung.set()
    monkeypatch.setattr(MlflowStore, "_register", right)
    monkeypatch.setattr(tracking, "LOCAL_PATIENCE", 60)
    end = time.monotonic() + 60
    while not spool.unsent() and time.monotonic() < end:  # until its thread has let go
        time.sleep(0.1)
    with start_run(config, "next", "train", "", {}):
        pass
    (version,) = MlflowClient(here()).search_model_versions("name = 'first'")
    assert version.run_id == run.run_id


def test_a_run_is_found_in_the_ui_unless_it_was_recorded_elsewhere(config):
    with start_run(config, "r", "train", "", {}) as run:
        pass
    address = run_address(config.tracking)
    experiment = named("r").info.experiment_id
    assert address(run.run_id) == f"http://127.0.0.1:5000/#/experiments/{experiment}/runs/{run.run_id}"
    assert address("0" * 32) == ""


def test_flatten():
    assert flatten({"a": {"b": 1, "c": {"d": 2}}, "e": [3]}) == {"a.b": 1, "a.c.d": 2, "e": [3]}


def test_a_process_under_dvc_belongs_to_its_run(monkeypatch):
    class Process:
        def __init__(self, pid, words):
            self.pid, self._words = pid, words

        def cmdline(self):
            return self._words

        def create_time(self):
            return 12.0

        def parents(self):
            return [
                Process(2, ["/bin/sh", "-c", "python x"]),
                Process(3, ["python", "/v/bin/dvc", "repro"]),
                Process(4, ["sh"]),
            ]

    monkeypatch.setattr(invocation.psutil, "Process", lambda: Process(1, []))
    assert invocation.pipeline_id().startswith("dvc ") and invocation.pipeline_id().endswith(" 3 12")
    monkeypatch.setattr(Process, "parents", lambda self: [Process(2, ["sh"])])
    assert invocation.pipeline_id() == ""
