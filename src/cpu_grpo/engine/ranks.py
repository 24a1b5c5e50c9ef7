"""Processes that learn together (`torchrun`, `accelerate launch`): what they agree on, and their gradients' mean.

Each process, a rank, rolls out and learns whole groups of its own, in as many micro-batches as these need. So within a
loss ranks say nothing to each other; TRL's exchanges of metrics there are put off until all of its parts are done.
transformers' DistributedDataParallel sums up gradients of a model that is called, which the fast path does not do.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import distributed

BUCKET = 2**24  # numbers that are exchanged at a time, so that little memory is taken besides the gradients


def mean_gradients(parameters: Iterable[torch.nn.Parameter], sound: bool) -> None:
    """Gives every rank the mean of all ranks' gradients; NaN, which no update is made of, if one has no sound ones.

    Args:
        parameters: that learn, in the same order on all ranks; one without a gradient counts as zeros.
    """
    for bucket in _buckets(parameters):
        flat = torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten().float() for p in bucket])
        if not sound:
            flat.fill_(torch.nan)
        distributed.all_reduce(flat)
        for parameter, part in zip(bucket, flat.div_(ranks()).split([p.numel() for p in bucket]), strict=True):
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
            parameter.grad.copy_(part.view_as(parameter))


def _buckets(parameters: Iterable[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    some: list[torch.nn.Parameter] = []
    for parameter in parameters:
        if some and sum(p.numel() for p in some) + parameter.numel() > BUCKET:
            yield some
            some = []
        some.append(parameter)
    if some:
        yield some


@contextmanager
def apart(accelerator: Any) -> Iterator[None]:
    """Within it, what TRL would gather of all ranks is this one's alone."""
    own = ("gather", "gather_for_metrics") if together() else ()
    try:
        for name in own:
            setattr(accelerator, name, lambda value, *_: value)
        yield
    finally:
        for name in own:
            delattr(accelerator, name)


def total(number: float) -> float:
    """The sum of all ranks' numbers; the number itself where there is one process."""
    if not together():
        return number
    summed = torch.tensor(number, dtype=torch.float64)
    distributed.all_reduce(summed)
    return float(summed)


def agreed(reason: str | None) -> str | None:
    """The first rank's reason that has one, for all of them."""
    if not together():
        return reason
    return next((told for told in gather_object([reason]) if told), None)


def rank() -> int:
    """This process's number, from 0."""
    return distributed.get_rank() if together() else 0


def ranks() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if together() else 1


def together() -> bool:
    """Whether there are several ranks."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
