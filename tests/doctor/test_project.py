"""Every check of the checkout, passing and failing."""

import subprocess
import sys

import pytest
from filelock import FileLock

from cpu_grpo.doctor import project as checks
from cpu_grpo.doctor.finding import examined
from cpu_grpo.files import write_json


def commit(project):
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "Start"]):
        settings = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *settings, *command], check=True, capture_output=True)


def test_git_with_a_commit_without_one_and_missing(project, monkeypatch):
    found = checks.git()
    assert found.state == "warn" and found.fix.startswith("git init")
    commit(project)
    assert checks.git().state == "ok" and "differ" not in checks.git().said
    (project / "dvc.yaml").write_text("")
    assert checks.git().state == "ok" and "files differ" in checks.git().said
    monkeypatch.setattr(checks.shutil, "which", lambda name: None)
    assert checks.git().state == "warn"


def test_dvc_installed_and_initialised(project, monkeypatch):
    assert (checks.dvc().state, checks.dvc().fix) == ("FAIL", "dvc init")
    (project / ".dvc").mkdir()
    monkeypatch.setattr(checks.shutil, "which", lambda name: name)
    assert checks.dvc().state == "ok"
    monkeypatch.setattr(checks.shutil, "which", lambda name: None)
    assert checks.dvc().state == "warn" and "PATH" in checks.dvc().fix
    (project / "dvc.yaml").unlink()
    assert checks.dvc().state == "warn" and checks.dvc().fix.startswith("cd ")

    def missing(name):
        raise checks.PackageNotFoundError(name)

    monkeypatch.setattr(checks, "version", missing)
    assert checks.dvc().state == "FAIL" and "not installed" in checks.dvc().said


def test_params_in_step_with_the_configuration(set_params):
    assert checks.params().state == "ok"
    set_params(seed=7, task__train=200)
    found = checks.params()
    assert (found.state, found.said) == ("warn", "it differs from conf/config.yaml in seed, task.train")
    assert found.fix == "python pipelines/compose.py --config-name config"


def test_params_of_another_pipeline(project):
    from omegaconf import OmegaConf

    from cpu_grpo.config.compose import compose_pipeline

    (project / "params.yaml").write_text(OmegaConf.to_yaml(compose_pipeline([], "gsm8k")))
    assert checks.params() == checks.ok("it is what conf/gsm8k.yaml says")


def test_params_that_are_wrong_or_missing(set_params, project):
    set_params(seed=-1)
    found = examined(checks.params)
    assert found.state == "FAIL" and "seed" in found.said
    (project / "params.yaml").unlink()
    assert checks.params().state == "FAIL"


@pytest.fixture
def status():
    """A process that says this in place of `dvc status`."""
    begun = []

    def start(code):
        begun.append(subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1, text=True))
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.communicate()


def test_stages_up_to_date_changed_and_not_to_be_told(status, monkeypatch):
    assert checks.stages(status("print('{}')")).state == "ok"
    found = checks.stages(status("""print('{"model": [], "data": [], "train@a": [], "report": []}')"""))
    assert (found.state, found.fix) == ("warn", "dvc repro")
    assert found.said == "4 have changed or were not run yet: model, data, train@a and 1 more"
    found = checks.stages(status("import sys; sys.exit('some\\nERROR: locked')"))
    assert found.state == "warn" and "ERROR: locked" in found.said
    assert checks.stages(None).state == "warn"
    monkeypatch.setattr(checks, "PATIENCE", 0.1)
    assert "took over" in checks.stages(status("import time; time.sleep(60)")).said


@pytest.mark.slow
def test_the_real_status_of_a_pipeline_that_was_not_run(project):
    commit(project)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], check=True)
    found = checks.stages(checks.start_status())
    assert found.state == "warn" and "were not run yet: model, data" in found.said, found


def test_checkpoints_of_runs_that_ended_before_their_time(project):
    assert checks.checkpoints().state == "ok"
    for name, size in (("first-abc", 3 * 10**7), ("second-def", 10**7)):
        directory = project / "cache" / "checkpoints" / name
        write_json(directory / "run.json", {"identity": {}, "target": "models/first"})
        (directory / "checkpoint-1").mkdir()
        (directory / "checkpoint-1" / "weights").write_bytes(bytes(size))
    found = checks.checkpoints()
    assert found.state == "warn" and found.said.startswith("2 unfinished runs keep 0.04 GB (first-abc, second-def)")
    with FileLock(project / "cache" / "checkpoints" / "first-abc.lock"):  # a process is at it
        found = checks.checkpoints()
    assert found.said.startswith("an unfinished run keeps 0.01 GB (second-def)")
    assert found.fix == "rm -r 'cache/checkpoints/second-def'"
