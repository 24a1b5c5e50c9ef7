"""Whether a model directory is still what was written."""

from pathlib import Path

from cpu_grpo.errors import UserError
from cpu_grpo.files import fingerprint, sha256
from cpu_grpo.models.loading import RECORD, model_record, weights_hash


def file_hashes(directory: Path) -> dict[str, str]:
    """SHA-256 of all files in it and below, by their paths from there with forward slashes; but not source.json's."""
    paths = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}
    return {name: sha256(paths[name]) for name in sorted(paths) if name != RECORD}


def intact_hash(directory: Path) -> str:
    """The directory's `weights_hash`, once its files have been compared with what source.json says of them.

    Raises:
        UserError: a file is missing, truncated or altered.
    """
    written: dict[str, str] = model_record(directory).get("sha256", {})
    found = {name: sha256(directory / name) if (directory / name).is_file() else "" for name in written}
    for name, expected in written.items():
        if found[name] != expected:
            reason = "was truncated or altered since" if found[name] else "is missing, though"
            raise UserError(
                f"{directory / name} {reason} it was written: make the model again, or remove {directory / RECORD} if "
                "the change was meant."
            )
    weights = {name: digest for name, digest in found.items() if name.endswith(".safetensors") and "/" not in name}
    return fingerprint(dict(sorted(weights.items()))) if weights else weights_hash(directory)
