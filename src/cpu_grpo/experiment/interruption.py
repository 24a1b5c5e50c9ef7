"""When a run keeps a checkpoint, and how it ends when it is told to."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback

from cpu_grpo.config.schema import Checkpoint
from cpu_grpo.plan.saving import SHARE

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}  # the shell's, for what such a signal ended


class Signals:
    """Which signal has come, if any."""

    def __init__(self) -> None:
        self.code = 0

    def asked(self) -> bool:
        return bool(self.code)


@contextmanager
def heeded(wanted: bool = True) -> Iterator[Signals]:
    """Within the block Ctrl-C and SIGTERM are only noted, if so wanted; a second Ctrl-C ends the program at once."""
    signals = Signals()
    if not wanted:
        yield signals
        return

    def note(number: int, frame: Any) -> None:
        if number == signal.SIGINT and signals.code:
            raise KeyboardInterrupt
        signals.code = CODES[signal.Signals(number)]

    try:
        before = {number: signal.signal(number, note) for number in CODES}
    except ValueError:  # not the main thread: whoever started it decides when it ends
        yield signals
        return
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class CheckpointTimer(TrainerCallback):
    """Asks for a checkpoint when one is due."""

    def __init__(self, config: Checkpoint, planned: float | None) -> None:
        """`planned`: seconds that the run will take at most, if that is known."""
        seconds = 60 * config.minutes
        self._seconds = seconds if planned is None or planned > seconds else 0.0
        self._updates = config.updates

    def watch(self, trainer: Any) -> None:
        """Names the trainer whose checkpoints are made."""
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._clock, self._step = time.perf_counter(), state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            return  # the model itself is saved next
        if self._trainer.numbers.in_a_row:
            return  # rather keep those from before its numbers went bad
        seconds = max(self._seconds, self._trainer.checkpoint_seconds / SHARE)
        by_time = self._seconds and time.perf_counter() - self._clock >= seconds
        by_number = self._updates and state.global_step - self._step >= self._updates
        control.should_save |= bool(by_time or by_number)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._clock, self._step = time.perf_counter(), state.global_step
