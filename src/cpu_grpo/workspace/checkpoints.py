"""Where a training run's checkpoints lie, and whose they are: found again by all that decides the run's result."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cpu_grpo.config.schema import Train
from cpu_grpo.errors import UserError
from cpu_grpo.files import discard, fingerprint, flatten, held_object, sha256, sweep, write_json
from cpu_grpo.workspace.layout import CACHE

RECORD = "run.json"
# What of a configuration decides nothing of the trained weights.
FREE = ("tracking", "checkpoint", "evaluation", "description")
CODE = ("config", "engine", "experiment", "hardware", "models", "tasks")  # folders whose code does
# What a plan may change of it, so that it fits into the memory that is free.
FITTED = ("memory.scheme", "engine.rows", "engine.micro_batch_tokens", "trainer.gradient_checkpointing")
TOLD = 3  # differences that are named
FORGOTTEN = 30 * 24 * 3600.0  # seconds after which checkpoints are removed that nobody went on from


@dataclass(frozen=True)
class Checkpoints:
    """A run's checkpoints."""

    directory: Path
    identity: dict[str, Any]  # flat: what decides the result
    target: str  # the model that the run makes

    @property
    def record(self) -> dict[str, Any]:
        """What was kept of the run when it began; empty before."""
        return _record(self.directory)

    @property
    def run_id(self) -> str:
        """MLflow's, of the run that has begun; empty before."""
        return str(self.record.get("run_id", ""))

    @property
    def precision(self) -> str:
        """That the run began in, as its products measured faster then; empty before."""
        return str(self.record.get("precision", ""))

    def begin(self, config: Train, precision: str, run_id: str) -> None:
        """Keeps what the run is, how it was made to fit into memory, its precision, and MLflow's id of it."""
        self.directory.mkdir(parents=True, exist_ok=True)
        fitted = {key: value for key, value in flatten(asdict(config)).items() if key in FITTED}
        record = {"identity": self.identity, "target": self.target, "run_id": run_id, "fitted": fitted}
        write_json(self.directory / RECORD, record | {"precision": precision})

    def fitted(self, config: Train) -> Train:
        """The configuration as it was made to fit into memory when the run began, if it has begun."""
        found = self.record.get("fitted", {})
        for key, value in found.items():
            group, name = key.split(".")
            config = replace(config, **{group: replace(getattr(config, group), **{name: value})})
        return config

    def remove(self) -> None:
        """Once the run's model is there."""
        discard(self.directory)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other processes from the same run.

        Raises:
            UserError: one is at it.
        """
        from filelock import FileLock, Timeout

        self.directory.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.directory.with_suffix(".lock"), timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise UserError(
                f"Another process is training {self.target} with this very configuration: wait for it, or stop it."
            ) from error
        sweep(self.directory)
        try:
            yield
        finally:
            if not any(self.directory.glob("checkpoint-*")):  # nothing to go on from
                self.remove()
            lock.release()

    def look_around(self) -> list[str]:
        """Removes checkpoints of other runs that made the same model, or that nobody went on with for long.

        Returns:
            a sentence about each that is, or may have been, this run with something changed.
        """
        told = []
        for other in sorted(self.directory.parent.glob("[!.]*/")):
            record = _record(other)
            if other == self.directory or not record:
                continue
            differs = _difference(record["identity"], self.identity)
            if record["target"] == self.target:
                discard(other)
                told.append(f"The checkpoints of an unfinished run for {self.target} are dropped, as {differs}.")
            elif time.time() - other.stat().st_mtime > FORGOTTEN:
                discard(other)
            elif record["identity"].get("name") == self.identity["name"] and not self.record:
                told.append(f"This is another run than the unfinished one for {record['target']}, as {differs}.")
        return told


def checkpoints_of(config: Train, target: Path, model_hash: str, data_hash: str, reward_code: str = "") -> Checkpoints:
    """Those of a run that makes `target` by this configuration, from this model and these problems.

    Args:
        reward_code: stands for the code of the user's reward functions.
    """
    settings = {key: value for key, value in asdict(config).items() if key not in FREE}
    settings["memory"].pop("limit")
    for patience in ("seconds", "faults"):  # so that a run that ends for want of it can go on with more
        settings["rewards"].pop(patience)
    identity = flatten(settings) | {"model_hash": model_hash, "data_hash": data_hash, "code": _code()}
    identity["reward_code"] = reward_code
    name = f"{config.name.replace('/', '-')}-{fingerprint(identity)}"
    here, made = Path.cwd(), target.absolute()
    shown = made.relative_to(here) if made.is_relative_to(here) else made
    return Checkpoints(CACHE / "checkpoints" / name, json.loads(json.dumps(identity)), shown.as_posix())


def left_over() -> dict[Path, int]:
    """The folders of runs that were begun and that no process is at, and their bytes."""
    from filelock import FileLock, Timeout

    found = {}
    for directory in sorted((CACHE / "checkpoints").glob("[!.]*/")):
        try:
            with FileLock(directory.with_suffix(".lock"), timeout=0):
                found[directory] = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
        except Timeout:
            continue
    return found


def _record(directory: Path) -> dict[str, Any]:
    found = held_object(directory / RECORD)
    return found if isinstance(found.get("identity"), dict) else {}


def _code() -> str:
    """Stands for the code that a result depends on."""
    package = Path(__file__).parents[1]
    files = [
        path for name in CODE for path in sorted((package / name).rglob("*")) if path.suffix in (".py", ".cpp", ".h")
    ]
    return fingerprint({path.relative_to(package).as_posix(): sha256(path) for path in files})


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What has changed, in words."""
    words = {"model_hash": "its start model", "data_hash": "its problems", "code": "the code"}
    words |= {"reward_code": "the reward code"}
    keys = [key for key in now if before.get(key) != now[key]]
    named = [
        f"{words[key]} changed" if key in words else f"{key} was {before.get(key)} and is {now[key]}" for key in keys
    ]
    more = f" and {len(named) - TOLD} more" if len(named) > TOLD else ""
    return ", ".join(named[:TOLD]) + more
