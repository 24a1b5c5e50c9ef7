"""An enumerating fault injector: a tiny run is made to fail at its first write, at its second, and so on to its last.

What counts as a write: opening a file to write, renaming, removing, making a directory, connecting to SQLite, and the
files that torch and safetensors write without Python. Where the process is killed, what these two write is cut in half.
"""

import errno
import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torture.runs import Result, command, finish, left_over, preload, result, start, wait

EVENTS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "sqlite3.connect", "os.link")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
ELSEWHERE = ("/dev", "/proc", "/sys")
KILLED = -signal.SIGKILL
WORKERS, FEW = 6, 24  # that try writes, and how many writes are too few for several


def _kill(path: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _full(path: str) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def _read_only(path: str) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)


FAULTS: dict[str, tuple[Callable[[str], None], bool]] = {  # what happens, and whether it goes on so
    "killed": (_kill, False),
    "disk full once": (_full, False),
    "disk full from then on": (_full, True),
    "read-only from then on": (_read_only, True),
}


@dataclass
class Outcome:
    """Of one kind of fault.

    Attributes:
        bad: what went wrong, and where.
    """

    fault: str
    points: int = 0
    tried: int = 0
    bad: list[str] = field(default_factory=list)


def faults(model: Path, fault: str, step: int = 1, first: int = 1) -> Outcome:
    """Makes a run fail at every `step`-th write, each time followed by the same command without faults.

    Some at a time, where there are many: a run on a full disk mostly waits for its tracking store.
    """
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        arguments = command(model, root)
        finish(arguments, root, root / "log")
        wanted = result(root)
    points = _points(model)
    chosen = list(range(first, points + 1, step))
    found = Outcome(fault, points, len(chosen))
    if len(chosen) < FEW:
        found.bad = _tried(model, fault, chosen, wanted)
        return found
    shares = [chosen[worker::WORKERS] for worker in range(WORKERS)]
    with multiprocessing.get_context("spawn").Pool(WORKERS, preload) as pool:
        for bad in pool.starmap(_tried, [(model, fault, share, wanted) for share in shares], chunksize=1):
            found.bad += bad
    return found


def _tried(model: Path, fault: str, points: list[int], wanted: Result) -> list[str]:
    """What went wrong at these writes."""
    action, lasting = FAULTS[fault]
    found = ((point, _fails_at(model, point, action, lasting, wanted)) for point in points)
    return [f"{fault} at write {point}: {bad}" for point, bad in found if bad]


def _points(model: Path) -> int:
    """How many writes a run has."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        counted = root.parent / f"{root.name}-writes"
        arguments = command(model, root)
        code = wait(start(arguments, root, root / "log", partial(inject, 0, lambda path: None, False, counted)))
        if code:
            raise RuntimeError((root / "log").read_text())
        found = len(counted.read_text().splitlines())
        counted.unlink()
        return found


def _fails_at(model: Path, point: int, action: Callable[[str], None], lasting: bool, wanted: Result) -> str:
    """What is wrong with a run that fails there and is started again; empty if nothing is."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        log, where = root / "log", root.parent / f"{root.name}-writes"
        arguments = command(model, root)
        code = wait(start(arguments, root, log, partial(inject, point, action, lasting, where)))
        said, places = log.read_text(), where.read_text().splitlines() if where.exists() else []
        where.unlink(missing_ok=True)
        at = places[-1] if places else "none"
        if code not in (0, 1, KILLED):
            return f"ended with {code} ({at})"
        if "Traceback" in said or (code == 1 and not _sentences(said)):
            return f"no sentence ({at}): {said[-1500:]}"
        try:
            finish(arguments, root, log)
        except RuntimeError as error:
            return f"does not go on ({at}): {error}"
        if result(root) != wanted:
            return f"another result ({at})"
        left = left_over(root)
        return f"left {', '.join(left)} ({at})" if left else ""


def _sentences(said: str) -> bool:
    """Whether the run's end was told in one line."""
    return len([line for line in said.splitlines() if line.startswith("error: ")]) == 1


def inject(point: int | str, action: Callable[[str], None], lasting: bool, record: Path) -> None:
    """Called in the run's process: from now on writes are watched, and the fault happens at one of them.

    Args:
        point: its number, or what its name begins with; 0: none, and all are recorded.
        lasting: whether it happens at all later ones, too.
        record: the file that the fault's place is written to.
    """
    here, count, met, lock = os.getcwd(), 0, False, threading.RLock()
    descriptor = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def write(name: str) -> None:
        nonlocal count, met
        with lock:  # or another thread's write, which fails because this one does, is recorded before it
            count += 1
            now = not met and (count == point if isinstance(point, int) else name.startswith(point))
            met |= now
            fails = now or (met and lasting)
            if fails or point == 0:
                os.write(descriptor, f"{name}\n".encode())
        if fails:
            action(name)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = flags & WRITING if isinstance(flags, int) else any(letter in (mode or "") for letter in "wax+")
            if not writes:
                return
        elif event not in EVENTS:
            return
        path = arguments[0]
        if isinstance(path, str | bytes | os.PathLike) and (name := _inside(os.fsdecode(path), here)):
            write(f"{event} {name}")

    for module, name in (("torch", "save"), ("safetensors.torch", "serialize_file")):
        _wrap(module, name, here, write, cuts=action is _kill)
    sys.addaudithook(hook)


def _inside(path: str, here: str) -> str:
    """The path if it is the run's own; empty if not."""
    whole = os.path.abspath(path)
    own = whole.startswith(here + os.sep) and "__pycache__" not in whole
    return os.path.relpath(whole, here) if own and not whole.startswith(ELSEWHERE) else ""


def _wrap(module: str, name: str, here: str, write: Callable[[str], None], cuts: bool) -> None:
    """Makes a function that writes a file without Python a write, which is cut in half before the process is killed."""
    owner = importlib.import_module(module)
    right = getattr(owner, name)

    def called(*arguments: Any, **named: Any) -> Any:
        path = named.get("filename", named.get("f", arguments[1] if len(arguments) > 1 else None))
        if not isinstance(path, str | os.PathLike):
            return right(*arguments, **named)
        event = f"{name} {os.path.relpath(path, here)}"
        if not cuts:
            write(event)
            return right(*arguments, **named)
        found = right(*arguments, **named)
        whole = Path(path).read_bytes()
        Path(path).write_bytes(whole[: len(whole) // 2])
        write(event)
        Path(path).write_bytes(whole)
        return found

    setattr(owner, name, called)
