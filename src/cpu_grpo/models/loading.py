"""Reading a model directory that has been checked: what it is, and its parts in memory."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cpu_grpo.errors import UserError
from cpu_grpo.files import fingerprint, held_object, sha256
from cpu_grpo.models.checking import check_loadable, reason

RECORD = "source.json"
ADAPTERS = "adapter"  # the folder within a model's where what LoRA trained lies, not yet added to the weights


def model_record(directory: Path) -> dict[str, Any]:
    """What source.json says; empty where there is none, or where it is damaged."""
    return held_object(directory / RECORD)


def weights_hash(directory: Path) -> str:
    """One SHA-256 for all weight files of a model directory."""
    return fingerprint({path.name: sha256(path) for path in sorted(directory.glob("*.safetensors"))})


def load_model(directory: Path, dtype: Any = None) -> tuple[Any, Any]:
    """The model (in fp32 unless told otherwise) and its tokenizer, from a prepared or trained directory."""
    return load_weights(directory, dtype), load_tokenizer(directory)


def load_weights(directory: Path, dtype: Any = None) -> Any:
    """The model alone.

    Raises:
        UserError: the directory is no whole model, or not one that transformers knows by itself.
    """
    import torch
    from transformers import AutoModelForCausalLM

    check_loadable(directory)
    hide_bars()
    with _told(directory):
        return AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=dtype or torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )


def load_settings(directory: Path) -> Any:
    """The configuration alone, as transformers has it.

    Raises:
        UserError: it is damaged, or not one that transformers knows by itself.
    """
    from transformers import AutoConfig

    with _told(directory):
        return AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)


def load_tokenizer(directory: Path) -> Any:
    """The tokenizer alone.

    Raises:
        UserError: it is damaged, or not one that transformers knows by itself.
    """
    from transformers import AutoTokenizer

    with _told(directory):
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)


@contextmanager
def _told(directory: Path) -> Iterator[None]:
    """Words what transformers stumbles over; that memory is short is no fault of the files."""
    try:
        yield
    except (MemoryError, UserError):
        raise
    except Exception as error:  # of a dozen types
        raise UserError(
            f"{directory} cannot be read as a model and tokenizer ({reason(error)}): fetch it again, or take one that "
            "transformers knows by itself."
        ) from error


def hide_bars() -> None:
    """Turns transformers' progress bars off where nobody watches."""
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
