from pathlib import Path

import pytest

from cpu_grpo.config.schema import Model, Shape, Train
from cpu_grpo.errors import UserError
from cpu_grpo.hardware import Setup
from cpu_grpo.plan import foresight
from cpu_grpo.plan.foresight import foresee, known_of, settled

SETUP = Setup("fp32", 1, 0.0, 0.0, ())
QWEN = Shape("qwen2", 1536, 28, 12, 2, 0, 8960, 151_936)  # 1.5 billion parameters


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def config(**changes):
    return Train(name="mine", model=Model(name="big", source="hub", repo="no/where", shape=QWEN), **changes)


def test_a_model_that_is_not_here_is_known_by_its_shape():
    known = known_of(config(), SETUP)
    assert known.shape.parameters == 1_543_714_304
    assert known.prompt_tokens == config().task.max_prompt_length  # until problems are drawn
    assert not list(Path().iterdir())  # nothing was downloaded or made


def test_what_does_not_fit_is_refused_before_anything_is_read():
    asked = config()
    asked.memory.limit = "8GB"
    with pytest.raises(UserError, match=r"memory\.scheme=full needs .* and memory\.limit is 8\.00 GB: use memory=lean"):
        settled(asked, SETUP)


def test_auto_is_settled_by_the_limit():
    asked = config()
    asked.memory.limit, asked.memory.scheme = "8GB", "auto"
    chosen, needs = settled(asked, SETUP)
    assert chosen.memory.scheme == "lean" and needs.peak.total <= 8e9


def test_without_sizes_a_run_goes_on_unplanned():
    asked = config()
    asked.model.source, asked.model.path, asked.model.shape, asked.memory.scheme = "path", "nowhere", Shape(), "auto"
    chosen, needs = settled(asked, SETUP)
    assert needs is None and chosen.memory.scheme == "full"


def test_stock_trl_is_not_planned_for():
    asked = config()
    asked.engine.name = "trl"
    assert known_of(asked, SETUP) is None


def test_a_run_starts_without_times_where_they_cannot_be_measured(monkeypatch):
    def fails(*_):
        raise UserError("no room")

    monkeypatch.setattr(foresight, "rehearse", fails)
    asked = config()
    asked.memory.scheme = "lora"
    with pytest.warns(UserWarning, match="no plan of the time: no room"):
        assert foresee(settled(asked, SETUP)[1], SETUP) is None
