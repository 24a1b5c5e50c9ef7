"""Stages are one process each."""

import subprocess
import sys

import pytest

from conftest import ROOT


@pytest.mark.parametrize("stage", ["data", "train"])
def test_a_stage_under_torchrun_ends_with_a_sentence_before_it_writes_anything(stage, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    command = [sys.executable, ROOT / "pipelines" / f"{stage}.py", f"hydra.run.dir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: A stage is one process: start it without torchrun.")
    assert len(done.stderr.splitlines()) == 1 and not list(tmp_path.iterdir())
