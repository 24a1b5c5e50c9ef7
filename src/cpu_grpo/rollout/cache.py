"""Keys and values: of prompts, stored once for a whole group, and of completions, in places reserved at the start.

Keys are stored transposed, (d, tokens), so that scores of neighbouring tokens are computed side by side.
"""

from dataclasses import dataclass, field

import torch

from cpu_grpo.decoder import Decoder

COLUMNS = 16  # tokens that are scored side by side: capacities are multiples of it


@dataclass
class PromptBlock:
    """The keys and values of g prompts of like length, and the rows of the batch that continue them."""

    keys: torch.Tensor  # (layers, g, kv, d, P)
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
        stored_keys = keys[0].new_zeros(len(keys), groups, kv, size, capacity)
        stored_values = keys[0].new_zeros(len(keys), groups, kv, capacity, size)
        for layer, (some_keys, some_values) in enumerate(zip(keys, values, strict=True)):
            stored_keys[layer, ..., :longest] = some_keys.transpose(2, 3)
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
        self.keys = torch.zeros(layers, rows, kv, size, rounded(length), dtype=dtype)
        self.values = torch.zeros(layers, rows, kv, rounded(length), size, dtype=dtype)

    def append(self, layer: int, lengths: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Puts (n, kv, d) keys and values behind the first n rows' tokens, `lengths` (n,) each."""
        rows = torch.arange(lengths.numel())
        self.keys[layer][rows, :, :, lengths] = keys
        self.values[layer][rows, :, lengths] = values

    def move(self, source: int, target: int, length: int) -> None:
        """Gives row `source`'s first `length` tokens to row `target`."""
        self.keys[:, target, :, :, :length] = self.keys[:, source, :, :, :length]
        self.values[:, target, :, :length] = self.values[:, source, :, :length]


def row_bytes(decoder: Decoder, length: int, dtype: torch.dtype) -> int:
    """What one row of a CompletionCache takes."""
    return 2 * len(decoder.layers) * decoder.kv_heads * rounded(length) * decoder.head_dim * dtype.itemsize


def rounded(length: int) -> int:
    """The capacity for `length` tokens."""
    return -(-length // COLUMNS) * COLUMNS
