"""Hours of tiny updates: does memory grow, do files or threads pile up?"""

import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from torture.runs import TRAIN, command

WARM_UP = 0.15  # share of the time that is not looked at
EVERY = 5.0  # seconds between two looks
BEGUN = 300.0  # seconds until the run trains, at most
WORK = {  # updates of about a second, as a run of days has them; checkpoints, validation and samples among them
    "trainer.max_steps": 10**6,
    "trainer.per_device_train_batch_size": 64,
    "trainer.num_generations": 16,
    "trainer.max_completion_length": 64,
    "task.max_completion_length": 16,
    "trainer.learning_rate": "1e-6",
    "checkpoint.updates": 100,
    "validation.every": 100,
    "tracking.samples_every": 100,
}


@dataclass(frozen=True)
class Soak:
    """What was seen once the run was warm."""

    hours: float
    updates: int
    megabytes_per_hour: float
    files: tuple[int, int]  # open at first and in the end, at least
    threads: tuple[int, int]  # likewise
    course: list[tuple[float, float, float]]  # minutes, megabytes, and those of them that are no file's


def soak(model: Path, seconds: float, root: Path) -> Soak:
    """Runs for so long below `root` and ends as SIGTERM ends runs."""
    arguments = command(model, root, **WORK)
    with (root / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, TRAIN, *arguments], cwd=root, stdout=log, stderr=log)
        until = time.monotonic() + BEGUN
        while "plan: " not in (root / "log").read_text() and process.poll() is None and time.monotonic() < until:
            time.sleep(1)
        seen = _watch(psutil.Process(process.pid), seconds)
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=600)
    said = (root / "log").read_text()
    if code != 128 + signal.SIGTERM:
        raise RuntimeError(f"the run ended with {code}:\n{said}")
    updates = int(said.rpartition("after update ")[2].split()[0]) if "after update" in said else 0
    warm = seen[int(len(seen) * WARM_UP) :]
    slope = statistics.linear_regression([look.at for look in warm], [look.resident for look in warm]).slope
    first, last = warm[: len(warm) // 10 or 1], warm[-(len(warm) // 10 or 1) :]
    course = [(look.at / 60, look.resident / 1e6, look.own / 1e6) for look in seen[:: round(60 / EVERY)]]
    # The fewest of a tenth of the time: a checkpoint that is being written has a file open.
    files = min(look.files for look in first), min(look.files for look in last)
    threads = min(look.threads for look in first), min(look.threads for look in last)
    return Soak(seconds / 3600, updates, 3600 * slope / 1e6, files, threads, course)


@dataclass(frozen=True)
class Look:
    """At the running process."""

    at: float  # seconds
    resident: int  # bytes
    own: int  # bytes of them that are no file's: pages of libraries come and go as the system pleases
    files: int
    threads: int


def _watch(process: psutil.Process, seconds: float) -> list[Look]:
    begin, seen = time.monotonic(), []
    while (now := time.monotonic() - begin) < seconds and process.is_running():
        with process.oneshot():
            memory = process.memory_info()
            looks = memory.rss, memory.rss - memory.shared, process.num_fds(), process.num_threads()
        seen.append(Look(now, *looks))
        time.sleep(EVERY)
    return seen
