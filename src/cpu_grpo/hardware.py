"""What this CPU can do, measured, and what a run used of it."""

import ctypes
import math
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil
import torch

from cpu_grpo.config.schema import Hardware

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}  # of each precision
WORTH_IT = 1.3  # bf16 matrix products must be this much faster than fp32 before they are used


@dataclass(frozen=True)
class Plan:
    """How a run will use the CPU, and the measurement that decided it (GFLOP/s; 0 where nothing was measured)."""

    precision: str
    threads: int
    fp32_rate: float
    bf16_rate: float


def usable_cores(root: Path = Path("/")) -> int:
    """Physical cores that this process can keep busy, 1 at least: by its affinity and its control groups' CPU quota.

    Two hardware threads of one core count once: matrix products fill a core's arithmetic units with one.

    Args:
        root: where the system's `proc` and `sys` are.
    """
    try:
        allowed = psutil.Process().cpu_affinity()
    except AttributeError:  # macOS has no affinity
        return psutil.cpu_count(logical=False) or os.cpu_count() or 1
    cores = {_siblings(root, cpu) for cpu in allowed}
    return max(1, math.floor(min(len(cores), _cpu_quota(root))))


def _siblings(root: Path, cpu: int) -> str:
    """The hardware threads of the CPU's core, as a list in text; the CPU alone where the system does not say."""
    try:
        return (root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _cpu_quota(root: Path) -> float:
    """CPUs' worth of time that this process's control groups allow, of both versions; infinite without a limit.

    https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max) and
    https://docs.kernel.org/scheduler/sched-bwc.html (cpu.cfs_quota_us)
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return math.inf
    found = math.inf
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / controllers
        own = mount / path.lstrip("/")
        # A container may see its own group as the mount's top, whatever the path says.
        above = [group for group in own.parents if group.is_relative_to(mount)]
        found = min(found, *map(_group_quota, [own, *above]))
    return found


def _group_quota(group: Path) -> float:
    for names in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
        try:
            quota, period = " ".join((group / name).read_text() for name in names).split()
        except (OSError, ValueError):
            continue
        if quota not in ("max", "-1"):
            return int(quota) / int(period)
    return math.inf


def keep_memory(large: bool = True) -> None:
    """Lets this process keep the memory it frees, where the C library is glibc; elsewhere nothing happens.

    By default large buffers go back to the system at once, and every page of the next one is faulted in and zeroed
    again: a product with a fresh 56 MB result takes 1.5 times as long as one into a used buffer (docs/log.md).

    Args:
        large: buffers of 32 MB and more, too: between small ones that stay, what they leave often cannot be used again.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(-4, 0 if large else 2**16)  # M_MMAP_MAX: so many buffers get a mapping of their own
    mallopt(-3, 2**25)  # M_MMAP_THRESHOLD: if they are as large as this, the most that glibc takes
    mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap does not shrink
    mallopt(-2, 64 * 2**20)  # M_TOP_PAD: and grows by this much


def release_memory() -> None:
    """Gives what this process has freed back to the system, where the C library is glibc; elsewhere nothing happens.

    Against what `keep_memory` is for, where memory is dearer than the third of a second that a GB of fresh pages takes.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):
        return


def plan(config: Hardware) -> Plan:
    """Decides threads and precision; sets torch's thread count and lets the process keep its memory."""
    keep_memory()
    threads = config.threads or usable_cores()
    torch.set_num_threads(threads)
    if config.precision != "auto":
        return Plan(config.precision, threads, 0.0, 0.0)
    fp32, bf16 = gemm_rate(torch.float32), gemm_rate(torch.bfloat16)
    return Plan("bf16" if bf16 > WORTH_IT * fp32 else "fp32", threads, fp32, bf16)


def fastest_precision() -> str:
    """bf16 where its matrix products are worth it on this CPU, else fp32; half a second of measuring each."""
    return "bf16" if gemm_rate(torch.bfloat16) > WORTH_IT * gemm_rate(torch.float32) else "fp32"


def gemm_rate(dtype: torch.dtype, rows: int = 512, size: int = 1024) -> float:
    """GFLOP/s of a (rows, size) x (size, size) product: the best of several, as others may be using the machine."""
    x, w = torch.randn(rows, size).to(dtype), torch.randn(size, size).to(dtype)
    best = float("inf")
    deadline = time.perf_counter() + 0.5
    while time.perf_counter() < deadline:
        start = time.perf_counter()
        torch.nn.functional.linear(x, w)
        best = min(best, time.perf_counter() - start)
    return 2 * rows * size * size / best / 1e9


class ResourceMonitor:
    """Peak memory and CPU use of this process over a `with` block, on every operating system.

    `peak_rss` is in bytes, sampled five times a second; `cpu_use` is CPU time over wall time times cores, 0 to 1.
    """

    def __enter__(self) -> "ResourceMonitor":
        self._process = psutil.Process()
        self._cores = usable_cores()
        self.peak_rss = self._process.memory_info().rss
        self._begin = (time.perf_counter(), self._cpu_seconds())
        self._last = self._begin
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self.rss()
        self.wall_seconds = time.perf_counter() - self._begin[0]

    @property
    def cpu_use(self) -> float:
        """Since the block began."""
        return self._use(self._begin)

    def cpu_use_since_last(self) -> float:
        """Since this was last asked (the block's start at first)."""
        use, self._last = self._use(self._last), (time.perf_counter(), self._cpu_seconds())
        return use

    def rss(self) -> int:
        """Bytes of memory held now."""
        now = self._process.memory_info().rss
        self.peak_rss = max(self.peak_rss, now)
        return now

    def _use(self, since: tuple[float, float]) -> float:
        wall = time.perf_counter() - since[0]
        return (self._cpu_seconds() - since[1]) / (wall * self._cores) if wall > 0 else 0.0

    def _cpu_seconds(self) -> float:
        times = self._process.cpu_times()
        return times.user + times.system

    def _sample(self) -> None:
        while not self._stop.wait(0.2):
            self.rss()
