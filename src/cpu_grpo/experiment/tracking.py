"""A record of every run: a parent for each pipeline run, a child for each stage that trains or evaluates.

Metrics are always in the stage's own files first. What MLflow gets goes through a journal on disk (`spool`), from which
a thread sends it (`delivery`, `store`): a server that is away neither stops nor slows a run, and misses nothing of it.
"""

import csv
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import psutil

from cpu_grpo.config.redaction import redacted, redacted_values
from cpu_grpo.config.schema import Pipeline, Shared, Tracking
from cpu_grpo.errors import Stopped, UserError
from cpu_grpo.experiment import spool
from cpu_grpo.experiment.delivery import POINTS, Delivery, first_line, send_left_within
from cpu_grpo.experiment.spool import LOCAL, Journal, Record
from cpu_grpo.experiment.store import MlflowStore
from cpu_grpo.files import flatten, sha256
from cpu_grpo.models.loading import RECORD as SOURCE
from cpu_grpo.text import one_line

LOCAL_UI = "http://127.0.0.1:5000"  # where `make ui` shows the local store
PACKAGES = ("torch", "transformers", "trl", "datasets", "mlflow", "dvc")
PARAMS = 100  # that MLflow takes at a time
START = 10.0  # seconds that a run's start waits for a server, at most
# Seconds without success after which a run's end waits no longer: for a server, and for a store on this machine.
PATIENCE, LOCAL_PATIENCE = 5.0, 30.0


class Run:
    """One run's record as a context: FINISHED when the block ends well, FAILED when it does not.

    A run that a signal stopped is KILLED, and goes on when `start_run` is given its id. Whatever is recorded is on disk
    when a method returns, and with the server soon, or when it is back.

    Attributes:
        last_step: the last update that has its figures recorded already.
    """

    def __init__(self, journal: Journal, delivery: Delivery, tracking: Tracking, last_step: int) -> None:
        self.last_step = last_step
        self._journal = journal
        self._delivery = delivery
        self._target = redacted(tracking.uri)
        self._local = is_local(tracking.uri)
        self._tables: list[dict[str, str]] = []
        self._warned = False

    @property
    def run_id(self) -> str:
        """MLflow's id; one that `run_address` and `start_run` know as well, as long as no server has given it one."""
        return self._journal.run_id or self._journal.id

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        status = "FINISHED" if error is None else "KILLED" if isinstance(error, Stopped) else "FAILED"
        self._record("status", status=status)
        if left := self._delivery.finish(LOCAL_PATIENCE if self._local else PATIENCE):
            warn(
                f"{left} records of this run wait in {(spool.SPOOL / self._journal.id).as_posix()}: the next training, "
                f"evaluation or report that finds {self._target} sends them."
            )

    def params(self, config: Any) -> None:
        """The configuration, as flat params and as config.json; no password is in them."""
        told = redacted_values(asdict(config))
        for part in _parts({key: str(value)[:6000] for key, value in flatten(told).items()}, PARAMS):
            self._record("params", values=part)
        self._text(json.dumps(told, indent=2), "config.json")

    def metrics(self, values: dict[str, float], step: int) -> None:
        """One point, of now, for each value."""
        for part in _parts({key: float(value) for key, value in values.items()}, POINTS):
            self._record("metrics", values=part, step=step)

    def tag(self, key: str, value: str) -> None:
        self._record("tag", key=key, value=redacted(value))

    def artifact(self, path: Path, folder: str = "") -> None:
        """A file as it is now."""
        self._keep(lambda: {"kind": "artifact", "path": self._journal.keep(path), "folder": folder})

    def table(self, rows: list[dict[str, Any]], name: str) -> None:
        """Rows as a table that the MLflow UI shows, in place of one of this name."""
        if not rows:
            return
        data = [[None if value != value else value for value in row.values()] for row in rows]  # JSON has no NaN
        self._text(json.dumps({"columns": list(rows[0]), "data": data}), name)
        self._tables.append({"path": name, "type": "table"})  # as MLflow's own log_table, which appends instead
        self.tag("mlflow.loggedArtifacts", json.dumps(self._tables))

    def register(self, directory: Path, name: str) -> None:
        """Makes a trained model the next version of this name in MLflow's registry.

        It is sent from where it lies: what has taken its place until then is not registered for it.
        """
        place = {"kind": "model", "path": directory.absolute().as_posix(), "name": name}
        self._keep(lambda: place | {"source": sha256(directory / SOURCE)})

    def note_trainings(self) -> None:
        """Of a pipeline's run: where its trainings stand side by side."""
        self._record("trainings")

    def _text(self, text: str, name: str) -> None:
        self._keep(lambda: {"kind": "artifact", "path": self._journal.keep_text(text, name), "folder": ""})

    def _record(self, kind: str, **fields: Any) -> None:
        self._keep(lambda: {"kind": kind, **fields})

    def _keep(self, make: Callable[[], Record]) -> None:
        """Tracking must never stop a run that has cost hours."""
        try:
            self._journal.append({"time": _now(), **make()})
        except OSError as error:
            if not self._warned:
                self._warned = True
                warn(f"A record for MLflow is lost ({first_line(error)}); the run goes on and keeps its own files.")
        else:
            self._delivery.more()


def start_run(config: Shared, name: str, stage: str, pipeline_id: str, tags: dict[str, str], again: str = "") -> Run:
    """A new run, below the pipeline's parent run where there is one; or the run `again`, which goes on.

    Raises:
        UserError: `tracking.uri` is on this machine and cannot be opened.
    """
    store = _opened(config.tracking)
    own = {"stage": stage, "seed": str(config.seed), **_process_tags(os.getpid()), **_version_tags(), **tags}
    parent = _pipeline(pipeline_id) if pipeline_id else None
    journal = (spool.reopen(again, redacted(config.tracking.uri)) if again else None) or spool.begin()
    marked = again if again.startswith(LOCAL) else journal.id
    head = {"name": name, "mark": ["local_id", marked], "tags": own, "parent": parent, "again": again}
    return _begin(config.tracking, store, journal, head)


def log_report(config: Pipeline, root: Path, pipeline_id: str, files: list[Path]) -> None:
    """Puts the report and its figures on the pipeline's parent run and finishes it.

    Raises:
        UserError: `tracking.uri` is on this machine and cannot be opened.
    """
    store = _opened(config.tracking)
    head = _pipeline(pipeline_id or f"report {root.absolute().as_posix()}") | {"parent": None, "again": ""}
    with _begin(config.tracking, store, spool.begin(), head) as run:
        run.params(config)
        for path in files:
            run.artifact(path, "report/plots" if path.parent.name == "plots" else "report")
        summary = root / "reports" / "metrics.json"
        if summary.is_file():
            flat = flatten(json.loads(summary.read_text(encoding="utf-8")))
            numbers = {key: value for key, value in flat.items() if isinstance(value, int | float)}
            run.metrics(numbers, 0)
        comparison = root / "reports" / "accuracy.csv"
        if comparison.is_file():
            run.table(list(csv.DictReader(comparison.read_text(encoding="utf-8").splitlines())), "comparison.json")
        run.note_trainings()


def run_address(tracking: Tracking) -> Callable[[str], str]:
    """What tells where MLflow's UI shows a run, by its id: nothing for a run that was recorded elsewhere."""
    target, store = redacted(tracking.uri), MlflowStore(tracking.uri)
    server = target.rstrip("/") if target.startswith("http") else LOCAL_UI
    send_left_within(START, store, target, _teller(target))  # a run has no address before it is there
    silent = False

    def address(run_id: str) -> str:
        nonlocal silent
        try:
            place = None if silent else store.place(run_id)
        except Exception as error:  # every store raises its own kind
            silent, place = True, None
            warn(f"{target} does not say where its runs are ({first_line(error)}): there are no links to them.")
        return "{}/#/experiments/{}/runs/{}".format(server, *place) if place else ""

    return address


def _opened(tracking: Tracking) -> MlflowStore:
    """The store; one that is on this machine must work, as nothing else would bring its records there."""
    store = MlflowStore(tracking.uri)
    if is_local(tracking.uri):
        try:
            store.open()
        except Exception as error:  # every store raises its own kind
            target = redacted(tracking.uri)
            raise UserError(
                f"tracking.uri={target} cannot be opened ({first_line(error)}): mend it, or change it."
            ) from error
    return store


def _begin(tracking: Tracking, store: MlflowStore, journal: Journal, head: Record) -> Run:
    """The run of a journal, which is what `head` says. Waits a while for the store to have it."""
    target = redacted(tracking.uri)
    kept = [record["step"] for record in journal.records() if "reward" in record.get("values", {})]
    about = {"kind": "run", "time": _now(), "target": target, "experiment": tracking.experiment}
    journal.append(about | redacted_values(head))
    delivery = Delivery(journal, store, target, _teller(target))
    last_step = delivery.begin(None if is_local(tracking.uri) else START)
    return Run(journal, delivery, tracking, max([*kept, last_step]))


def _pipeline(pipeline_id: str) -> Record:
    """What the run of a whole pipeline is."""
    words = pipeline_id.split()
    tags = {"stage": "pipeline", **_version_tags()}
    if words[0] == "dvc":
        tags |= dict(zip(("host", "pid", "process_started"), words[1:], strict=True))
    name = f"{words[0]} {time.strftime('%Y-%m-%d %H:%M:%S')}"
    return {"name": name, "mark": ["pipeline", pipeline_id], "tags": tags, "time": _now()}


def is_local(uri: str) -> bool:
    """Whether a store is on this machine's disk, so that no outage is to be expected."""
    return urlsplit(uri).scheme in ("", "file", "sqlite")


def _teller(target: str) -> Callable[[str], None]:
    return lambda rest: warn(f"{target} {rest}")


def _parts(values: dict[str, Any], most: int) -> Iterator[dict[str, Any]]:
    items = list(values.items())
    return (dict(items[start : start + most]) for start in range(0, len(items), most))


def _now() -> int:
    """In ms since 1970, as MLflow counts."""
    return int(time.time() * 1000)


def warn(message: str) -> None:
    print(f"warning: {one_line(message)}", file=sys.stderr)


def _process_tags(pid: int) -> dict[str, str]:
    started = psutil.Process(pid).create_time()
    return {"host": socket.gethostname(), "pid": str(pid), "process_started": f"{started:.0f}"}


def _version_tags() -> dict[str, str]:
    tags = {f"version.{name}": version(name) for name in PACKAGES} | {"version.python": platform.python_version()}
    return tags | {"git_commit": git_commit()}


def git_commit() -> str:
    """The checkout's commit, with + behind it where files differ; `none` outside git."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return "none"
    return head + ("+" if dirty.strip() else "")
