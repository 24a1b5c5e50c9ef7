"""How a run uses the CPU: its threads and its precision, each with the measurement that decided it."""

from dataclasses import dataclass

import torch

from cpu_grpo.config.schema import Hardware
from cpu_grpo.hardware.cores import Cores, count_cores
from cpu_grpo.hardware.machine import DTYPES, LEARNING, Machine, probe
from cpu_grpo.hardware.memory import keep_memory

WORTH_IT = 1.3  # bf16 matrix products must be this much faster than fp32 before they are used


@dataclass(frozen=True)
class Setup:
    """How a run will use the CPU, the measurement that decided it (GFLOP/s; 0 where nothing was measured), and why.

    Attributes:
        reasons: a sentence for each decision.
    """

    precision: str
    threads: int
    fp32_rate: float
    bf16_rate: float
    reasons: tuple[str, ...]


def setup(config: Hardware) -> Setup:
    """Decides threads and precision; sets torch up for them and lets the process keep its memory."""
    keep_memory()
    torch.backends.mkldnn.enabled = config.onednn  # type: ignore[assignment]  # a property of the module
    cores = count_cores()
    counts = [config.threads] if config.threads else cores.thread_counts
    open_question = config.precision == "auto" or len(counts) > 1
    chosen = decide(config, cores, [probe(count) for count in counts] if open_question else [])
    torch.set_num_threads(chosen.threads)
    return chosen


def decide(config: Hardware, cores: Cores, machines: list[Machine]) -> Setup:
    """What `setup` decides.

    Args:
        machines: this one, measured with every number of threads that may be best; none if the precision is given and
            there is one such number.
    """
    allowed = [config.precision] if config.precision in DTYPES else list(DTYPES)
    speeds = {machine.threads: max(map(machine.rate, allowed)) for machine in machines}
    best = max(machines, key=lambda machine: speeds[machine.threads], default=None)
    threads = best.threads if best else config.threads or cores.usable
    fp32, bf16 = (best.rate("fp32"), best.rate("bf16")) if best else (0.0, 0.0)
    if best and config.precision == "auto":
        precision = _fastest(best)
        why_precision = (
            f"products of {LEARNING} rows run at {fp32:.0f} GFLOP/s in fp32 and {bf16:.0f} in bf16, which is taken if "
            f"it is more than {WORTH_IT} times as fast (measured on {best.when})"
        )
    else:
        precision, why_precision = config.precision, "set by hardware.precision"
    if config.threads:
        why_threads = "set by hardware.threads"
    elif len(speeds) > 1:
        measured = ", ".join(f"{speed:.0f} with {count}" for count, speed in speeds.items())
        why_threads = f"with these products are fastest (GFLOP/s: {measured})"
    else:
        why_threads = "one for each core that can be kept busy"
    reasons = (f"threads {threads}: {why_threads} ({_told(cores)})", f"precision {precision}: {why_precision}")
    return Setup(precision, threads, fp32, bf16, reasons)


def fastest_precision() -> str:
    """bf16 where its matrix products are worth it on this CPU, with as many threads as torch has now, else fp32."""
    return _fastest(probe(torch.get_num_threads()))


def _fastest(machine: Machine) -> str:
    return "bf16" if machine.rate("bf16") > WORTH_IT * machine.rate("fp32") else "fp32"


def _told(cores: Cores) -> str:
    """What limits the threads, in words."""
    fast = cores.physical - cores.efficient
    kinds = f" ({fast} fast + {cores.efficient} efficient)" if cores.efficient else ""
    quota = f", CPU quota {cores.quota:g}" if cores.quota else ""
    return (
        f"of {cores.hardware_threads} hardware threads {cores.allowed} allowed, physical cores among them "
        f"{cores.physical}{kinds}{quota}"
    )
