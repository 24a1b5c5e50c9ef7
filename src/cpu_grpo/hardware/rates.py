"""How fast this machine multiplies matrices and reads memory: the best of several, as others may be using it."""

import time
from collections.abc import Callable

import torch


def gemm_rate(dtype: torch.dtype, rows: int = 512, size: int = 1024, seconds: float = 0.5) -> float:
    """GFLOP/s of a (rows, size) x (size, size) product, repeated for so many seconds."""
    return operations(rows, size) / quickest(product(dtype, rows, size), seconds) / 1e9


def bandwidth(floats: int, times: int = 5) -> float:
    """Bytes a second of summing an array of that many fp32 numbers."""
    numbers = torch.ones(floats)
    return 4 * floats / min(quickest(numbers.sum, 0) for _ in range(times))


def operations(rows: int, size: int) -> int:
    """Of a (rows, size) x (size, size) product."""
    return 2 * rows * size * size


def product(dtype: torch.dtype, rows: int, size: int) -> Callable[[], torch.Tensor]:
    """What makes such a product when it is called."""
    draw = torch.Generator().manual_seed(0)  # of its own: whether something was measured must not change a run
    x, w = (torch.randn(n, size, generator=draw).to(dtype) for n in (rows, size))
    return lambda: torch.nn.functional.linear(x, w)


def quickest(work: Callable[[], object], seconds: float) -> float:
    """Seconds of the quickest of as many calls as start within so many seconds, one at least."""
    begin = time.perf_counter()
    best = float("inf")
    while best == float("inf") or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best
