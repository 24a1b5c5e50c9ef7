"""What keeping a run takes: bytes of disk and seconds for its checkpoints, its best weights and its model."""

import os
import tempfile
import time
from dataclasses import dataclass
from hashlib import sha256

from cpu_grpo.config.schema import Train
from cpu_grpo.engine.shape import WIDE, Shape
from cpu_grpo.plan.memory import Scheme

KEPT = 2  # checkpoints
SHARE = 0.02  # of a run's time that its checkpoints may take
TRIAL = 2**26  # bytes that are written to see how fast that goes


@dataclass(frozen=True)
class Saving:
    """Bytes."""

    checkpoint: int  # each; one more than KEPT exist while one is written
    best: int  # weights of the best validation, where they are kept
    model: int

    @property
    def with_checkpoints(self) -> int:
        """At most, of a run that keeps checkpoints; best weights are written beside those before them."""
        return (KEPT + 1) * self.checkpoint + self.without_checkpoints

    @property
    def without_checkpoints(self) -> int:
        """At most, of a run that keeps none on the way."""
        return 2 * self.best + self.model


def saving(shape: Shape, scheme: Scheme, config: Train) -> Saving:
    """A run's."""
    trained = shape.adapters(scheme.rank) if scheme.rank else shape.parameters
    held = WIDE if scheme.rank else scheme.held
    moments = 0 if scheme.name == "lean" else 2 * WIDE * trained
    best = held * trained if config.validation.keep == "best" else 0
    return Saving(held * trained + moments, best, scheme.held * shape.parameters)


def write_rate() -> float:
    """Bytes a second that get to the current directory's disk, hashed; infinite where none can be written."""
    numbers = os.urandom(2**20)
    start = time.perf_counter()
    try:
        with tempfile.TemporaryFile(dir=".") as stream:
            for _ in range(TRIAL // len(numbers)):
                stream.write(numbers)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError:
        return float("inf")
    for _ in range(TRIAL // len(numbers)):
        sha256(numbers)
    return TRIAL / (time.perf_counter() - start)


def checkpoint_count(config: Train, updates: int, training: float, each: float) -> int:
    """Checkpoints of a run of so many seconds, each of which takes so many; see `config.schema.Checkpoint`."""
    settings = config.checkpoint
    apart = max(60 * settings.minutes, each / SHARE)
    by_time = int(training / apart) if settings.minutes and training > 60 * settings.minutes else 0
    return max(by_time, updates // settings.updates if settings.updates else 0)
