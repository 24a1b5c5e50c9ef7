"""The loop of a rollout.

1. Prompts are prefilled, each once; their keys and values are stored once for the whole group (`forward.prefill`).
2. A step runs the newest token of every row through the decoder (`forward.decode`) and samples the next (`sampling`).
3. A finished completion leaves its row at once (`schedule.leave`).
4. When enough rows are free, waiting prompts are prefilled and take them (`schedule.fits`).
"""

from collections.abc import Callable, Iterator

import torch

from cpu_grpo.engine.prefix import common_prefix
from cpu_grpo.engine.rollout.cache import CACHE_BYTES, CompletionCache, PromptBlock, row_bytes
from cpu_grpo.engine.rollout.forward import decode, prefill, prefill_root
from cpu_grpo.engine.rollout.sampling import Sampling, sample, stream_seed, uniforms
from cpu_grpo.engine.rollout.schedule import Completion, Request, Seat, admissions, fits, leave, seating
from cpu_grpo.engine.rollout.weights import PackedDecoder


@torch.inference_mode()
def generate(
    model: PackedDecoder,
    requests: list[Request],
    sampling: Sampling,
    limit: int,
    ends: set[int],
    seed: int,
    rows: int = 128,
    finished: Callable[[int], object] | None = None,
    share: bool = True,
) -> list[list[Completion]]:
    """Completions of every request, in the order of the requests.

    A completion depends on the seed, its prompt and its number among the prompt's completions, not on its company.

    Args:
        limit: tokens a completion may have.
        ends: tokens that end a completion.
        rows: completions decoded together, at most (or the largest request's count, if that is more).
        finished: called with the number of completions that have just finished.
        share: what all prompts begin with goes through the model once for all of them.

    Raises:
        ValueError: a limit below 1, or scores that are no distribution.
    """
    if limit < 1:
        raise ValueError(f"limit is {limit}: allow a completion 1 token or more.")
    run = _Run(model, requests, sampling, limit, ends, seed, rows, share)
    while run.waiting or run.seats:
        run.admit()
        done = run.step()
        if done and finished:
            finished(done)
    return run.completions


@torch.inference_mode()
def stream(
    model: PackedDecoder, prompt: list[int], sampling: Sampling, limit: int, ends: set[int], seed: int
) -> Iterator[int]:
    """The tokens of a prompt's completion, each as soon as there is a next one: those that `generate` returns.

    Several streams may be read by turns, and one may be left before its end. The arguments are those of `generate`,
    and so are the errors.
    """
    if limit < 1:
        raise ValueError(f"limit is {limit}: allow a completion 1 token or more.")
    run, told = _Run(model, [Request(prompt)], sampling, limit, ends, seed, 1, False), 0
    ((completion,),) = run.completions
    while run.waiting or run.seats:
        run.admit()
        run.step()
        yield from completion.ids[told:]
        told = len(completion.ids)


def at_once(model: PackedDecoder, counts: list[int], rows: int, limit: int) -> int:
    """Completions decoded together, where requests want `counts` of them: as many as the cache has room for."""
    affordable = CACHE_BYTES // row_bytes(model.decoder, limit, model.dtype)
    return max(1, *counts, min(rows, affordable, sum(counts)))


class _Run:
    """One call of `generate` under way."""

    def __init__(
        self,
        model: PackedDecoder,
        requests: list[Request],
        sampling: Sampling,
        limit: int,
        ends: set[int],
        seed: int,
        rows: int,
        share: bool,
    ) -> None:
        self.model, self.requests, self.sampling = model, requests, sampling
        self.limit, self.ends, self.seed = limit, ends, seed
        self.rows = at_once(model, [request.count for request in requests], rows, limit)
        self.cache = CompletionCache(model.decoder, self.rows, limit, model.dtype)
        prompts = [request.prompt for request in requests]
        shared = common_prefix(prompts) if share else 0
        self.root = prefill_root(model, prompts[0][:shared] if shared else [])
        self.waiting = admissions(requests, shared)
        self.seats: list[Seat] = []
        self.blocks: dict[int, PromptBlock] = {}
        self.completions = [[Completion() for _ in range(request.count)] for request in requests]

    def admit(self) -> None:
        """Prefills waiting prompts once a quarter of the rows is free: few large prefills, not many small ones."""
        if self.seats and self.rows - len(self.seats) < self.rows // 4:
            return
        while taken := fits(self.waiting, self.requests, self.rows - len(self.seats)):
            self._prefill(taken)

    def _prefill(self, taken: list[int]) -> None:
        block, scores = prefill(self.model, self.root, [self.requests[index].prompt for index in taken])
        number = max(self.blocks, default=-1) + 1
        newcomers, prompt_of = [], []
        for group, index in enumerate(taken):
            request = self.requests[index]
            for copy in range(request.count):
                draws = uniforms([stream_seed(self.seed, request.prompt, request.first + copy)], self.limit)[0]
                newcomers.append(
                    Seat(index, copy, number, group, len(request.prompt), draws, self.completions[index][copy])
                )
                prompt_of.append(group)
        self.blocks[number] = block
        first = len(self.seats)
        self.seats += newcomers
        self._extend(self.seats[first:], scores[torch.tensor(prompt_of)])  # (k, V)
        self._seat()

    def step(self) -> int:
        """Decodes one token of every row, after removing the rows that are finished; returns how many those were."""
        finished = [
            row
            for row, seat in enumerate(self.seats)
            if seat.completion.ids[-1] in self.ends or len(seat.completion.ids) == self.limit
        ]
        if finished:
            for move in leave(self.seats, finished):
                self.cache.move(*move)
            self._seat()
        if self.seats:
            lengths = torch.tensor([seat.stored for seat in self.seats])  # (n,)
            starts = torch.tensor([seat.start for seat in self.seats])
            tokens = torch.tensor([seat.completion.ids[-1] for seat in self.seats])
            blocks = list(self.blocks.values())
            level = torch.tensor([seat.level for seat in self.seats])
            scores = decode(self.model, tokens, starts + lengths, lengths, self.cache, blocks, level)
            self._extend(self.seats, scores)
        return len(finished)

    def _extend(self, seats: list[Seat], scores: torch.Tensor) -> None:
        """Samples the seats' next tokens, given their scores less their levels (k, V)."""
        draws = torch.stack([seat.draws[len(seat.completion.ids)] for seat in seats])  # (k,)
        tokens, logps = sample(scores, draws, self.sampling)
        highest = scores.amax(dim=-1)
        for seat, token, logp, rise in zip(seats, tokens.tolist(), logps.tolist(), highest.tolist(), strict=True):
            seat.completion.ids.append(token)
            seat.completion.logps.append(logp)
            seat.level += rise

    def _seat(self) -> None:
        """Tells the prompt blocks who continues them, and drops prompts that nobody does.

        Of a block only once half of its prompts are left, so that each is copied about once: a few long completions
        would keep all prompts that began with theirs.
        """
        for number, block in list(self.blocks.items()):
            rows = seating(self.seats, number, block.keys.size(1))
            kept = [group for group, seated in enumerate(rows) if seated]
            if not kept:
                del self.blocks[number]
                continue
            if 2 * len(kept) <= len(rows):
                self.blocks[number] = block = block.only(kept)
                for seat in (seat for seat in self.seats if seat.block == number):
                    seat.group = kept.index(seat.group)
                rows = [rows[group] for group in kept]
            block.seat(rows)
