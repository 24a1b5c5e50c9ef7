"""Outputs that appear whole or not at all, and fingerprints of them."""

import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from cpu_grpo.errors import UserError


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """Yields an empty sibling of `target`, renamed to `target` (replacing it) when the block ends without an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target)
    partial = Path(tempfile.mkdtemp(prefix=_prefix(target), dir=target.parent))
    try:
        yield partial
        partial.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def discard(directory: Path) -> None:
    """Removes a directory such that it is gone, or still whole, at any moment."""
    with suppress(FileNotFoundError):
        gone = directory.rename(directory.with_name(f"{_prefix(directory)}gone"))
        shutil.rmtree(gone, ignore_errors=True)


def _prefix(target: Path) -> str:
    """Of the temporary names of what becomes `target`: they tell whose they are."""
    return f".{target.name}.{os.getpid()}-"


def sweep(target: Path) -> None:
    """Removes what processes that were killed have left of what was to become `target`."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.*-*"):
        pid = path.name.removeprefix(f".{target.name}.").partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes through a temporary name, so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path)
    descriptor, partial = tempfile.mkstemp(prefix=_prefix(path), dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """One JSON object a line; blank lines are allowed.

    Raises:
        UserError: the file is missing, or a line is not a JSON object (the message has its number).
    """
    if not path.is_file():
        raise UserError(f"There is no file {path}; check the path.")
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number} is not JSON ({error}): mend or remove that line.") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number} is not a JSON object but {type(row).__name__}: mend that line.")
        rows.append(row)
    return rows


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Writes a JSON object with its own hash."""
    write_json(path, sealed(value))


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """The same with a hash of it, under the key `seal`."""
    return value | {"seal": _seal(value)}


def read_sealed(path: Path) -> dict[str, Any]:
    """What `write_sealed` wrote, without the hash; what has none is taken as it is.

    Raises:
        UserError: it cannot be read, is no JSON object, or was altered since.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}): run what writes it again.") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a JSON object: run what writes it again.")
    seal = found.pop("seal", None)
    if seal is not None and seal != _seal(found):
        raise UserError(f"{path} was altered or damaged since it was written: run what writes it again.")
    return found


def _seal(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fingerprint(value: Any) -> str:
    """Twelve hexadecimal digits that stand for a JSON-like value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def cache_directory() -> Path:
    """Where this user's programs keep what can be made again.

    Raises:
        RuntimeError: there is no home directory.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cpu-grpo"


def require_space(directory: Path, needed: int, remedy: str = "") -> None:
    """Raises UserError where `directory`'s disk has fewer than `needed` bytes free; `remedy` is added to its advice."""
    directory.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise UserError(
            f"{directory} has {free / 1e9:.1f} GB of free disk and {needed / 1e9:.1f} GB are needed: free some "
            f"space{remedy}."
        )
