import mmap
import time

import psutil
import pytest
import torch

from cpu_grpo import hardware
from cpu_grpo.config.schema import Hardware


@pytest.fixture(autouse=True)
def keep_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_threads_default_to_the_usable_cores():
    assert hardware.plan(Hardware(precision="fp32")).threads == hardware.usable_cores() == torch.get_num_threads()


@pytest.mark.skipif(not hasattr(psutil.Process, "cpu_affinity"), reason="this system has no CPU affinity")
def test_usable_cores_respect_affinity():
    process = psutil.Process()
    allowed = process.cpu_affinity()
    try:
        process.cpu_affinity(allowed[:1])
        assert hardware.usable_cores() == 1
    finally:
        process.cpu_affinity(allowed)


@pytest.mark.parametrize(("bf16", "wanted"), [(300.0, "bf16"), (120.0, "fp32"), (20.0, "fp32")])
def test_bf16_is_chosen_only_where_it_is_measured_faster(monkeypatch, bf16, wanted):
    monkeypatch.setattr(hardware, "gemm_rate", lambda dtype: bf16 if dtype == torch.bfloat16 else 100.0)
    plan = hardware.plan(Hardware(precision="auto", threads=1))
    assert (plan.precision, plan.fp32_rate, plan.bf16_rate) == (wanted, 100.0, bf16)


def test_the_monitor_sees_memory_and_work():
    with hardware.ResourceMonitor() as monitor:
        before = monitor.rss()
        block = mmap.mmap(-1, 120_000_000)  # its own pages: torch may hand out memory that it kept from earlier tests
        block.write(bytes(1) * len(block))
        end = time.process_time() + 0.3
        while time.process_time() < end:
            pass
        held = monitor.rss()
    assert held - before > 100e6
    assert monitor.peak_rss >= held
    assert 0.3 / (monitor.wall_seconds * hardware.usable_cores()) <= monitor.cpu_use <= 1.5
