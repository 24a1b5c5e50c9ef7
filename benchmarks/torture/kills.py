"""SIGKILL at random moments of a run, again and again, each followed by the same command."""

import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torture.runs import ROOT, TRAIN, Result, command, kill, left_over, result, start, wait

SCHEMES = ("full", "lean", "lora")


@dataclass
class Kills:
    """How many, in how many runs, and how many of these ended as one that nothing interrupted."""

    kills: int = 0
    runs: int = 0
    same: int = 0


Launch = Callable[[str, Path, float | None], bool]


def kills(launch: Launch, count: int, seed: int = 0) -> Kills:
    """Kills until there were so many; the last run is finished.

    Args:
        launch: runs a memory scheme's command below a root, and kills it after so many seconds unless that is None;
            whether it had ended by then.
    """
    draw, found = random.Random(seed), Kills()
    expected: dict[str, tuple[Result, float]] = {}
    while found.kills < count:
        scheme = SCHEMES[found.runs % len(SCHEMES)]
        if scheme not in expected:
            expected[scheme] = _whole(launch, scheme)
        wanted, seconds = expected[scheme]
        with tempfile.TemporaryDirectory() as scratch:
            root, ended = Path(scratch), False
            while not ended:
                ended = launch(scheme, root, draw.uniform(0, seconds) if found.kills < count else None)
                found.kills += not ended
            found.runs += 1
            found.same += result(root) == wanted and not left_over(root)
    return found


def _whole(launch: Launch, scheme: str) -> tuple[Result, float]:
    """The result of a run that nothing interrupts, and its seconds, once caches are filled."""
    for _ in range(2):
        with tempfile.TemporaryDirectory() as scratch:
            begin = time.perf_counter()
            launch(scheme, Path(scratch), None)
            found = result(Path(scratch)), time.perf_counter() - begin
    return found


def tiny(model: Path) -> Launch:
    """A tiny model, in processes forked from this one."""

    def launch(scheme: str, root: Path, kill_after: float | None) -> bool:
        pid = start(command(model, root, memory=scheme), root, root / "log")
        if kill_after is not None:
            time.sleep(kill_after)
        code = wait(pid) if kill_after is None else kill(pid)
        if code not in (0, -signal.SIGKILL):
            raise RuntimeError(f"the run ended with {code}:\n{(root / 'log').read_text()}")
        return code == 0

    return launch


def default_model(scheme: str, root: Path, kill_after: float | None) -> bool:
    """SmolLM2 by the pipeline's own command, for some updates, in processes of their own."""
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
