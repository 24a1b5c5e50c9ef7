"""This machine with less allowed, in processes of their own: real affinity, real quotas, fewer instructions."""

import contextlib
import json
import os
import subprocess
import sys

import pytest
from control_groups import NoGroup, control_group

from cpu_grpo.hardware import WORTH_IT, instructions

pytestmark = pytest.mark.slow

DECIDE = """
from cpu_grpo.config.schema import Hardware
from cpu_grpo.hardware import ResourceMonitor, count_cores, setup
import json, torch
found, cores = setup(Hardware(precision="fp32")), count_cores()
print(json.dumps([found.threads, torch.get_num_threads(), cores.allowed, cores.quota, found.reasons[0]]))
"""
TRAIN = """
import json, torch
from transformers import LlamaConfig, LlamaForCausalLM
from cpu_grpo.config.schema import Hardware
from cpu_grpo.engine.decoder import decoder
from cpu_grpo.hardware import DTYPES, machine, setup
from cpu_grpo.engine.learner import Rounded, completion_logps
from cpu_grpo.engine.rollout import Request, Sampling, generate, packed
machine.SIZES, machine.READ = (1024,), 2**20  # quick
found = setup(Hardware())
torch.manual_seed(0)
sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_key_value_heads": 2}
model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, initializer_range=0.3)).eval()
request = Request([5, 6, 7], 2)
(group,) = generate(packed(decoder(model), found.precision, 2), [request], Sampling(), 4, set(), 0)
ids = torch.tensor([request.prompt + completion.ids for completion in group])
rounded = Rounded.of(decoder(model), DTYPES[found.precision], 8)
logps, _ = completion_logps(rounded, ids, torch.ones_like(ids), 4, 1.0)
logps.sum().backward()
print(json.dumps({
    "capability": torch.backends.cpu.get_cpu_capability(),
    "precision": found.precision, "fp32": found.fp32_rate, "bf16": found.bf16_rate, "reason": found.reasons[1],
    "rollout": [completion.logps for completion in group], "learner": logps.tolist(),
    "gradient": sum(p.grad.norm().item() for p in model.parameters() if p.grad is not None),
}))
"""


def run(script, before=None, **environment):
    """What the script prints last, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        preexec_fn=before,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity")
def test_a_process_that_may_run_on_one_cpu_uses_one_thread():
    first = min(os.sched_getaffinity(0))
    threads, of_torch, allowed, _, reason = run(DECIDE, before=lambda: os.sched_setaffinity(0, {first}))
    assert threads == of_torch == allowed == 1
    assert reason.startswith("threads 1: ") and f"of {os.cpu_count()} hardware threads 1 allowed" in reason


@pytest.fixture
def group():
    """A new control group of this process's for the CPU, of either version, to which it may not belong."""
    with contextlib.ExitStack() as stack:
        try:
            made = stack.enter_context(control_group("cpu"))
        except NoGroup as error:
            pytest.skip(str(error))
        yield made


def test_a_process_in_a_group_of_one_and_a_half_cpus_uses_one_thread(group):
    try:
        if (group.path / "cpu.max").exists():
            (group.path / "cpu.max").write_text("150000 100000")
        else:
            (group.path / "cpu.cfs_period_us").write_text("100000")
            (group.path / "cpu.cfs_quota_us").write_text("150000")
    except OSError as error:
        pytest.skip(f"no quota can be set here: {error}")
    threads, of_torch, _, quota, reason = run(DECIDE, before=group.enter)
    assert threads == of_torch == 1
    assert quota == 1.5
    assert "CPU quota 1.5" in reason


def test_with_avx2_alone_a_run_works_and_products_are_in_what_is_measured_fastest(tmp_path):
    limits = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "CPU_GRPO_KERNELS": "0"}
    found = run(TRAIN, XDG_CACHE_HOME=str(tmp_path), **limits)
    if "avx2" in instructions():
        assert found["capability"] == "AVX2"
    wanted = "bf16" if found["bf16"] > WORTH_IT * found["fp32"] else "fp32"
    assert found["precision"] == wanted
    assert f"{found['fp32']:.0f} GFLOP/s in fp32 and {found['bf16']:.0f} in bf16" in found["reason"]
    if {"avx512_bf16", "amx_bf16"} & set(instructions()):  # which the switch forbids
        assert found["precision"] == "fp32"
    tolerance = 1e-4 if found["precision"] == "fp32" else 0.1
    for rollout, learner in zip(found["rollout"], found["learner"], strict=True):
        assert rollout == pytest.approx(learner, abs=tolerance)
    assert found["gradient"] > 0
