"""Where an export goes: it appears whole or not at all, and takes the place of an earlier export only."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cpu_grpo.errors import UserError
from cpu_grpo.export.source import Source
from cpu_grpo.files import new_directory, new_file, require_space, write_json, write_text
from cpu_grpo.models.integrity import file_hashes
from cpu_grpo.models.loading import RECORD, model_record

EXPORTS = Path("exports")
SMALL = 32 << 20  # bytes of all that comes with the weights


@contextmanager
def new_export(target: Path, source: Source, kind: str, needed: int) -> Iterator[Path]:
    """Yields an empty directory that becomes `target`, with a source.json of what was exported, when the block ends.

    Args:
        needed: bytes that the weights will take.

    Raises:
        UserError: something else lies there, or the disk has no room.
    """
    check_free(target, source)
    require_space(target.parent, needed + SMALL)
    with new_directory(target) as directory:
        yield directory
        record = {key: value for key, value in source.record.items() if key != "sha256"}
        record |= {"export": {"kind": kind, "model": source.name, "weights": source.weights_hash}}
        write_json(directory / RECORD, record | {"sha256": file_hashes(directory)})


@contextmanager
def new_lone_file(target: Path, card: str, needed: int) -> Iterator[Path]:
    """Yields an empty file that becomes `target` when the block ends, with the card beside it.

    Raises:
        UserError: as `new_export` does.
    """
    beside = target.with_suffix(".README.md")
    if target.is_dir() or (target.exists() and not beside.is_file()):
        raise UserError(f"{target} is there already, and is no earlier export: give another --out, or remove it.")
    require_space(target.parent, needed + SMALL)
    with new_file(target) as partial:
        yield partial
    write_text(beside, card)


def check_free(target: Path, source: Source) -> None:
    """Raises UserError where an export to `target` would overwrite anything but an earlier export."""
    if target.resolve() == source.directory.resolve() or target.resolve() in source.directory.resolve().parents:
        raise UserError(f"{target} holds the model that is to be exported: give another --out.")
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"{target} is a file, and a directory is to be written: give another --out.")
    if any(target.iterdir()) and "export" not in model_record(target):
        raise UserError(f"{target} holds what is no earlier export: give another --out, or remove it.")
