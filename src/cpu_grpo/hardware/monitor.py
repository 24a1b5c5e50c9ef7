"""What a run used of the CPU and of memory."""

import threading
import time
from types import TracebackType

import psutil

from cpu_grpo.hardware.cores import usable_cores
from cpu_grpo.hardware.memory import peak_held, reset_peak


class ResourceMonitor:
    """Peak memory and CPU use of this process over a `with` block, on every operating system.

    `peak_rss` is in bytes: the kernel's own on Linux, elsewhere sampled five times a second, which misses what is held
    for less. `cpu_use` is CPU time over wall time times cores, 0 to 1.
    """

    def __enter__(self) -> "ResourceMonitor":
        self._process = psutil.Process()
        self._cores = usable_cores()
        self._exact = reset_peak()
        self.peak_rss = self._process.memory_info().rss
        self._begin = (time.perf_counter(), self._cpu_seconds())
        self._last = self._begin
        self._before = (0.0, 0.0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self.rss()
        self.wall_seconds = self._before[0] + time.perf_counter() - self._begin[0]

    @property
    def cpu_use(self) -> float:
        """Since the block began."""
        wall, cpu = self._spent()
        return cpu / (wall * self._cores) if wall > 0 else 0.0

    def used(self) -> dict[str, float]:
        """What `go_on` takes: seconds of wall and CPU time, and the peak in bytes."""
        wall, cpu = self._spent()
        return {"wall": wall, "cpu": cpu, "peak": self.peak_rss}

    def go_on(self, used: dict[str, float]) -> None:
        """Counts what an earlier process has used for the same work as if this one had."""
        self._before = (used["wall"], used["cpu"])
        self.peak_rss = max(self.peak_rss, int(used["peak"]))

    def _spent(self) -> tuple[float, float]:
        """Seconds of wall and CPU time, earlier processes' included."""
        wall, cpu = time.perf_counter() - self._begin[0], self._cpu_seconds() - self._begin[1]
        return self._before[0] + wall, self._before[1] + cpu

    def cpu_use_since_last(self) -> float:
        """Since this was last asked (the block's start at first)."""
        use, self._last = self._use(self._last), (time.perf_counter(), self._cpu_seconds())
        return use

    def rss(self) -> int:
        """Bytes of memory held now."""
        now = self._process.memory_info().rss
        self.peak_rss = max(self.peak_rss, now, peak_held() if self._exact else 0)
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
