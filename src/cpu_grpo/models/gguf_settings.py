"""What a GGUF file says of a decoder, and transformers' reader leaves at a family's defaults.

The size of a head, how rotary angles are scaled for long contexts, and which tokens end a text. Without them a model
loads, and computes something else. Keys: github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from pathlib import Path
from typing import Any

import numpy as np

from cpu_grpo.models.gguf_header import Header, Malformed

SPECIAL = {"bos": "bos_token_id", "eos": "eos_token_id", "pad": "padding_token_id"}
FACTORS = "rope_freqs.weight"  # the tensor of what each rotary frequency is divided by
LOW, HIGH = 1.0, 4.0  # of Llama 3.1 and later, where factors leave them open
NEAR = 1e-3  # how far factors may be from those that the parameters give


def complete(settings: Any, header: Header, path: Path) -> None:
    """Sets them in a transformers configuration that was read from the file.

    Raises:
        Malformed: rotary angles are scaled in a way that is not known here.
    """
    values = header.values
    family = str(values.get("general.architecture"))
    if isinstance(size := values.get(f"{family}.attention.key_length"), int):
        settings.head_dim = size
    for name, key in SPECIAL.items():
        setattr(settings, f"{name}_token_id", values.get(f"tokenizer.ggml.{key}"))
    scaled = _scaling(values, f"{family}.rope.scaling.")
    if any(tensor.name == FACTORS for tensor in header.tensors):
        theta = float(settings.rope_parameters["rope_theta"])
        scaled = llama3_parameters(_factors(path), theta)
    if scaled:
        settings.rope_parameters = dict(settings.rope_parameters) | scaled


def _scaling(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    """As transformers names it; empty where angles are not scaled."""
    kind = values.get(f"{prefix}type", "none")
    if kind == "none":
        return {}
    if kind not in ("linear", "yarn"):
        raise Malformed(f"its {prefix}type is {kind}")
    found = {"rope_type": kind, "factor": values.get(f"{prefix}factor", 1.0)}
    if kind == "yarn":
        found["original_max_position_embeddings"] = values.get(f"{prefix}original_context_length")
    return found


def _factors(path: Path) -> np.ndarray:
    from gguf import GGUFReader, dequantize

    (tensor,) = (tensor for tensor in GGUFReader(path).tensors if tensor.name == FACTORS)
    found: np.ndarray = dequantize(tensor.data, tensor.tensor_type).reshape(-1).astype(np.float64)
    return found


def llama3_parameters(factors: np.ndarray, theta: float) -> dict[str, Any]:
    """transformers' parameters of Llama 3's scaling that divide frequencies by these factors, (head_dim / 2,).

    With x periods of a frequency a token, 1 / factor is 1 / F + s (1 - 1 / F), where s = (C x - low) / (high - low),
    between 0 and 1, and C the context that was trained at first. Only C / low and high / low matter: low is 1 here.

    Raises:
        Malformed: none do.
    """
    count = len(factors)
    if not (np.isfinite(factors).all() and (factors >= 1 - NEAR).all()):
        raise Malformed(f"its {FACTORS} are no factors of at least 1")
    if (most := float(factors.max())) < 1 + NEAR:
        return {}
    periods = theta ** -(np.arange(count) / count) / (2 * np.pi)
    smooth = (1 / factors - 1 / most) / (1 - 1 / most)
    between = (smooth > NEAR) & (smooth < 1 - NEAR)
    high = HIGH
    if between.sum() > 1:
        _, offset = np.polyfit(periods[between], smooth[between], 1)
        high = round(float(LOW - 1 / offset), 3) if offset < 0 else HIGH
    if between.any():
        context = float(np.median((LOW + smooth[between] * (high - LOW)) / periods[between]))
    else:
        context = LOW / float(periods[smooth <= NEAR].max())
    context = round(context)
    given = np.clip((context * periods - LOW) / (high - LOW), 0, 1)
    if np.abs(given - smooth).max() > NEAR:
        raise Malformed(f"its {FACTORS} are not scaled as Llama 3's")
    return {
        "rope_type": "llama3",
        "factor": most,
        "low_freq_factor": LOW,
        "high_freq_factor": high,
        "original_max_position_embeddings": context,
    }
