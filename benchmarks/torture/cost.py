"""What checkpoints cost a real run: GSM8K with half a billion parameters, as `checkpoint.minutes` makes them."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from torture.runs import ROOT, TRAIN

VARIANT = "ultra_fast"


@dataclass(frozen=True)
class Cost:
    """Of a run's checkpoints."""

    updates: int
    checkpoints: int
    seconds: float  # of all checkpoints
    training: float  # seconds of the updates

    @property
    def share(self) -> float:
        """Of the run's time."""
        return self.seconds / (self.seconds + self.training)


def cost(data: Path, root: Path, updates: int, scheme: str) -> Cost:
    """Trains on the GSM8K files of a directory, in half an hour or so."""
    keys = {
        "variant": VARIANT,
        "model": "random_0_5b",
        "task": "gsm8k",
        "task.path": data,
        "task.train": 200,
        "memory": scheme,
        "trainer.max_steps": updates,
        "trainer.max_completion_length": 200,
        "hydra.run.dir": root,
    }
    done = subprocess.run(
        [sys.executable, TRAIN, *(f"{key}={value}" for key, value in keys.items())],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    found = json.loads((root / "results" / "train" / f"{VARIANT}.json").read_text())
    return Cost(found["updates"], found["checkpoints"], found["checkpoint_seconds"], found["train_seconds"])
