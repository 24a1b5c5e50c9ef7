"""A decoder's sizes, from its config.json: no weights are read."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cpu_grpo.config import schema
from cpu_grpo.engine.decoder import ARCHITECTURES, Decoder
from cpu_grpo.errors import UserError

WITH_BIASES, WITH_HEAD_NORMS = ("qwen2",), ("qwen3",)
WIDE = 4  # bytes of a number in fp32
LARGEST = 2**32  # more than any size is


@dataclass(frozen=True)
class Shape:
    """Sizes in features, and what follows from them in weights."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int  # of a layer's MLP
    vocabulary: int
    tied: bool = True
    biases: bool = False  # of queries, keys and values
    head_norms: bool = False

    @property
    def queries(self) -> int:
        """Features of all heads' queries."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Features of all heads' keys, and of their values."""
        return self.kv_heads * self.head_dim

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(out, in) of a layer's matrices."""
        return {
            "q": (self.queries, self.hidden),
            "k": (self.keys, self.hidden),
            "v": (self.keys, self.hidden),
            "o": (self.hidden, self.queries),
            "gate": (self.inner, self.hidden),
            "up": (self.inner, self.hidden),
            "down": (self.hidden, self.inner),
        }

    @property
    def layer(self) -> int:
        """Weights in one layer's matrices."""
        return sum(rows * columns for rows, columns in self.linears.values())

    @property
    def body(self) -> int:
        """Weights in all layers' matrices."""
        return self.layers * self.layer

    @property
    def head(self) -> int:
        """Weights of the projection onto the vocabulary."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """Weights in all."""
        vectors = 2 * self.hidden + self.biases * (self.queries + 2 * self.keys) + self.head_norms * 2 * self.head_dim
        return self.body + self.layers * vectors + self.hidden + self.head * (1 if self.tied else 2)

    def adapters(self, rank: int) -> int:
        """Weights of LoRA adapters on all of the layers' matrices."""
        return self.layers * rank * sum(rows + columns for rows, columns in self.linears.values())


def of_directory(directory: Path) -> Shape | None:
    """Of the model in a directory; None where its config.json is not that of a decoder that the engine computes."""
    path = directory / "config.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or str(found.get("model_type")) not in ARCHITECTURES:
        return None
    known = {item.name: found[item.name] for item in fields(schema.Shape) if found.get(item.name) is not None}
    sizes = [value for name, value in known.items() if name != "model_type"]
    if not all(isinstance(size, int) and 0 <= size < LARGEST for size in sizes):
        return None
    try:
        return of_config(schema.Shape(**{"tie_word_embeddings": False} | known))
    except UserError:
        return None


def stored_bytes(directory: Path) -> int:
    """Bytes of a number in the weights' file, as config.json says; 0 where it does not."""
    found: dict[str, Any] = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return {"float32": 4, "bfloat16": 2, "float16": 2}.get(str(found.get("dtype") or found.get("torch_dtype")), 0)


def of_config(shape: schema.Shape) -> Shape | None:
    """Of what the configuration says; None where it says nothing.

    Raises:
        UserError: it says some sizes and not others.
    """
    if not shape.model_type:
        return None
    needed = {name: value for name, value in asdict(shape).items() if name not in ("head_dim", "tie_word_embeddings")}
    if missing := [name for name, value in needed.items() if not value]:
        raise UserError(f"model.shape.{missing[0]} is missing: give it as the model's config.json does.")
    return Shape(
        hidden=shape.hidden_size,
        layers=shape.num_hidden_layers,
        heads=shape.num_attention_heads,
        kv_heads=shape.num_key_value_heads,
        head_dim=shape.head_dim or shape.hidden_size // shape.num_attention_heads,
        inner=shape.intermediate_size,
        vocabulary=shape.vocab_size,
        tied=shape.tie_word_embeddings,
        biases=shape.model_type in WITH_BIASES,
        head_norms=shape.model_type in WITH_HEAD_NORMS,
    )


def of_decoder(model: Decoder) -> Shape:
    """Of a model that is in memory."""
    layer = model.layers[0]
    return Shape(
        hidden=model.embedding.size(1),
        layers=len(model.layers),
        heads=model.heads,
        kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        inner=layer.down.weight.size(1),
        vocabulary=model.embedding.size(0),
        tied=model.head.weight is model.embedding,
        biases=layer.q.bias is not None,
        head_norms=layer.q_norm is not None,
    )
