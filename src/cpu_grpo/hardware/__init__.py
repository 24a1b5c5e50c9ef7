"""What this machine can do, measured; what a run makes of it, and what it used.

1. `cores`, `cpu` and `memory` read what the system tells, with the limits of affinity and control groups.
2. `machine` adds what `rates` measures, once for a machine: the probe.
3. `decisions` turns it into a run's threads and precision, with reasons.
4. `monitor` tells what a run used.
"""

from cpu_grpo.hardware.cores import Cores, count_cores, usable_cores
from cpu_grpo.hardware.cpu import cpu_flags, cpu_name, instructions
from cpu_grpo.hardware.decisions import WORTH_IT, Setup, decide, fastest_precision, setup
from cpu_grpo.hardware.machine import DTYPES, UNDISTURBED, Machine, Rate, conditions, probe
from cpu_grpo.hardware.memory import available_memory, keep_memory, release_memory, reusable_memory
from cpu_grpo.hardware.monitor import ResourceMonitor
from cpu_grpo.hardware.rates import bandwidth, gemm_rate

__all__ = [
    "DTYPES",
    "UNDISTURBED",
    "WORTH_IT",
    "Cores",
    "Machine",
    "Rate",
    "ResourceMonitor",
    "Setup",
    "available_memory",
    "bandwidth",
    "conditions",
    "count_cores",
    "cpu_flags",
    "cpu_name",
    "decide",
    "fastest_precision",
    "gemm_rate",
    "instructions",
    "keep_memory",
    "probe",
    "release_memory",
    "reusable_memory",
    "setup",
    "usable_cores",
]
