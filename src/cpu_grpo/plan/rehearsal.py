"""Times the pieces of an update on stand-ins of fewer layers, with random weights of the model's sizes.

Each piece is timed with one layer and with half of the model's; the difference is those layers' share, the rest is that
of the embedding, the head and everything that is done once. Fewer layers would fit into the caches, and what one time
differs from another by chance would be multiplied. In a process of its own, so that its memory is not the run's.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cpu_grpo.engine.decoder import Adapter, Decoder, Layer, Linear, Norm
from cpu_grpo.engine.learner import Rounded, completion_logps
from cpu_grpo.engine.rollout import Request, Sampling, generate, packed
from cpu_grpo.engine.rounding import Rounding, learns_in_8_bits
from cpu_grpo.engine.schemes.lean import Lean
from cpu_grpo.engine.shape import Shape
from cpu_grpo.errors import UserError
from cpu_grpo.files import cached, fingerprint, held_object, keep_cached, sha256
from cpu_grpo.hardware import DTYPES, conditions, keep_memory
from cpu_grpo.plan.job import Job
from cpu_grpo.plan.memory import Scheme
from cpu_grpo.plan.saving import write_rate

FEW = 1  # layers of the smaller stand-in
STEPS = 8  # of decoding
LEARNT = 1024  # tokens that go through the stand-in's learner, about
REPEATS = 2  # the best of them counts, as others may be using the machine
TIMED = (  # whose code decides the times
    "engine/decoder.py",
    "engine/rounding.py",
    "engine/schemes/lean.py",
    "engine/kernels",
    "engine/learner",
    "engine/rollout",
    "plan/rehearsal.py",
    "plan/saving.py",
)


@dataclass(frozen=True)
class Cost:
    """Seconds: of a layer, and of all that is no layer's."""

    layer: float
    rest: float

    def of(self, layers: int) -> float:
        return self.rest + layers * self.layer


@dataclass(frozen=True)
class Costs:
    """Of the pieces of an update."""

    lay_out: Cost  # the weights for a rollout
    prefill: Cost  # of `prefilled` tokens
    step: Cost  # of decoding all rows
    thin_step: Cost  # of decoding `thin_rows`
    round: Cost  # the weights for the learner
    learn: Cost  # forward and backward of `learnt` tokens
    optimize: Cost
    prefilled: int
    learnt: int
    thin_rows: int
    write_rate: float  # bytes a second to the disk


def rehearse(shape: Shape, job: Job, scheme: Scheme, precision: str, threads: int) -> Costs:
    """The costs on this machine: from its cache, or measured in some seconds.

    Raises:
        UserError: the measurement died, for lack of memory for instance.
    """
    task = {
        "shape": asdict(shape),
        "job": asdict(_piece(job)),
        "scheme": asdict(scheme),
        "precision": precision,
        "threads": threads,
    }
    kept = _cache(task)
    if kept:
        with suppress(TypeError):  # there are none, or they are damaged
            return _costs(held_object(kept))
    command = [sys.executable, "-m", "cpu_grpo.plan.rehearsal", json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"])[-1]
        raise UserError(f"The pieces of an update could not be timed ({said}): free some memory and try again.")
    found = json.loads(done.stdout.splitlines()[-1])
    keep_cached(kept, found)
    return _costs(found)


def _piece(job: Job) -> Job:
    """A job that costs little and is done at the same rates: as many completions at a time, but fewer lots of them."""
    prompts = -(-job.decoded // job.group)
    micro_batch = min(job.micro_batch, job.sequences)
    return replace(job, prompts=prompts, micro_batch=micro_batch, rows=job.decoded, updates=1, iterations=1)


def _learnt(job: Job) -> int:
    """Completions that go through the stand-in's learner."""
    return max(1, min(job.completions_at_once, LEARNT // job.completion_tokens))


def thin_rows(job: Job) -> int:
    """Rows of a decoding step when most completions have ended."""
    return max(1, job.decoded // 4)


def _cache(task: dict[str, Any]) -> Path | None:
    """Where the costs of a task are kept: by task, machine and the engine's code; None without a home directory."""
    package = Path(__file__).parents[1]
    sources = [path for name in TIMED for path in _files(package / name)]
    code = {path.relative_to(package).as_posix(): sha256(path) for path in sources}
    return cached(f"costs-{fingerprint([task, code, conditions(task['threads'])])}.json")


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in (".py", ".cpp", ".h"))


def _costs(found: dict[str, Any]) -> Costs:
    parts: dict[str, Any] = {n: Cost(**value) if isinstance(value, dict) else value for n, value in found.items()}
    return Costs(**parts)


def measure(task: dict[str, Any]) -> Costs:
    """The costs of a task, here and now."""
    shape, job, scheme = Shape(**task["shape"]), Job(**task["job"]), Scheme(**task["scheme"])
    torch.set_num_threads(task["threads"])
    keep_memory(large=scheme.roomy)
    torch.manual_seed(0)
    best: dict[int, dict[str, float]] = {}
    more = max(FEW + 1, shape.layers // 2)
    models = {layers: stand_in(shape, layers, scheme) for layers in (FEW, more)}
    optimizers = {layers: _optimizer(model, scheme) for layers, model in models.items()}
    for _ in range(REPEATS):
        for layers, model in models.items():  # by turns: a drift of the machine's speed hits both
            found = _pieces(model, optimizers[layers], job, scheme, task["precision"])
            best[layers] = {name: min(seconds, best.get(layers, found)[name]) for name, seconds in found.items()}
    costs = {}
    for name, seconds in best[FEW].items():
        layer = max(0.0, (best[more][name] - seconds) / (more - FEW))
        costs[name] = Cost(layer, max(0.0, seconds - FEW * layer))
    return Costs(
        **costs,
        prefilled=job.prefilled,
        learnt=job.packed(_learnt(job)),
        thin_rows=thin_rows(job),
        write_rate=write_rate(),
    )


def stand_in(shape: Shape, layers: int, scheme: Scheme) -> Decoder:
    """A decoder of so many layers with random weights, held as the scheme holds them."""
    dtype = torch.float32 if scheme.held == 4 else torch.bfloat16
    trained = scheme.name != "lora"

    def weight(*size: int) -> torch.Tensor:
        return torch.empty(size, dtype=dtype).normal_(std=0.02).requires_grad_(trained)

    def norm(size: int) -> Norm:
        return Norm(torch.ones(size, dtype=dtype, requires_grad=trained), 1e-6)

    def linear(name: str) -> Linear:
        rows, columns = shape.linears[name]
        bias = weight(rows) if shape.biases and name in ("q", "k", "v") else None
        return Linear(weight(rows, columns), bias, _adapters(rows, columns, scheme))

    def layer() -> Layer:
        names = [norm(shape.head_dim) if shape.head_norms else None for _ in range(2)]
        parts = {name: linear(name) for name in shape.linears}
        return Layer(norm(shape.hidden), q_norm=names[0], k_norm=names[1], mlp_norm=norm(shape.hidden), **parts)

    embedding = weight(shape.vocabulary, shape.hidden)
    return Decoder(
        embedding=embedding,
        layers=tuple(layer() for _ in range(layers)),
        norm=norm(shape.hidden),
        head=Linear(embedding if shape.tied else weight(shape.vocabulary, shape.hidden), None),
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        inverse_frequencies=10_000.0 ** -(torch.arange(0, shape.head_dim, 2) / shape.head_dim),
        rope_scale=1.0,
    )


def _adapters(rows: int, columns: int, scheme: Scheme) -> tuple[Adapter, ...]:
    if not scheme.rank:
        return ()
    down = torch.randn(scheme.rank, columns, requires_grad=True)
    return (Adapter(down, torch.zeros(rows, scheme.rank, requires_grad=True), 1.0, 0.0),)


def _pieces(
    model: Decoder, optimizer: torch.optim.Optimizer, job: Job, scheme: Scheme, precision: str
) -> dict[str, float]:
    """Seconds of each piece."""
    ids = _batch(model.embedding.size(0), job)
    requests = [Request(row, job.group) for row in ids[:: job.group, : job.prompt_tokens].tolist()]
    learnt, tokens = ids[: _learnt(job)], job.micro_batch * job.completion_tokens
    found: dict[str, float] = {}

    def timed(name: str, work: Callable[..., Any], *inputs: Any) -> Any:
        start = time.perf_counter()
        made = work(*inputs)
        found[name] = time.perf_counter() - start
        return made

    weight = model.layers[0].down.weight
    in_8_bits = Rounding(scheme.rollout, 0.0).taken(weight, DTYPES[precision], job.decoded)
    laid_out = timed("lay_out", packed, model, precision, job.decoded, scheme.shared, in_8_bits)
    timed("prefill", generate, laid_out, requests, Sampling(1.0), 1, set(), 0, job.rows)
    timed("step", generate, laid_out, requests, Sampling(1.0), 1 + STEPS, set(), 0, job.rows)
    found["step"] = max(0.0, found["step"] - found["prefill"]) / STEPS
    thin = [Request(requests[0].prompt, thin_rows(job))]
    timed("thin_prefill", generate, laid_out, thin, Sampling(1.0), 1, set(), 0, job.rows)
    timed("thin_step", generate, laid_out, thin, Sampling(1.0), 1 + STEPS, set(), 0, job.rows)
    found["thin_step"] = max(0.0, found["thin_step"] - found.pop("thin_prefill")) / STEPS
    del laid_out
    narrow = learns_in_8_bits(scheme.learner, weight, DTYPES[precision])
    rounded = timed("round", Rounded.of, model, DTYPES[precision], tokens, narrow)
    timed("learn", _learn, rounded, learnt, job.completion_tokens, scheme.recompute)
    del rounded
    timed("optimize", optimizer.step)
    optimizer.zero_grad()
    return found


def _batch(vocabulary: int, job: Job) -> torch.Tensor:
    """Random tokens as TRL hands them over, (B, P + T): prompts repeated, with a common beginning."""
    prompts = torch.randint(vocabulary, (job.prompts, job.prompt_tokens))
    prompts[:, : job.shared_tokens] = prompts[0, : job.shared_tokens]
    completions = torch.randint(vocabulary, (job.sequences, job.completion_tokens))
    return torch.cat([prompts.repeat_interleave(job.group, dim=0), completions], dim=1)


def _learn(rounded: Rounded, ids: torch.Tensor, length: int, recompute: bool) -> None:
    logps, _ = completion_logps(rounded, ids, torch.ones_like(ids), length, 1.0, recompute)
    logps.mean().neg().backward()


def _optimizer(model: Decoder, scheme: Scheme) -> torch.optim.Optimizer:
    """As training takes it, for every tensor that learns."""
    tensors: dict[int, torch.Tensor] = {}

    def collect(value: object) -> None:
        if isinstance(value, torch.Tensor):
            if value.requires_grad:
                tensors[id(value)] = value
        elif isinstance(value, tuple):
            for item in value:
                collect(item)
        elif hasattr(value, "__dataclass_fields__"):
            for name in value.__dataclass_fields__:
                collect(getattr(value, name))

    collect(model)
    some: list[Any] = list(tensors.values())
    return Lean(some, lr=1e-6) if scheme.name == "lean" else torch.optim.AdamW(some, lr=1e-6, fused=True)


if __name__ == "__main__":
    print(json.dumps(asdict(measure(json.loads(sys.argv[1])))))
