"""The control groups that this process belongs to, on Linux."""

from pathlib import Path


def groups(root: Path, controller: str) -> list[Path]:
    """The directories of the process's groups and of all above them, of both versions; some of them may not exist.

    Args:
        root: where the system's `proc` and `sys` are.
        controller: what a group limits: cpu or memory.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    top = root / "sys/fs/cgroup"
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)  # of version 2 there is one line, without controllers
        if controllers and controller not in controllers.split(","):
            continue
        for mount in {top / controllers, top / (controller if controllers else "unified")}:
            own = mount / path.lstrip("/")
            # A container may see its own group as the mount's top, whatever the path says.
            found += [group for group in (own, *own.parents) if group.is_relative_to(mount)]
    return found
