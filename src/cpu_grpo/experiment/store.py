"""What becomes of records in MLflow. The only file that knows it."""

import json
import os
import socket
import tempfile
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil

from cpu_grpo.experiment.delivery import Begun, Point
from cpu_grpo.experiment.spool import LOCAL, Journal, Record
from cpu_grpo.files import new_file, sha256
from cpu_grpo.models.loading import RECORD as SOURCE

SQLITE = "sqlite:///"
TRAININGS = "tags.mlflow.parentRunId = '{}' and tags.stage = 'train'"  # of a pipeline's run
MODEL, DATA = "model", "data"  # folders of a registered model among a run's artifacts, and of its files in there
SERVED = "cpu_grpo.chat.served"  # what answers for it
# A view of an experiment's page that MLflow's UI takes from a tag, as its button Share makes them: runs by variant.
VIEW = "variants"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
GROUPED = {"groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "variant"}]}}
BY_VARIANT = "[All runs by variant](#/experiments/{}/runs?viewStateShareKey=" + VIEW + ")"
UNKNOWN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # what is said of an id that no run has
REFUSALS = ("BAD_REQUEST", "INVALID_STATE", "RESOURCE_ALREADY_EXISTS", *UNKNOWN)


class MlflowStore:
    """A tracking server or database as `delivery.Store`; nothing is asked of it before it has to be."""

    def __init__(self, uri: str) -> None:
        import mlflow  # noqa: F401  # here, as a thread's first import would stand in the way of this one's

        self._uri = uri
        self._experiments: dict[str, str] = {}
        # What a server did not take is sent again here, once it is known whether it has arrived.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # it would be with the password

    @cached_property
    def _client(self) -> Any:
        import logging

        from mlflow import MlflowClient

        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        with _lock():  # jobs of a sweep would race on making a schema
            if self._uri.startswith(SQLITE) and not (file := Path(self._uri.removeprefix(SQLITE))).exists():
                _make_database(file)
            return MlflowClient(self._uri)

    def open(self) -> None:
        """Raises whatever is wrong with a store on this machine."""
        _ = self._client

    def begin(self, record: Record, run_id: str, alive: bool) -> Begun:
        """The run that a record is about; of one that goes on, status and tags become what they are now.

        Args:
            run_id: MLflow's, where it is known.
            alive: whether the record is this process's own.
        """
        self.open()
        with _lock():  # stages and jobs of a sweep would race on making the experiment and the parent
            experiment = self._experiment(record["experiment"])
            if alive:
                self._fail_the_dead(experiment)
            parent_id = self._pipeline(experiment, record["parent"], alive) if record["parent"] else ""
            tags = record["tags"] | ({"mlflow.parentRunId": parent_id} if parent_id else {})
            found = self._known(run_id) or self._known(record["again"]) or self._marked([experiment], record)
            if found is None:
                return Begun(self._create(experiment, record, tags), parent_id, 0)
        own = found.info.run_id
        if record["again"]:
            self._client.update_run(own, status="RUNNING")
            for key, value in tags.items():
                self._client.set_tag(own, key, value)
        return Begun(own, parent_id, max((step for step, _ in self.arrived(own, "reward")), default=0))

    def log_points(self, run_id: str, points: list[Point]) -> None:
        from mlflow.entities import Metric

        self._client.log_batch(run_id, metrics=[Metric(*point) for point in points])

    def send(self, journal: Journal, record: Record) -> None:
        from mlflow.entities import Param

        match record:
            case {"kind": "params", "values": values}:
                self._client.log_batch(journal.run_id, params=[Param(*item) for item in values.items()])
            case {"kind": "tag", "key": key, "value": value}:
                self._client.set_tag(journal.run_id, key, value)
            case {"kind": "artifact", "path": path, "folder": folder}:
                self._client.log_artifact(journal.run_id, str(journal.directory / path), folder or None)
            case {"kind": "model", "path": path, "source": source, "name": name}:
                self._register(journal.run_id, Path(path), source, name)
            case {"kind": "status", "status": status, "time": time}:
                self._client.set_terminated(journal.run_id, status, time)
                if journal.parent_id and status != "FINISHED":
                    self._client.set_terminated(journal.parent_id, status, time)
            case {"kind": "trainings"}:
                self._note_trainings(journal.run_id)

    def fail(self, journal: Journal) -> None:
        self._client.set_terminated(journal.run_id, "FAILED")

    def arrived(self, run_id: str, key: str) -> list[tuple[int, int]]:
        return [(point.step, point.timestamp) for point in self._client.get_metric_history(run_id, key)]

    def answers(self) -> bool:
        try:
            self._client.search_experiments(max_results=1)
        except Exception:  # every store raises its own kind
            return False
        return True

    def refuses(self, error: Exception) -> bool:
        # The latter come of artifacts, kept on a disk that is not this user's or by a service whose package is missing.
        return getattr(error, "error_code", "") in REFUSALS or isinstance(
            error, PermissionError | FileNotFoundError | ImportError
        )

    def place(self, run_id: str) -> tuple[str, str] | None:
        """Experiment and id of a run, by its id there or here; None where there is no such run."""
        if run_id.startswith(LOCAL):
            experiments = [experiment.experiment_id for experiment in self._client.search_experiments()]
            run = self._marked(experiments, {"mark": ["local_id", run_id]})
        else:
            run = self._known(run_id)
        return (run.info.experiment_id, run.info.run_id) if run else None

    def _experiment(self, name: str) -> str:
        if name not in self._experiments:
            found = self._client.get_experiment_by_name(name)
            self._experiments[name] = found.experiment_id if found else self._new_experiment(name)
        return self._experiments[name]

    def _new_experiment(self, name: str) -> str:
        """With a link on its page to its runs by variant."""
        made = self._client.create_experiment(name, tags={VIEW_TAG: json.dumps(GROUPED)})
        self._client.set_experiment_tag(made, "mlflow.note.content", BY_VARIANT.format(made))
        return made

    def _known(self, run_id: str) -> Any:
        """The run of an id of MLflow's; None where it has none, or no more."""
        if not run_id or run_id.startswith(LOCAL):
            return None
        try:
            run = self._client.get_run(run_id)
        except Exception as error:  # every store raises its own kind
            if getattr(error, "error_code", "") in UNKNOWN:
                return None
            raise
        return run if run.info.lifecycle_stage == "active" else None

    def _marked(self, experiments: list[str], record: Record) -> Any:
        """The run with the tag that marks it, so that none is begun twice."""
        key, value = record["mark"]
        around = '"' if "'" in value else "'"
        found = self._client.search_runs(experiments, f"tags.{key} = {around}{value}{around}", max_results=1)
        return found[0] if found else None

    def _create(self, experiment: str, record: Record, tags: dict[str, str]) -> str:
        key, value = record["mark"]
        made = self._client.create_run(experiment, record["time"], tags | {key: value}, record["name"])
        return made.info.run_id

    def _pipeline(self, experiment: str, record: Record, alive: bool) -> str:
        """The run of a whole pipeline, which runs as long as a stage does."""
        found = self._marked([experiment], record)
        if found is None:
            return self._create(experiment, record, record["tags"])
        if alive:
            self._client.update_run(found.info.run_id, status="RUNNING")
        return found.info.run_id

    def _fail_the_dead(self, experiment: str) -> None:
        """Marks runs as FAILED whose process on this machine is gone without having said so (killed, or power lost)."""
        for run in self._client.search_runs([experiment], "attributes.status = 'RUNNING'", max_results=200):
            tags = run.data.tags
            if tags.get("host") == socket.gethostname() and not _alive(
                tags.get("pid", ""), tags.get("process_started", "")
            ):
                self._client.set_terminated(run.info.run_id, "FAILED")

    def _register(self, run_id: str, directory: Path, source: str, name: str) -> None:
        """Makes a model directory a version in the registry, with what MLflow loads it by, unless it is one.

        Raises:
            FileNotFoundError: another model lies there now.
        """
        from mlflow.exceptions import MlflowException

        if sha256(directory / SOURCE) != source:
            raise FileNotFoundError(f"{directory} was made anew before it could be registered")
        if self._client.search_model_versions(f"run_id = '{run_id}'"):
            return
        self._client.log_artifacts(run_id, str(directory), f"{MODEL}/{DATA}")
        with tempfile.TemporaryDirectory() as scratch:
            _describe(Path(scratch), run_id)
            self._client.log_artifacts(run_id, scratch, MODEL)
        run = self._client.get_run(run_id)
        told = {key: run.data.tags[key] for key in ("variant", "task", "model", "git_commit") if key in run.data.tags}
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        place = f"{run.info.artifact_uri}/{MODEL}"
        self._client.create_model_version(name, place, run_id, tags=told, await_creation_for=0)

    def _note_trainings(self, run_id: str) -> None:
        """Tells in a pipeline's run where its trainings stand side by side."""
        experiment = self._client.get_run(run_id).info.experiment_id
        found = self._client.search_runs([experiment], TRAININGS.format(run_id), order_by=["attributes.start_time"])
        if not found:
            return
        self._client.set_experiment_tag(experiment, VIEW_TAG, json.dumps(GROUPED))  # which an older one may lack
        runs = quote(json.dumps([run.info.run_id for run in found]))
        side_by_side = f"runs={runs}&experiments={quote(json.dumps([experiment]))}"
        note = (
            f"[The variants' training runs side by side](#/compare-runs?{side_by_side}). "
            f"{BY_VARIANT.format(experiment)}. Among the artifacts: "
            "`comparison.json`, a table of the variants with intervals and costs, and the report with its plots."
        )
        self._client.set_tag(run_id, "mlflow.note.content", note)


def _describe(directory: Path, run_id: str) -> None:
    """Writes what MLflow loads a model by: its signature and the module of ours that answers."""
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    signature = ModelSignature(
        inputs=Schema([ColSpec("string")]),
        outputs=Schema([ColSpec("string")]),
        params=ParamSchema(
            [
                ParamSpec("max_tokens", "long", 512),
                ParamSpec("temperature", "double", 0.0),
                ParamSpec("seed", "long", 42),
            ]
        ),
    )
    model = Model(artifact_path=MODEL, run_id=run_id, signature=signature)
    pyfunc.add_to_model(model, loader_module=SERVED, data=DATA)
    model.save(str(directory / "MLmodel"))


def _make_database(file: Path) -> None:
    """Whole or not at all: MLflow cannot open one whose tables were only made in part."""
    from mlflow import MlflowClient

    with suppress(OSError), new_file(file) as partial:  # where open files cannot be moved, MLflow makes it in place
        MlflowClient(f"{SQLITE}{partial.absolute().as_posix()}").search_experiments(max_results=1)


def _lock() -> Any:
    from filelock import FileLock

    return FileLock(Path("mlflow.lock").absolute())


def _alive(pid: str, started: str) -> bool:
    try:
        return f"{psutil.Process(int(pid)).create_time():.0f}" == started
    except (psutil.Error, ValueError):
        return False
