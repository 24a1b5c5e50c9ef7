"""The control groups' directories, which are looked at a few times in every update of runs that last for days."""

import sys

from cpu_grpo.hardware.cgroups import groups


def test_a_look_makes_no_names_that_one_before_has_made(system):
    root = system([0], {"proc/self/cgroup": "3:memory:/some/tasks\n0::/some/tasks"})
    first = groups(root, "memory")
    held = {part: sys.intern(part) for path in first for part in path.parts}
    second = groups(root, "memory")
    assert second and all(mine is theirs for mine, theirs in zip(first, second, strict=True))
    assert all(held[part] is part for path in second for part in path.parts)


def test_a_process_that_was_moved_has_the_groups_that_it_is_in_now(system):
    root = system([0], {"proc/self/cgroup": "0::/before"})
    assert root / "sys/fs/cgroup/before" in groups(root, "memory")
    (root / "proc/self/cgroup").write_text("0::/after\n")
    assert root / "sys/fs/cgroup/after" in groups(root, "memory")
    assert root / "sys/fs/cgroup/before" not in groups(root, "memory")
    (root / "proc/self/cgroup").unlink()
    assert groups(root, "memory") == ()
