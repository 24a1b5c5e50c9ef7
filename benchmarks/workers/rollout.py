"""Worker: seconds of a rollout by our engine, exact or in 8 bits, or by transformers.generate; all but loading counts.

A task has: engine, model, base, groups (a list of Work), temperature, warm_up_tokens, plain_precision (of
the model that transformers generates with).
"""

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from floors import Work
from processes import Json, serve
from workloads import NEVER, SEED, WARM_UP_SEED, load, prompt_ids, prompts, shape, use_all_cores

from cpu_grpo.engine.decoder import decoder
from cpu_grpo.engine.rollout import Request, Sampling, generate, packed
from cpu_grpo.hardware import DTYPES, fastest_precision, keep_memory

Rollout = Callable[[list[list[int]], int, int], list[list[int]]]  # prompts, completions of each, tokens -> completions


def measure(task: Json) -> Json:
    """One warm-up and one timed rollout for each amount of work."""
    use_all_cores()
    engine = {"ours": ours, "ours int8": partial(ours, rounded=True), "transformers": plain}[task["engine"]]
    model, tokenizer = load(task, DTYPES[task["plain_precision"]] if engine is plain else torch.float32)
    rollout = engine(model, task["temperature"])
    seconds = []
    for given in task["groups"]:
        work = Work(**given)
        for seed, tokens in ((WARM_UP_SEED, task["warm_up_tokens"]), (SEED, work.completion_tokens)):
            asked = prompt_ids(tokenizer, prompts(tokenizer, work.prompts, work.prompt_tokens, seed))
            start = time.perf_counter()
            completions = rollout(asked, work.completions, tokens)
            took = time.perf_counter() - start
            if [len(ids) for ids in completions] != [tokens] * work.sequences:
                raise ValueError(f"not {work.sequences} completions of {tokens} tokens")
        seconds.append(took)
    return {"seconds": seconds, "threads": torch.get_num_threads(), "shape": asdict(shape(model))}


def ours(model: Any, temperature: float, rounded: bool = False) -> Rollout:
    """As CPUGRPOTrainer does it: fp32 masters, packed anew for each rollout; in 8 bits if `rounded`."""
    keep_memory()
    precision = fastest_precision()

    def rollout(asked: list[list[int]], count: int, tokens: int) -> list[list[int]]:
        groups = generate(
            packed(decoder(model), precision, min(128, len(asked) * count), rounded=rounded),
            [Request(ids, count) for ids in asked],
            Sampling(temperature),
            limit=tokens,
            ends={NEVER},
            seed=0,
        )
        return [completion.ids for group in groups for completion in group]

    return rollout


def plain(model: Any, temperature: float) -> Rollout:
    """transformers.generate, every row in one batch."""

    @torch.inference_mode()
    def rollout(asked: list[list[int]], count: int, tokens: int) -> list[list[int]]:
        ids = torch.tensor(asked)  # (prompts, P): all are of the same length
        model.generation_config.eos_token_id = NEVER
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            num_return_sequences=count,
            max_new_tokens=tokens,
            do_sample=True,
            temperature=temperature,
            top_k=0,
            top_p=1.0,
            pad_token_id=0,
        )
        return out[:, ids.size(1) :].tolist()

    return rollout


if __name__ == "__main__":
    serve(measure)
