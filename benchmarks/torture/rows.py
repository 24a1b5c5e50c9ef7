"""Each way to break the project as rows of a table: how much of it is done, what came of it, and the goal."""

import multiprocessing
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from torture.cost import cost
from torture.faults import FAULTS, faults
from torture.fuzz import FuzzResult, fuzz
from torture.kills import Kills, default_model, kills, tiny
from torture.outages import outages
from torture.soak import soak
from torture.targets import TARGETS

BLOCK = 12_500  # fuzzed inputs of a target that a process takes at a time


@dataclass(frozen=True)
class Finding:
    """What a row came to."""

    test: str
    result: str
    goal: str
    met: bool
    details: Any


@dataclass(frozen=True)
class Amounts:
    """How much of each is done."""

    kills: int
    kills_135m: int
    faults: dict[str, int]  # by kind: every so many writes
    outages: int
    inputs: int  # of all targets together
    soak: float  # seconds
    cost: int  # updates


EACH = {"killed": 1, "disk full once": 5, "disk full from then on": 1, "read-only from then on": 5}
FULL = Amounts(100, 10, EACH, 20, 10_500_000, 7200.0, 30)
QUICK = Amounts(4, 0, dict.fromkeys(FAULTS, 150), 2, 100_000, 20.0, 0)


def kill_row(amounts: Amounts, model: Path, data: Path | None) -> list[Finding]:
    return [_killed("SIGKILL at random, tiny model", kills(tiny(model), amounts.kills))]


def default_model_row(amounts: Amounts, model: Path, data: Path | None) -> list[Finding]:
    if not amounts.kills_135m:
        return []
    return [_killed("SIGKILL at random, SmolLM2-135M", kills(default_model, amounts.kills_135m))]


def _killed(test: str, found: Kills) -> Finding:
    told = f"{found.kills} kills in {found.runs} runs, {found.same} of which ended the same"
    return Finding(test, told, "all", found.same == found.runs, asdict(found))


def fault_rows(amounts: Amounts, model: Path, data: Path | None) -> list[Finding]:
    findings = []
    for name, step in amounts.faults.items():
        found = faults(model, name, step)
        told = f"{found.tried} of {found.points} writes tried, {len(found.bad)} went wrong"
        findings.append(Finding(f"a fault at each write: {name}", told, "0 wrong", not found.bad, asdict(found)))
    return findings


def outage_row(amounts: Amounts, model: Path, data: Path | None) -> list[Finding]:
    with tempfile.TemporaryDirectory() as scratch:
        found = outages(amounts.outages, Path(scratch))
    told = f"{found['outages']} outages, {found['recorded']} points: {found['once']} there once"
    right = found["once"] == found["recorded"] == found["in_order"]
    return [Finding("tracking server killed and started", told, "all once, in order", right, found)]


def fuzz_rows(amounts: Amounts, model: Path, data: Path | None) -> list[Finding]:
    total: dict[str, FuzzResult] = {}
    each = amounts.inputs // sum(target.every == 1 for target in TARGETS.values())  # the others have few, as well
    blocks = [(min(BLOCK, each - first), first) for first in range(0, each, BLOCK)]
    with multiprocessing.get_context("spawn").Pool() as pool:
        watched = tqdm(total=each, unit="input of each", disable=not sys.stderr.isatty())
        for (count, _), results in zip(blocks, pool.imap(_fuzz, blocks), strict=True):
            watched.update(count)
            for result in results:
                total[result.target] = _both(total.get(result.target), result)
    findings = []
    for result in total.values():
        told = (
            f"{result.inputs:,} inputs, {result.crashes} crashes, {result.hangs} hangs, {result.wrong} wrong; slowest "
            f"{1000 * result.slowest:.0f} ms"
        )
        findings.append(Finding(f"fuzzing: {result.target}", told, "none", result.clean, asdict(result)))
    return findings


def _fuzz(block: tuple[int, int]) -> list[FuzzResult]:
    return fuzz(*block)


def _both(one: FuzzResult | None, other: FuzzResult) -> FuzzResult:
    if one is None:
        return other
    numbers = ("inputs", "seconds", "crashes", "hangs", "wrong")
    sums = {name: getattr(one, name) + getattr(other, name) for name in numbers}
    slowest = max(one.slowest, other.slowest)
    return FuzzResult(one.target, **sums, slowest=slowest, findings=[*one.findings, *other.findings])


def soak_row(amounts: Amounts, model: Path, data: Path | None) -> list[Finding]:
    with tempfile.TemporaryDirectory() as scratch:
        found = soak(model, amounts.soak, Path(scratch))
    seen = (
        f"{found.hours:.2f} h, {found.updates:,} updates: {found.megabytes_per_hour:+.2f} MB/h, open files "
        f"{found.files[0]} to {found.files[1]}, threads {found.threads[0]} to {found.threads[1]}"
    )
    flat = found.files[1] <= found.files[0] and found.threads[1] <= found.threads[0]
    short = found.hours < 1  # not warm, and no slope: that it runs and stops is all that can be seen
    told = f"{found.updates:,} updates; too short for a slope" if short else seen
    met = found.updates > 0 and (short or (flat and found.megabytes_per_hour < 1))
    return [Finding("soak", told, "< 1 MB/h, no more files or threads", met, asdict(found))]


def cost_rows(amounts: Amounts, model: Path, data: Path | None) -> list[Finding]:
    if not amounts.cost or data is None:
        return []
    findings = []
    for scheme in ("full", "lean"):
        with tempfile.TemporaryDirectory() as scratch:
            found = cost(data, Path(scratch), amounts.cost, scheme)
        told = (
            f"{found.checkpoints} checkpoints in {found.training / 60:.0f} min of {found.updates} updates: "
            f"{found.share:.2%} of the time"
        )
        test = f"cost of checkpoints, 494M on GSM8K, {scheme}"
        findings.append(Finding(test, told, "<= 2 %", found.share <= 0.02, asdict(found)))
    return findings


Row = Callable[[Amounts, Path, Path | None], list[Finding]]
ROWS: dict[str, Row] = {  # those that fork come first: threads do not survive that
    "kills": kill_row,
    "faults": fault_rows,
    "kills_135m": default_model_row,
    "outages": outage_row,
    "fuzz": fuzz_rows,
    "soak": soak_row,
    "cost": cost_rows,
}
