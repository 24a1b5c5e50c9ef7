"""Numbers gone bad: an update whose loss or gradients hold NaN or infinity changes no weights, and its batch is kept.

Later updates may be sound again; where several in a row are not, the run has diverged and ends.
"""

import math
from pathlib import Path
from typing import Any

import torch

IN_A_ROW = 3  # updates that may not be sound before the run ends


class Diverged(Exception):
    """The run's numbers have gone bad for good. The message says where to look."""


class Soundness:
    """Whether the numbers of the update at hand are sound.

    Attributes:
        reason: what of it is not finite; empty as long as all is.
        in_a_row: how many updates before it were not sound.
    """

    def __init__(self) -> None:
        self.reason = ""
        self.in_a_row = 0
        self._batches: list[dict[str, Any]] = []

    def see(self, what: str, number: torch.Tensor | float, batch: dict[str, Any] | None = None) -> bool:
        """Whether a number, and all before it in this update, are finite; the batch that it is of is remembered."""
        if batch is not None:
            self._batches.append(batch)
        if not self.reason and not math.isfinite(number):
            self.reason = what
        return not self.reason

    def close(self, update: int, directory: Path) -> str | None:
        """Ends the update; returns a sentence if it was not sound, having kept its batch.

        Raises:
            Diverged: there were too many such updates in a row.
        """
        reason, batches = self.reason, self._batches
        self.reason, self._batches = "", []
        if not reason:
            self.in_a_row = 0
            return None
        self.in_a_row += 1
        path = directory / f"update-{update}.pt"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            torch.save({"reason": reason, "batches": batches}, path)
            where = f"is in {path}"
        except (OSError, RuntimeError) as error:  # torch raises the latter where a disk is full
            where = f"could not be kept ({error})"
        told = f"Update {update} is skipped, as its {reason} is not finite; its batch {where}"
        if self.in_a_row >= IN_A_ROW:
            raise Diverged(f"{told}. So it was {IN_A_ROW} times in a row: training has diverged")
        return f"{told}."
