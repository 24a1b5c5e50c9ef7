"""Machines of made-up speeds."""

from cpu_grpo.hardware import Cores, Machine, Rate
from cpu_grpo.hardware.machine import products


def machine(fp32=100.0, bf16=300.0, threads=2, cpu_share=1.0, cores=None):
    """One whose products all run at these rates."""
    rates = tuple(Rate(name, rows, size, {"fp32": fp32, "bf16": bf16}[name]) for name, rows, size in products())
    return Machine("a CPU", "x86_64", ("avx2",), cores or Cores(2, 2, 2), threads, rates, 30.0, cpu_share, "2026-11-25")
