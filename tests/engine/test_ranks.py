"""Processes that learn together: the same update as one makes of all of their completions, also after one is killed."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from conftest import ROOT
from cpu_grpo.engine import metrics, ranks
from cpu_grpo.engine.support import unsupported

WORKER = ROOT / "tests" / "rank_worker.py"
TIMES = ("seconds", "per_second", "step_time", "runtime")  # what differs from run to run
CHECKPOINTS = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}


@pytest.fixture
def train(tiny_directory, tmp_path):
    """Trains by so many processes; returns each one's weights and what it has told."""

    def run(name, processes, **task):
        out = tmp_path / name
        out.mkdir()
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        launcher += ["--max-restarts", "1"] if "kill" in task else []
        command = [sys.executable, *(launcher if processes > 1 else []), WORKER]
        path = os.pathsep.join([str(ROOT / "tests"), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [*command, json.dumps({"model": str(tiny_directory), "out": str(out), "scheme": "full"} | task)],
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        weights = [load_file(out / f"weights-{number}.safetensors") for number in range(processes)]
        told = [json.loads((out / f"told-{number}.json").read_text()) for number in range(processes)]
        return weights, told, out

    return run


def updates(told):
    """The figures of each update, times apart."""
    entries = (entry for entry in told["log"] if "reward" in entry)
    return [{key: value for key, value in entry.items() if not key.endswith(TIMES)} for entry in entries]


@pytest.mark.slow
def test_two_processes_make_the_update_of_one_with_all_of_their_completions(train):
    task = {"updates": 3, "fixed": True, "settings": {"optim": "sgd", "learning_rate": 0.1}}
    (alone,), (told,), _ = train("one", 1, batch=16, **task)
    (first, second), (of_first, _), _ = train("two", 2, batch=8, **task)
    before = train("untrained", 1, batch=16, **task | {"settings": {"optim": "sgd", "learning_rate": 0.0}})[0][0]
    assert max((alone[name] - before[name]).abs().max() for name in alone) > 1e-3
    for name, weight in alone.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], weight, rtol=0, atol=1e-6)
    for mine, theirs in zip(updates(of_first), updates(told), strict=True):
        assert mine.keys() == theirs.keys()
        for key in mine.keys() - {"rollout/logp_difference_mean"}:  # a mean of processes' means
            assert float(mine[key]) == pytest.approx(float(theirs[key]), rel=1e-4, abs=1e-5), key


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["lean", "lora"])
def test_a_killed_process_is_started_again_with_its_peers_and_all_end_as_if_it_had_not_been(train, scheme):
    task = {"scheme": scheme, "batch": 8, "updates": 4, "settings": CHECKPOINTS}
    whole, told, _ = train("whole", 2, **task)
    killed, again, out = train("killed", 2, **task, kill=2)
    assert told[0]["drawn"] != told[1]["drawn"]  # ranks draw completions of their own
    assert updates(again[0])[-2:] == updates(told[0])[-2:]
    for name, weight in whole[0].items():
        assert torch.equal(whole[1][name], weight) and torch.equal(killed[0][name], weight)
        assert torch.equal(killed[1][name], weight)
    assert (out / "checkpoint-4" / "seal.json").is_file() and (out / "checkpoint-4" / "exact_state-1.pt").is_file()
    assert not (out / "checkpoint-2").exists()


@pytest.mark.slow
def test_what_one_process_cannot_use_changes_no_ones_weights(train):
    (first, second), told, out = train("bad", 2, batch=8, updates=2, bad=1)
    skipped = [[float(entry["update/skipped"]) for entry in updates(own)] for own in told]
    assert skipped[0] == [1, 0]
    assert all(torch.equal(first[name], second[name]) and first[name].isfinite().all() for name in first)
    assert (out / "bad_batches" / "update-1.pt").is_file() and (out / "bad_batches-1" / "update-1.pt").is_file()


def test_groups_stay_with_one_process(tiny_model):
    settings = dict.fromkeys(
        ("entropy_coef", "use_adaptive_entropy", "cast_lm_head_to_fp32", "top_entropy_quantile"), 0
    ) | {"loss_type": "dapo", "top_entropy_quantile": 1, "num_generations": 8}
    for batch, processes, fits in ((8, 2, True), (16, 4, True), (4, 2, False), (4, 1, True)):
        args = SimpleNamespace(**settings, per_device_train_batch_size=batch)
        found = unsupported(tiny_model, args, False, processes)
        assert (found is None) == fits
        assert fits or "make per_device_train_batch_size a multiple of num_generations" in found


def test_buckets_hold_all_parameters_once_in_their_order(monkeypatch):
    monkeypatch.setattr(ranks, "BUCKET", 10)
    parameters = [torch.nn.Parameter(torch.zeros(size)) for size in (4, 5, 3, 25, 1, 1)]
    buckets = list(ranks._buckets(parameters))
    assert [[p.numel() for p in bucket] for bucket in buckets] == [[4, 5], [3], [25], [1, 1]]
    assert [p for bucket in buckets for p in bucket] == parameters


def test_figures_of_processes_become_one(monkeypatch):
    """By hand: 3 completions here, 1 there."""
    theirs = ({"loss": [5.0], "length_max": [9.0], "length_min": [1.0], "only/there": [2.0]}, 1)
    monkeypatch.setattr(metrics, "gather_object", lambda own: [*own, theirs])
    figures = {"loss": [7.0, 1.0], "length_max": [4.0], "length_min": [3.0], "old": [6.0]}
    metrics.merge_ranks(figures, {"loss": 1, "old": 1}, 3)
    assert figures == {
        "loss": [7.0, 2.0], "length_max": [9.0], "length_min": [1.0], "only/there": [2.0], "old": [6.0],
    }  # fmt: skip
