"""Hostile text, bytes and settings by the million: nothing may crash, hang, or count as right where it is wrong.

Input number n of a target is drawn from n alone. So `fuzz(1000, 0)` and then `fuzz(1000, 1000)` are what
`fuzz(2000, 0)` is, in one process or in two, and a finding is seen again by `TARGETS[name].run(Random(n))`.
"""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random

from torture.targets import TARGETS, Target

HANG = 1.0  # seconds of the processor's time for one input
KEPT = 10  # findings of a target that are told


@dataclass
class FuzzResult:
    """What came of a target's inputs."""

    target: str
    inputs: int = 0
    seconds: float = 0.0  # of the processor's time, drawing the inputs included
    slowest: float = 0.0  # seconds that one input took
    crashes: int = 0  # anything raised but what the code says that it raises
    hangs: int = 0
    wrong: int = 0  # a result that is known to be another
    findings: list[str] = field(default_factory=list)  # the first few, each with its input's number

    @property
    def rate(self) -> float:
        """Inputs a second of a core."""
        return self.inputs / self.seconds if self.seconds else 0.0

    @property
    def clean(self) -> bool:
        return not (self.crashes or self.hangs or self.wrong)


class Hung(BaseException):
    """Not an Exception, so that no code under test takes it for its own."""


def fuzz(count: int, seed: int, seconds: float | None = None) -> list[FuzzResult]:
    """Tries out inputs `seed` to `seed + count`: each target its share of them.

    Args:
        seconds: after which each target's share of the time is over, whatever is left of the inputs.
    """
    with _watched():
        return [_try_out(target, count, seed, seconds) for target in TARGETS.values()]


def _try_out(target: Target, count: int, seed: int, seconds: float | None) -> FuzzResult:
    result = FuzzResult(target.name)
    begin = time.process_time()
    until = time.perf_counter() + seconds / len(TARGETS) if seconds is not None else float("inf")
    for number in range(seed, seed + count, target.every):
        _one(target, number, result)
        if time.perf_counter() > until:
            break
    result.seconds = time.process_time() - begin
    return result


def _one(target: Target, number: int, result: FuzzResult) -> None:
    begin = time.process_time()
    try:
        _arm(HANG)
        wrong = target.run(Random(number))
    except Hung:
        result.hangs += 1
        wrong = f"took more than {HANG} s"
    except Exception as error:
        result.crashes += 1
        wrong = f"raised {type(error).__name__}: {error}"[:300]
    else:
        result.wrong += bool(wrong)
    finally:
        _arm(0)
    result.inputs += 1
    result.slowest = max(result.slowest, time.process_time() - begin)
    if wrong and len(result.findings) < KEPT:
        result.findings.append(f"{target.name} {number}: {wrong}")


@contextmanager
def _watched() -> Iterator[None]:
    """Has a signal raise Hung; where there are none, as on Windows, slow inputs are only timed."""
    if not hasattr(signal, "SIGPROF"):
        yield
        return

    def raise_hung(*_: object) -> None:
        raise Hung

    before = signal.signal(signal.SIGPROF, raise_hung)
    try:
        yield
    finally:
        signal.signal(signal.SIGPROF, before)


def _arm(seconds: float) -> None:
    if hasattr(signal, "SIGPROF"):
        signal.setitimer(signal.ITIMER_PROF, seconds)
