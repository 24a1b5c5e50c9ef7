import json
import subprocess

import pytest
import torch

from cpu_grpo import files
from cpu_grpo.engine import shape
from cpu_grpo.engine.decoder import decoder
from cpu_grpo.errors import UserError
from cpu_grpo.plan import rehearsal
from cpu_grpo.plan.job import Job
from cpu_grpo.plan.memory import Scheme

FULL = Scheme("full", recompute=False)
JOB = Job(2, 2, 12, 6, micro_batch=4, micro_batch_tokens=256, rows=8, updates=3, shared_tokens=4)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "cache_directory", lambda: tmp_path / "cache")


@pytest.fixture
def here(monkeypatch):
    """Measures in this process, which is quicker; returns the tasks that were measured."""
    tasks = []

    def run(command, **_):
        tasks.append(json.loads(command[-1]))
        costs = rehearsal.measure(tasks[-1])
        return subprocess.CompletedProcess(command, 0, json.dumps(rehearsal.asdict(costs)), "")

    monkeypatch.setattr(rehearsal.subprocess, "run", run)
    return tasks


def sizes(model):
    return shape.of_decoder(decoder(model))


@pytest.mark.parametrize(
    "scheme", [FULL, Scheme("full", True), Scheme("lean", True), Scheme("lora", True, 4), Scheme("lora", True, 4, True)]
)
def test_every_piece_of_an_update_is_timed(tiny_model, here, scheme):
    costs = rehearsal.rehearse(sizes(tiny_model), JOB, scheme, "fp32", torch.get_num_threads())
    for name in ("lay_out", "prefill", "step", "thin_step", "round", "learn", "optimize"):
        cost = getattr(costs, name)
        assert min(cost.layer, cost.rest) >= 0
        # Nothing to lay out or round where weights are read as they lie; a step is what two times differ by: nothing,
        # maybe, while other programs are busy.
        assert cost.of(100) > 0 or name in ("lay_out", "round", "step", "thin_step")
    assert (costs.prefilled, costs.learnt) == (4 + 2 * 8, 4 + 2 * 8 + 4 * 5)


def test_the_same_pieces_are_not_timed_again(tiny_model, here):
    first = rehearsal.rehearse(sizes(tiny_model), JOB, FULL, "fp32", 1)
    longer = Job(**vars(JOB) | {"prompts": 2, "updates": 500})
    assert rehearsal.rehearse(sizes(tiny_model), longer, FULL, "fp32", 1) == first
    assert len(here) == 1
    rehearsal.rehearse(sizes(tiny_model), JOB, Scheme("lean", True), "fp32", 1)
    assert len(here) == 2


def test_a_damaged_cache_is_measured_anew(tiny_model, here, tmp_path):
    rehearsal.rehearse(sizes(tiny_model), JOB, FULL, "fp32", 1)
    (kept,) = (tmp_path / "cache").glob("costs-*.json")
    whole = kept.read_text()
    for times, damaged in enumerate(['{"step": 1}', whole[: len(whole) // 2], whole.replace("0.0", "0.1", 1)], start=2):
        kept.write_text(damaged)
        costs = rehearsal.rehearse(sizes(tiny_model), JOB, FULL, "fp32", 1)
        assert len(here) == times and costs.step.of(2) > 0


def test_without_a_home_directory_they_are_timed_each_time(tiny_model, here, monkeypatch):
    def none():
        raise RuntimeError

    monkeypatch.setattr(files, "cache_directory", none)
    for times in (1, 2):
        rehearsal.rehearse(sizes(tiny_model), JOB, FULL, "fp32", 1)
        assert len(here) == times


def test_stand_ins_have_the_models_sizes(any_model):
    expected = sizes(any_model)
    for layers in (1, 3):
        made = rehearsal.stand_in(expected, layers, FULL)
        assert shape.of_decoder(made) == rehearsal.replace(expected, layers=layers)


def test_a_measurement_that_dies_is_told_in_a_sentence(tiny_model, monkeypatch):
    died = subprocess.CompletedProcess([], 1, "", "Traceback\nMemoryError: no room")
    monkeypatch.setattr(rehearsal.subprocess, "run", lambda *_, **__: died)
    with pytest.raises(UserError, match=r"could not be timed \(MemoryError: no room\): free some memory"):
        rehearsal.rehearse(sizes(tiny_model), JOB, FULL, "fp32", 1)


@pytest.mark.slow
def test_it_runs_in_a_process_of_its_own(tiny_model):
    costs = rehearsal.rehearse(sizes(tiny_model), JOB, FULL, "fp32", 1)
    assert costs.learn.of(2) > 0


@pytest.mark.parametrize("layers, timed", [(1, {1, 2}), (2, {1, 2}), (24, {1, 12}), (25, {1, 12})])
def test_a_layers_share_comes_from_half_of_the_model(tiny_model, monkeypatch, layers, timed):
    seen = set()

    def pieces(model, *_):
        seen.add(len(model.layers))
        return {"lay_out": 3 + 2 * len(model.layers)} | dict.fromkeys(
            ("prefill", "step", "thin_step", "round", "learn", "optimize"), 1.0
        )

    monkeypatch.setattr(rehearsal, "_pieces", pieces)
    shape = rehearsal.asdict(sizes(tiny_model)) | {"layers": layers}
    task = {"shape": shape, "job": vars(JOB), "scheme": vars(FULL), "precision": "fp32", "threads": 1}
    costs = rehearsal.measure(task)
    assert seen == timed
    assert costs.lay_out == rehearsal.Cost(2, 3) and costs.learn == rehearsal.Cost(0, 1)
