"""Micro-batches of whole groups under a budget of tokens, and which completions need the model at all."""

from typing import Any

import torch

from cpu_grpo.engine.prefix import common_prefix

Inputs = dict[str, Any]  # TRL's: tensors with a row for each completion, and a few values for all of them

PER_COMPLETION = ("grpo", "sapo", "dr_grpo", "luspo")  # losses that average over the rows they are given
PER_TOKEN = ("bnpo",)  # over the tokens they are given
OF_GENERATION = ("dapo", "cispo", "vespo")  # over all tokens of the generation batch, whatever they are given
LOSSES = PER_COMPLETION + PER_TOKEN + OF_GENERATION


def micro_batches(inputs: Inputs, loss: str, budget: int, skip: bool) -> list[tuple[Inputs, float]]:
    """Splits a batch so that the weighted losses of its parts add up to its loss, gradients likewise.

    Args:
        inputs: prompt_ids (B, P), prompt_mask (B, P), completion_ids (B, T), completion_mask (B, T), advantages, ...
        loss: TRL's loss type, which says what a part's loss is an average over.
        budget: tokens a part may have, as they are packed: what all prompts begin with once, and each distinct
            prompt's rest once. A part has one completion at least.
        skip: leave out completions whose advantage is zero, where the loss gives them no gradient.

    Returns:
        the parts with their weights; never empty, so that every parameter gets a gradient, if only zero.
    """
    lengths = inputs["completion_mask"].sum(dim=1)  # (B,)
    useful = lengths > 0
    if skip:
        useful &= inputs["advantages"].reshape(len(lengths), -1).ne(0).any(dim=1)
    rows = useful.nonzero().flatten().tolist() or [int(lengths.argmin())]
    parts = []
    for part in _within(_by_prompt(inputs, rows), lengths.tolist(), budget):
        if loss in PER_COMPLETION:
            weight = len(part) / len(lengths)
        elif loss in PER_TOKEN:
            weight = float(lengths[part].sum() / lengths.sum().clamp(min=1))
        else:
            weight = 1.0
        parts.append((select(inputs, part), weight))
    return parts


def work_of(inputs: Inputs) -> tuple[int, int, int]:
    """Distinct prompts of a batch, tokens that all of them begin with, and its tokens with nothing counted twice."""
    groups = _by_prompt(inputs, range(_count(inputs)))
    shared = common_prefix(list(groups))
    own = sum(len(prompt) - shared for prompt in groups)
    return len(groups), shared, shared + own + int(inputs["completion_mask"].sum())


def regrouped(batches: list[Inputs]) -> list[Inputs]:
    """The same rows in as many batches of the same size, with a group's completions next to each other.

    TRL shuffles completions before it splits them, so that a prompt would go through the model once in every batch.
    """
    joined = {
        key: torch.cat([batch[key] for batch in batches]) if _has_rows(value, batches[0]) else value
        for key, value in batches[0].items()
    }
    order = [row for group in _by_prompt(joined, range(_count(joined))).values() for row in group]
    size = _count(batches[0])
    return [select(joined, order[first : first + size]) for first in range(0, len(order), size)]


def select(inputs: Inputs, rows: list[int]) -> Inputs:
    """The inputs of some of the rows."""
    index = torch.tensor(rows)
    return {key: value[index] if _has_rows(value, inputs) else value for key, value in inputs.items()}


def _by_prompt(inputs: Inputs, rows: Any) -> dict[tuple[int, ...], list[int]]:
    """The rows of each distinct prompt."""
    groups: dict[tuple[int, ...], list[int]] = {}
    ids, mask = inputs["prompt_ids"].tolist(), inputs["prompt_mask"].tolist()
    for row in rows:
        key = tuple(token for token, real in zip(ids[row], mask[row], strict=True) if real)
        groups.setdefault(key, []).append(row)
    return groups


def _within(groups: dict[tuple[int, ...], list[int]], lengths: list[int], budget: int) -> list[list[int]]:
    """Rows part by part; a group that exceeds the budget by itself is spread over several."""
    shared = common_prefix(list(groups))
    parts: list[list[int]] = []
    tokens = budget
    for prompt, group in groups.items():
        own = len(prompt) - shared
        whole = own + sum(lengths[row] for row in group)
        new_group = True
        for row in group:
            cost = lengths[row] + (own if new_group else 0)
            if tokens + (whole if new_group and shared + whole <= budget else cost) > budget:
                parts.append([])
                tokens, cost = shared, lengths[row] + own
            parts[-1].append(row)
            tokens += cost
            new_group = False
    return parts


def _count(inputs: Inputs) -> int:
    return inputs["prompt_ids"].size(0)


def _has_rows(value: Any, inputs: Inputs) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0 and value.size(0) == _count(inputs)
