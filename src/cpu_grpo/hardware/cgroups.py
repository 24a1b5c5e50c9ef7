"""The control groups that this process belongs to, on Linux."""

from functools import lru_cache
from pathlib import Path


def groups(root: Path, controller: str) -> tuple[Path, ...]:
    """The directories of the process's groups and of all above them, of both versions; some of them may not exist.

    Args:
        root: where the system's `proc` and `sys` are.
        controller: what a group limits: cpu or memory.
    """
    try:
        membership = (root / "proc/self/cgroup").read_text()
    except OSError:
        return ()
    return _directories(root, controller, membership)


# Kept, as pathlib interns each part of a path: made anew at every look, a few times an update, those of groups' names
# filled up CPython's table of interned strings, which grew by 8 MB after 150,000 (docs/log.md).
@lru_cache(maxsize=8)
def _directories(root: Path, controller: str, membership: str) -> tuple[Path, ...]:
    """Of what /proc/self/cgroup says."""
    top = root / "sys/fs/cgroup"
    found: list[Path] = []
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)  # of version 2 there is one line, without controllers
        if controllers and controller not in controllers.split(","):
            continue
        for mount in {top / controllers, top / (controller if controllers else "unified")}:
            own = mount / path.lstrip("/")
            # A container may see its own group as the mount's top, whatever the path says.
            found += [group for group in (own, *own.parents) if group.is_relative_to(mount)]
    return tuple(found)
