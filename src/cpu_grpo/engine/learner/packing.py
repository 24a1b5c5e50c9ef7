"""From padded rows, as TRL hands them over, to the tokens that the model must see: no padding, and nothing twice.

What all prompts begin with, such as a chat template's system prompt, goes first, once; then each prompt's rest with its
completions.
"""

from dataclasses import dataclass

import torch

from cpu_grpo.engine.prefix import common_prefix


@dataclass(frozen=True)
class Tree:
    """One prompt and its distinct completions in the packed sequence: the prompt's tokens, then each completion's.

    The prompt's first `root` tokens are not among them: they are the sequence's own first, shared by all trees. A
    completion's last token predicts nothing that is scored, so it is not packed.
    """

    root: int
    start: int  # the first token of the prompt's rest
    prompt: int  # its length, 1 at least
    lengths: tuple[int, ...]  # packed tokens of each completion that has any

    @property
    def end(self) -> int:
        return self.start + self.prompt + sum(self.lengths)


@dataclass(frozen=True)
class Pack:
    """N packed tokens, and the M of their states that predict completions' tokens."""

    ids: torch.Tensor  # (N,)
    positions: torch.Tensor  # (N,)
    trees: tuple[Tree, ...]
    states: torch.Tensor  # (M,) packed place of the state that predicts each scored token
    targets: torch.Tensor  # (M,) the scored tokens
    rows: torch.Tensor  # (K,) where in (B, T) the scores go ...
    columns: torch.Tensor  # (K,)
    scores: torch.Tensor  # (K,) ... and which of the M goes there: completions that are equal share theirs


def pack(input_ids: torch.Tensor, attention_mask: torch.Tensor, completion_length: int, share: bool = True) -> Pack:
    """Packs rows of prompts padded on the left and completions padded on the right.

    Args:
        input_ids: (B, P + T).
        attention_mask: (B, P + T), 1 for real tokens.
        completion_length: T.
        share: what rows begin with is packed once for all of them; else each row stands for itself.
    """
    trees: dict[tuple[int, tuple[int, ...]], dict[tuple[int, ...], list[int]]] = {}  # by which row's and what prompt
    width = input_ids.size(1) - completion_length
    for row, (ids, mask) in enumerate(zip(input_ids.tolist(), attention_mask.tolist(), strict=True)):
        prompt = tuple(token for token, real in zip(ids[:width], mask[:width], strict=True) if real)
        completion = tuple(token for token, real in zip(ids[width:], mask[width:], strict=True) if real)
        if completion:
            trees.setdefault((0 if share else row, prompt), {}).setdefault(completion, []).append(row)
    prompts = [prompt for _, prompt in trees]
    builder = _Builder(prompts[0][: common_prefix(prompts)] if prompts and share else ())
    for (_, prompt), completions in trees.items():
        builder.add(prompt, completions)
    return builder.pack()


class _Builder:
    def __init__(self, root: tuple[int, ...]) -> None:
        self.root = len(root)
        self.ids, self.positions = list(root), list(range(len(root)))
        self.trees: list[Tree] = []
        self.states: list[int] = []
        self.targets: list[int] = []
        self.rows: list[int] = []
        self.columns: list[int] = []
        self.scores: list[int] = []

    def add(self, prompt: tuple[int, ...], completions: dict[tuple[int, ...], list[int]]) -> None:
        start, rest = len(self.ids), prompt[self.root :]
        last = start + len(rest) - 1
        self.ids += rest
        self.positions += range(self.root, len(prompt))
        for completion, rows in completions.items():
            place = len(self.ids)
            self.ids += completion[:-1]
            self.positions += range(len(prompt), len(prompt) + len(completion) - 1)
            first = len(self.targets)
            self.states += [last, *range(place, place + len(completion) - 1)]
            self.targets += completion
            for row in rows:
                self.rows += [row] * len(completion)
                self.columns += range(len(completion))
                self.scores += range(first, first + len(completion))
        lengths = tuple(len(completion) - 1 for completion in completions if len(completion) > 1)
        self.trees.append(Tree(self.root, start, len(rest), lengths))

    def pack(self) -> Pack:
        return Pack(
            ids=torch.tensor(self.ids, dtype=torch.long),
            positions=torch.tensor(self.positions, dtype=torch.long),
            trees=tuple(self.trees),
            states=torch.tensor(self.states, dtype=torch.long),
            targets=torch.tensor(self.targets, dtype=torch.long),
            rows=torch.tensor(self.rows, dtype=torch.long),
            columns=torch.tensor(self.columns, dtype=torch.long),
            scores=torch.tensor(self.scores, dtype=torch.long),
        )
