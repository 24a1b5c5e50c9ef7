"""Threads, more of them than cores too: results are the same but for rounding, and the same bits for as many."""

import pytest
import torch

from conftest import with_lora
from cpu_grpo.engine.decoder import decoder
from cpu_grpo.engine.kernels.products import int8_available
from cpu_grpo.engine.learner import Rounded, completion_logps
from cpu_grpo.engine.rollout import Sampling, generate, packed
from rollouts import ENDS, LIMIT, REQUESTS, tokens

COUNTS = (1, 2, 3, 7, 16)  # this machine may have two cores
IDS = torch.arange(3, 103).view(4, 25).repeat_interleave(2, dim=0)  # two completions of each of four prompts
LENGTH = 15


@pytest.fixture(autouse=True)
def keep_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def rolled_out(model, rows, rounded=False):
    laid_out = packed(decoder(model), "fp32", rows, rounded=rounded)
    return [c for group in generate(laid_out, REQUESTS, Sampling(), LIMIT, ENDS, seed=0, rows=rows) for c in group]


def learnt(model, narrow=False, recompute=False):
    """Log-probs and gradients, as one vector."""
    model.zero_grad()
    rounded = Rounded.of(decoder(model), torch.float32, 10_000, narrow)
    logps, _ = completion_logps(rounded, IDS, torch.ones_like(IDS), LENGTH, 0.9, recompute)
    (logps * torch.linspace(-1, 1, LENGTH)).sum().backward()
    return torch.cat([logps.detach().flatten(), *(p.grad.flatten() for p in model.parameters() if p.grad is not None)])


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("rows", [3, 40])  # decoded in one call of a kernel, and layer by layer
def test_rollouts_are_the_same_by_any_number_of_threads(tiny_model, kernels, rows, rounded):
    if rounded and not (kernels == "compiled" and int8_available()):
        pytest.skip("products of 8 bits are compiled kernels")
    found = {}
    for count in COUNTS:
        torch.set_num_threads(count)
        found[count] = rolled_out(tiny_model, rows, rounded)
        assert rolled_out(tiny_model, rows, rounded) == found[count]  # to the bit
    one, *others = found.values()
    for other in others:
        assert tokens([other]) == tokens([one])
        for mine, theirs in zip(one, other, strict=True):
            assert mine.logps == pytest.approx(theirs.logps, abs=1e-5)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("narrow", [False, True])
def test_gradients_are_the_same_by_any_number_of_threads(tiny_model, kernels, narrow, recompute):
    if narrow and not (kernels == "compiled" and int8_available()):
        pytest.skip("products of 8 bits are compiled kernels")
    model = with_lora(tiny_model) if narrow else tiny_model
    found = {}
    for count in COUNTS:
        torch.set_num_threads(count)
        found[count] = learnt(model, narrow, recompute)
        assert torch.equal(learnt(model, narrow, recompute), found[count])
    one, *others = found.values()
    assert one.abs().max() > 0.1
    for other in others:
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)
