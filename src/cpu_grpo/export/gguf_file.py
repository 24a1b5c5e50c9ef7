"""Writes a model as a GGUF file, and reads it back before anybody relies on it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from cpu_grpo.errors import UserError
from cpu_grpo.export.architecture import describe, settings_of, tensors
from cpu_grpo.export.source import Source
from cpu_grpo.export.vocabulary import Vocabulary, add_vocabulary, vocabulary_of
from cpu_grpo.models.gguf_header import check_gguf
from cpu_grpo.models.loading import load_tokenizer

# How far a number may be off, by the largest of its block of 32: half a step, and how fp16 rounds the block's scale.
LOSSES = {
    "f32": 0.0,
    "f16": 2**-11,
    "bf16": 2**-8,
    "q8_0": 0.0045,
    "q5_1": 0.035,
    "q5_0": 0.065,
    "q4_1": 0.07,
    "q4_0": 0.13,
}
BLOCK = 32
LEAST = {"f32": 0.0, "f16": 2**-24, "bf16": 2**-24}  # how far it may be off however small its block is
LEAST_SCALED = 1e-5  # of blocks with a scale, which fp16 may round to nothing


@dataclass(frozen=True)
class Plan:
    """All that goes into a file but the weights."""

    source: Source
    settings: Any
    vocabulary: Vocabulary
    dtype: str
    stored: dict[str, tuple[tuple[int, ...], str]]  # by tensor: shape and type

    @property
    def size(self) -> int:
        """Bytes of the weights."""
        return sum(_bytes(shape, kind) for shape, kind in self.stored.values())


def plan_gguf(source: Source, dtype: str) -> Plan:
    """What the file will be.

    Raises:
        UserError: the model or its tokenizer cannot become GGUF.
    """
    settings, tokenizer = settings_of(source.directory), load_tokenizer(source.directory)
    vocabulary = vocabulary_of(tokenizer, settings.vocab_size, end_tokens(source.directory, tokenizer, settings))
    stored = {name: (weight.shape, _kind(weight, dtype)) for name, weight in tensors(source.directory, settings)}
    return Plan(source, settings, vocabulary, dtype, stored)


def end_tokens(directory: Path, tokenizer: Any, settings: Any) -> list[int]:
    """All that end a completion: the tokenizer's, then those of the model's generation settings."""
    from transformers import GenerationConfig

    declared = settings.eos_token_id
    if (directory / "generation_config.json").is_file():
        declared = GenerationConfig.from_pretrained(directory, local_files_only=True).eos_token_id
    found = [tokenizer.eos_token_id, *(declared if isinstance(declared, list) else [declared])]
    return list(dict.fromkeys(token for token in found if token is not None))


def write_gguf(plan: Plan, path: Path) -> None:
    """Writes and verifies it. Holds one tensor at a time.

    Raises:
        UserError: numbers are too large for the type, or what is read back is not what was written.
    """
    from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, quantize

    writer = GGUFWriter(path, plan.settings.model_type)
    try:
        writer.add_name(plan.source.name)
        if licence := plan.source.base["license"]:
            writer.add_license(licence)
        writer.add_file_type(LlamaFileType[f"{'ALL' if plan.dtype == 'f32' else 'MOSTLY'}_{plan.dtype.upper()}"])
        writer.add_quantization_version(2)
        describe(writer, plan.settings)
        add_vocabulary(writer, plan.vocabulary)
        for name, (shape, kind) in plan.stored.items():
            ggml = GGMLQuantizationType[kind.upper()]
            plain = {"f32": np.float32, "f16": np.float16}.get(kind)
            size = _bytes(shape, kind)
            given = shape if plain else (*shape[:-1], size // (int(np.prod(shape)) // shape[-1]))
            writer.add_tensor_info(name, given, np.dtype(plain or np.uint8), size, ggml)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, weight in _watched(plan, "writing"):
            kind = plan.stored[name][1]
            with np.errstate(over="ignore"):
                packed = quantize(weight, GGMLQuantizationType[kind.upper()])
            writer.write_tensor_data(packed)
    finally:
        writer.close()
    verify(plan, path)


def verify(plan: Plan, path: Path) -> None:
    """Reads the file back and compares it with the model.

    Raises:
        UserError: they differ by more than the type rounds.
    """
    from gguf import GGUFReader, dequantize

    check_gguf(path)
    reader = GGUFReader(path)
    if reader.get_field("tokenizer.ggml.tokens").contents() != plan.vocabulary.tokens:
        raise UserError(f"The tokens of {path.name} are not the model's when read back: report this as a bug.")
    written = {tensor.name: tensor for tensor in reader.tensors}
    for name, weight in _watched(plan, "reading back"):
        kind = plan.stored[name][1]
        found = dequantize(written[name].data, written[name].tensor_type).reshape(weight.shape)
        if not np.isfinite(found).all():
            raise UserError(f"{name} has numbers that {kind} cannot hold: use --dtype bf16 or f32.")
        if not close(weight, found, kind):
            raise UserError(f"{name} of {path.name} is not the model's when read back: check the disk, and try again.")


def close(weight: np.ndarray, found: np.ndarray, kind: str) -> bool:
    """Whether a tensor that was read back differs by no more than its type rounds."""
    rows = BLOCK if weight.size % BLOCK == 0 else weight.size
    weight, error = weight.reshape(-1, rows), np.abs(weight - found).reshape(-1, rows)
    largest = np.abs(weight).max(1) if kind != "f32" else np.zeros(len(weight), np.float32)
    return bool((error.max(1) <= LOSSES[kind] * largest + LEAST.get(kind, LEAST_SCALED)).all())


def _watched(plan: Plan, doing: str) -> Iterator[tuple[str, np.ndarray]]:
    """The model's tensors, with a bar where somebody watches."""
    own = tensors(plan.source.directory, plan.settings)
    return iter(tqdm(own, doing, len(plan.stored), unit="tensor", disable=None))


def _kind(weight: np.ndarray, dtype: str) -> str:
    """How a tensor is stored: vectors in fp32, as llama.cpp wants them; rows that are no whole blocks in fp16."""
    if weight.ndim == 1:
        return "f32"
    return "f16" if weight.shape[-1] % BLOCK and dtype.startswith("q") else dtype


def _bytes(shape: tuple[int, ...], kind: str) -> int:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind.upper()]]
    return int(np.prod(shape)) // block * size
