"""Training that is killed or stopped at any moment, and the same command again: nothing that was kept is lost."""

import contextlib
import functools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from torture import runs
from torture.runs import TRAIN, UPDATES

from conftest import ROOT
from stages import SIGNALLED, command, run

pytestmark = pytest.mark.slow


def result():
    """What a run in the current directory has left."""
    return runs.result(Path())


@pytest.fixture(scope="module")
def expected(tiny_directory, tmp_path_factory):
    """The result, by scheme, of a run that nothing interrupts."""

    @functools.cache
    def of(scheme="full"):
        with contextlib.chdir(tmp_path_factory.mktemp("whole")):
            done = run(command(tiny_directory, memory=scheme))
            assert done.returncode == 0, done.stderr
            return result()

    return of


def goes_on(directory, **changes):
    """Runs the same command again; returns what it prints."""
    again = run(command(directory, **changes))
    assert again.returncode == 0, again.stderr
    return again.stdout


MOMENTS = {
    "in a rollout": ("cpu_grpo.engine.rollout.generation:decode", 12),
    "in an update": ("cpu_grpo.engine.trainer:completion_logps", 5),
    "before a checkpoint is sealed": ("cpu_grpo.engine.trainer:seal", 3),
    "before the model is saved": ("cpu_grpo.experiment.training:save", 1),
    "before the results are written": ("cpu_grpo.experiment.figures:write_results", 1),
}


@pytest.mark.parametrize(("place", "call"), MOMENTS.values(), ids=MOMENTS)
def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_happened(expected, tiny_directory, workspace, place, call):
    killed = run(command(tiny_directory), place, call)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert "goes on from cache/checkpoints/ultra_fast-" in goes_on(tiny_directory)
    assert result() == expected()
    assert [path.name for path in (workspace / "models").iterdir()] == ["ultra_fast"]  # nothing half-written
    assert not list((workspace / "cache" / "checkpoints").glob("*/"))


@pytest.mark.parametrize("scheme", ["lean", "lora"])
def test_runs_of_less_memory_go_on_too(expected, tiny_directory, workspace, scheme):
    killed = run(command(tiny_directory, memory=scheme), "cpu_grpo.engine.trainer:seal", 3)
    assert killed.returncode == -signal.SIGKILL
    goes_on(tiny_directory, memory=scheme)
    assert result() == expected(scheme)


def test_mlflow_goes_on_in_the_same_run_with_each_point_once(tiny_directory, workspace):
    # Killed after an update's figures were sent and before its checkpoint: they come again.
    assert run(command(tiny_directory), "cpu_grpo.engine.trainer:seal", 3).returncode == -signal.SIGKILL
    goes_on(tiny_directory)
    client = MlflowClient(f"sqlite:///{(workspace / 'mlflow.db').as_posix()}")  # MLflow keeps stores by their address
    (trained,) = client.search_runs([client.get_experiment_by_name("cpu-grpo").experiment_id])
    assert trained.info.status == "FINISHED"
    points = client.get_metric_history(trained.info.run_id, "reward")
    assert sorted(point.step for point in points) == list(range(1, UPDATES + 1))


@pytest.mark.parametrize(
    ("number", "code", "place", "call"),
    [
        (signal.SIGTERM, 143, "cpu_grpo.engine.rollout.generation:decode", 12),
        (signal.SIGINT, 130, "cpu_grpo.engine.trainer:completion_logps", 5),
    ],
    ids=["SIGTERM in a rollout", "Ctrl-C in an update"],
)
def test_a_stopped_run_keeps_its_last_update_and_says_how_to_go_on(
    expected, tiny_directory, workspace, number, code, place, call
):
    without = {"checkpoint.updates": 0}
    stopped = run(command(tiny_directory, **without), place, call, number)
    assert stopped.returncode == code, stopped.stderr
    (line,) = [line for line in stopped.stderr.splitlines() if line.startswith("stopped: ")]
    assert line.endswith(f"of {UPDATES}, which is kept; the same command goes on from there")
    assert "Traceback" not in stopped.stderr
    goes_on(tiny_directory, **without)
    assert result() == expected()


def test_another_configuration_begins_anew_and_says_what_changed(tiny_directory, workspace):
    assert run(command(tiny_directory), "cpu_grpo.engine.trainer:seal", 3).returncode == -signal.SIGKILL
    said = goes_on(tiny_directory, **{"trainer.learning_rate": "2e-3"})
    assert (
        "notice: The checkpoints of an unfinished run for models/ultra_fast are dropped, as trainer.learning_rate was "
        "0.001 and is 0.002." in said
    )
    assert "goes on from" not in said


def in_time(directory, **changes):
    """A run in a directory that is named by the time, as Hydra's are, two seconds after another."""
    time.sleep(1.1)
    return [key for key in command(directory, **changes) if not key.startswith("hydra.run.dir")]


def test_a_hydra_run_goes_on_in_its_next_directory(expected, tiny_directory, workspace):
    killed = run(in_time(tiny_directory), "cpu_grpo.engine.trainer:seal", 3)
    assert killed.returncode == -signal.SIGKILL
    changed = run(in_time(tiny_directory, **{"trainer.learning_rate": "2e-3", "trainer.max_steps": 1}))
    assert re.search(
        r"notice: This is another run than the unfinished one for outputs/train/\S+/models/ultra_fast, as "
        r"trainer.learning_rate was 0.001 and is 0.002, trainer.max_steps was 5 and is 1\.",
        changed.stdout,
    )
    again = run(in_time(tiny_directory))
    assert again.returncode == 0 and "goes on from cache/checkpoints/ultra_fast-" in again.stdout
    *_, last = sorted((workspace / "outputs" / "train").iterdir())
    with contextlib.chdir(last):
        assert result() == expected()


def test_a_sweep_goes_on_with_the_job_that_was_killed(tiny_directory, workspace):
    sweep = ["-m", *in_time(tiny_directory), "seed=1,2", "hydra.sweep.dir=sweep"]
    killed = run(sweep, "cpu_grpo.engine.trainer:seal", UPDATES + 2)
    assert killed.returncode == -signal.SIGKILL
    again = run(sweep)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("goes on from cache/checkpoints/ultra_fast-") == 1


def test_checkpoints_that_nobody_goes_on_from_are_removed_after_a_month(tiny_directory, workspace):
    assert run(in_time(tiny_directory), "cpu_grpo.engine.trainer:seal", 3).returncode == -signal.SIGKILL
    (old,) = (workspace / "cache" / "checkpoints").glob("*/")
    os.utime(old, (time.time() - 31 * 24 * 3600,) * 2)
    done = run(in_time(tiny_directory, **{"trainer.max_steps": 1}))
    assert done.returncode == 0 and not old.exists()


def test_the_same_run_twice_at_once_is_refused(tiny_directory, workspace):
    slow = [sys.executable, "-c", SIGNALLED, "cpu_grpo.engine.trainer:seal", "2", str(int(signal.SIGSTOP))]
    arguments = command(tiny_directory)
    first = subprocess.Popen([*slow, TRAIN, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 120
        while not list(workspace.glob("cache/checkpoints/*/checkpoint-1/seal.json")):
            assert time.monotonic() < deadline and first.poll() is None
            time.sleep(0.2)
        second = run(arguments)
        assert second.returncode == 1
        assert "error: Another process is training models/ultra_fast with this very configuration" in second.stderr
    finally:
        first.kill()
        first.communicate()


def test_a_study_goes_on_with_the_stage_that_was_killed(tiny_directory, workspace):
    own = command(tiny_directory)
    shared = [key for key in own if key.split("=")[0].split(".")[0] in ("model", "task")]
    training = [key for key in own if key.split(".")[0] in ("trainer", "rewards", "hardware", "checkpoint")]
    training = [key for key in training if "max_steps" not in key] + ["trainer.max_steps=30", "levels=[]"]
    study = [
        *(sys.executable, str(ROOT / "pipelines" / "study.py"), "study=progressive", "budget=quick", "arm=hardest"),
        *(
            "seed=1",
            "results=mine",
            "hydra.sweep.dir=out",
            f"also='{' '.join(shared)}'",
            f"budget.training='{' '.join(training)}'",
        ),
    ]
    process = subprocess.Popen(study, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(workspace.glob("cache/checkpoints/*/checkpoint-2/seal.json")):
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.02)
    for child in psutil.Process(process.pid).children():
        child.kill()
    _, said = process.communicate()
    assert process.returncode == 1 and "hardest with seed 1 was killed in train" in said
    again = subprocess.run(study, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "goes on from cache/checkpoints/progressive-1-" in again.stdout
