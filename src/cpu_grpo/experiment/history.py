"""What a run has to tell of its updates, on disk: a run of days has hundreds of thousands of them."""

import json
import math
import shutil
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

Row = dict[str, Any]
RECENT = 8  # updates whose figures are also held in memory
STEADY = 200  # sampled updates that are kept, at most


class Journal:
    """Rows in a file that grows by a line of JSON each. What cannot be written now waits and is tried again."""

    def __init__(self, path: Path) -> None:
        """Starts an empty one; nothing is written before the first row."""
        self.path = path
        self._bytes = 0  # of the file that are whole lines
        self._waiting: list[bytes] = []

    def append(self, rows: list[Row]) -> None:
        """Adds rows."""
        self._waiting += [json.dumps(row).encode() + b"\n" for row in rows]
        with suppress(OSError):
            self._write()

    def rows(self) -> list[Row]:
        """All of them, in the order in which they came."""
        return [json.loads(line) for line in self._lines()]

    def values(self, name: str) -> list[Any]:
        """What each row has under a name; no more than one row is in memory."""
        return [json.loads(line)[name] for line in self._lines()]

    def keep(self, name: str, values: set[Any]) -> None:
        """Drops all rows but those that have one of these values under a name."""
        kept = [line for line in self._lines() if json.loads(line)[name] in values]
        self._bytes, self._waiting = 0, kept
        with suppress(OSError):
            self._write()

    def copy_to(self, directory: Path) -> None:
        """Puts a copy into a directory.

        Raises:
            OSError: it cannot be written.
        """
        self._write()
        shutil.copyfile(self.path, directory / self.path.name)

    def go_on(self, directory: Path) -> None:
        """Holds the rows of the copy in a directory instead.

        Raises:
            OSError: there is none, or it cannot be copied.
        """
        shutil.copyfile(directory / self.path.name, self.path)
        self._bytes, self._waiting = self.path.stat().st_size, []

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as stream:
            stream.truncate(self._bytes)  # what was there before, or half a line of a full disk
            text = b"".join(self._waiting)
            stream.write(text)
        self._bytes, self._waiting = self._bytes + len(text), []

    def _lines(self) -> Iterator[bytes]:
        """Of all rows, one after the other; those that wait are written first if they can be."""
        with suppress(OSError):
            self._write()
        if self._bytes:
            with self.path.open("rb") as stream:
                while stream.tell() < self._bytes and (line := stream.readline()):
                    yield line
        yield from self._waiting


class History:
    """The figures of each update. The last update's can still be added to."""

    def __init__(self, path: Path) -> None:
        """`path`: the file that all but the last update's are in."""
        self._journal = Journal(path)
        self._recent: deque[Row] = deque(maxlen=RECENT)

    def append(self, row: Row) -> None:
        """Adds an update; a figure that is NaN does not apply to it, and is left out."""
        if self._recent:
            self._journal.append([self._recent[-1]])
        self._recent.append({})
        self.amend(row)

    def amend(self, figures: Row) -> None:
        """Adds figures to the last update."""
        self._recent[-1].update({name: value for name, value in figures.items() if not math.isnan(value)})

    def rows(self) -> list[Row]:
        """Of all updates, in their order."""
        return [*self._journal.rows(), *list(self._recent)[-1:]]

    def last(self, name: str, count: int) -> list[float]:
        """A figure in the last updates, RECENT at most; fewer where fewer have it."""
        return [row[name] for row in list(self._recent)[-count:] if name in row]

    @property
    def step(self) -> int:
        """The last update's number."""
        return int(self._recent[-1]["step"])

    def recent(self) -> list[Row]:
        """What a checkpoint holds beside the journal's copy."""
        return list(self._recent)

    def copy_to(self, directory: Path) -> None:
        """Puts a copy of all but the last update's into a directory, as `Journal.copy_to` does."""
        self._journal.copy_to(directory)

    def go_on(self, directory: Path, recent: list[Row]) -> None:
        """Goes on from a checkpoint: a directory that `copy_to` wrote to, and what was `recent` then."""
        self._journal.go_on(directory)
        self._recent.extend(recent)


class Samples(Journal):
    """Completions of sampled updates: of every second one sampled so far, each time there are STEADY of them."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._updates = 0  # that there are completions of

    def add(self, rows: list[Row]) -> None:
        """Adds those of an update."""
        self.append(rows)
        self._updates += 1
        if self._updates == STEADY:
            kept = set(self.steps()[::2])
            self.keep("step", kept)
            self._updates = len(kept)

    def steps(self) -> list[int]:
        """The updates that there are completions of, in their order."""
        return list(dict.fromkeys(self.values("step")))

    def go_on(self, directory: Path) -> None:
        super().go_on(directory)
        self._updates = len(self.steps())
