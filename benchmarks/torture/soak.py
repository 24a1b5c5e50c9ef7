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
    files: tuple[int, int]  # open at first and in the end
    threads: tuple[int, int]


def soak(model: Path, seconds: float, root: Path) -> Soak:
    """Runs for so long below `root` and ends as SIGTERM ends runs."""
    arguments = command(model, root, **WORK)
    with (root / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, TRAIN, *arguments], cwd=root, stdout=log, stderr=log)
        while "plan: " not in (root / "log").read_text() and process.poll() is None:
            time.sleep(1)
        seen = _watch(psutil.Process(process.pid), seconds)
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=600)
    said = (root / "log").read_text()
    if code != 128 + signal.SIGTERM:
        raise RuntimeError(f"the run ended with {code}:\n{said}")
    updates = int(said.rpartition("after update ")[2].split()[0]) if "after update" in said else 0
    warm = seen[int(len(seen) * WARM_UP) :]
    slope = statistics.linear_regression([at for at, *_ in warm], [rss for _, rss, _, _ in warm]).slope
    (_, _, *first), (_, _, *last) = warm[0], warm[-1]
    return Soak(seconds / 3600, updates, 3600 * slope / 1e6, (first[0], last[0]), (first[1], last[1]))


def _watch(process: psutil.Process, seconds: float) -> list[tuple[float, int, int, int]]:
    """Time, resident bytes, open files and threads, again and again."""
    begin, seen = time.monotonic(), []
    while (now := time.monotonic() - begin) < seconds and process.is_running():
        with process.oneshot():
            seen.append((now, process.memory_info().rss, process.num_fds(), process.num_threads()))
        time.sleep(EVERY)
    return seen
