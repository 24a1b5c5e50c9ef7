"""Cores by affinity, quota and kind, on systems that are made up; test_limits.py has this one."""

import pytest

from cpu_grpo.hardware import count_cores, usable_cores


def siblings(*cores):
    """The topology's files of CPUs, of which each of `cores` has some."""
    path = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    return {path.format(cpu): ",".join(map(str, core)) for core in cores for cpu in core}


def test_hardware_threads_of_one_core_count_once(system):
    files = siblings((0, 4), (1, 5), (2, 6), (3, 7))
    assert usable_cores(system(list(range(8)), files)) == 4
    assert usable_cores(system([0, 4, 6], files)) == 2  # half of a core is one that can be kept busy


def test_hardware_threads_of_the_machine_and_those_allowed_are_told_apart(system):
    files = siblings((0, 4), (1, 5), (2, 6), (3, 7)) | {"sys/devices/system/cpu/online": "0-3,4-7"}
    found = count_cores(system([0, 4, 6], files))
    assert (found.hardware_threads, found.allowed, found.physical, found.quota) == (8, 3, 2, 0)


# One core of two threads and fast, two efficient ones: as Linux tells it on Intel, and on arm64.
INTEL = siblings((0, 1), (2,), (3,)) | {"sys/devices/cpu_core/cpus": "0-1", "sys/devices/cpu_atom/cpus": "2-3"}
ARM = siblings((0,), (1,), (2,), (3,)) | {
    f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity": capacity
    for cpu, capacity in enumerate(("1024", "870", "402", "402"))  # the second one is no efficiency core
}


@pytest.mark.parametrize(
    ("files", "allowed", "physical", "efficient", "counts"),
    [
        (siblings((0, 1), (2,), (3,)), [0, 1, 2, 3], 3, 0, [3]),
        (INTEL, [0, 1, 2, 3], 3, 2, [1, 3]),
        (INTEL, [0, 2], 2, 1, [1, 2]),
        (INTEL, [2, 3], 2, 2, [2]),
        (ARM, [0, 1, 2, 3], 4, 2, [2, 4]),
        (ARM, [0, 1], 2, 0, [2]),
    ],
)
def test_efficiency_cores_count_as_cores_and_are_told_apart(system, files, allowed, physical, efficient, counts):
    found = count_cores(system(allowed, files))
    assert (found.usable, found.physical, found.efficient) == (physical, physical, efficient)
    assert found.thread_counts == counts


def test_a_quota_below_the_fast_cores_leaves_no_choice_of_threads(system):
    quota = {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "200000 100000"}
    assert count_cores(system([0, 1, 2, 3], ARM | quota)).thread_counts == [2]


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 4),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, 4),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "250000 100000"}, 2),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "50000 100000"}, 1),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": "300000 100000"}, 3),
        ({"proc/self/cgroup": "0::/a", "sys/fs/cgroup/unified/a/cpu.max": "300000 100000"}, 3),
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
                "proc/self/cgroup": "2:cpuacct,cpu:/x",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "300000",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000",
            },
            3,
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
    assert usable_cores(system([0, 1, 2, 3], files)) == cores
