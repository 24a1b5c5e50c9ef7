"""Keys and values: of prompts, stored once for a whole group, and of completions, in places reserved at the start.

Keys are stored transposed in blocks of columns, (blocks, d, columns), so that the scores of a block's tokens are
computed side by side from memory read in order. The compiled kernels take blocks of 16; torch's products one block of
all columns.
"""

from dataclasses import dataclass, field

import torch
from torch.nn import functional

from cpu_grpo.decoder import Decoder
from cpu_grpo.kernels import Native, native

COLUMNS = 16  # of a block, for the compiled kernels; capacities are multiples of it


@dataclass
class PromptBlock:
    """The keys and values of g prompts of like length, and the rows of the batch that continue them."""

    keys: torch.Tensor  # (layers, g, kv, blocks, d, columns)
    values: torch.Tensor  # (layers, g, kv, P, d)
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
        capacity = rounded(longest)
        columns = columns_of(size, capacity, keys[0].dtype)
        stored_keys = keys[0].new_zeros(len(keys), groups, kv, capacity // columns, size, columns)
        stored_values = keys[0].new_zeros(len(keys), groups, kv, capacity, size)
        for layer, (some_keys, some_values) in enumerate(zip(keys, values, strict=True)):
            padded = functional.pad(some_keys, (0, 0, 0, capacity - longest))  # (g, kv, capacity, d)
            stored_keys[layer] = padded.unflatten(2, (-1, columns)).transpose(3, 4)
            stored_values[layer, :, :, :longest] = some_values
        past = torch.arange(capacity) >= lengths[:, None]
        hidden = torch.zeros(past.shape, dtype=keys[0].dtype).masked_fill_(past, float("-inf"))
        return PromptBlock(stored_keys, stored_values, lengths, hidden[:, None])

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
        capacity = rounded(length)
        columns = columns_of(size, capacity, dtype)
        self.keys = torch.zeros(layers, rows, kv, capacity // columns, size, columns, dtype=dtype)
        self.values = torch.zeros(layers, rows, kv, capacity, size, dtype=dtype)

    def append(self, layer: int, lengths: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Puts (n, kv, d) keys and values behind the first n rows' tokens, `lengths` (n,) each."""
        rows, columns = torch.arange(lengths.numel()), self.keys.size(5)
        self.keys[layer][rows, :, lengths // columns, :, lengths % columns] = keys
        self.values[layer][rows, :, lengths] = values

    def move(self, source: int, target: int, length: int) -> None:
        """Gives row `source`'s first `length` tokens to row `target`."""
        blocks = -(-length // self.keys.size(5))
        self.keys[:, target, :, :blocks] = self.keys[:, source, :, :blocks]
        self.values[:, target, :, :length] = self.values[:, source, :, :length]


def row_bytes(decoder: Decoder, length: int, dtype: torch.dtype) -> int:
    """What one row of a CompletionCache takes."""
    return 2 * len(decoder.layers) * decoder.kv_heads * rounded(length) * decoder.head_dim * dtype.itemsize


def columns_of(head_dim: int, capacity: int, dtype: torch.dtype) -> int:
    """How many columns a block of keys has."""
    return COLUMNS if compiled(head_dim, dtype) else capacity


def compiled(head_dim: int, dtype: torch.dtype) -> Native | None:
    """The compiled kernels, if they can attend with heads of this size."""
    return native(dtype) if head_dim % COLUMNS == 0 else None


def rounded(length: int) -> int:
    """The capacity for `length` tokens."""
    return -(-length // COLUMNS) * COLUMNS
