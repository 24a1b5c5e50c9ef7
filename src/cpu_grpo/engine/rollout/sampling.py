"""Drawing tokens from scores over a vocabulary, with one uniform number per sequence and step.

Filling a vocabulary with random numbers (Gumbel noise, `torch.multinomial`) costs a CPU more than the rest of a draw.
Inverting the cumulative distribution needs one number a row, and only sums over blocks and one block's insides.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cpu_grpo.engine.kernels import native

BLOCK = 256  # tokens whose weights are summed before the search looks inside
CHUNK_SCORES = 2**20  # handled at once: temporaries of 4 MB stay in the cache, and the allocator keeps their pages
NO_DISTRIBUTION = (
    "A row of scores, divided by the temperature, holds NaN, +inf or nothing above -inf, so no token can be drawn: "
    "look for the step at which the model diverged."
)
CANDIDATES = 128  # best tokens tried for the top-p nucleus first; a row that needs more gets 32 times as many


class NoDistribution(ValueError):
    """A model's scores are no numbers that a token could be drawn by."""

    def __init__(self) -> None:
        super().__init__(NO_DISTRIBUTION)


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: scores are divided by the temperature, then top-k, top-p and min-p remove tokens in turn.

    Raises:
        ValueError: a value is out of bounds.
    """

    temperature: float = 1.0  # 0: greedy
    top_k: int = 0  # this many of the best tokens stay, and ties with the last of them; 0: off
    top_p: float = 1.0  # the fewest best tokens stay that hold this share of the probability; 1: off
    min_p: float = 0.0  # tokens of at least this share of the best one's probability stay; 0: off

    @property
    def filters(self) -> bool:
        """Whether some tokens are removed before one is drawn."""
        return bool(self.top_k or self.top_p < 1 or self.min_p)

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature={self.temperature} is out of bounds: use 0 (greedy) or a number above it.")
        if not (isinstance(self.top_k, int) and self.top_k >= 0):
            raise ValueError(f"top_k={self.top_k} is no count of tokens: use a whole number from 1, or 0 for off.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} is out of bounds: use a number above 0 and below 1, or 1 for off.")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p={self.min_p} is out of bounds: use a number above 0 and up to 1, or 0 for off.")


@torch.no_grad()
def sample(scores: torch.Tensor, uniforms: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """One token a row, by inverting the cumulative distribution at the row's uniform number.

    Args:
        scores: (n, V), a model's logits in any floating dtype; -inf forbids a token.
        uniforms: (n,) in [0, 1), fp64 or fp32; fp32's steps are too coarse for tokens rarer than 2**-24.
        sampling: temperature and filters; temperature 0 takes the best token, the first of equals.

    Returns:
        tokens (n,) int64, and their log-probs in nats (n,) fp32 under the whole softmax at the temperature (1 if
        greedy), before any filter: what the learner computes again.

    Raises:
        NoDistribution: in a row of scores.
    """
    kernels = None if sampling.filters or not scores.is_contiguous() else native(scores.dtype)
    if kernels:
        tokens, logps = torch.empty(len(scores), dtype=torch.int64), torch.empty(len(scores))
        inverse = 1 / sampling.temperature if sampling.temperature else 0.0
        kernels.draw(scores, uniforms.double().contiguous(), inverse, tokens, logps, *scores.shape)
        if (tokens < 0).any():
            raise NoDistribution
        return tokens, logps
    rows = max(1, CHUNK_SCORES // scores.size(1))
    parts = zip(scores.split(rows), uniforms.split(rows), strict=True)
    drawn = [_sample(some, numbers, sampling) for some, numbers in parts]
    return torch.cat([tokens for tokens, _ in drawn]), torch.cat([logps for _, logps in drawn])


def uniforms(seeds: Sequence[int] | torch.Tensor, length: int) -> torch.Tensor:
    """`length` numbers in [0, 1) for each of n seeds, (n, length) fp64.

    Every row has a generator of its own, so it depends on nothing but its seed, and a longer row starts with the
    shorter one. Of a seed torch's CPU generator reads the low 32 bits.
    """
    drawn = torch.empty(len(seeds), length, dtype=torch.float64)
    for row, seed in zip(drawn, seeds, strict=True):
        row.uniform_(generator=torch.Generator().manual_seed(int(seed)))
    return drawn


def stream_seed(seed: int, prompt: Sequence[int], copy: int) -> int:
    """A completion's own seed, 63 bits, the same on every machine and whatever else is in the batch.

    Args:
        seed: the run's (or the step's).
        prompt: token ids.
        copy: which completion of the prompt's group it is.

    Raises:
        OverflowError: a number does not fit a signed 64-bit integer.
    """
    content = b"".join(number.to_bytes(8, "little", signed=True) for number in (seed, copy, *prompt))
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") >> 1


def _sample(scores: torch.Tensor, uniforms: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """`sample` for as many rows as fit the cache."""
    scores = scores.float()  # first: bf16 is slow in what follows
    if sampling.temperature not in (0, 1):
        scores = scores / sampling.temperature
    weights = scores.softmax(dim=-1)  # (n, V)
    peak = weights.amax(dim=-1, keepdim=True)  # (n, 1)
    if not peak.isfinite().all():
        raise NoDistribution
    # Log of the normaliser without a second pass over exponentials: the peak is exp(0) / sum. Taken from the score and
    # not from its weight, a log-prob stays exact where the weight underflows.
    log_peak, best = peak.log(), scores.amax(dim=-1, keepdim=True)  # (n, 1)
    if sampling.temperature == 0:
        tokens = scores.argmax(dim=-1, keepdim=True)  # (n, 1)
    else:
        tokens = _draw(_keep(weights, scores, sampling), uniforms)  # (n, 1)
    logps = scores.gather(1, tokens) - best + log_peak  # (n, 1)
    return tokens.squeeze(1), logps.squeeze(1)


def _keep(weights: torch.Tensor, scores: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """(n, V) weights, 0 where a filter removes the token; in transformers' order and with its rules."""
    peak = weights.amax(dim=-1, keepdim=True)  # (n, 1), which no filter removes
    if sampling.top_k:
        least = scores.topk(min(sampling.top_k, scores.size(1))).values[:, -1:]  # (n, 1)
        weights = torch.where(scores < least, 0, weights)
    if sampling.top_p < 1:
        weights = _keep_nucleus(weights, scores, sampling.top_p, CANDIDATES)
    if sampling.min_p:
        weights = torch.where(weights < sampling.min_p * peak, 0, weights)
    return weights


def _keep_nucleus(weights: torch.Tensor, scores: torch.Tensor, top_p: float, candidates: int) -> torch.Tensor:
    """(n, V) weights, 0 outside the fewest best tokens that hold `top_p` of their sum; the lowest ids of equals stay.

    Sorting a vocabulary is slow and the nucleus mostly small, so it is sought among the best `candidates` first.
    """
    if candidates > scores.size(1) / 4:
        candidates = scores.size(1)  # sorting everything is then the faster
    ranked, ids = _rank(scores, candidates)  # (n, c)
    held = weights.gather(1, ids)  # (n, c)
    better = held.cumsum(dim=-1, dtype=torch.float64) - held  # (n, c), the weight of all better tokens
    inside = better < top_p * weights.sum(dim=-1, keepdim=True)  # (n, c)
    kept = torch.zeros_like(weights).scatter_(1, ids, held.where(inside, 0))  # (n, V)
    if candidates < scores.size(1):
        # The nucleus may go on past the last candidate; so may the equals of its last token, some with lower ids.
        least = ranked.gather(1, inside.sum(dim=-1, keepdim=True) - 1)  # (n, 1), the lowest score inside
        wide = (least == ranked[:, -1:]).squeeze(1)  # (n,)
        if wide.any():
            kept[wide] = _keep_nucleus(weights[wide], scores[wide], top_p, 32 * candidates)
    return kept


def _rank(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` best scores of each row and their ids, (n, count) each, best first and equals by id."""
    if count == scores.size(1):
        return scores.sort(dim=-1, descending=True, stable=True)
    ids = scores.topk(count).indices.sort(dim=-1).values  # topk leaves the order of equals open
    ranked, order = scores.gather(1, ids).sort(dim=-1, descending=True, stable=True)
    return ranked, ids.gather(1, order)


def _draw(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """(n, V) weights and (n,) uniforms -> (n, 1) tokens, never one of weight 0."""
    sums = _block_sums(weights)  # (n, B)
    target = uniforms.double().unsqueeze(1) * sums.sum(dim=-1, keepdim=True, dtype=torch.float64)  # (n, 1)
    block, rest = _search(sums, target)  # (n, 1)
    ids = block * BLOCK + torch.arange(BLOCK)  # (n, BLOCK), in the last block perhaps past the end
    last = weights.size(1) - 1
    inside = weights.gather(1, ids.clamp(max=last)).where(ids <= last, 0)  # (n, BLOCK)
    within, _ = _search(inside, rest)
    return block * BLOCK + within


def _block_sums(weights: torch.Tensor) -> torch.Tensor:
    """(n, V) -> (n, V // BLOCK + 1); the last sum is over the tail, 0 if there is none."""
    whole = weights.size(1) // BLOCK
    blocks, tail = weights[:, : whole * BLOCK].unflatten(1, (whole, BLOCK)), weights[:, whole * BLOCK :]
    return torch.cat([blocks.sum(dim=-1), tail.sum(dim=-1, keepdim=True)], dim=1)


def _search(weights: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first entry whose cumulative weight exceeds the target, and by how much the target exceeds the one before.

    Where rounding puts the target at or past the sum it is the last entry that adds to the sum; either way an entry of
    positive weight, provided that there is one.

    Args:
        weights: (n, m), not negative.
        target: (n, 1) fp64, not negative.

    Returns:
        indices (n, 1) int64, and what is left of the target (n, 1) fp64.
    """
    cumulative = weights.cumsum(dim=-1, dtype=torch.float64)  # (n, m)
    reached = (cumulative <= target).sum(dim=-1, keepdim=True)  # (n, 1)
    last = (cumulative < cumulative[:, -1:]).sum(dim=-1, keepdim=True)  # (n, 1)
    index = torch.minimum(reached, last)
    before = torch.nn.functional.pad(cumulative, (1, 0)).gather(1, index)  # (n, 1)
    return index, target - before
