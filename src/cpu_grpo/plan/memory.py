"""What a training run has in memory at its fullest moments, added up from the model's sizes and the work.

Every term names what it stands for, and `make bench` compares the sums with measured peaks.
"""

from dataclasses import dataclass

from cpu_grpo.config.schema import Train
from cpu_grpo.engine.kernels.products import FEW, INT8_BYTES
from cpu_grpo.engine.learner.forward import MANY
from cpu_grpo.engine.learner.size import attended_pairs, micro_batch_bytes
from cpu_grpo.engine.rollout.size import rollout_bytes
from cpu_grpo.engine.shape import WIDE, Shape
from cpu_grpo.plan.job import Job

LIBRARIES = 560_000_000  # bytes of a training process that has imported what it needs, and has no model
# Free memory between what is in use, in pieces that are too small: a share of it where freed buffers of every size are
# kept; where large ones are given back (hardware.keep_memory), about as much as the small ones take (docs/log.md).
WASTED_SHARE = {True: 0.12, False: 0.02}  # by whether large buffers are kept
WASTED_BY_SMALL = 200_000_000  # bytes


@dataclass(frozen=True)
class Scheme:
    """How weights, gradients and the optimizer's state are held."""

    name: str  # full, lean or lora
    recompute: bool  # layers are computed again for their gradients
    rank: int = 0  # lora: of the adapters
    shared: bool = False  # the rollout reads the weights where they lie
    rollout: str = "exact"  # how it holds them: exact, int8 or auto
    learner: str = "exact"  # how it takes frozen ones: exact, int8 or auto

    @property
    def held(self) -> int:
        """Bytes of a weight."""
        return 4 if self.name == "full" else 2

    @property
    def roomy(self) -> bool:
        """Whether freed memory is kept for speed, as by trainers of models in fp32 whose layers are computed once."""
        return self.name == "full" and not self.recompute


def scheme_of(config: Train) -> Scheme:
    """A configuration's."""
    name, settings = config.memory.scheme, config.trainer
    completions = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
    return Scheme(
        name=name,
        recompute=settings.gradient_checkpointing or (name != "full" and config.memory.recompute),
        rank=config.memory.lora_rank if name == "lora" else 0,
        shared=name == "lora" and min(completions, config.engine.rows) <= FEW,  # where that costs little time
        rollout=config.engine.rollout,
        learner=config.engine.learner if name == "lora" else "exact",
    )


@dataclass(frozen=True)
class Peak:
    """Bytes."""

    libraries: int
    weights: int  # of the policy, and of a reference if there is one
    optimizer: int
    rollout: int  # besides: weights laid out for it, keys and values, prefill
    learner: int  # besides: activations, scores, gradients
    wasted: int
    loading: int  # of weights, and of their file's pages where numbers of another kind are read from it

    @property
    def total(self) -> int:
        training = self.weights + self.optimizer + max(self.rollout, self.learner) + self.wasted
        return self.libraries + max(self.loading, training)


def peak(shape: Shape, job: Job, scheme: Scheme, compute: int, stored: int = 0) -> Peak:
    """The most that a run has in memory.

    Args:
        compute: bytes of a number that products are computed in.
        stored: bytes of a number in the model's file; 0: as the scheme holds them.
    """
    trained = shape.adapters(scheme.rank) if scheme.rank else shape.parameters
    adapters = WIDE * trained if scheme.rank else 0
    optimizer = {"full": 2 * WIDE * trained, "lean": 0, "lora": 2 * WIDE * trained}[scheme.name]
    weights = scheme.held * shape.parameters * (1 + job.reference) + adapters
    prompts = -(-job.decoded // job.group)
    lengths = (job.prompt_tokens, job.longest)
    rollout = max(
        rollout_bytes(shape, job.decoded, prompts, *lengths, compute, scheme.held, scheme.shared, rounded)
        for rounded in {"exact": (False,), "int8": (True,), "auto": (False, True)}[scheme.rollout]
    )
    learner = learner_bytes(shape, job, scheme, compute, trained)
    used = weights + optimizer + max(rollout, learner)  # rollout and learner take turns
    wasted = round(used * WASTED_SHARE[scheme.roomy]) + (not scheme.roomy) * WASTED_BY_SMALL
    loading = shape.parameters * (scheme.held + (stored if stored != scheme.held else 0))
    return Peak(LIBRARIES, weights, optimizer, rollout, learner, wasted, loading)


def learner_bytes(shape: Shape, job: Job, scheme: Scheme, compute: int, trained: int) -> int:
    """The larger of what is there when backward begins, and when it ends with all gradients."""
    rounded = _rounded(shape, scheme, compute, min(job.micro_batch, job.sequences) * job.completion_tokens)
    kept = _kept(shape, job, scheme, compute, job.completions_at_once)
    embedding = scheme.held * shape.head  # its gradient as an embedding, before it joins the head's
    if scheme.name == "lora":
        return rounded + kept + WIDE * trained
    if scheme.name == "lean":
        return rounded + max(kept + embedding, 2 * embedding)
    head = embedding if scheme.recompute else (WIDE + compute) * shape.head  # the head's own gradient
    gradients = WIDE * trained
    fullest = [kept + head, gradients + embedding]
    if job.parts > 1:  # gradients of the parts before are there; only the last part may be smaller
        later = kept if job.parts > 2 else _kept(shape, job, scheme, compute, job.last_completions)
        fullest.append(gradients + later + head)
    return rounded + max(fullest)


def _kept(shape: Shape, job: Job, scheme: Scheme, compute: int, completions: int) -> int:
    """Of a part of so many completions, when backward begins."""
    prompts = -(-completions // job.group)
    tokens, scored = job.packed(completions), completions * job.completion_tokens
    pairs = attended_pairs(job.prompt_tokens, completions, job.completion_tokens, prompts, job.shared_tokens)
    return micro_batch_bytes(shape, tokens, scored, pairs, job.shared_tokens, compute, scheme.recompute)


def _rounded(shape: Shape, scheme: Scheme, compute: int, tokens: int) -> int:
    """Weights as products take them beside the masters; twice where many tokens repay laying them out both ways."""
    converted = compute not in (WIDE, scheme.held)
    head, body = converted * compute * shape.head, converted * compute * shape.body * (2 if tokens >= MANY else 1)
    in_8_bits = round(2 * INT8_BYTES * (shape.body + shape.head))
    return head + {"exact": body, "int8": in_8_bits, "auto": max(body, in_8_bits)}[scheme.learner]
