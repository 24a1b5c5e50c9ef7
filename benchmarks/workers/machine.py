"""Worker: how fast this machine multiplies matrices and reads memory; and what it is."""

import platform
from importlib.metadata import version

import torch
from processes import Json, serve
from workloads import use_all_cores

from cpu_grpo.hardware import DTYPES, bandwidth, cpu_name, gemm_rate, usable_cores

PACKAGES = ("torch", "transformers", "trl")


def measure(task: Json) -> Json:
    """A task has: quick."""
    use_all_cores()
    return {
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "gemm_gflops": {precision: peak(precision, task["quick"]) for precision in DTYPES},
        "read_gb_per_second": bandwidth(2**22 if task["quick"] else 2**28) / 1e9,
    }


def peak(precision: str, quick: bool) -> float:
    """GFLOP/s of matrix products: the best of a medium size and of a large square."""
    size = 256 if quick else 4096
    return max(gemm_rate(DTYPES[precision]), gemm_rate(DTYPES[precision], rows=size, size=size))


if __name__ == "__main__":
    serve(measure)
