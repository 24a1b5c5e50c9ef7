"""MLflow: whether its store can be reached, and whether records of runs still wait for it."""

import os
import threading
from pathlib import Path

from cpu_grpo.config.compose import PARAMS, compose_run, load_params
from cpu_grpo.config.redaction import redacted
from cpu_grpo.config.schema import Tracking
from cpu_grpo.doctor.finding import Finding, fail, ok, told, warn

PATIENCE = 10.0  # seconds that a store has to answer
SQLITE = "sqlite:///"


def tracking() -> Tracking:
    """Where runs are to be recorded."""
    return load_params(PARAMS).tracking if PARAMS.is_file() else compose_run([]).tracking


def store() -> Finding:
    """Whether it answers. None is made where there is none yet."""
    uri = tracking().uri
    target = redacted(uri)
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists():
        return ok(f"{target} is not there yet; the first run makes it")
    from cpu_grpo.experiment.store import MlflowStore
    from cpu_grpo.experiment.tracking import is_local

    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "5"
    reached, problem = threading.Event(), []
    asked = MlflowStore(uri)

    def ask() -> None:
        try:
            asked.open()
            if asked.answers():
                reached.set()
        except Exception as error:  # every store raises its own kind
            problem.append(told(error))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if reached.is_set():
        return ok(f"{target} answers")
    why = f" ({problem[0]})" if problem else ""
    if is_local(uri):
        return fail(f"{target} cannot be opened{why}", f"mlflow db upgrade {target}")
    return warn(f"{target} does not answer{why}: runs go on, and what they record waits", f"curl --head {target}")


def spool() -> Finding:
    """What earlier runs have left to be sent."""
    from cpu_grpo.experiment.spool import SPOOL, unsent

    if not (waiting := unsent()):
        return ok("no record waits to be sent")
    target = redacted(tracking().uri)
    said = ", ".join(f"{count} records wait for {redacted(where)}" for where, count in waiting.items())
    if target in waiting:
        return warn(f"{said}; the next run sends them", "python pipelines/report.py --params params.yaml")
    return warn(f"{said}, and runs go to {target} now", f"rm -r {SPOOL.as_posix()}")
