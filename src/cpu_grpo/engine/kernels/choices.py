"""Choices between two ways to compute the same, by which is faster here.

They round differently, so a choice that turned between two runs, or where a run goes on from a checkpoint, would change
results. Each is therefore measured once for a machine and kept in the user's cache directory, and checkpoints hold
those that their run has made.
"""

import functools
import time
from collections.abc import Callable
from pathlib import Path

import torch

from cpu_grpo.files import cached, fingerprint, held_object, keep_cached, sha256
from cpu_grpo.hardware import UNDISTURBED, conditions

ATTEMPTS = 5  # to be that lucky
MEASURED = ("products.py", "products.cpp")  # whose code decides the times


@functools.cache
def choices() -> dict[str, bool]:
    """Those of this process so far, by name; what is added to them (from a checkpoint) is taken."""
    return {}


def chosen(name: str, measure: Callable[[], bool]) -> bool:
    """The choice of this name: this process's, the cache's, or what `measure` finds."""
    if name not in choices():
        choices()[name] = _kept_or_measured(name, measure)
    return choices()[name]


def _kept_or_measured(name: str, measure: Callable[[], bool]) -> bool:
    code = [sha256(Path(__file__).with_name(source)) for source in MEASURED]
    file = cached(f"choice-{fingerprint([name, code, conditions(torch.get_num_threads())])}.json")
    found = held_object(file).get("taken") if file else None
    if isinstance(found, bool):
        return found
    for _ in range(ATTEMPTS):
        wall, cpu = time.perf_counter(), time.process_time()
        taken = measure()
        share = (time.process_time() - cpu) / (time.perf_counter() - wall) / torch.get_num_threads()
        if share >= UNDISTURBED:
            keep_cached(file, {"taken": taken})
            break
    return taken
