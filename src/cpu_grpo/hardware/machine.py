"""The probe: what this machine is and how fast, measured once and kept in the user's cache directory."""

import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cpu_grpo.files import cached, fingerprint, held_object, keep_cached
from cpu_grpo.hardware.cores import Cores, count_cores
from cpu_grpo.hardware.cpu import cpu_flags, cpu_name, instructions
from cpu_grpo.hardware.memory import release_memory
from cpu_grpo.hardware.rates import bandwidth, operations, product, quickest

VERSION = 1  # of what is measured and how: figures of another one are not taken
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}  # of each precision
DECODING, LEARNING = 8, 1024  # rows of products
SIZES = (1024, 4096)
UNDISTURBED = 0.9  # share of its threads' time that a process must get for its figures to be kept
READ = 2**26  # numbers in fp32 that are summed: 268 MB, more than caches hold
# Environment variables that allow or forbid instructions to torch and its libraries.
SWITCHES = (
    *("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS"),
    *("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"),
)


@dataclass(frozen=True)
class Rate:
    """GFLOP/s of (rows, size) x (size, size) products."""

    precision: str
    rows: int
    size: int
    gflops: float


@dataclass(frozen=True)
class Machine:
    """What was found and measured.

    Attributes:
        cpu: its name.
        instructions: the sets that products gain from, by Linux's names, whatever environment variables forbid.
        threads: what the figures were measured with.
        read_gb_per_second: of memory.
        cpu_share: of the time that its threads could have had while measuring, what this process got: less than 1 where
            other programs were busy.
        measured: the day.
    """

    cpu: str
    architecture: str
    instructions: tuple[str, ...]
    cores: Cores
    threads: int
    rates: tuple[Rate, ...]
    read_gb_per_second: float
    cpu_share: float
    measured: str

    @property
    def when(self) -> str:
        """When it was measured, and in what company."""
        beside = f" beside other programs, with {self.cpu_share:.0%} of the CPU time asked for"
        return self.measured + ("" if self.undisturbed else beside)

    @property
    def undisturbed(self) -> bool:
        return self.cpu_share >= UNDISTURBED

    def rate(self, precision: str, rows: int = LEARNING, size: int = SIZES[0]) -> float:
        """GFLOP/s of the products of this precision and shape."""
        shape = (precision, rows, size)
        return next(rate.gflops for rate in self.rates if (rate.precision, rate.rows, rate.size) == shape)


def probe(threads: int = 0, fresh: bool = False, root: Path = Path("/")) -> Machine:
    """What this machine is, and figures, measured in a few seconds where the cache has none of the same conditions.

    What was measured beside other busy programs holds for this run and is not kept.

    Args:
        threads: torch's threads while measuring; 0: one for every usable core.
        fresh: measure in any case.
        root: where the system's `proc` and `sys` are.
    """
    facts = _facts(threads, root)
    file = cached(f"machine-{fingerprint([VERSION, conditions(threads, root)])}.json")
    figures = _read(file) if file and not fresh else None
    machine = Machine(**facts, **(figures or _measure(facts["threads"], facts["cores"])))
    if not figures and machine.undisturbed:
        keep_cached(file, asdict(machine))
    return machine


def conditions(threads: int = 0, root: Path = Path("/")) -> str:
    """Stands for all of a machine that measured speeds depend on; the arguments are those of `probe`."""
    facts = _facts(threads, root)
    everything = facts | {"cores": asdict(facts["cores"]), "flags": cpu_flags(root), "torch": torch.__version__}
    return fingerprint(everything | {"switches": [os.environ.get(name, "") for name in SWITCHES]})


def _facts(threads: int, root: Path) -> dict[str, Any]:
    cores = count_cores(root)
    facts = {"cpu": cpu_name(root), "architecture": platform.machine(), "instructions": instructions(root)}
    return facts | {"cores": cores, "threads": threads or cores.usable}


def _read(file: Path) -> dict[str, Any] | None:
    """The figures in a file; None without one, or where it is damaged."""
    try:
        held = held_object(file)
        rates = tuple(Rate(**rate) for rate in held["rates"])
        whole = [(rate.precision, rate.rows, rate.size) for rate in rates] == products()
        read, share, measured = held["read_gb_per_second"], held["cpu_share"], held["measured"]
        if not whole or min(read, share, *(rate.gflops for rate in rates)) <= 0:
            return None
    except (TypeError, KeyError):
        return None
    return {"rates": rates, "read_gb_per_second": read, "cpu_share": share, "measured": measured}


def _measure(threads: int, cores: Cores) -> dict[str, Any]:
    """The figures, with so many of torch's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rounds = [_round(rows, size) for size in SIZES for rows in (DECODING, LEARNING)]
        read = bandwidth(READ) / 1e9
    finally:
        torch.set_num_threads(before)
        release_memory()
    # Of products of few rows a library may keep threads out.
    cpus = min(found.cpus for found in rounds if found.rates[0].rows == LEARNING)
    return {
        "rates": tuple(rate for found in rounds for rate in found.rates),
        "read_gb_per_second": read,
        "cpu_share": min(1.0, cpus / min(threads, cores.allowed, cores.quota or threads)),
        "measured": time.strftime("%Y-%m-%d"),
    }


@dataclass(frozen=True)
class _Round:
    """Products of one shape in every precision, and the CPUs' worth of time that this process got meanwhile."""

    rates: tuple[Rate, ...]
    cpus: float


def _round(rows: int, size: int, seconds: float = 0.5) -> _Round:
    """Measures precisions by turns, so that what else the machine does meanwhile slows all of them."""
    works = {name: product(dtype, rows, size) for name, dtype in DTYPES.items()}
    best = dict.fromkeys(works, float("inf"))
    wall, cpu = time.perf_counter(), time.process_time()
    while max(best.values()) == float("inf") or time.perf_counter() - wall < seconds:
        best |= {name: min(best[name], quickest(work, seconds / 10)) for name, work in works.items()}
    cpus = (time.process_time() - cpu) / (time.perf_counter() - wall)
    return _Round(tuple(Rate(name, rows, size, operations(rows, size) / best[name] / 1e9) for name in best), cpus)


def products() -> list[tuple[str, int, int]]:
    """Precision, rows and size of everything that is measured."""
    return [(name, rows, size) for size in SIZES for rows in (DECODING, LEARNING) for name in DTYPES]
