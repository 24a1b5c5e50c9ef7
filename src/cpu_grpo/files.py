"""Outputs that appear whole or not at all, fingerprints of them, and JSON lines read without trusting them."""

import codecs
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from cpu_grpo.errors import UserError
from cpu_grpo.text import shown

LONGEST_LINE = 16 << 20  # bytes of a JSON line
ONE_A_LINE = "where one object a line is read: `jq -c '.[]' FILE > FILE.jsonl` makes that of it."


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


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """The same for a file: yields an empty one beside `target`, renamed to it when the block ends without an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target)
    descriptor, name = tempfile.mkstemp(prefix=_prefix(target), dir=target.parent)
    os.close(descriptor)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o644)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


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
    with new_file(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """One JSON object a line; blank lines are allowed.

    Raises:
        UserError: the file is missing, or a line is not a JSON object (the message has its number).
    """
    return [row for _, row in numbered_rows(path)]


def numbered_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The same one after the other, each with the number of its line.

    Raises:
        UserError: as `read_jsonl` does.
    """
    if not path.is_file():
        raise UserError(f"There is no file {path}; check the path.")
    with path.open("rb") as stream:
        yield from rows_of(stream, str(path))


def rows_of(stream: BinaryIO, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of an open file, of which no more than a line is held at a time.

    Raises:
        UserError: as `read_jsonl` does; `name` opens the message.
    """
    for number, line in enumerate(_lines(stream, name), start=1):
        if line.strip():
            yield number, _row(line, f"{name}, line {number}", first=number == 1)


def _lines(stream: BinaryIO, name: str) -> Iterator[bytes]:
    """Lines as files of any system end them, none longer than LONGEST_LINE."""
    number = 0
    while piece := stream.readline(LONGEST_LINE + 1):
        if len(piece) > LONGEST_LINE and not piece.endswith(b"\n"):
            raise UserError(
                f"{name}, line {number + 1} is longer than {LONGEST_LINE >> 20} MiB: put one JSON object on each line."
            )
        for line in piece.removeprefix(codecs.BOM_UTF8 if number == 0 else b"").splitlines():
            number += 1
            yield line


def _row(line: bytes, where: str, first: bool) -> dict[str, Any]:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # those of UTF-32 begin as one of them does
            raise UserError(f"{where} is UTF-16 or UTF-32: save the file as UTF-8.") from error
        raise UserError(
            f"{where} is not JSON, as it is not UTF-8 (byte {error.start + 1} is 0x{line[error.start]:02x}): mend "
            "that line, or save the file as UTF-8."
        ) from error
    try:
        row = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        if first and text.lstrip().startswith("["):
            raise UserError(f"{where} begins one JSON array, {ONE_A_LINE}") from error
        raise UserError(f"{where} is not JSON ({error}): mend or remove that line.") from error
    if not isinstance(row, dict):
        if first and isinstance(row, list) and row and isinstance(row[0], dict):
            raise UserError(f"{where} is one JSON array, {ONE_A_LINE}")
        raise UserError(f"{where} is not a JSON object but {type(row).__name__}: mend that line.")
    return row


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys differ: of two values of one key, nobody could say which was meant."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {shown(twice)} stands in it twice")
    return found


def read_object(path: Path, remedy: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: it is none; the message ends in `remedy`.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}): {remedy}.") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is no JSON object: {remedy}.")
    return found


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
    found = read_object(path, "run what writes it again")
    seal = found.pop("seal", None)
    if seal is not None and seal != _seal(found):
        raise UserError(f"{path} was altered or damaged since it was written: run what writes it again.")
    return found


def held_object(path: Path) -> dict[str, Any]:
    """A JSON object, sealed or not, that can be made again: empty where there is none, or it is damaged."""
    try:
        return read_sealed(path)
    except UserError:
        return {}


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


def cached(name: str) -> Path | None:
    """A file of the cache directory; None where there is no home directory."""
    try:
        return cache_directory() / name
    except RuntimeError:
        return None


def keep_cached(path: Path | None, value: dict[str, Any]) -> None:
    """Keeps what was measured, with its own hash, for other processes; where it cannot be kept they measure again."""
    if path:
        with suppress(OSError):  # a full disk, or a directory that cannot be written
            write_sealed(path, value)


def require_space(directory: Path, needed: int, remedy: str = "") -> None:
    """Raises UserError where `directory`'s disk has fewer than `needed` bytes free; `remedy` is added to its advice."""
    directory.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise UserError(
            f"{directory} has {free / 1e9:.1f} GB of free disk and {needed / 1e9:.1f} GB are needed: free some "
            f"space{remedy}."
        )
