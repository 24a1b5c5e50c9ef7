"""Reading a model directory: what it is, whether it is whole, and its parts in memory."""

import json
import sys
from pathlib import Path
from typing import Any

from cpu_grpo.errors import UserError
from cpu_grpo.files import fingerprint, sha256

RECORD = "source.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def model_record(directory: Path) -> dict[str, Any]:
    """What source.json says; empty where there is none, or where it is damaged."""
    try:
        found = json.loads((directory / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def weights_hash(directory: Path) -> str:
    """One SHA-256 for all weight files of a model directory."""
    return fingerprint({path.name: sha256(path) for path in sorted(directory.glob("*.safetensors"))})


def check_loadable(directory: Path) -> None:
    """Raises UserError unless the directory has whole safetensors, a config and a tokenizer."""
    from safetensors import SafetensorError, safe_open

    if not directory.is_dir():
        raise UserError(f"There is no model directory {directory}: check the path.")
    for name in ("config.json", "tokenizer_config.json"):
        if not (directory / name).is_file():
            raise UserError(f"{directory} has no {name}, so it is no complete model: copy it there.")
    for path in _weight_files(directory):
        try:
            with safe_open(path, framework="pt") as tensors:
                tensors.keys()
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is damaged or truncated ({error}): fetch it again.") from error


def load_model(directory: Path, dtype: Any = None) -> tuple[Any, Any]:
    """The model (in fp32 unless told otherwise) and its tokenizer, from a prepared or trained directory."""
    return load_weights(directory, dtype), load_tokenizer(directory)


def load_weights(directory: Path, dtype: Any = None) -> Any:
    """The model alone."""
    import torch
    from transformers import AutoModelForCausalLM

    check_loadable(directory)
    hide_bars()
    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype or torch.float32, use_safetensors=True)


def load_tokenizer(directory: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)


def _weight_files(directory: Path) -> list[Path]:
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        paths = [directory / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    else:
        paths = sorted(directory.glob("*.safetensors"))
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{directory} lacks {missing[0]}, which its index lists: fetch the model again.")
    if not paths:
        pickles = [path.name for pattern in PICKLES for path in directory.glob(pattern)]
        if pickles:
            raise UserError(
                f"{directory} has its weights as a pickle ({pickles[0]}), which can run code when opened: convert it "
                "to safetensors first."
            )
        raise UserError(f"{directory} has no *.safetensors: give a directory with a model's weights.")
    return paths


def hide_bars() -> None:
    """Turns transformers' progress bars off where nobody watches."""
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
