"""A tiny training run: its command, what it leaves, and a quick way to start it again and again."""

import csv
import json
import os
import runpy
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TRAIN = str(ROOT / "pipelines" / "train.py")
UPDATES = 5
TIMES = ("second", "rss", "cpu_use")  # columns that differ from run to run


def command(model: Path, root: Path, **changes: Any) -> list[str]:
    """The keys of a tiny training run below `root`, on problems that are written there.

    `hydra.run.dir` makes `root` the run's, as the project's is the pipeline's.
    """
    problems = root / "mine.jsonl"
    lines = [{"question": f"{a} + {b} =", "answer": a + b} for a in range(8) for b in range(8)]
    problems.write_text("".join(json.dumps(line) + "\n" for line in lines))
    keys = {
        "variant": "ultra_fast",
        "model": "path",
        "model.path": model,
        "task": "jsonl",
        "task.path": problems.name,
        "task.train": 8,
        "task.validation": 4,
        "task.test": 4,
        "trainer.max_steps": UPDATES,
        "trainer.per_device_train_batch_size": 8,
        "trainer.num_generations": 4,
        "trainer.max_completion_length": 4,
        "trainer.learning_rate": "1e-3",
        "rewards.digits": 0.5,
        "hardware.precision": "fp32",
        "checkpoint.updates": 1,
        "hydra.run.dir": ".",
    }
    return [f"{key}={value}" for key, value in (keys | changes).items()]


@dataclass(frozen=True)
class Result:
    """What a run has left, times apart."""

    weights: bytes
    history: list[dict[str, str]]
    samples: str


def result(root: Path) -> Result:
    """That of the run below a root."""
    with (root / "results/train/ultra_fast.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    history = [{k: value for k, value in row.items() if not any(word in k for word in TIMES)} for row in rows]
    weights = (root / "models/ultra_fast/model.safetensors").read_bytes()
    return Result(weights, history, (root / "results/train/ultra_fast.samples.jsonl").read_text())


def left_over(root: Path) -> list[str]:
    """What a finished run should not have left: half-written files, checkpoints."""
    own = [path for path in root.iterdir() if path.name not in (".hydra", "mlruns")]  # mlruns is MLflow's
    hidden = [path for path in (*own, *(inner for outer in own for inner in outer.rglob("*"))) if path.name[0] == "."]
    return [path.relative_to(root).as_posix() for path in (*hidden, *root.glob("cache/checkpoints/*/"))]


def preload() -> None:
    """Imports what a run needs, so that processes forked from this one start at once. Computes nothing: no threads."""
    import datasets  # noqa: F401
    import mlflow  # noqa: F401
    import trl  # noqa: F401

    import cpu_grpo.experiment.training  # noqa: F401


def start(arguments: list[str], root: Path, log: Path, before: Callable[[], None] = lambda: None) -> int:
    """Starts pipelines/train.py in a forked process; returns its id.

    Args:
        before: called in it before anything else.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.chdir(root)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        before()
        code = _run(arguments)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # whatever this process has inherited is the parent's to close


def _run(arguments: list[str]) -> int:
    sys.argv = [TRAIN, *arguments]
    sys.path.insert(0, str(Path(TRAIN).parent))
    try:
        runpy.run_path(TRAIN, run_name="__main__")
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(bool(error.code))
    except BaseException:
        import traceback

        traceback.print_exc()
        return 1
    return 0


def wait(pid: int) -> int:
    """The process's exit code; of one that a signal ended, the negative signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def finish(arguments: list[str], root: Path, log: Path) -> None:
    """Runs to the end; raises RuntimeError with what was said if that fails."""
    code = wait(start(arguments, root, log))
    if code:
        raise RuntimeError(f"the run ended with {code}:\n{log.read_text()}")


def kill(pid: int) -> int:
    """Ends a process at once; returns its exit code, which may be that of its own end."""
    os.kill(pid, signal.SIGKILL)
    return wait(pid)
