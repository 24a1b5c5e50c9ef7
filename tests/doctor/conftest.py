"""A folder with a pipeline."""

import shutil

import pytest
from omegaconf import OmegaConf

from conftest import ROOT
from cpu_grpo.config.compose import compose_pipeline


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The current directory: an empty one with params.yaml as conf/ says, and dvc.yaml."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(OmegaConf.to_yaml(compose_pipeline([])))
    shutil.copyfile(ROOT / "dvc.yaml", tmp_path / "dvc.yaml")
    return tmp_path


@pytest.fixture
def set_params(project):
    """Changes keys of params.yaml."""

    def change(**changes):
        config = OmegaConf.load("params.yaml")
        for key, value in changes.items():
            OmegaConf.update(config, key.replace("__", "."), value)
        OmegaConf.save(config, "params.yaml")

    return change
