"""A model that is ready to answer prompts, by our rollout engine or, where that does not know it, by transformers."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from cpu_grpo.engine.decoder import UnsupportedModel, decoder
from cpu_grpo.engine.rollout import PackedDecoder, Request, Sampling, generate, packed


@dataclass(frozen=True)
class Candidate:
    """A model, its tokenizer, and its weights as the engine takes them."""

    model: Any
    tokenizer: Any
    engine: PackedDecoder | None  # None: transformers generates

    @property
    def ends(self) -> set[int]:
        """Every token that ends a completion, the model's and the tokenizer's."""
        return end_tokens(self.model, self.tokenizer)

    def greedy(
        self, prompts: list[list[int]], limit: int, rows: int, finished: Callable[[int], object]
    ) -> list[list[int]]:
        """Greedy completions (token ids, the end token included), `rows` at a time, in the prompts' order.

        Args:
            finished: called with the number of completions that have just finished.
        """
        if self.engine is None:
            return plain_greedy(self.model, self.tokenizer, prompts, limit, rows, finished)
        requests = [Request(ids) for ids in prompts]
        groups = generate(self.engine, requests, Sampling(temperature=0), limit, self.ends, 0, rows, finished)
        return [completion.ids for (completion,) in groups]


def candidate(
    model: Any, tokenizer: Any, precision: str, rows: int, fast: bool = True, shared: bool = False
) -> Candidate:
    """The model with the engine's copy of its weights, unless `fast` is off or, with a warning, the engine cannot.

    Args:
        shared: no copy; slower from some 16 rows on.
    """
    if not fast:
        return Candidate(model, tokenizer, None)
    try:
        return Candidate(model, tokenizer, packed(decoder(model), precision, rows, shared))
    except UnsupportedModel as error:
        warnings.warn(f"transformers generates instead of the fast engine: {error}.", stacklevel=2)
        return Candidate(model, tokenizer, None)


def plain_greedy(
    model: Any, tokenizer: Any, prompts: list[list[int]], limit: int, rows: int, finished: Callable[[int], object]
) -> list[list[int]]:
    """Greedy completions by transformers, `rows` at a time; prompts of like length together, so that few are padded."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    completions: dict[int, list[int]] = {}
    for start in range(0, len(order), rows):
        batch = order[start : start + rows]
        for index, ids in zip(batch, greedy(model, tokenizer, [prompts[i] for i in batch], limit), strict=True):
            completions[index] = ids
        finished(len(batch))
    return [completions[index] for index in range(len(prompts))]


@torch.inference_mode()
def greedy(model: Any, tokenizer: Any, prompts: list[list[int]], limit: int) -> list[list[int]]:
    """Greedy completions (token ids, the end token included) of prompts decoded together by transformers."""
    width = max(map(len, prompts))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])  # (B, P)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])  # (B, P)
    out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=limit, do_sample=False, pad_token_id=pad)
    ends = end_tokens(model, tokenizer)
    return [until_end(row, ends) for row in out[:, width:].tolist()]


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Every token that ends a completion, the model's and the tokenizer's."""
    declared = model.generation_config.eos_token_id
    declared = declared if isinstance(declared, list) else [declared]
    return {token for token in [*declared, tokenizer.eos_token_id] if token is not None}


def until_end(ids: list[int], ends: set[int]) -> list[int]:
    """The ids up to and with the first end token."""
    for place, token in enumerate(ids):
        if token in ends:
            return ids[: place + 1]
    return ids
