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


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Makes a system of its own: files by path, and the CPUs that this process may run on."""

    def make(allowed, files):
        monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda self: allowed, raising=False)
        for path, text in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text + "\n")
        return tmp_path

    return make


def siblings(*cores):
    """The topology's files of CPUs, of which each of `cores` has some."""
    path = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    return {path.format(cpu): ",".join(map(str, core)) for core in cores for cpu in core}


def test_hardware_threads_of_one_core_count_once(system):
    files = siblings((0, 4), (1, 5), (2, 6), (3, 7))
    assert hardware.usable_cores(system(list(range(8)), files)) == 4
    assert hardware.usable_cores(system([0, 4, 6], files)) == 2  # half of a core is one that can be kept busy


def test_efficiency_cores_of_one_thread_count_as_cores(system):
    assert hardware.usable_cores(system([0, 1, 2, 3], siblings((0, 1), (2,), (3,)))) == 3


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 4),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, 4),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "250000 100000"}, 2),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "50000 100000"}, 1),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": "300000 100000"}, 3),
        # Inside a container the path may be the host's, and the mount's top the own group.
        ({"proc/self/cgroup": "0::/docker/1f", "sys/fs/cgroup/cpu.max": "200000 100000"}, 2),
        (
            {
                "proc/self/cgroup": "3:memory:/x\n2:cpu,cpuacct:/x\n0::/",
                "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": "200000",
                "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/memory/x/cpu.max": "100000 100000",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            4,
        ),
    ],
)
def test_usable_cores_respect_quotas(system, files, cores):
    assert hardware.usable_cores(system([0, 1, 2, 3], files)) == cores


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
