"""SIGKILL at random moments of a run, again and again, each followed by the same command."""

import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from torture.runs import ROOT, TRAIN, Result, command, finish, kill, left_over, result, start

SCHEMES = ("full", "lean", "lora")


@dataclass
class Kills:
    """How many, in how many runs, and how many of these ended as one that nothing interrupted."""

    kills: int = 0
    runs: int = 0
    same: int = 0


def kills(model: Path, count: int, seed: int = 0) -> Kills:
    """Kills until there were so many; the last run is finished."""
    draw, found = random.Random(seed), Kills()
    expected: dict[str, tuple[Result, float]] = {}
    while found.kills < count:
        scheme = SCHEMES[found.runs % len(SCHEMES)]
        if scheme not in expected:
            expected[scheme] = _whole(model, scheme)
        wanted, seconds = expected[scheme]
        found.kills += _one_run(model, scheme, seconds, count - found.kills, draw, wanted, found)
    return found


def kills_of_default_model(count: int, seed: int = 0) -> Kills:
    """The same with the default model and the pipeline's own command, in processes of their own."""
    draw, found = random.Random(seed), Kills()
    expected: dict[str, tuple[Result, float]] = {}
    while found.kills < count:
        scheme = SCHEMES[found.runs % len(SCHEMES)]
        with tempfile.TemporaryDirectory() as scratch:
            root = Path(scratch)
            if scheme not in expected:
                begin = time.perf_counter()
                _command(scheme, root)
                expected[scheme] = result(root), time.perf_counter() - begin
                continue
            wanted, seconds = expected[scheme]
            while found.kills < count and not _command(scheme, root, draw.uniform(0, seconds)):
                found.kills += 1
            if not (root / "results").exists():
                _command(scheme, root)
            found.runs += 1
            found.same += result(root) == wanted and not left_over(root)
    return found


def _command(scheme: str, root: Path, kill_after: float | None = None) -> bool:
    """Trains SmolLM2 for some updates; whether it ended before it was killed."""
    keys = ["variant=ultra_fast", "trainer.max_steps=6", "checkpoint.updates=1", f"memory={scheme}"]
    try:
        subprocess.run(
            [sys.executable, TRAIN, *keys, f"hydra.run.dir={root}"],
            cwd=ROOT,
            capture_output=True,
            check=True,
            timeout=kill_after,  # with SIGKILL
        )
    except subprocess.TimeoutExpired:
        return False
    return True


def _whole(model: Path, scheme: str) -> tuple[Result, float]:
    """The result of a run that nothing interrupts, and its seconds."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        arguments = command(model, root, memory=scheme)
        finish(arguments, root, root / "log")  # measures what later runs find in the cache
        shutil.rmtree(root / "models")
        begin = time.perf_counter()
        finish(arguments, root, root / "log")
        return result(root), time.perf_counter() - begin


def _one_run(
    model: Path, scheme: str, seconds: float, most: int, draw: random.Random, wanted: Result, found: Kills
) -> int:
    """Kills one run until it ends; returns how often."""
    killed = 0
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        arguments = command(model, root, memory=scheme)
        while killed < most:
            pid = start(arguments, root, root / "log")
            time.sleep(draw.uniform(0, seconds))
            code = kill(pid)
            if code == 0:  # it had ended by itself
                break
            if code > 0:
                raise RuntimeError(f"the run ended with {code}:\n{(root / 'log').read_text()}")
            killed += 1
        else:
            finish(arguments, root, root / "log")
        found.runs += 1
        found.same += result(root) == wanted and not left_over(root)
    return killed
