"""The cores that this process may use."""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from cpu_grpo.hardware.cgroups import groups
from cpu_grpo.hardware.cpu import sysctl

SYSTEM = "sys/devices/system/cpu"


@dataclass(frozen=True)
class Cores:
    """What there is of the CPU, and what this process may use of it.

    Attributes:
        hardware_threads: of the machine.
        allowed: hardware threads that the process's affinity allows.
        physical: the cores that these belong to.
        efficient: as many of these are efficiency cores, slower than the others.
        quota: CPUs' worth of time that control groups allow; 0 without a limit.
    """

    hardware_threads: int
    allowed: int
    physical: int
    efficient: int = 0
    quota: float = 0.0

    @property
    def usable(self) -> int:
        """Cores that the process can keep busy, 1 at least.

        Two hardware threads of one core count once: matrix products fill a core's arithmetic units with one.
        """
        return max(1, math.floor(min(self.physical, self.quota or math.inf)))

    @property
    def thread_counts(self) -> list[int]:
        """How many threads may be best: one for each usable core, or for each fast one.

        A product is shared out evenly, so the slowest core decides when it is done.
        """
        return sorted({self.usable, min(self.usable, self.physical - self.efficient or self.usable)})


def usable_cores(root: Path = Path("/")) -> int:
    """Physical cores that this process can keep busy, 1 at least: by its affinity and its control groups' CPU quota.

    Args:
        root: where the system's `proc` and `sys` are.
    """
    return count_cores(root).usable


def count_cores(root: Path = Path("/")) -> Cores:
    """The cores by kind, affinity and quota."""
    system = root / SYSTEM
    everything = len(_cpus(system / "online")) or os.cpu_count() or 1
    try:
        allowed = psutil.Process().cpu_affinity()
    except AttributeError:  # macOS has no affinity
        allowed = list(range(everything))
    if not system.is_dir():  # not Linux
        physical = min(len(allowed), psutil.cpu_count(logical=False) or everything)
        return Cores(everything, len(allowed), physical, int(sysctl("hw.perflevel1.physicalcpu") or 0))
    slow = _slow(root)
    cores = {_siblings(system, cpu): cpu in slow for cpu in allowed}
    quota = min((_quota(group) for group in groups(root, "cpu")), default=math.inf)
    return Cores(everything, len(allowed), len(cores), sum(cores.values()), quota if quota < math.inf else 0.0)


def one_of_each_core(allowed: Iterable[int], root: Path = Path("/")) -> list[int]:
    """The first of each core's hardware threads that are allowed, on Linux."""
    first: dict[str, int] = {}
    for cpu in sorted(allowed):
        first.setdefault(_siblings(root / SYSTEM, cpu), cpu)
    return list(first.values())


def _siblings(system: Path, cpu: int) -> str:
    """The hardware threads of the CPU's core, as a list in text; the CPU alone where the system does not say."""
    return _read(system / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu)


def _slow(root: Path) -> set[int]:
    """The CPUs of efficiency cores: those that Linux lists on Intel's hybrids, and the slow ones on arm64.

    There it tells each CPU's speed, 1024 for the fastest: https://docs.kernel.org/scheduler/sched-capacity.html
    """
    files = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpu_capacity")
    capacities = {int(file.parent.name[3:]): int(_read(file) or 0) for file in files}
    fastest = max(capacities.values(), default=0)
    slow = {cpu for cpu, capacity in capacities.items() if 2 * capacity < fastest}
    return slow | _cpus(root / "sys/devices/cpu_atom/cpus")


def _cpus(file: Path) -> set[int]:
    """The numbers in a list such as 0-3,8; none where there is no such file."""
    parts = [part.partition("-") for part in _read(file).split(",") if part]
    return {cpu for first, _, last in parts for cpu in range(int(first), int(last or first) + 1)}


def _quota(group: Path) -> float:
    """CPUs' worth of time that a control group allows, of either version; infinite without a limit.

    https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max) and
    https://docs.kernel.org/scheduler/sched-bwc.html (cpu.cfs_quota_us)
    """
    for names in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
        try:
            quota, period = " ".join((group / name).read_text() for name in names).split()
        except (OSError, ValueError):
            continue
        if quota not in ("max", "-1"):
            return int(quota) / int(period)
    return math.inf


def _read(file: Path) -> str:
    """A file's text without what surrounds it; empty where there is none."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""
