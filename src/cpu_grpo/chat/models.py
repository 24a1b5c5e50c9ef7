"""Which model a name stands for, how questions were put to it in training, and whether memory suffices."""

from dataclasses import dataclass
from pathlib import Path

from cpu_grpo.config.compose import PARAMS, compose_run, load_params
from cpu_grpo.config.schema import Model, Task
from cpu_grpo.engine.shape import of_directory, stored_bytes
from cpu_grpo.errors import UserError
from cpu_grpo.models.checking import check_loadable
from cpu_grpo.models.loading import model_record
from cpu_grpo.models.trial import try_out
from cpu_grpo.plan.answering import Work, peak_bytes
from cpu_grpo.plan.choice import budget
from cpu_grpo.plan.memory import LIBRARIES
from cpu_grpo.tasks.prompts import task_of
from cpu_grpo.text import shown
from cpu_grpo.units import gigabytes
from cpu_grpo.workspace.layout import Layout
from cpu_grpo.workspace.models import made_model

PROMPT = 2048  # tokens of a conversation that memory is foreseen for
PLAIN = Task()  # asks a question as it is


@dataclass(frozen=True)
class Named:
    """A model that was asked for."""

    name: str
    directory: Path
    task: Task  # how it is asked


def named(names: list[str], task: str = "", plain: bool = False) -> list[Named]:
    """The models of these names, each with the form in which its training asked.

    A model that was not trained here is asked as the other one is, if that was: else the two could not be compared.

    Args:
        task: a task's name below conf/task, whose form all are asked in.
        plain: all are asked the question as it is.

    Raises:
        UserError: there is no such model or task, or the model cannot be used.
    """
    directories = [_directory(name) for name in names]
    learnt = [task_of(model_record(directory).get("asked")) for directory in directories]
    other = next((found for found in learnt if found), PLAIN)
    if plain:
        learnt, other = [None] * len(names), PLAIN
    elif task:
        # What no problem is read for needs no path.
        learnt, other = [None] * len(names), compose_run([f"task={task}", "task.path=none"]).task
    return [Named(*three) for three in zip(names, directories, (found or other for found in learnt), strict=True)]


def _directory(name: str) -> Path:
    """Of a model that has been made already."""
    own = Layout(Path()).model(name)
    found = own if name and (own / "config.json").is_file() else made_model(name, _configured()) if name else None
    if found is None:
        raise UserError(_missing(name))
    check_loadable(found)
    try_out(found, name)
    return found


def _configured() -> Model:
    """Whose base model is meant: the pipeline's, or the default one."""
    return load_params(PARAMS).model if PARAMS.is_file() else compose_run([]).model


def _missing(name: str) -> str:
    """Why there is no such model, and what to do."""
    made = sorted(path.parent.name for path in Layout(Path()).model("").glob("[!.]*/config.json"))
    if name == "base":
        return "The base model has not been made: make it with `python pipelines/model.py --params params.yaml`."
    there = f"made are {', '.join(made)}" if made else "no model has been made here yet, which `dvc repro` does"
    return f"There is no model {shown(name)}: there is neither models/{name} nor a directory {name}; {there}."


def require_memory(directories: list[Path], limit: int, compute: int) -> None:
    """Raises UserError where there is no room for all of these models at a time.

    Args:
        limit: tokens of an answer.
        compute: bytes of a number that products are computed in.
    """
    work, needed = Work([PROMPT], 0, 1, 1, limit), LIBRARIES
    for directory in directories:
        if shape := of_directory(directory):
            needed += peak_bytes(shape, work, compute, stored_bytes(directory), shared=True) - LIBRARIES
    room = budget("")
    if needed > room.bytes:
        who, less = ("model needs", "") if len(directories) == 1 else ("two models need", "ask them one at a time, or ")
        raise UserError(
            f"The {who} {gigabytes(needed)}, and {room.reason}: {less}free some memory or take a smaller model."
        )
