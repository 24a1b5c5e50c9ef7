"""Prints what this machine is, how fast, and what a run makes of it: `python -m cpu_grpo.hardware`."""

import argparse
import sys

from cpu_grpo.config.schema import Hardware
from cpu_grpo.hardware import Machine, available_memory, count_cores, decide, keep_memory, probe
from cpu_grpo.hardware.machine import DTYPES, products


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m cpu_grpo.hardware", description=__doc__.partition(":")[0] + ".")
    parser.add_argument("--fresh", action="store_true", help="measure anew instead of reading the cache")
    options = parser.parse_args(arguments)
    keep_memory()
    cores = count_cores()
    machines = [probe(count, options.fresh) for count in cores.thread_counts]
    chosen = decide(Hardware(), cores, machines)
    machine = next(machine for machine in machines if machine.threads == chosen.threads)
    print(report(machine), *chosen.reasons, sep="\n")
    return 0


def report(machine: Machine) -> str:
    """What was found, in a few lines."""
    shapes = dict.fromkeys((rows, size) for _, rows, size in products())
    return "\n".join(
        [
            f"{machine.cpu} ({machine.architecture}): {', '.join(machine.instructions) or 'no known instruction sets'}",
            f"products with threads = {machine.threads}, measured on {machine.when}:",
            *(
                f"  {rows} rows x {size} x {size}: "
                + ", ".join(f"{machine.rate(name, rows, size):.1f} GFLOP/s in {name}" for name in DTYPES)
                for rows, size in shapes
            ),
            f"memory: read at {machine.read_gb_per_second:.1f} GB/s, {available_memory() / 1e9:.1f} GB available",
        ]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
