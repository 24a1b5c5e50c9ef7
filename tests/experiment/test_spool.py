"""A real MLflow server that is killed, hangs or is away: each record arrives once, in order, and no run waits."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient
from torture.server import Server

from cpu_grpo.config.schema import Shared, Tracking
from cpu_grpo.errors import Stopped
from cpu_grpo.experiment import spool, tracking
from cpu_grpo.experiment.tracking import run_address, start_run

pytestmark = pytest.mark.slow
SECRET = "secret-word"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracking, "PATIENCE", 60)  # of a server that answers, however slow the machine is
    return tmp_path


def shared(uri):
    return Shared(tracking=Tracking(uri=uri, experiment="test"))


def record(run, *steps):
    for step in steps:
        run.metrics({"reward": step / 4, "kl": 0.5}, step)


def runs(server, name):
    client = MlflowClient(server.uri)
    return client.search_runs([client.get_experiment_by_name("test").experiment_id], f"attributes.run_name = '{name}'")


def only(server, name):
    (run,) = runs(server, name)
    return run


def arrived(server, name):
    """Steps in the order in which they arrived; their values must be right."""
    own = only(server, name).info.run_id
    found = [(step, value) for run, step, value in server.points("reward") if run == own]
    assert all(value == step / 4 for step, value in found)
    return [step for step, _ in found]


def process(code, *arguments):
    start = "import os, signal, sys\nfrom cpu_grpo.config.schema import *\nfrom cpu_grpo.experiment.tracking import *\n"
    command = [sys.executable, "-c", start + textwrap.dedent(code), *arguments]
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)


def test_points_of_a_run_with_outages_arrive_once_and_in_order(server, here):
    with start_run(shared(server.uri), "outages", "train", "", {}) as run:
        for outage in range(2):
            record(run, *range(200 * outage, 200 * outage + 100))
            server.kill()
            record(run, *range(200 * outage + 100, 200 * outage + 200))
            server.start()
    assert arrived(server, "outages") == list(range(400))
    assert only(server, "outages").info.status == "FINISHED"
    assert not list(spool.SPOOL.iterdir())


@pytest.fixture(scope="module")
def outage(server, tmp_path_factory):
    """What was recorded while the server was away: by runs that had begun, that began, ended, were killed, went on."""
    config, ids, steps = shared(server.uri), {}, {}
    with contextlib.chdir(tmp_path_factory.mktemp("runs")), pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "PATIENCE", 60)
        with contextlib.suppress(Stopped), start_run(config, "first life there", "train", "", {}) as run:
            record(run, 1, 2, 3)
            ids["there"] = run.run_id
            raise Stopped("", 130)
        with start_run(config, "down at the end", "train", "sweep /old", {}) as run:
            record(run, 1, 2)
            server.kill()
            patch.setattr(tracking, "PATIENCE", 0.5)
            record(run, 3, 4)
            Path("figures.json").write_text("then")
            run.artifact(Path("figures.json"), "kept")
            Path("figures.json").write_text("now")
        with start_run(config, "down at the start", "train", "sweep /new", {"variant": "v"}) as run:
            run.params(config)
            record(run, 1, 2, 3)
            ids["start"] = run.run_id
        with contextlib.suppress(Stopped), start_run(config, "first life here", "train", "", {}) as run:
            record(run, 1, 2, 3)
            ids["here"] = run.run_id
            raise Stopped("", 130)
        for life in ("here", "there"):
            with start_run(config, f"second life {life}", "train", "", {}, ids[life]) as run:
                steps[life] = run.last_step
                record(run, *range(3 if life == "there" else steps[life] + 1, 6))
        killed = process(
            """
            run = start_run(Shared(tracking=Tracking(uri=sys.argv[1], experiment="test")), "killed", "train", "", {})
            for step in (1, 2, 3):
                run.metrics({"reward": step / 4}, step)
            os.kill(os.getpid(), signal.SIGKILL)
            """,
            server.uri,
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        with start_run(config, "goes on", "train", "sweep /new", {}) as run:
            record(run, 1)
            back = 1000 * time.time()
            server.start()
            patch.setattr(tracking, "PATIENCE", 60)
            record(run, 2)
        address = run_address(config.tracking)
        yield SimpleNamespace(ids=ids, steps=steps, back=back, address=address, left=list(spool.SPOOL.iterdir()))


def test_what_a_run_recorded_after_the_server_went_is_sent_by_the_next_run(server, outage):
    run = only(server, "down at the end")
    assert arrived(server, "down at the end") == [1, 2, 3, 4]
    assert run.info.status == "FINISHED" and run.info.end_time < outage.back
    artifact = MlflowClient(server.uri).download_artifacts(run.info.run_id, "kept/figures.json")
    assert Path(artifact).read_text() == "then"
    assert not outage.left


def test_a_run_that_no_server_saw_begin_is_there_once_with_its_own_times(server, outage):
    run = only(server, "down at the start")
    assert arrived(server, "down at the start") == [1, 2, 3]
    assert run.data.params["tracking.experiment"] == "test" and run.data.tags["variant"] == "v"
    assert run.info.start_time < run.info.end_time < outage.back
    times = [point.timestamp for point in MlflowClient(server.uri).get_metric_history(run.info.run_id, "reward")]
    assert run.info.start_time <= min(times) <= max(times) <= run.info.end_time


def test_runs_of_a_pipeline_that_no_server_saw_begin_share_a_parent(server, outage):
    parents = {only(server, name).data.tags["mlflow.parentRunId"] for name in ("down at the start", "goes on")}
    (parent,) = parents
    assert MlflowClient(server.uri).get_run(parent).data.tags["pipeline"] == "sweep /new"
    assert len(parents | {only(server, "down at the end").data.tags["mlflow.parentRunId"]}) == 2


def test_a_run_that_no_server_saw_begin_is_found_by_the_id_that_it_had_here(server, outage):
    run = only(server, "down at the start").info
    assert outage.ids["start"] != run.run_id
    assert outage.address(outage.ids["start"]) == f"{server.uri}/#/experiments/{run.experiment_id}/runs/{run.run_id}"
    assert outage.address("local-none") == ""


def test_a_process_that_was_killed_during_the_outage_has_its_points_sent_once(server, outage):
    assert arrived(server, "killed") == [1, 2, 3]
    assert only(server, "killed").info.status == "FAILED"


def test_a_run_goes_on_during_the_outage_with_each_point_once(server, outage):
    assert outage.steps == {"here": 3, "there": 0}  # of the latter the server alone knew
    for life in ("here", "there"):
        assert arrived(server, f"first life {life}") == [1, 2, 3, 4, 5]
        assert only(server, f"first life {life}").info.status == "FINISHED"
        assert not runs(server, f"second life {life}")


def test_a_run_is_begun_once_though_its_process_died_before_it_knew(server, here):
    killed = process(
        """
        from cpu_grpo.experiment.spool import Journal
        Journal.sent = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
        start_run(Shared(tracking=Tracking(uri=sys.argv[1], experiment="test")), "begun", "train", "", {})
        """,
        server.uri,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(runs(server, "begun")) == 1
    with start_run(shared(server.uri), "next", "train", "", {}):
        pass
    assert only(server, "begun").info.status == "FAILED"
    assert not list(spool.SPOOL.iterdir())


def test_a_server_that_never_answers_holds_nothing_up(here, monkeypatch, capsys):
    monkeypatch.setattr(tracking, "START", 1)
    monkeypatch.setattr(tracking, "PATIENCE", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        config = shared(f"http://127.0.0.1:{silent.getsockname()[1]}")
        clock = [time.monotonic()]
        with start_run(config, "r", "train", "", {}) as run:
            clock.append(time.monotonic())
            record(run, 1)
            clock.append(time.monotonic())
        clock.append(time.monotonic())
    start, point, end = (after - before for before, after in pairwise(clock))
    assert point < 1 and max(start, end) < 8  # a call that waits for an answer takes 10 s
    assert f"3 records of this run wait in {spool.SPOOL.as_posix()}/{run.run_id}: " in capsys.readouterr().err


def test_no_password_of_an_address_is_written_or_said_anywhere(server, here):
    stage = """
        from cpu_grpo.config import launch
        from cpu_grpo.files import write_text
        def stage(config, root, pipeline_id):
            with start_run(config, "secretive", "train", pipeline_id, {"address": config.tracking.uri}) as run:
                run.params(config)
                run.tag("hardware", config.tracking.uri)
                write_text(root / "address", run_address(config.tracking)(run.run_id))
        launch(stage, "train")
    """
    arguments = ["-m", "variant=ultra_fast", "tracking.experiment=test", "tracking.samples_every=1"]
    address = f"user:{SECRET}@127.0.0.1"
    for uri in (server.uri.replace("127.0.0.1", address), f"http://{address}:9/?token={SECRET}"):
        done = process(stage, *arguments, f"tracking.uri='{uri}'")
        assert done.returncode == 0, done.stderr
        assert SECRET not in done.stdout + done.stderr
    assert "http://127.0.0.1:9/?token=*** takes no records" in done.stderr
    assert len(runs(server, "secretive")) == len(list(spool.SPOOL.glob("*/"))) == 1
    files = [path for directory in (here, server.directory) for path in directory.rglob("*") if path.is_file()]
    assert {"multirun.yaml", "overrides.yaml", "records.jsonl", "server.db", "config.json", "address"} <= {
        path.name for path in files
    }
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
