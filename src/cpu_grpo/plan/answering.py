"""What an evaluation will take: memory from the model's sizes, time from a few steps of the model itself.

Told before the first answer, for answers that all go to their limit, as nothing else is known; the lengths that came
tell afterwards how good it was.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import mean

import torch

from cpu_grpo.engine.prefix import common_prefix
from cpu_grpo.engine.rollout import PackedDecoder, Request, Sampling, at_once, generate
from cpu_grpo.engine.rollout.cache import CompletionCache, PromptBlock
from cpu_grpo.engine.rollout.forward import decode
from cpu_grpo.engine.rollout.sampling import sample
from cpu_grpo.engine.rollout.schedule import PREFILL_TOKENS
from cpu_grpo.engine.rollout.size import rollout_bytes
from cpu_grpo.engine.shape import Shape
from cpu_grpo.errors import UserError
from cpu_grpo.plan.choice import Budget
from cpu_grpo.plan.memory import LIBRARIES, WASTED_SHARE
from cpu_grpo.units import duration, gigabytes

REPEATS = 5  # the best of them counts: the first makes kernels and touches fresh memory
PROMPTS = 8  # of those asked, that are timed
FEWER_ROWS = (32, 16, 8, 4, 1)  # to try where those asked for do not fit


@dataclass(frozen=True)
class Work:
    """Answers to some prompts."""

    prompts: list[int]  # tokens of each
    shared: int  # tokens that all prompts begin with
    count: int  # answers to each
    rows: int  # answers decoded together, at most
    limit: int  # tokens of an answer

    @property
    def answers(self) -> int:
        return self.count * len(self.prompts)

    @property
    def prefilled(self) -> int:
        """Tokens of all prompts: what is common once."""
        return self.shared + sum(tokens - self.shared for tokens in self.prompts)

    @property
    def longest(self) -> list[list[int]]:
        """Tokens of answers that all go to their limit."""
        return [[self.limit] * self.count for _ in self.prompts]


@dataclass(frozen=True)
class Pace:
    """Seconds, when so many rows are decoded together."""

    rows: int
    prefill: float  # of a prompt's token
    step: float  # of a decoding step by itself
    row: float  # of each row in it
    token: float  # of each token that a row sees


@dataclass(frozen=True)
class Plan:
    """What an evaluation is expected to take."""

    works: list[Work]
    paces: list[Pace]
    peak: int  # bytes, at most

    def seconds(self, lengths: Sequence[Sequence[Sequence[int]]]) -> float:
        """Of answers of so many tokens, given by work, prompt and answer."""
        return sum(seconds(*each) for each in zip(self.works, self.paces, lengths, strict=True))

    @property
    def at_most(self) -> float:
        """Seconds, if all answers go to their limit."""
        return self.seconds([work.longest for work in self.works])

    def told(self) -> str:
        """In a line."""
        answers = sum(work.answers for work in self.works)
        return f"{gigabytes(self.peak)} of memory and {duration(self.at_most)} for {answers} answers, at most"

    def compared(self, lengths: Sequence[Sequence[Sequence[int]]]) -> dict[str, float]:
        """What was expected, to be read beside what came: `planned_` at most, `expected_` for the lengths that came."""
        return {
            "planned_peak_rss_bytes": self.peak,
            "planned_answer_seconds": self.at_most,
            "expected_answer_seconds": self.seconds(lengths),
        }


def plan_of(model: PackedDecoder, prompts: list[list[int]], works: list[Work], peak: int) -> Plan:
    """The plan of some works on these prompts, after some seconds of timing."""
    return Plan(works, [pace_of(model, prompts, work) for work in works], peak)


def peak_bytes(shape: Shape, work: Work, compute: int, stored: int = 0, shared: bool = False) -> int:
    """The most that an evaluation has in memory.

    Args:
        compute: bytes of a number that products are computed in, and the model is held in.
        stored: bytes of a number in the model's file; 0: the same.
        shared: the engine makes no copy of the weights.
    """
    rows = max(work.count, min(work.rows, work.answers))
    prompts = -(-rows // work.count)
    rollout = rollout_bytes(shape, rows, prompts, max(work.prompts), work.limit, compute, compute, shared)
    answering = (1 + WASTED_SHARE[False]) * (compute * shape.parameters + rollout)
    loading = shape.parameters * (compute + (stored if stored != compute else 0))
    return LIBRARIES + round(max(loading, answering))


def require_memory(shape: Shape, work: Work, compute: int, stored: int, room: Budget) -> int:
    """`peak_bytes`, where there is room for it.

    Raises:
        UserError: there is not; the message says how many rows there is room for.
    """
    needed = peak_bytes(shape, work, compute, stored)
    if needed <= room.bytes:
        return needed
    for rows in (rows for rows in FEWER_ROWS if rows < work.rows):
        less = peak_bytes(shape, replace(work, rows=rows), compute, stored)
        if less <= room.bytes:
            advice = f"use evaluation.batch_size={rows} ({gigabytes(less)})"
            break
    else:
        advice = "free some memory or take a smaller model"
    raise UserError(f"The evaluation needs {gigabytes(needed)}, and {room.reason}: {advice}.")


def seconds(work: Work, pace: Pace, lengths: Sequence[Sequence[int]]) -> float:
    """Of answers of so many tokens, given prompt by prompt."""
    order = sorted(range(len(work.prompts)), key=lambda index: work.prompts[index])
    steps = [[tokens - 1 for tokens in lengths[index]] for index in order]  # a prefill makes the first token
    rows = sum(
        (tokens - 1) * (pace.row + pace.token * (prompt + tokens / 2))
        for prompt, own in zip(work.prompts, lengths, strict=True)
        for tokens in own
    )
    return pace.prefill * work.prefilled + pace.step * decoding_steps(steps, pace.rows) + rows


def decoding_steps(steps: Sequence[Sequence[int]], rows: int) -> int:
    """How many there are until all answers are done, if waiting ones take free rows as in `rollout.generate`.

    Args:
        steps: that each answer takes, by prompt, in the order in which they are begun.
    """
    waiting, made = deque(steps), 0
    left: list[int] = []  # the steps that each taken row still has before it
    while waiting or left:
        if not left or rows - len(left) >= rows // 4:
            while waiting and len(left) + len(waiting[0]) <= rows:
                left += waiting.popleft()
        left = [own - 1 for own in left if own]
        made += bool(left)
    return made


def pace_of(model: PackedDecoder, prompts: list[list[int]], work: Work) -> Pace:
    """Times prompts of those asked, and steps with all rows and with fewer, early in the answers and half-way."""
    asked = prompts[:: -(-len(prompts) // PROMPTS)]
    while len(asked) > 1 and sum(map(len, asked)) - len(asked) * work.shared > PREFILL_TOKENS:
        asked = asked[1:]
    shared = common_prefix(asked)
    own = sum(len(prompt) - shared for prompt in asked) + shared
    requests = [Request(prompt) for prompt in asked]
    prefill = _best(lambda: generate(model, requests, Sampling(temperature=0), 1, set(), 0, len(requests)))
    rows = at_once(model, [work.count] * len(work.prompts), work.rows, work.limit)
    few, half, seen = -(-rows // 4), (work.limit - 1) // 2, round(mean(work.prompts))
    early, late, thin = (_step(model, work, *some) for some in ((rows, 0), (rows, half), (few, half)))
    by_row = max(0.0, late - thin) / (rows - few) if rows > few else 0.0
    token = max(0.0, late - early) / (rows * half) if half else 0.0
    token = min(token, by_row / (seen + half))  # what a row costs half-way is measured better than its parts
    return Pace(rows, prefill / own, late - rows * by_row, by_row - token * (seen + half), token)


@torch.inference_mode()
def _step(model: PackedDecoder, work: Work, rows: int, tokens: int) -> float:
    """Seconds of a decoding step of rows that have so many tokens, after prompts of average length."""
    decoder, length = model.decoder, round(mean(work.prompts))
    groups = -(-rows // work.count)
    cache = CompletionCache(decoder, rows, work.limit, model.dtype)
    prompts = [torch.zeros(groups, decoder.kv_heads, length, decoder.head_dim, dtype=model.dtype)] * len(model.layers)
    block = PromptBlock.of(prompts, prompts, torch.full((groups,), length))
    block.seat([list(range(first, min(first + work.count, rows))) for first in range(0, rows, work.count)])
    lengths = torch.full((rows,), tokens)  # (n,)
    newest, level, draws = torch.zeros(rows, dtype=torch.long), torch.zeros(rows), torch.zeros(rows)

    def step() -> None:
        scores = decode(model, newest, length + lengths, lengths, cache, [block], level)  # (n, V)
        chosen, _ = sample(scores, draws, Sampling(temperature=0))
        chosen.tolist()
        scores.amax(dim=-1)

    return _best(step)


def _best(work: Callable[[], object]) -> float:
    """Seconds of the fastest of some repeats."""
    found = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        work()
        found.append(time.perf_counter() - begin)
    return min(found)
