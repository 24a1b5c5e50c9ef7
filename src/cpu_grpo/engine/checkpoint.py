"""Checkpoints that are whole, and what transformers' leave out of an exact continuation.

transformers saves weights, optimizer, schedule, random states and its own history. What goes on from there learns from
other completions: TRL forgets those that are still to be learnt from, how far it is in them, and how often the sampler
has shuffled. A checkpoint is sealed by a file that is written last, with the SHA-256 of all others: one without a seal
was not finished.
"""

import json
import os
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cpu_grpo.engine.kernels.choices import choices
from cpu_grpo.engine.ranks import rank, ranks
from cpu_grpo.files import sha256, write_json

SEAL = "seal.json"
_NAME = re.compile(r"checkpoint-(\d+)")

RandomStates = tuple[Any, Any, torch.Tensor]  # of Python, numpy and torch


class Interrupted(Exception):
    """Training was asked to stop, and did so between two micro-batches."""


def random_states() -> RandomStates:
    """The states of the generators that training draws from."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def set_random_states(states: RandomStates) -> None:
    python, numpy, of_torch = states
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(of_torch)


_LOGS = ("prompt", "completion", "advantages"), ("rewards", "extra")  # TRL's: lists, and lists by name


def exact_file(directory: Path, number: int | None = None) -> Path:
    """Where a checkpoint has this rank's exact state, or that of the rank of a number."""
    number = rank() if number is None else number
    return directory / (f"exact_state-{number}.pt" if number else "exact_state.pt")


def exact_state(trainer: Any) -> dict[str, Any]:
    """What transformers' checkpoints leave out of a CPUGRPOTrainer."""
    lists, by_name = _LOGS
    logs: dict[str, Any] = {key: list(trainer._logs[key]) for key in lists}
    logs |= {key: {name: list(values) for name, values in trainer._logs[key].items()} for key in by_name}
    return {
        "step": trainer._step,  # micro-batches so far: which completions come next, and when there are new ones
        "buffered_inputs": trainer._buffered_inputs,
        "metrics": {mode: {k: list(v) for k, v in metrics.items()} for mode, metrics in trainer._metrics.items()},
        "logs": logs,
        "loss": (float(trainer._tr_loss), trainer._globalstep_last_logged),
        "step_sizes": (trainer.step_sizes.rows, trainer.step_sizes.tokens),
        "tokens_seen": trainer.state.num_input_tokens_seen,
        "checked": trainer._checked,
        "doubt": trainer._switch.doubt,
        "bad_updates": trainer.numbers.in_a_row,
        "rounding": (trainer.rounding.current, trainer.rounding.refused),
        "choices": dict(choices()),
    }


def restore(trainer: Any, directory: Path) -> None:
    """What `exact_state` has kept, into a trainer that is ready for its first update; nothing, where it kept nothing.

    Raises:
        ValueError: as many processes as now have not made the checkpoint.
    """
    if not exact_file(directory, 0).is_file():
        return
    if not exact_file(directory, ranks() - 1).is_file() or exact_file(directory, ranks()).is_file():
        raise ValueError(f"{directory} is of another number of processes than {ranks()}: go on with as many.")
    state: dict[str, Any] = torch.load(exact_file(directory), weights_only=True)
    trainer._step, trainer._buffered_inputs = state["step"], state["buffered_inputs"]
    for mode, metrics in state["metrics"].items():
        trainer._metrics[mode].clear()
        trainer._metrics[mode].update(metrics)
    lists, by_name = _LOGS
    for key in lists:
        trainer._logs[key].extend(state["logs"][key])
    for key in by_name:
        for name, values in state["logs"][key].items():
            trainer._logs[key][name].extend(values)
    loss, trainer._globalstep_last_logged = state["loss"]
    trainer._tr_loss += loss
    trainer.step_sizes.rows, trainer.step_sizes.tokens = state["step_sizes"]
    trainer.state.num_input_tokens_seen = state["tokens_seen"]
    trainer._checked, trainer._switch.doubt = state["checked"], state["doubt"]
    trainer.numbers.in_a_row = state["bad_updates"]
    trainer.rounding.current, trainer.rounding.refused = state["rounding"]
    choices().update(state["choices"])


def seal(directory: Path) -> None:
    """Writes what tells a whole checkpoint, once all of its files are on the disk."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != SEAL)
    for path in files:
        _to_disk(path)
    write_json(directory / SEAL, {path.relative_to(directory).as_posix(): sha256(path) for path in files})
    for path in (directory / SEAL, directory, directory.parent):
        _to_disk(path)


def _to_disk(path: Path) -> None:
    """Out of the system's cache: after a power cut it is there."""
    if os.name != "posix":  # elsewhere directories cannot be opened, nor files that are read only
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def damage(directory: Path) -> str | None:
    """Why a checkpoint cannot be gone on from, or None if it is whole."""
    try:
        sums: dict[str, str] = json.loads((directory / SEAL).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "was not finished"
    except (OSError, ValueError) as error:
        return f"has a seal that cannot be read ({error})"
    for name, expected in sums.items():
        path = directory / name
        if not path.is_file():
            return f"lacks {name}"
        if sha256(path) != expected:
            return f"has another {name} than was written"
    return None


def numbered(root: Path) -> Iterator[tuple[int, Path]]:
    """The checkpoints below a directory, the newest first."""
    found = ((_NAME.fullmatch(path.name), path) for path in root.glob("checkpoint-*"))
    yield from sorted(((int(name[1]), path) for name, path in found if name), reverse=True)


def newest_whole(root: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that can be gone on from, and a sentence about each newer one that cannot."""
    told: list[str] = []
    for _, path in numbered(root):
        reason = damage(path)
        if reason is None:
            return path, told
        told.append(f"{path} {reason}: it is passed over.")
    return None, told


def prune(root: Path, keep: int | None, spare: str | None = None) -> None:
    """Removes all but the newest `keep` checkpoints, and `spare`."""
    if not keep:
        return
    for _, path in list(numbered(root))[keep:]:
        if spare is None or Path(spare).resolve() != path.resolve():
            shutil.rmtree(path, ignore_errors=True)
