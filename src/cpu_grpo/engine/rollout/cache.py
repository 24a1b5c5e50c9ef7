"""Keys and values: of prompts, stored once for a whole group, and of completions, in places reserved at the start.

The compiled kernels keep numbers in an order of their own (`store` in attention.cpp), block by block of 16 tokens. For
torch's products keys are stored transposed.
"""

from dataclasses import dataclass, field

import torch

from cpu_grpo.engine.decoder import Decoder
from cpu_grpo.engine.kernels import Native, native

BLOCK = 16  # tokens that the compiled kernels keep together; capacities are multiples of it
CACHE_BYTES = 2**30  # of keys and values of completions at a time


@dataclass
class PromptBlock:
    """The keys and values of g prompts of like length, and the rows of the batch that continue them."""

    keys: torch.Tensor  # (layers, g, kv, d, P), or as much in the kernels' order
    values: torch.Tensor  # (layers, g, kv, P, d), or as much in the kernels' order
    lengths: torch.Tensor  # (g,)
    hidden: torch.Tensor  # (g, 1, P), -inf past a prompt's end
    rows: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))  # (k,) that continue them
    groups: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))  # (k,) and which of the g
    members: torch.Tensor = field(default_factory=lambda: torch.empty(0, 1, dtype=torch.long))  # (g, m) rows by group
    places: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))  # (k,) in members, flattened

    @staticmethod
    def of(keys: list[torch.Tensor], values: list[torch.Tensor], lengths: torch.Tensor) -> "PromptBlock":
        """From each layer's keys and values, (g, kv, P, d), of prompts padded on the right to the longest."""
        groups, kv, longest, size = keys[0].shape
        capacity, kernels = rounded(longest), compiled(size, keys[0].dtype)
        stored_keys = keys[0].new_zeros(len(keys), groups, kv, size, capacity)
        stored_values = keys[0].new_zeros(len(keys), groups, kv, capacity, size)
        for layer, of_layer in enumerate(zip(keys, values, strict=True)):
            if kernels:
                some = (t.contiguous() for t in of_layer)
                stored = (stored_keys[layer], stored_values[layer])
                kernels.store(*some, *stored, groups * kv, longest, capacity, size)
            else:
                stored_keys[layer, ..., :longest] = of_layer[0].transpose(2, 3)
                stored_values[layer, :, :, :longest] = of_layer[1]
        past = torch.arange(capacity) >= lengths[:, None]
        hidden = torch.zeros(past.shape, dtype=keys[0].dtype).masked_fill_(past, float("-inf"))
        return PromptBlock(stored_keys, stored_values, lengths, hidden[:, None])

    def only(self, kept: list[int]) -> "PromptBlock":
        """These of the g prompts, in memory of their own; nobody is seated yet."""
        return PromptBlock(self.keys[:, kept], self.values[:, kept], self.lengths[kept], self.hidden[kept])

    def seat(self, rows_of: list[list[int]]) -> None:
        """Says which rows continue each of the g prompts."""
        most = max(1, max(map(len, rows_of)))
        self.rows = torch.tensor([row for seated in rows_of for row in seated])
        self.groups = torch.tensor([group for group, seated in enumerate(rows_of) for _ in seated])
        # A group with fewer than `most` rows has any others in its last places.
        self.members = torch.tensor([seated + [0] * (most - len(seated)) for seated in rows_of])
        self.places = torch.tensor([g * most + i for g, seated in enumerate(rows_of) for i in range(len(seated))])


class CompletionCache:
    """Keys and values of up to `rows` completions of up to `length` tokens each."""

    def __init__(self, decoder: Decoder, rows: int, length: int, dtype: torch.dtype) -> None:
        layers, kv, size = len(decoder.layers), decoder.kv_heads, decoder.head_dim
        # Zeros: what is masked must not be NaN.
        self.keys = torch.zeros(layers, rows, kv, size, rounded(length), dtype=dtype)  # or in the kernels' order
        self.values = torch.zeros(layers, rows, kv, rounded(length), size, dtype=dtype)  # likewise

    def append(self, layer: int, lengths: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Puts (n, kv, d) keys and values behind the first n rows' tokens, `lengths` (n,) each; without kernels."""
        rows = torch.arange(lengths.numel())
        self.keys[layer][rows, :, :, lengths] = keys
        self.values[layer][rows, :, lengths] = values

    def move(self, source: int, target: int, length: int) -> None:
        """Gives row `source`'s first `length` tokens to row `target`."""
        size = self.values.size(4)
        if compiled(size, self.keys.dtype):
            keys, values, some = self.keys.flatten(3), self.values.flatten(3), slice(rounded(length) * size)
            keys[:, target, :, some] = keys[:, source, :, some]
            values[:, target, :, some] = values[:, source, :, some]
        else:
            self.keys[:, target, ..., :length] = self.keys[:, source, ..., :length]
            self.values[:, target, :, :length] = self.values[:, source, :, :length]


def row_bytes(decoder: Decoder, length: int, dtype: torch.dtype) -> int:
    """What one row of a CompletionCache takes."""
    return 2 * len(decoder.layers) * decoder.kv_heads * rounded(length) * decoder.head_dim * dtype.itemsize


def compiled(head_dim: int, dtype: torch.dtype) -> Native | None:
    """The compiled kernels, if they can attend with heads of this size."""
    return native(dtype) if head_dim % BLOCK == 0 else None


def rounded(length: int) -> int:
    """The capacity for `length` tokens."""
    return -(-length // BLOCK) * BLOCK
