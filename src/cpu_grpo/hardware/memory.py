"""Memory: what this process may still take, and what it keeps of what it frees."""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

from cpu_grpo.hardware.cgroups import groups

# A group's limit, what it uses (files' pages too), and which of its statistics tells the pages that it could drop.
FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)

PRODUCTS = 64  # kept by oneDNN and by torch, with their sizes: several steps' and micro-batches'


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that this process could still take without swapping: what the system has, and its control groups leave.

    Args:
        root: where the system's `proc` and `sys` are.
    """
    left = [room for group in groups(root, "memory") for room in _rooms(group)]
    return max(0, min([psutil.virtual_memory().available, *left]))


def _rooms(group: Path) -> Iterator[int]:
    """Bytes that a control group leaves, if it has a limit; of either version.

    https://docs.kernel.org/admin-guide/cgroup-v2.html (memory.max) and
    https://docs.kernel.org/admin-guide/cgroup-v1/memory.html (memory.limit_in_bytes; without a limit a huge number)
    """
    for limit, usage, droppable in FILES:
        try:
            most, used = (group / limit).read_text().strip(), int((group / usage).read_text())
            statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if most != "max":
            yield int(most) - used + int(statistics.get(droppable, 0))


def keep_memory(large: bool = True) -> None:
    """Lets this process keep the memory it frees, where the C library is glibc, and keeps it from filling up.

    By default large buffers go back to the system at once, and every page of the next one is faulted in and zeroed
    again: a product with a fresh 56 MB result takes 1.5 times as long as one into a used buffer (docs/log.md).

    Args:
        large: buffers of 32 MB and more, too: between small ones that stay, what they leave often cannot be used again.
    """
    _keep_few_products()
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(-4, 0 if large else 2**16)  # M_MMAP_MAX: so many buffers get a mapping of their own
    mallopt(-3, 2**25)  # M_MMAP_THRESHOLD: if they are as large as this, the most that glibc takes
    mallopt(-1, -1)  # M_TRIM_THRESHOLD: the heap does not shrink
    mallopt(-2, 64 * 2**20)  # M_TOP_PAD: and grows by this much


def _keep_few_products() -> None:
    """Lets oneDNN and torch remember what they made for the sizes of few products, not of 1,024 each.

    No two updates have the same numbers of tokens: 135M parameters grew by 0.5 GB in 20 updates (docs/log.md). Both
    read their limits, which the user may set, at their first product.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(PRODUCTS))


def release_memory() -> None:
    """Gives what this process has freed back to the system, where the C library is glibc; elsewhere nothing happens.

    Against what `keep_memory` is for, where memory is dearer than the third of a second that a GB of fresh pages takes.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):
        return


def reset_peak() -> bool:
    """Lets `peak_held` begin anew; False where the system does not tell of peaks (all but Linux).

    https://docs.kernel.org/filesystems/proc.html (clear_refs, VmHWM)
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return peak_held() > 0
    except OSError:
        return False


def peak_held() -> int:
    """The most bytes that this process has held since `reset_peak`; 0 where the system does not tell."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


class _Heap(ctypes.Structure):
    """What mallinfo2 returns (malloc.h)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks")
    ] + [("keepcost", ctypes.c_size_t)]


def reusable_memory() -> int:
    """Bytes that this process has freed and kept, and can take again; 0 where the C library is not glibc.

    Some of it is in pieces too small to be of use, so this is an upper bound.
    """
    heap = _heap()
    return heap.fordblks if heap else 0


def _heap() -> _Heap | None:
    """What the C library says of its memory; None where it is not glibc."""
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
    except (OSError, AttributeError, TypeError):
        return None
    mallinfo.restype = _Heap
    return mallinfo()
