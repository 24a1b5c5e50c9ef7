"""Hard limits: control groups of the system's, which kill what takes more memory."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cpu_grpo.hardware.cgroups import groups

# A group's limit, its limit with or of swap, and the most it has held; of version 2, then of version 1.
FILES = (
    ("memory.max", "memory.swap.max", "memory.peak"),
    ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.max_usage_in_bytes"),
)


class NoGroup(Exception):
    """No such control group can be made here; the message says why."""


@dataclass(frozen=True)
class Group:
    """A control group without processes."""

    path: Path

    def enter(self) -> None:
        """For `subprocess`'s preexec_fn: moves the new process into the group."""
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    @property
    def peak(self) -> int | None:
        """The most bytes that the group's processes have held together, pages of files among them."""
        found = [self.path / peak for _, _, peak in FILES if (self.path / peak).exists()]
        return int(found[0].read_text()) if found else None


@contextlib.contextmanager
def control_group(controller: str) -> Iterator[Group]:
    """A new group below this process's own for a controller (cpu or memory), of either version; removed in the end.

    Raises:
        NoGroup: this process may not make one, or there are none for the controller.
    """
    own = next((path for path in groups(Path("/"), controller) if path.is_dir()), None)
    if own is None:
        raise NoGroup(f"there are no control groups for {controller}")
    made = own / f"cpu-grpo-{os.getpid()}"
    try:
        made.mkdir()
    except OSError as error:
        raise NoGroup(f"no control group can be made: {error}") from None
    try:
        yield Group(made)
    finally:
        made.rmdir()


@contextlib.contextmanager
def memory_group(limit: int) -> Iterator[Group]:
    """A group whose processes may hold so many bytes together, without swap.

    Raises:
        NoGroup: none can be made, or none with a limit.
    """
    with control_group("memory") as group:
        _limit(group.path, limit)
        yield group


def _limit(group: Path, limit: int) -> None:
    for most, swap, _ in FILES:
        if not (group / most).exists():
            continue
        try:
            (group / most).write_text(str(limit))
            if (group / swap).exists():
                (group / swap).write_text("0" if swap == "memory.swap.max" else str(limit))
        except OSError as error:
            raise NoGroup(f"no limit can be set: {error}") from None
        return
    raise NoGroup("groups made here have no limit on memory")
