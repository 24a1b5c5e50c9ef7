"""Worker: seconds of the learner's forward and backward over whole groups, and the GEMM rate around them.

A task has: model, base, work (a list of Work), times, quick, lean (weights in bf16, and layers computed twice), lora
(frozen weights in bf16, adapters of rank 16), narrow (products with frozen weights in 8 bits). The
weights are rounded to the compute dtype beforehand, as that is done once for many micro-batches (the benchmark's row
weight_refresh has its price).
"""

import time
from dataclasses import asdict

import torch
from floors import Work
from peft import get_peft_model
from processes import Json, serve
from workloads import load, prompt_ids, prompts, shape, use_all_cores

from cpu_grpo.engine.decoder import decoder
from cpu_grpo.engine.learner import Rounded, completion_logps
from cpu_grpo.engine.learner.packing import pack
from cpu_grpo.engine.schemes.lora import adapters
from cpu_grpo.hardware import DTYPES, fastest_precision, keep_memory
from workers.machine import peak


def measure(task: Json) -> Json:
    """A warm-up and timed passes for each amount of work; GFLOP/s of matrix products before and after."""
    use_all_cores()
    keep_memory()
    model, tokenizer = load(task, torch.bfloat16 if task["lean"] or task["lora"] else torch.float32)
    model = get_peft_model(model, adapters(16, 32)) if task["lora"] else model
    precision = fastest_precision()
    rates = [peak(precision, task["quick"])]
    seconds = []
    for given in task["work"]:
        work = Work(**given)
        ids = batch(tokenizer, work)
        found = pack(ids, torch.ones_like(ids), work.completion_tokens)
        if (found.ids.numel(), found.targets.numel()) != (work.packed_tokens, work.scored_tokens):
            raise ValueError(f"{found.ids.numel()} packed and {found.targets.numel()} scored tokens were not expected")
        rounded = Rounded.of(decoder(model), DTYPES[precision], work.scored_tokens, task["narrow"])
        passes = []
        for _ in range(1 + task["times"]):
            start = time.perf_counter()
            logps, _ = completion_logps(rounded, ids, torch.ones_like(ids), work.completion_tokens, 1.0, task["lean"])
            logps.mean().neg().backward()
            passes.append(time.perf_counter() - start)
        seconds.append(passes[1:])
    rates.append(peak(precision, task["quick"]))
    return {
        "seconds": seconds,
        "precision": precision,
        "gemm_gflops": rates,
        "threads": torch.get_num_threads(),
        "shape": asdict(shape(model)),
    }


def batch(tokenizer: object, work: Work) -> torch.Tensor:
    """Groups as TRL hands them over, (B, P + T): prompts repeated, and random completions."""
    shared, own = work.shared_tokens, work.prompt_tokens - work.shared_tokens
    common = prompt_ids(tokenizer, prompts(tokenizer, 1, shared, 1))[0] if shared else []
    asked = [common + ids for ids in prompt_ids(tokenizer, prompts(tokenizer, work.prompts, own, 0))]
    rows = torch.tensor(asked).repeat_interleave(work.completions, dim=0)  # (B, P)
    draw = torch.Generator().manual_seed(0)
    completions = torch.randint(len(tokenizer), (rows.size(0), work.completion_tokens), generator=draw)  # (B, T)
    return torch.cat([rows, completions], dim=1)


if __name__ == "__main__":
    serve(measure)
