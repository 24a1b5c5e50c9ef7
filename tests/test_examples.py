"""The example as a user runs it, and as a user of stock TRL would."""

import runpy
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from trl import GRPOTrainer

from conftest import ROOT
from cpu_grpo import CPUGRPOTrainer

pytestmark = pytest.mark.slow

EXAMPLE = ROOT / "examples" / "grpo.py"
OURS = "from cpu_grpo import CPUGRPOTrainer as GRPOTrainer"
STOCK = "from trl import GRPOTrainer"


@pytest.fixture
def run(tiny_directory, tmp_path, monkeypatch, capsys):
    """Runs a script in an empty directory on the tiny model; returns its globals and what it printed."""

    def run(script: Path, *options: str):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", [str(script), str(tiny_directory), *options])
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="TRL's plain path")
            left = runpy.run_path(str(script), run_name="__main__")
        return left, capsys.readouterr().out

    return run


def check(left, printed, trainer_class):
    assert type(left["trainer"]) is trainer_class
    assert [line.split(":")[0] for line in printed.splitlines() if line.startswith("update ")] == [
        "update 1",
        "update 2",
        "update 3",
    ]
    adapter = load_file("outputs/example/adapter_model.safetensors")
    second = [weight for name, weight in adapter.items() if "lora_B" in name]  # zero until it has learnt
    assert second and all(weight.abs().max() > 0 and torch.isfinite(weight).all() for weight in second)


@pytest.mark.parametrize("loss", ["dapo", "dr_grpo"])
def test_the_example_trains_an_adapter_on_the_fast_path(run, loss):
    left, printed = run(EXAMPLE, "--loss_type", loss)
    assert left["trainer"].loss_type == loss
    check(left, printed, CPUGRPOTrainer)


def test_the_example_is_a_stock_trl_script_but_for_one_import(run, tmp_path):
    source = EXAMPLE.read_text(encoding="utf-8")
    assert source.count("cpu_grpo") == source.count(OURS) == 1
    stock = tmp_path / "stock.py"
    stock.write_text(source.replace(OURS, STOCK), encoding="utf-8")
    check(*run(stock), GRPOTrainer)
