"""MLflow: a parent run for each pipeline run, a child for each stage that trains or evaluates.

Metrics are always in the stage's own files first. A tracking server that cannot be reached is told once and replaced by
the local store; one that goes away later costs its missing points, which are sent again as soon as it answers.
"""

import csv
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import psutil

from cpu_grpo.config.schema import Pipeline, Shared, Tracking
from cpu_grpo.errors import Stopped
from cpu_grpo.files import flatten
from cpu_grpo.text import one_line

LOCAL_STORE = "sqlite:///mlflow.db"
TRAININGS = "tags.mlflow.parentRunId = '{}' and tags.stage = 'train'"  # of a pipeline's run
LOCAL_UI = "http://127.0.0.1:5000"  # where `make ui` shows it
PACKAGES = ("torch", "transformers", "trl", "datasets", "mlflow", "dvc")


class Run:
    """One MLflow run as a context: FINISHED when the block ends well, FAILED when it does not.

    A run that a signal stopped is KILLED, and goes on when `start_run` is given its id.

    Attributes:
        run_id: MLflow's id.
        last_step: the last update that has its figures there already.
    """

    def __init__(self, client: Any, run_id: str, parent_id: str, last_step: int = 0) -> None:
        self._client = client
        self._parent_id = parent_id
        self._unsent: list[Any] = []
        self._warned = False
        self.run_id = run_id
        self.last_step = last_step

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        status = "FINISHED" if error is None else "KILLED" if isinstance(error, Stopped) else "FAILED"
        self.metrics({}, 0)
        self._try(lambda: self._client.set_terminated(self.run_id, status))
        if error is not None and self._parent_id:
            self._try(lambda: self._client.set_terminated(self._parent_id, status))

    def params(self, config: Any) -> None:
        """The configuration, as flat params and as config.json."""
        from mlflow.entities import Param

        flat = [Param(key, str(value)[:6000]) for key, value in flatten(asdict(config)).items()]
        for start in range(0, len(flat), 100):
            self._try(lambda part=flat[start : start + 100]: self._client.log_batch(self.run_id, params=part))
        self._try(lambda: self._client.log_dict(self.run_id, asdict(config), "config.json"))

    def metrics(self, values: dict[str, float], step: int) -> None:
        """One point for each value; points that could not be sent before go along."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._unsent += [Metric(key, float(value), now, step) for key, value in values.items()]
        while self._unsent:
            part = self._unsent[:900]
            if not self._try(lambda part=part: self._client.log_batch(self.run_id, metrics=part)):
                return
            self._unsent = self._unsent[900:]

    def tag(self, key: str, value: str) -> None:
        self._try(lambda: self._client.set_tag(self.run_id, key, value))

    def artifact(self, path: Path, folder: str = "") -> None:
        self._try(lambda: self._client.log_artifact(self.run_id, str(path), folder or None))

    def table(self, rows: list[dict[str, Any]], name: str) -> None:
        """Rows as a table that the MLflow UI shows."""
        if rows:
            columns = {key: [row[key] for row in rows] for key in rows[0]}
            self._try(lambda: self._client.log_table(self.run_id, columns, name))

    def _try(self, call: Any) -> bool:
        """Tracking must never stop a run that has cost hours."""
        try:
            call()
        except Exception as error:
            if not self._warned:
                self._warned = True
                warn(f"MLflow did not take a record ({_first_line(error)}); the run goes on and keeps its own files.")
            return False
        return True


def start_run(config: Shared, name: str, stage: str, pipeline_id: str, tags: dict[str, str], again: str = "") -> Run:
    """A new run, below the pipeline's parent run where there is one; or the run `again`, which goes on."""
    client, experiment = _connect(config.tracking)
    with _lock():
        _fail_the_dead(client, experiment)
        parent = _parent(client, experiment, pipeline_id) if pipeline_id else ""
        own = {"stage": stage, "seed": str(config.seed), **_process_tags(os.getpid()), **_version_tags(), **tags}
        if parent:
            own["mlflow.parentRunId"] = parent
            client.update_run(parent, status="RUNNING")
        if again and (last_step := _last_step(client, again)) is not None:
            client.update_run(again, status="RUNNING")
            for key, value in own.items():
                client.set_tag(again, key, value)
            return Run(client, again, parent, last_step)
        run = client.create_run(experiment, run_name=name, tags=own)
    return Run(client, run.info.run_id, parent)


def _last_step(client: Any, run_id: str) -> int | None:
    """The last update that a run has figures of; None where this store does not know the run."""
    try:
        return max((point.step for point in client.get_metric_history(run_id, "reward")), default=0)
    except Exception:  # every store raises its own kind
        return None


def run_address(tracking: Tracking) -> Callable[[str], str]:
    """What tells where MLflow's UI shows a run, by its id: nothing for a run that was recorded elsewhere."""
    client, _ = _connect(tracking)
    server = client.tracking_uri.rstrip("/") if client.tracking_uri.startswith("http") else LOCAL_UI

    def address(run_id: str) -> str:
        try:
            experiment = client.get_run(run_id).info.experiment_id
        except Exception:  # every store raises its own kind
            return ""
        return f"{server}/#/experiments/{experiment}/runs/{run_id}"

    return address


def log_report(config: Pipeline, root: Path, pipeline_id: str, files: list[Path]) -> None:
    """Puts the report and its figures on the pipeline's parent run and finishes it."""
    client, experiment = _connect(config.tracking)
    with _lock():
        run_id = _parent(client, experiment, pipeline_id or f"report {root.absolute().as_posix()}")
    with Run(client, run_id, "") as run:
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
        if trainings := client.search_runs([experiment], TRAININGS.format(run_id), order_by=["attributes.start_time"]):
            run.tag("mlflow.note.content", _note(experiment, [own.info.run_id for own in trainings]))


def _note(experiment: str, runs: list[str]) -> str:
    """What the UI shows of a pipeline's run: where its trainings stand side by side."""
    side_by_side = f"runs={quote(json.dumps(runs))}&experiments={quote(json.dumps([experiment]))}"
    return (
        f"[The variants' training runs side by side](#/compare-runs?{side_by_side}). Among the artifacts: "
        "`comparison.json`, a table of the variants with intervals and costs, and the report with its plots."
    )


def warn(message: str) -> None:
    print(f"warning: {one_line(message)}", file=sys.stderr)


def _connect(tracking: Tracking) -> tuple[Any, str]:
    """A client and the experiment's id; falls back to the local store where the server does not answer."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    try:
        return _open(tracking.uri, tracking.experiment)
    except Exception as error:  # every store raises its own kind
        if tracking.uri == LOCAL_STORE:
            raise
        warn(f"{tracking.uri} does not answer ({_first_line(error)}): this run is recorded in {LOCAL_STORE} instead.")
        return _open(LOCAL_STORE, tracking.experiment)


def _open(uri: str, experiment: str) -> tuple[Any, str]:
    import logging

    from mlflow import MlflowClient

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    with _lock():  # jobs of a sweep would race on making the schema and the experiment
        client = MlflowClient(uri)
        found = client.get_experiment_by_name(experiment)
        return client, found.experiment_id if found else client.create_experiment(experiment)


def _lock() -> Any:
    from filelock import FileLock

    return FileLock("mlflow.lock")


def _parent(client: Any, experiment: str, pipeline_id: str) -> str:
    found = client.search_runs([experiment], f"tags.pipeline = '{pipeline_id}'", max_results=1)
    if found:
        return found[0].info.run_id
    tags = {"pipeline": pipeline_id, "stage": "pipeline", **_version_tags()}
    words = pipeline_id.split()
    if words[0] == "dvc":
        tags |= _process_tags(int(words[2]))
    name = f"{words[0]} {time.strftime('%Y-%m-%d %H:%M:%S')}"
    return client.create_run(experiment, run_name=name, tags=tags).info.run_id


def _fail_the_dead(client: Any, experiment: str) -> None:
    """Marks runs as FAILED whose process on this machine is gone without having said so (killed, or power lost)."""
    for run in client.search_runs([experiment], "attributes.status = 'RUNNING'", max_results=200):
        tags = run.data.tags
        if tags.get("host") == socket.gethostname() and not _alive(
            tags.get("pid", ""), tags.get("process_started", "")
        ):
            client.set_terminated(run.info.run_id, "FAILED")


def _alive(pid: str, started: str) -> bool:
    try:
        return f"{psutil.Process(int(pid)).create_time():.0f}" == started
    except (psutil.Error, ValueError):
        return False


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


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
