"""Outages of the tracking server while a run is recorded: is any point lost, there twice, or out of order?"""

import contextlib
import random
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from cpu_grpo.config.schema import Shared, Tracking
from cpu_grpo.experiment import spool
from cpu_grpo.experiment.tracking import start_run
from torture.server import Server

PERIOD = 0.005  # seconds between two points
UP, DOWN = 2.0, 1.0  # seconds at most that the server stays up, and that nobody starts it again
METRIC = "reward"


def outages(count: int, root: Path, seed: int = 0) -> dict[str, Any]:
    """Kills a real MLflow server `count` times, at random moments of a run that records a point every few milliseconds.

    Args:
        root: an empty directory, which is the current one meanwhile.

    Returns:
        `outages`, and of points: how many were `recorded`, are there `once` and with the right value, `lost` or
        `repeated`, and came `in_order`, after all that were recorded before; `slowest_ms` that recording one took, and
        `seconds` of it all.
    """
    begin = time.perf_counter()
    server = Server(root / "server")
    server.start()
    outage = threading.Thread(target=_outages, args=(server, count, random.Random(seed)), daemon=True)
    try:
        with contextlib.chdir(root):
            config = Shared(tracking=Tracking(uri=server.uri, experiment="outages"))
            recorded, slowest = _recorded(config, outage)
            _send_left(config)
    finally:
        server.kill()
    found = _counted(recorded, [(step, value) for _, step, value in server.points(METRIC)])
    return {"outages": count, **found, "slowest_ms": 1e3 * slowest, "seconds": time.perf_counter() - begin}


def _outages(server: Server, count: int, draw: random.Random) -> None:
    for _ in range(count):
        time.sleep(draw.uniform(0, UP))
        server.kill()
        time.sleep(draw.uniform(0, DOWN))
        server.start()


def _recorded(config: Shared, outage: threading.Thread) -> tuple[dict[int, float], float]:
    """The points, by step, of a run that lasts as long as there are outages; and the seconds of the slowest."""
    recorded: dict[int, float] = {}
    slowest, step = 0.0, 0
    with start_run(config, "outages", "train", "", {}) as run:
        outage.start()
        while outage.is_alive():
            step += 1
            recorded[step] = step / 7
            begin = time.perf_counter()
            run.metrics({METRIC: recorded[step]}, step)
            slowest = max(slowest, time.perf_counter() - begin)
            time.sleep(PERIOD)
    return recorded, slowest


def _send_left(config: Shared) -> None:
    """What a slow machine's server did not take before the run's end is sent by the next one, or by that after it."""
    for _ in range(10):
        if not any(spool.SPOOL.glob("*/")):
            return
        with start_run(config, "next", "train", "", {}):
            pass


def _counted(recorded: dict[int, float], arrived: list[tuple[int, float]]) -> dict[str, int]:
    times = Counter(step for step, _ in arrived)
    newest, in_order = 0, 0
    for step, _ in arrived:
        in_order += step > newest
        newest = max(newest, step)
    return {
        "recorded": len(recorded),
        "once": sum(times[step] == 1 and recorded.get(step) == value for step, value in arrived),
        "lost": sum(times[step] == 0 for step in recorded),
        "repeated": sum(number > 1 for number in times.values()),
        "in_order": in_order,
    }
