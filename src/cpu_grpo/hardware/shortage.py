"""What a run does when memory runs short: gives back what it does not use, waits, and takes smaller steps."""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from cpu_grpo.hardware import available_memory, release_memory, reusable_memory
from cpu_grpo.units import gigabytes

SPARE = 200_000_000  # bytes left to everything that is not counted
USABLE = 0.8  # of what was freed and kept: the rest is in pieces too small
PAUSE = 10.0  # seconds to wait for memory before steps get smaller
PATIENCE = 300.0  # seconds to wait once they cannot


@dataclass
class Shortage:
    """Watches over the memory that a run may take.

    Attributes:
        limit: bytes that this process may hold; 0: as many as are free.
        alarm: called the first time that memory is short, before anything else.
    """

    limit: int = 0
    alarm: Callable[[], None] | None = None
    met: bool = False  # whether memory has been short

    def left(self) -> int:
        """Bytes that this process can still take, what it has freed and kept included."""
        left = available_memory()
        if self.limit:
            left = min(left, self.limit - psutil.Process().memory_info().rss)
        return left + round(USABLE * reusable_memory())

    def room_for(self, needed: int, patience: float = PAUSE) -> bool:
        """Whether so many bytes can be taken, now or within `patience` seconds."""
        if self.left() >= needed + SPARE:
            return True
        release_memory()
        if self.left() >= needed + SPARE:
            return True
        self._sound(needed)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            time.sleep(min(0.5, patience / 10))
            if self.left() >= needed + SPARE:
                return True
        return False

    def require(self, needed: int) -> None:
        """Raises MemoryError if so many bytes cannot be had within PATIENCE seconds."""
        if not self.room_for(needed, PATIENCE):
            raise MemoryError(
                f"the smallest step needs {gigabytes(needed)} and {gigabytes(max(0, self.left()))} are left"
            )

    def _sound(self, needed: int) -> None:
        if self.met:
            return
        self.met = True
        warnings.warn(
            f"Memory is short: {gigabytes(max(0, self.left()))} are left where {gigabytes(needed)} are needed. The run "
            "waits, then goes on in smaller steps.",
            stacklevel=3,
        )
        if self.alarm:
            self.alarm()
