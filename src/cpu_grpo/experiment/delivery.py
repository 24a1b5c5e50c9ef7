"""Sends journals to a store, in order and once, from a thread of its own: the work they tell of waits for no server."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

from cpu_grpo.config.redaction import redacted
from cpu_grpo.experiment import spool
from cpu_grpo.experiment.spool import Journal, Kept, Record

POINTS = 900  # that are sent at a time; MLflow takes 1000
TRIES = 6  # for a record that a store fails at although it answers, with pauses that double
PAUSE, LONGEST = 0.5, 10.0  # seconds before a store is tried again: at first, and at most
LAST_PAUSE = 0.3  # once the run has ended
MOST = 60.0  # seconds that a run's end may take, even while something is sent


class Point(NamedTuple):
    """One value of a metric."""

    key: str
    value: float
    time: int  # ms since 1970
    step: int


class Begun(NamedTuple):
    """A run, as its store has it."""

    run_id: str
    parent_id: str  # empty: it belongs to none
    last_step: int  # the last with figures; 0 in a new run


class Store(Protocol):
    """Where records go. Each call may take long, and raises what it likes where it fails."""

    def begin(self, record: Record, run_id: str, alive: bool) -> Begun:
        """The run that a record of kind `run` is about: the one of this id, one that it began before, or a new one."""

    def log_points(self, run_id: str, points: list[Point]) -> None: ...

    def send(self, journal: Journal, record: Record) -> None:
        """Any other record; it may come again though it has arrived."""

    def fail(self, journal: Journal) -> None:
        """Says that the run's process ended without a word."""

    def arrived(self, run_id: str, key: str) -> list[tuple[int, int]]:
        """Step and time of each point of a metric."""

    def answers(self) -> bool:
        """Whether it can be asked anything."""

    def refuses(self, error: Exception) -> bool:
        """Whether another try would end with this error again."""


class Outgoing:
    """A journal on its way.

    Attributes:
        last_step: the last that the store has figures of, as far as is known.
    """

    def __init__(self, journal: Journal, store: Store, tell: Callable[[str], None], alive: bool) -> None:
        """`alive`: whether the journal is this process's, and not one that was left behind."""
        self.journal = journal
        self.last_step = 0
        self._store, self._tell, self._alive = store, tell, alive
        self._most, self._tries, self._told = POINTS, 0, False
        # A run that goes on from a checkpoint may make points again that it has made and sent before.
        self._again = any(record.get("again") for record in journal.records())
        # Points that may be there already, by key; None where none can be.
        self._there: dict[str, set[Any]] | None = None if alive and not self._again else {}

    def send_some(self) -> bool:
        """Sends the oldest records, if there are any.

        Raises:
            Exception: the store's, where it does not answer or will not have the run.
        """
        kept = _together(self.journal.unsent(self._most))
        if not kept:
            self._most = POINTS
            self._there = self._there if self._again else None
            return False
        try:
            self._send(kept)
        except Exception as error:  # every store raises its own kind
            self._there = {}  # what failed may have arrived all the same
            self._mend(kept, error)
        else:
            self._tries = 0
        return True

    def _send(self, kept: list[Kept]) -> None:
        record, end = kept[0].record, kept[-1].end
        begun = Begun("", "", 0)
        match record.get("kind"):
            case "run":
                begun = self._store.begin(record, self.journal.run_id, self._alive)
                self.last_step = begun.last_step
            case "metrics":
                if points := self._new([point for item in kept for point in _points(item.record)]):
                    self._store.log_points(self.journal.run_id, points)
            case _:
                self._store.send(self.journal, record)
        self.journal.sent(end, begun.run_id, begun.parent_id)

    def _new(self, points: list[Point]) -> list[Point]:
        """Those of the points that are not there yet."""
        if self._there is None:
            return points
        for key in {point.key for point in points} - self._there.keys():
            self._there[key] = {self._mark(*found) for found in self._store.arrived(self.journal.run_id, key)}
        return [point for point in points if self._mark(point.step, point.time) not in self._there[point.key]]

    def _mark(self, step: int, time: int) -> Any:
        """What tells a metric's points apart."""
        return step if self._again else (step, time)

    def _mend(self, kept: list[Kept], error: Exception) -> None:
        """Gives a record up that the store will not take, so that those behind it arrive; raises all other errors."""
        if not self._store.answers() or kept[0].record.get("kind") == "run":
            raise error
        self._tries += 1
        if self._tries < TRIES and not self._store.refuses(error):
            time.sleep(PAUSE * 2 ** (self._tries - 1))
            return
        self._tries = 0
        if len(kept) > 1:
            self._most = 1  # it is one of them: the next tries tell which
            return
        if not self._told:
            self._told = True
            self._tell(f"did not take a record ({first_line(error)}); the run's own files have it.")
        self.journal.sent(kept[0].end)


class Delivery:
    """The thread that sends a run's journal while it grows, and what earlier processes have left behind."""

    def __init__(self, journal: Journal, store: Store, target: str, tell: Callable[[str], None]) -> None:
        """Begins with what is in the journal.

        Args:
            target: for which left journals are sent.
            tell: called with sentences about the store, without their subject.
        """
        self._store, self._target, self._tell = store, target, tell
        self._own = Outgoing(journal, store, tell, alive=True)
        self._first = journal.size  # bytes that begin the run
        self._others_sent = self._told = False
        self._successes = 0
        self._wake, self._begun, self._closing, self._stopped = (threading.Event() for _ in range(4))
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def begin(self, seconds: float | None) -> int:
        """Waits until the store has the run, or something fails. Returns the last step that it has figures of."""
        self._begun.wait(seconds)
        return self._own.last_step

    def more(self) -> None:
        """Says that the journal has grown."""
        self._wake.set()

    def finish(self, patience: float) -> int:
        """Sends the rest, unless nothing can be sent for `patience` seconds. Returns how many records are left."""
        self._closing.set()
        self._wake.set()
        end, before = time.monotonic() + MOST, -1
        while self._thread.is_alive() and self._successes > before and (left := end - time.monotonic()) > 0:
            before = self._successes
            self._thread.join(min(patience, left))
        self._stopped.set()
        return self._own.journal.waiting()

    def _work(self) -> None:
        pause, done = 0.0, False
        try:
            while not done and not self._stopped.is_set():
                self._wake.clear()
                closing = self._closing.is_set()
                try:
                    if self._step():
                        pause = 0.0
                    elif closing:
                        done = True
                    else:
                        self._wake.wait()
                except Exception as error:  # every store raises its own kind
                    self._failed(error)
                    pause = min(max(2 * pause, PAUSE), LONGEST)
                    self._stopped.wait(LAST_PAUSE) if closing else self._closing.wait(pause)
        finally:
            self._begun.set()
            self._own.journal.remove() if done else self._own.journal.release()

    def _step(self) -> bool:
        """Sends something: what begins the run, then what was left behind, then the rest."""
        own = self._own.journal
        own.to_disk()
        if own.position >= self._first and not self._others_sent:
            send_left(self._store, self._target, self._tell, self._goes_on)
            self._others_sent = True
        elif not self._own.send_some():
            return False
        if own.position >= self._first:
            self._begun.set()
        self._goes_on()
        return True

    def _goes_on(self) -> bool:
        """Called after each success; False once nothing more is to be sent."""
        self._successes += 1
        return not self._stopped.is_set()

    def _failed(self, error: Exception) -> None:
        self._begun.set()
        if not self._told and not self._stopped.is_set():
            self._told = True
            self._tell(
                f"takes no records ({first_line(error)}): the run goes on, and they wait in {spool.SPOOL.as_posix()}."
            )


def send_left(store: Store, target: str, tell: Callable[[str], None], goes_on: Callable[[], bool]) -> None:
    """Sends what processes that have ended left behind for a target.

    Args:
        tell: called with sentences about the store, without their subject.
        goes_on: asked after each success.

    Raises:
        Exception: the store's, where it does not answer.
    """
    for journal in spool.left_behind(target):
        outgoing = Outgoing(journal, store, tell, alive=False)
        try:
            while outgoing.send_some():
                if not goes_on():
                    return
            if not _ended(journal):
                store.fail(journal)
        except Exception as error:  # every store raises its own kind
            if not store.answers():
                raise
            if journal.waiting():  # else only that the run failed was refused
                place = (spool.SPOOL / journal.id).as_posix()
                tell(f"refuses what waits in {place} ({first_line(error)}): it stays there.")
                continue
        journal.remove()


def send_left_within(seconds: float, store: Store, target: str, tell: Callable[[str], None]) -> None:
    """The same for so many seconds at most; what is not sent then waits on, and so it does if there are errors."""
    stopped = threading.Event()

    def work() -> None:
        with suppress(Exception):  # every store raises its own kind
            send_left(store, target, tell, lambda: not stopped.is_set())

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    stopped.set()


def first_line(error: BaseException) -> str:
    """What an error says, shortly and without passwords; of one of the network its cause, which comes last there."""
    line = (redacted(str(error)).splitlines() or [type(error).__name__])[0]
    return line.rpartition("Caused by ")[2][:200]


def _together(kept: list[Kept]) -> list[Kept]:
    """The first records that can be sent in one call."""
    count, points = 0, 0
    for item in kept:
        points += len(item.record.get("values", {}))
        if item.record.get("kind") != "metrics" or points > POINTS:
            break
        count += 1
    return kept[: max(1, count)]


def _points(record: Record) -> list[Point]:
    return [Point(key, value, record["time"], record["step"]) for key, value in record["values"].items()]


def _ended(journal: Journal) -> bool:
    """Whether the run's last process has told how it ended."""
    told = [record["kind"] for record in journal.records() if record.get("kind") in ("run", "status")]
    return told[-1:] == ["status"]
