"""The whole benchmark on tiny models: its figures mean nothing, but they must be there and agree with each other."""

import json
import os
import subprocess
import sys
from importlib import import_module
from statistics import median

import bench
import pytest
import run
import torch
import workers.machine
from processes import WorkerFailed
from rows import loading, memory, parts, scaling, updates, whole_runs

from conftest import ROOT
from cpu_grpo.hardware import decisions
from machines import machine

pytestmark = pytest.mark.slow

STUB = '''
"""Stands in for vLLM: answers of the right lengths."""
from types import SimpleNamespace
__version__ = "stub"
SamplingParams = SimpleNamespace
class LLM:
    def __init__(self, model, dtype, max_model_len):
        self.longest = max_model_len
    def generate(self, prompts, sampling, use_tqdm):
        assert all(len(p["prompt_token_ids"]) + sampling.max_tokens <= self.longest for p in prompts)
        assert sampling.ignore_eos and sampling.min_tokens == sampling.max_tokens
        completion = SimpleNamespace(token_ids=[1] * sampling.max_tokens)
        return [SimpleNamespace(outputs=[completion] * sampling.n) for _ in prompts]
'''


def made_up_rates(monkeypatch, fp32, bf16):
    """GFLOP/s of all products."""
    monkeypatch.setattr(workers.machine, "gemm_rate", lambda dtype, **sizes: bf16 if dtype == torch.bfloat16 else fp32)
    monkeypatch.setattr(decisions, "probe", lambda threads: machine(fp32, bf16, threads))


@pytest.fixture
def in_process(monkeypatch):
    """Workers run inside this process, which spares their imports, and GEMM rates are made up, half a second each."""
    made_up_rates(monkeypatch, fp32=100.0, bf16=300.0)
    threads = torch.get_num_threads()

    def ask(worker, task, python=sys.executable, **environment):
        measure = import_module(f"workers.{worker}").measure
        return json.loads(json.dumps(measure(json.loads(json.dumps(task)))))

    for module in (run, updates, parts, whole_runs, loading, memory, scaling):
        monkeypatch.setattr(module, "ask", ask)
    monkeypatch.delenv("VLLM_PYTHON", raising=False)
    monkeypatch.chdir(ROOT)  # where run.main goes, so that this is undone
    yield
    torch.set_num_threads(threads)


def test_every_row_is_printed_and_written_and_agrees_with_its_runs(in_process, tmp_path, capsys):
    out = tmp_path / "bench.json"
    assert run.main(["--quick", "--repeats", "2", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    report = json.loads(out.read_text())
    assert list(report["rows"]) == list(run.ROWS)
    for name, figures in report["rows"].items():
        assert figures and f"| {name} " in printed
        for figure in figures:
            assert (figure["met"] is None) == (figure["value"] is None or figure["goal"] is None)
    assert report["machine"]["cpu"] in printed and report["commit"] and report["failures"] == []

    fp32, bf16 = report["rows"]["update_135m"]
    runs = report["runs"]["update_135m"]
    assert {name: len(answers) for name, answers in runs.items()} == {"ours": 2, "trl fp32": 1, "trl bf16": 1}
    for figure, engine in ((fp32, "trl fp32"), (bf16, "trl bf16")):
        assert figure["ours"] == median(answer["seconds"][0] for answer in runs["ours"])
        assert figure["value"] == pytest.approx(runs[engine][0]["seconds"][0] / figure["ours"])
        assert 0 < figure["bound"] < figure["ours"]
    for answers in runs.values():
        assert all(0 < answer["rollout_seconds"][0] < answer["seconds"][0] for answer in answers)

    absolute = report["rows"]["update_494m_1x8"][1]
    assert absolute["value"] == pytest.approx(2 / report["rows"]["update_494m_1x8"][0]["ours"])
    no_vllm, plain = report["rows"]["rollout_494m"][:2]
    assert no_vllm["value"] is None and no_vllm["ours"] == plain["ours"]
    assert plain["value"] == pytest.approx(plain["ours"] / plain["other"])
    learner = report["rows"]["learner_135m"][0]
    assert learner["value"] == pytest.approx(learner["ours"] / learner["bound"]) and learner["value"] < 1
    (load,) = report["rows"]["load_494m"]
    assert load["ours"] == median(answer["seconds"] for answer in report["runs"]["load_494m"]["ours"])
    for answer in report["runs"]["load_494m"]["ours"]:
        parts = sum(answer[f"{part}_seconds"] for part in ("read", "pack", "forward"))
        assert answer["seconds"] == pytest.approx(parts)
    jobs = report["runs"]["memory_default_job"]
    assert [(scheme, job["memory"], job["updates"]) for scheme, (job,) in jobs.items()] == [
        (scheme, scheme, 2) for scheme in ("full", "lean", "lora")
    ]
    for figure, (job,) in zip(report["rows"]["memory_default_job"], jobs.values(), strict=True):
        assert figure["value"] == job["peak_bytes"] / 1e9 >= job["peak_rss_bytes"] / 1e9 > 0.1
    refresh = report["rows"]["weight_refresh"][0]
    assert refresh["value"] == pytest.approx(refresh["ours"] / fp32["ours"])
    assert report["rows"]["time_to_accuracy"][0]["value"] is None and "not reached" in printed
    assert (tmp_path / "bench_linearity.png").is_file()


def test_where_bf16_is_slow_baselines_are_at_their_best_in_fp32(in_process, monkeypatch, tmp_path):
    made_up_rates(monkeypatch, fp32=100.0, bf16=20.0)
    out = tmp_path / "bench.json"
    rows = ["update_135m", "rollout_135m"]
    assert run.main(["--quick", "--repeats", "1", "--only", *rows, "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert set(report["runs"]["update_135m"]) == {"ours", "trl fp32"}
    fp32, best = report["rows"]["update_135m"]
    assert (fp32["goal"], best["goal"]) == (12, 8) and fp32["value"] == best["value"]
    assert best["measure"].endswith("at its best here, fp32")
    assert report["rows"]["rollout_135m"][1]["measure"] == "rollout against transformers.generate fp32"


def test_the_command_and_vllms_environment(tmp_path):
    (tmp_path / "vllm.py").write_text(STUB)
    command = [sys.executable, ROOT / "benchmarks" / "run.py", "--quick", "--repeats", "1", "--only", "rollout_135m"]
    environment = {"VLLM_PYTHON": sys.executable, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [*command, "--out", tmp_path / "bench.json"],
        env=os.environ | environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "bench.json").read_text())
    vllm = report["rows"]["rollout_135m"][0]
    assert vllm["value"] == pytest.approx(vllm["ours"] / vllm["other"])
    runs = report["runs"]["rollout_135m"]
    assert runs["vllm"][0]["vllm"] == runs["vllm, all cores"][0]["vllm"] == "stub"
    assert vllm["other"] == max(2 * 8 / runs[name][0]["seconds"][0] for name in parts.VLLM)


def test_an_engine_that_fails_leaves_the_others_their_figures(tmp_path):
    def fails():
        raise WorkerFailed("out of memory")

    made = bench.Bench("", 1, 1, tmp_path / "plot.png", {})
    runs = made.measure("key", {"ours": (2, lambda: {"seconds": [1.0]}), "stock": (2, fails)})
    assert runs == {"ours": [{"seconds": [1.0]}] * 2, "stock": []}
    assert made.failures == ["key, stock: out of memory"]


def test_updates_of_another_length_than_planned_are_refused():
    from floors import Work
    from workers.update import _check

    work = Work(prompts=1, completions=2, prompt_tokens=3, completion_tokens=4)
    row = {"reward": 0.5, "completions/min_length": 4.0, "completions/max_length": 4.0, "num_tokens": 14}
    row |= {"frac_reward_zero_std": 0.0, "grad_norm": 1.0}
    _check([row], [work])
    others = [{"completions/min_length": 3.0}, {"num_tokens": 13}, {"frac_reward_zero_std": 1.0}, {"grad_norm": 0.0}]
    for change in others:
        with pytest.raises(ValueError, match="update 0"):
            _check([row | change], [work])


@pytest.mark.parametrize("tokens", [5, 115])
def test_prompts_have_exactly_the_tokens_asked_for(tokenizer, tokens):
    import workloads

    texts = workloads.prompts(tokenizer, 4, tokens, seed=3)
    assert len(set(texts)) == 4
    assert [len(ids) for ids in workloads.prompt_ids(tokenizer, texts)] == [tokens] * 4
