"""The memory that is left to a process, by the system and by its control groups."""

import os
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest

from cpu_grpo.hardware import available_memory
from cpu_grpo.hardware.memory import _heap

GB = 2**30


def group(path, limit, used, droppable, version=2):
    """A memory group's files."""
    limit_file, usage_file, statistic = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.max", "memory.current", "inactive_file"),
    }[version]
    return {
        f"sys/fs/cgroup/{path}/{limit_file}": str(limit),
        f"sys/fs/cgroup/{path}/{usage_file}": str(used),
        f"sys/fs/cgroup/{path}/memory.stat": f"active_file 12345\n{statistic} {droppable}\nanon 0",
    }


@pytest.mark.parametrize(
    ("groups", "files", "left"),
    [
        (None, {}, 10 * GB),
        ("0::/", {}, 10 * GB),
        ("0::/a", group("a", "max", 3 * GB, 0), 10 * GB),
        ("0::/a", group("a", 4 * GB, 3 * GB, 0), GB),
        ("0::/a", group("a", 4 * GB, 3 * GB, 2 * GB), 3 * GB),
        ("0::/a", group("a", 40 * GB, 3 * GB, 0), 10 * GB),
        ("0::/a", group("a", 4 * GB, 5 * GB, 0), 0),
        # A group above may have less left than the own one.
        ("0::/a/b", group("a/b", 8 * GB, GB, 0) | group("a", 4 * GB, 2 * GB, 0), 2 * GB),
        ("0::/a/b", group("a/b", 8 * GB, 7 * GB, 0) | group("a", 40 * GB, 2 * GB, 0), GB),
        # Inside a container the path may be the host's, and the mount's top the own group.
        ("0::/docker/1f", group("", 2 * GB, GB, 0), GB),
        ("4:memory:/x\n2:cpu:/y", group("memory/x", 4 * GB, 3 * GB, GB, version=1), 2 * GB),
        ("4:memory:/x\n2:cpu:/y", group("cpu/y", GB, 0, 0, version=1), 10 * GB),
        ("4:memory:/", group("memory", 9223372036854771712, 3 * GB, GB, version=1), 10 * GB),
    ],
)
def test_available_memory_is_the_least_that_is_left(system, monkeypatch, groups, files, left):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10 * GB))
    root = system([0], files | ({"proc/self/cgroup": groups} if groups else {}))
    assert available_memory(root) == left


def test_this_system_has_memory_left():
    assert 0 < available_memory() <= psutil.virtual_memory().total


@pytest.mark.slow
def test_products_of_ever_new_sizes_do_not_fill_the_memory():
    """In a process of its own: the caches' limits are read at its first product.

    And in an environment of its own: another test may have set the limits in this process, for its children, too.
    """
    code = """
import sys, torch
from cpu_grpo.hardware import keep_memory
from cpu_grpo.hardware.memory import _heap
if sys.argv[1] == "kept":
    keep_memory()
torch.set_num_threads(1)
weight = torch.randn(64, 64).bfloat16()
def used(first, last):
    with torch.no_grad():
        for rows in range(first, last):
            torch.nn.functional.linear(torch.zeros(rows, 64, dtype=torch.bfloat16), weight)
    return _heap().uordblks
print(-used(2, 102) + used(102, 702))
"""
    if not _heap():
        pytest.skip("the C library is not glibc")
    limits = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
    environment = {name: value for name, value in os.environ.items() if name not in limits}
    grown = {}
    for name in ("kept", "default"):
        command = [sys.executable, "-c", code, name]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        grown[name] = int(done.stdout)
    if grown["default"] < 2**20:
        pytest.skip("torch keeps no products on this machine")
    assert grown["kept"] < grown["default"] / 4
