"""Worker: seconds from a directory of safetensors to the first forward's result, loaded as `memory=lean` does it.

A task has: directory, prompt (token ids). Not counted, as every run does it once before it loads: imports, measuring
which precision is faster, compiling the kernels.
"""

import json
import time
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import psutil
import torch
from processes import Json, serve
from workloads import NEVER, use_all_cores

from cpu_grpo.engine.decoder import decoder
from cpu_grpo.engine.kernels import native
from cpu_grpo.engine.rollout import Request, Sampling, generate, packed
from cpu_grpo.hardware import DTYPES, fastest_precision, keep_memory
from cpu_grpo.models.loading import load_model

FEW, MANY = 8, 64  # completions decoded together: with weights where they lie, and with weights laid out


def measure(task: Json) -> Json:
    """Seconds of each part, and the memory that the process gained."""
    directory, process = Path(task["directory"]), psutil.Process()
    family = json.loads((directory / "config.json").read_text())["model_type"]
    import_module(f"transformers.models.{family}.modeling_{family}")  # else from_pretrained does it
    import_seconds = time.time() - process.create_time()
    use_all_cores()
    keep_memory()
    precision = fastest_precision()
    native(DTYPES[precision], torch.bfloat16)
    before = process.memory_info().rss
    clock = [time.perf_counter()]
    model, _ = load_model(directory, torch.bfloat16)
    clock.append(time.perf_counter())
    ready = packed(decoder(model), precision, FEW)
    clock.append(time.perf_counter())
    generate(ready, [Request(task["prompt"])], Sampling(), limit=1, ends={NEVER}, seed=0)
    clock.append(time.perf_counter())
    gained = process.memory_info().rss - before
    packed(decoder(model), precision, MANY)
    lay_out_seconds = time.perf_counter() - clock[-1]
    parts = (after - start for start, after in pairwise(clock))
    return {
        "seconds": clock[-1] - clock[0],
        **dict(zip(("read_seconds", "pack_seconds", "forward_seconds"), parts, strict=True)),
        "lay_out_seconds": lay_out_seconds,
        "import_seconds": import_seconds,
        "gained_bytes": gained,
        "precision": precision,
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    serve(measure)
