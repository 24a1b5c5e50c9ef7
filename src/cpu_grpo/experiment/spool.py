"""What MLflow has still to be sent, on disk: a journal for each run, which outlives the process that wrote it.

    cache/tracking/<id>/records.jsonl   the records in order, one a line; lines are added and never changed
    cache/tracking/<id>/sent.json       how many of its bytes were sent, and the ids that the server gave
    cache/tracking/<id>/files           artifacts, as they were when they were recorded
    cache/tracking/<id>.lock            held by the process that records or sends

Journals of processes that have ended are sent by the next one; a journal goes when all of it has been sent.
"""

import json
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from cpu_grpo.files import held_object, write_json
from cpu_grpo.workspace.layout import CACHE

SPOOL = CACHE / "tracking"
LOCAL = "local-"  # what ids begin with that no server gave
RECORDS, STATE = "records.jsonl", "sent.json"
LARGE = 64 * 2**20  # bytes of an artifact above which it is sent from where it lies
Record = dict[str, Any]  # `kind` says what else is in it: `tracking` makes them, `store` knows what they become


@dataclass(frozen=True)
class Kept:
    """A record in a journal."""

    record: Record
    end: int  # bytes up to its end


class Journal:
    """A run's records. Who has one holds its lock, until `release` or `remove`.

    One thread may add records while another sends them.

    Attributes:
        id: stands for the run as long as the server has given it no id.
        run_id: the server's id of the run, and
        parent_id: of the run that it belongs to; empty before they are known.
        position: bytes that were sent.
    """

    def __init__(self, directory: Path, lock: Any) -> None:
        self.id = directory.name
        self.directory = directory
        self._lock = lock
        state = _state(directory)
        self.run_id: str = state.get("run_id", "")
        self.parent_id: str = state.get("parent_id", "")
        self.position: int = state.get("position", 0)
        self._path = directory / RECORDS
        self._stream = self._path.open("a+b")
        if size := self.size:
            self._stream.seek(size - 1)
            if self._stream.read() != b"\n":  # the process ended in the middle of a line
                self._add(b"\n")

    def append(self, record: Record) -> None:
        """Raises OSError where the disk is full; the record is then written along with the next one."""
        self._add(json.dumps(record).encode() + b"\n")

    def _add(self, line: bytes) -> None:
        self._stream.write(line)
        self._stream.flush()

    def to_disk(self) -> None:
        """Makes the records survive a power cut, too."""
        os.fsync(self._stream.fileno())

    @property
    def size(self) -> int:
        """Bytes of all records."""
        return self._path.stat().st_size

    def records(self) -> Iterator[Record]:
        """All of them, whether they were sent or not."""
        return (kept.record for kept in _read(self._path, 0))

    def unsent(self, most: int) -> list[Kept]:
        """The oldest `most` records that were not sent, in order."""
        return list(islice(_read(self._path, self.position), most))

    def waiting(self) -> int:
        """How many records were not sent."""
        return sum(1 for _ in _read(self._path, self.position)) if self._path.is_file() else 0

    def sent(self, end: int, run_id: str = "", parent_id: str = "") -> None:
        """Notes that all before `end` was sent, and the server's ids where they are news."""
        self.position = end
        self.run_id, self.parent_id = run_id or self.run_id, parent_id or self.parent_id
        write_json(self.directory / STATE, {"position": end, "run_id": self.run_id, "parent_id": self.parent_id})

    def keep(self, path: Path) -> str:
        """Copies a file, as it may change before it is sent; returns where the copy lies, within `directory`."""
        if path.stat().st_size > LARGE:
            return path.absolute().as_posix()
        place = self._place(path.name)
        shutil.copyfile(path, place)
        return place.relative_to(self.directory).as_posix()

    def keep_text(self, text: str, name: str) -> str:
        """Makes such a file from a text."""
        place = self._place(name)
        place.write_text(text, encoding="utf-8")
        return place.relative_to(self.directory).as_posix()

    def _place(self, name: str) -> Path:
        folder = self.directory / "files" / uuid.uuid4().hex  # files of one name may come from several folders
        folder.mkdir(parents=True)
        return folder / name

    def release(self) -> None:
        """Leaves the journal to the next process."""
        with suppress(OSError):  # what the disk did not take before, it may not take now
            self._stream.close()
        self._lock.release()

    def remove(self) -> None:
        """Once it is of no use any more."""
        with suppress(OSError):  # on a disk that can only be read it stays, and is known to be sent
            self._path.unlink(missing_ok=True)  # first, so that no part of it can be taken for a whole
        self.release()
        _clear(self.directory)


def begin() -> Journal:
    """A new journal, empty."""
    directory = SPOOL.absolute() / f"{LOCAL}{uuid.uuid4().hex}"
    directory.parent.mkdir(parents=True, exist_ok=True)
    lock = _held(directory)  # before there is anything that another process might clear away
    directory.mkdir()
    return Journal(directory, lock)


def reopen(run_id: str, target: str) -> Journal | None:
    """The journal of a run, known by its id here or there, if there is one for the target that nobody holds."""
    for directory in _journals(target):
        if run_id in (directory.name, _state(directory).get("run_id")):
            return _taken(directory)
    return None


def left_behind(target: str) -> Iterator[Journal]:
    """The journals for a target whose processes have ended, oldest first; each is held while its turn lasts."""
    for directory in _journals(target):
        if journal := _taken(directory):
            try:
                yield journal
            finally:
                journal.release()


def unsent() -> dict[str, int]:
    """How many records wait for each target, of processes that have ended."""
    waiting: Counter[str] = Counter()
    for directory in sorted(SPOOL.absolute().glob(f"{LOCAL}*/")):
        target = _head(directory).get("target")
        if target and (lock := _held(directory)):
            waiting[target] += sum(1 for _ in _read(directory / RECORDS, _state(directory).get("position", 0)))
            lock.release()
    return {target: count for target, count in waiting.items() if count}


def _journals(target: str) -> list[Path]:
    """The directories of the journals for a target, oldest first. What is left of removed ones is cleared away."""
    found = []
    for directory in SPOOL.absolute().glob(f"{LOCAL}*/"):
        head = _head(directory)
        if head.get("target") == target:
            found.append((head["time"], directory))
        elif not head and (lock := _held(directory)):
            if not _head(directory):  # nor has it got one since
                _clear(directory)
            lock.release()
    return [directory for _, directory in sorted(found)]


def _taken(directory: Path) -> Journal | None:
    if (lock := _held(directory)) is None:
        return None
    if _head(directory):
        return Journal(directory, lock)
    lock.release()  # another process has sent all of it since
    return None


def _held(directory: Path) -> Any:
    """The lock of a journal; None where another has it."""
    from filelock import FileLock, Timeout

    lock = FileLock(f"{directory}.lock", timeout=0, thread_local=False)  # taken and left by different threads
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock


def _clear(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    with suppress(OSError):
        Path(f"{directory}.lock").unlink()


def _read(path: Path, start: int) -> Iterator[Kept]:
    """The whole records of a file, from a position on."""
    with path.open("rb") as stream:
        stream.seek(start)
        for line in stream:
            if not line.endswith(b"\n"):  # it is being written
                return
            start += len(line)
            yield Kept(_object(line), start)


def _head(directory: Path) -> Record:
    """The first record of a journal, which says whose it is; empty where there is none."""
    try:
        return next((kept.record for kept in _read(directory / RECORDS, 0)), {})
    except OSError:
        return {}


def _state(directory: Path) -> Record:
    """Empty as long as nothing was sent."""
    return held_object(directory / STATE)


def _object(text: bytes) -> Record:
    """What a line or file holds; empty where it was damaged."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
