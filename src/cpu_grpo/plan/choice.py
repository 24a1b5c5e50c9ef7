"""Whether a run fits in memory, and what to change if it does not."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import psutil

from cpu_grpo.config.schema import Train
from cpu_grpo.engine.shape import Shape
from cpu_grpo.errors import UserError
from cpu_grpo.hardware import available_memory
from cpu_grpo.plan.job import Job, job_of
from cpu_grpo.plan.memory import Peak, Scheme, peak, scheme_of
from cpu_grpo.units import gigabytes, in_bytes

SIZES = (
    (1024, 64),
    (256, 16),
)  # tokens of a micro-batch and rows of a rollout to try, where those asked for do not fit
EXACT = ("full", "lean")  # schemes that auto chooses from, as LoRA wants another learning rate
CHECKPOINTED = "trainer.gradient_checkpointing=true"
LORA_RATE = 10  # times full training's learning rate


@dataclass(frozen=True)
class Budget:
    """Memory that a run may take, and who says so."""

    bytes: int
    reason: str


def budget(limit: str) -> Budget:
    """`memory.limit`, or what is free here."""
    free = available_memory() + psutil.Process().memory_info().rss
    asked = in_bytes(limit) if limit else None
    if asked is not None and asked <= free:
        return Budget(asked, f"memory.limit is {gigabytes(asked)}")
    return Budget(free, f"{gigabytes(free)} are free")


@dataclass(frozen=True)
class Option:
    """A configuration that differs from the one asked for by `changes`, and its needs."""

    config: Train
    changes: tuple[str, ...]
    known: "Known"
    job: Job
    scheme: Scheme
    peak: Peak


@dataclass(frozen=True)
class Known:
    """What is known of a run before its model is read."""

    shape: Shape
    prompt_tokens: int  # of the longest prompt
    shared_tokens: int
    compute: int  # bytes of a number that products are computed in
    stored: int = 0  # bytes of a number in the model's file; 0: not known, and taken to be as it is held

    def option(self, config: Train, changes: tuple[str, ...] = ()) -> Option:
        job, scheme = job_of(config, self.prompt_tokens, self.shared_tokens), scheme_of(config)
        return Option(config, changes, self, job, scheme, self.peak(job, scheme))

    def peak(self, job: Job, scheme: Scheme) -> Peak:
        """Memory for some work by a scheme."""
        return peak(self.shape, job, scheme, self.compute, self.stored)


def settle(config: Train, known: Known, room: Budget) -> Option:
    """The configuration as it is, or with such changes as it takes to fit.

    Changes that leave the result alone (smaller micro-batches, fewer rows, layers computed twice) are made without
    asking; another scheme is chosen where memory.scheme is auto.

    Raises:
        UserError: it does not fit; the message has the nearest configuration that does.
    """
    asked = config.memory.scheme
    for scheme in _asked(config):
        for option in _of_scheme(config, scheme, known):
            if option.peak.total <= room.bytes:
                return option
    first = known.option(with_scheme(config, _asked(config)[0]))
    raise UserError(
        f"memory.scheme={asked} needs {gigabytes(first.peak.total)} for this model and batch, and {room.reason}: "
        f"{_advice(config, known, room)}."
    )


def _asked(config: Train) -> tuple[str, ...]:
    """The schemes that the configuration allows."""
    return EXACT if config.memory.scheme == "auto" else (config.memory.scheme,)


def schemes(config: Train, known: Known) -> list[Option]:
    """The schemes' needs for this configuration's model and batch, layers computed twice among them."""
    found = []
    for scheme in ("full", "lean", "lora"):
        changed = with_scheme(config, scheme)
        found.append(known.option(changed, (f"memory={scheme}",)))
        if not scheme_of(changed).recompute:
            found.append(known.option(_checkpointed(changed), (f"memory={scheme}", CHECKPOINTED)))
    return found


def with_scheme(config: Train, scheme: str) -> Train:
    return replace(config, memory=replace(config.memory, scheme=scheme))


def _of_scheme(config: Train, scheme: str, known: Known) -> Iterator[Option]:
    """The configuration with a scheme, and ever less memory without another result."""
    changed = with_scheme(config, scheme)
    first = () if scheme == config.memory.scheme else (f"memory={scheme}",)
    yield known.option(changed, first)
    sizes = [(t, r) for t, r in SIZES if t < config.engine.micro_batch_tokens]
    for tokens, rows in sizes:
        yield known.option(*_smaller(changed, first, tokens, rows))
    if not scheme_of(changed).recompute:
        twice, told = _checkpointed(changed), (*first, CHECKPOINTED)
        yield known.option(twice, told)
        for tokens, rows in sizes:
            yield known.option(*_smaller(twice, told, tokens, rows))


def _smaller(config: Train, changes: tuple[str, ...], tokens: int, rows: int) -> tuple[Train, tuple[str, ...]]:
    rows = min(rows, config.engine.rows)
    engine = replace(config.engine, micro_batch_tokens=tokens, rows=rows)
    return replace(config, engine=engine), (*changes, f"engine.micro_batch_tokens={tokens}", f"engine.rows={rows}")


def _checkpointed(config: Train) -> Train:
    return replace(config, trainer=replace(config.trainer, gradient_checkpointing=True))


def _advice(config: Train, known: Known, room: Budget) -> str:
    """The nearest configuration that fits, in words."""
    for scheme in (scheme for scheme in (*EXACT, "lora") if scheme not in _asked(config)):
        for option in _of_scheme(config, scheme, known):
            if option.peak.total <= room.bytes:
                rate = (
                    f" trainer.learning_rate={LORA_RATE * config.trainer.learning_rate:g}" if scheme == "lora" else ""
                )
                return f"use {' '.join(option.changes)}{rate} ({gigabytes(option.peak.total)})"
    least = min(
        (option for scheme in (*EXACT, "lora") for option in _of_scheme(config, scheme, known)),
        key=lambda option: option.peak.total,
    )
    return (
        f"no scheme fits, the least is {gigabytes(least.peak.total)} with {' '.join(least.changes)}; free some memory "
        "or take a smaller model"
    )
