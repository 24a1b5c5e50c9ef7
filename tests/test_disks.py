"""Disks that are full, read-only or not there: one sentence, earlier files intact, and the same command goes on."""

import os
import signal
import subprocess
import sys
import tempfile

import pytest
from torture.runs import TRAIN, UPDATES, command, left_over, result

from conftest import ROOT
from cpu_grpo.errors import explain

pytestmark = pytest.mark.slow

FAULTY = """
import os, runpy, sys
from pathlib import Path
from torture.faults import FAULTS, inject
fault, point, *sys.argv = sys.argv[1:]
inject(point, *FAULTS[fault], Path("writes"))
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(arguments, fault="", point="", **environment):
    start = [sys.executable, "-c", FAULTY, fault, point] if fault else [sys.executable]
    path = os.pathsep.join(filter(None, [str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "PYTHONWARNINGS": "default"} | environment
    return subprocess.run(
        [*start, TRAIN, *arguments], capture_output=True, text=True, check=False, env=environment, timeout=500
    )


@pytest.fixture(scope="module")
def expected(tiny_directory, tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    done = subprocess.run([sys.executable, TRAIN, *command(tiny_directory, root)], cwd=root, check=False)
    assert done.returncode == 0
    return result(root)


def sentence(done):
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.stderr and done.returncode == 1
    return line


@pytest.mark.parametrize("file", ["save {}/optimizer.pt", "serialize_file {}/model.safetensors"])
def test_a_checkpoint_that_the_disk_does_not_take_costs_no_run(expected, tiny_directory, workspace, file):
    # The folder's name has the run's fingerprint: it is found by a first run.
    assert run(command(tiny_directory, workspace), "killed", "save cache/checkpoints").returncode == -signal.SIGKILL
    (folder,) = (workspace / "cache" / "checkpoints").glob("*/")
    point = file.format(f"{folder.relative_to(workspace)}/checkpoint-3")
    done = run(command(tiny_directory, workspace), "disk full once", point)
    assert done.returncode == 0, done.stderr
    assert (workspace / "writes").read_text().startswith(point)
    assert "No checkpoint was made of update 3" in done.stderr and "training goes on" in done.stderr
    assert result(workspace) == expected and not left_over(workspace)


@pytest.mark.parametrize(
    ("fault", "point"),
    [
        ("disk full from then on", "serialize_file models/"),
        ("read-only from then on", "open results/train/.ultra_fast.samples"),
    ],
)
def test_a_result_that_the_disk_does_not_take_is_told_and_made_again(expected, tiny_directory, workspace, fault, point):
    earlier = workspace / "models" / "earlier"
    earlier.mkdir(parents=True)
    done = run(command(tiny_directory, workspace), fault, point)
    assert (workspace / "writes").read_text().startswith(point)
    assert "then run the same command again; what was finished is kept" in sentence(done)
    again = run(command(tiny_directory, workspace))
    assert again.returncode == 0 and "goes on from" in again.stdout
    assert result(workspace) == expected and not left_over(workspace)
    assert earlier.is_dir()


NOBODY = """
import os, pwd, runpy, sys
def unknown(uid):
    raise KeyError(uid)
pwd.getpwuid = unknown
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_as(script, keys):
    unset = ("HOME", "XDG_CACHE_HOME", "USER", "LOGNAME")
    environment = {key: value for key, value in os.environ.items() if key not in unset}
    return subprocess.run(
        [sys.executable, "-c", script, TRAIN, *keys],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=500,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="there, nobody has a home directory by that name")
def test_somebody_without_a_home_directory_can_train(tiny_directory, workspace):
    done = run_as(NOBODY, command(tiny_directory, workspace))
    assert done.returncode == 0, done.stderr
    assert result(workspace).history[-1]["step"] == str(UPDATES)
    assert "notice: there is no home directory" in done.stderr and (workspace / "cache" / "home").is_dir()


def test_a_directory_for_temporary_files_that_is_not_there_is_not_needed(tiny_directory, workspace):
    done = run(command(tiny_directory, workspace), TMPDIR="/nowhere")
    assert done.returncode == 0, done.stderr


def test_where_no_directory_for_temporary_files_is_left_a_sentence_says_what_to_set(monkeypatch):
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nowhere"])
    with pytest.raises(FileNotFoundError) as caught:
        tempfile._get_default_tempdir()
    assert explain(caught.value) == "No directory for temporary files can be written: set TMPDIR to one."


def test_a_directory_for_results_that_cannot_be_made_is_told(tiny_directory, workspace):
    (workspace / "file").touch()
    keys = command(tiny_directory, workspace, **{"hydra.run.dir": "file/results"})
    assert "A file lies where a folder is to be (file" in sentence(run(keys))
