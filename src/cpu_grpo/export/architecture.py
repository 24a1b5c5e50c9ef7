"""A decoder as GGUF describes it: its configuration in GGUF's keys, and its tensors by GGUF's names and layout.

Keys: github.com/ggml-org/ggml/blob/master/docs/gguf.md. What llama.cpp expects of each family beyond that is what its
convert_hf_to_gguf.py writes: rows of Llama's queries and keys reordered, frequencies of a scaled rope as a tensor.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cpu_grpo.engine import shape
from cpu_grpo.engine.decoder import UnsupportedModel, decoder
from cpu_grpo.errors import UserError
from cpu_grpo.models.checking import weight_files
from cpu_grpo.models.loading import load_settings

ROPE = {  # keys of rope parameters that are exported, and those that say nothing of the angles
    "rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings", "low_freq_factor",
    "high_freq_factor",
}  # fmt: skip
QWEN3_HEAD = 128  # the size that transformers takes for a head of a GGUF file of that family
DERIVED = ("rotary_emb.inv_freq",)


def settings_of(directory: Path) -> Any:
    """The configuration of a model in a directory, as transformers has it.

    Raises:
        UserError: GGUF export does not know this kind of model; the message says why.
    """
    import torch
    from transformers import AutoModelForCausalLM

    settings = load_settings(directory)
    try:
        with torch.device("meta"):
            parts = decoder(AutoModelForCausalLM.from_config(settings, trust_remote_code=False))
    except UnsupportedModel as error:
        raise UserError(f"{directory} cannot become GGUF, as {error}: use --to safetensors.") from error
    layer = parts.layers[0]
    biases = {name for name in ("q", "k", "v", "o", "gate", "up", "down") if getattr(layer, name).bias is not None}
    if biases != ({"q", "k", "v"} if settings.model_type in shape.WITH_BIASES else set()):
        raise UserError(f"{directory} has biases that GGUF's {settings.model_type} has not: use --to safetensors.")
    rope = {key for key, value in settings.rope_parameters.items() if value is not None}
    if unknown := sorted(rope - ROPE):
        raise UserError(
            f"{directory} has a rotary embedding with {unknown[0]}, which is not exported to GGUF: "
            "use --to safetensors."
        )
    return settings


def describe(writer: Any, settings: Any) -> None:
    """Adds the configuration to a GGUFWriter."""
    from gguf import RopeScalingType

    rope, head_dim = settings.rope_parameters, head_dim_of(settings)
    writer.add_block_count(settings.num_hidden_layers)
    writer.add_context_length(settings.max_position_embeddings)
    writer.add_embedding_length(settings.hidden_size)
    writer.add_feed_forward_length(settings.intermediate_size)
    writer.add_head_count(settings.num_attention_heads)
    writer.add_head_count_kv(settings.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(settings.rms_norm_eps)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_vocab_size(settings.vocab_size)
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(
            rope.get("original_max_position_embeddings") or settings.max_position_embeddings
        )


def unread(settings: Any) -> list[str]:
    """What transformers 5.23 does not read of a GGUF file of this model, in sentences."""
    parts = {
        "how its rotary angles are scaled": settings.rope_parameters["rope_type"] != "default",
        "the size of its heads": settings.model_type == "qwen3" and head_dim_of(settings) != QWEN3_HEAD,
    }
    return [
        f"transformers' gguf_file= does not read {part} from GGUF, so it computes something else; llama.cpp, Ollama "
        "and model=gguf read it."
        for part, missed in parts.items()
        if missed
    ]


def head_dim_of(settings: Any) -> int:
    return getattr(settings, "head_dim", None) or settings.hidden_size // settings.num_attention_heads


def tensors(directory: Path, settings: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Name and numbers in fp32 of each tensor, one at a time, in GGUF's layout.

    Raises:
        UserError: the weights are not all of the model's, or others too.
    """
    import torch
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map
    from safetensors import safe_open

    families = {name: number for number, name in MODEL_ARCH_NAMES.items()}
    names = get_tensor_name_map(families[settings.model_type], settings.num_hidden_layers)
    numbers = 0
    for path in weight_files(directory):
        with safe_open(path, framework="pt") as stored:
            for own in sorted(stored.keys(), key=_place):
                if own.endswith(DERIVED) or (own == "lm_head.weight" and settings.tie_word_embeddings):
                    continue
                name = names.get_name(own, try_suffixes=(".weight", ".bias"))
                if name is None:
                    raise UserError(
                        f"{path} has a tensor {own}, which GGUF's {settings.model_type} has not: use --to safetensors."
                    )
                found = stored.get_tensor(own).to(torch.float32).numpy()
                numbers += found.size
                yield name, _laid_out(found, name, settings)
    if numbers != _expected(directory, settings):
        raise UserError(
            f"{directory} has {numbers:,} weights where its config.json speaks of "
            f"{_expected(directory, settings):,}: fetch the model again."
        )
    if settings.rope_parameters["rope_type"] == "llama3":
        yield "rope_freqs.weight", _frequency_factors(settings)


def _place(name: str) -> tuple[bool, int, str]:
    """Layers in their order, and what belongs to none before them."""
    number = next((int(part) for part in name.split(".") if part.isdigit()), -1)
    return number >= 0, number, name


def _expected(directory: Path, settings: Any) -> int:
    found = shape.of_directory(directory)
    if found is None:
        raise UserError(f"{directory / 'config.json'} does not tell the model's sizes: fetch the model again.")
    tied = settings.tie_word_embeddings
    return found.parameters + (found.head if found.tied and not tied else -found.head if tied and not found.tied else 0)


def _laid_out(weight: np.ndarray, name: str, settings: Any) -> np.ndarray:
    if settings.model_type == "llama" and name.endswith(("attn_q.weight", "attn_k.weight")):
        heads = settings.num_attention_heads if "attn_q" in name else settings.num_key_value_heads
        return interleaved(weight, heads)
    return weight


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows such that a rotated pair, (i, i + d / 2) of a head's d rows in transformers, lies side by side.

    llama.cpp computes Llama's rotary embedding in that order, and that of the Qwen families in transformers'.
    """
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _frequency_factors(settings: Any) -> np.ndarray:
    """What llama.cpp divides each frequency by, (head_dim / 2,)."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](settings, torch.device("cpu"))
    size = head_dim_of(settings)
    plain = settings.rope_parameters["rope_theta"] ** (-torch.arange(0, size, 2).float() / size)
    found: np.ndarray = (plain / scaled).numpy()
    return found
