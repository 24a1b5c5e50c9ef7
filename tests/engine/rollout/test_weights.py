"""What adapters add to projections that are computed together, against each adapter by itself."""

import pytest
import torch

from cpu_grpo.engine.decoder import Adapter, Linear
from cpu_grpo.engine.rollout.weights import _adapted


def linear(outs, ranks, scale=2.0):
    """A projection of 8 features."""
    adapters = (Adapter(torch.randn(rank, 8), torch.randn(outs, rank), scale / rank, 0.0) for rank in ranks)
    return Linear(torch.randn(outs, 8), None, tuple(adapters))


@pytest.mark.parametrize("ranks", [[(4,), (4,), (4,)], [(3,), (), (2,)], [(), (4, 1), ()], [(2,), (), ()]])
def test_adapters_add_what_each_adds_by_itself(ranks):
    torch.manual_seed(0)
    parts = [linear(outs, own) for outs, own in zip((6, 2, 4), ranks, strict=True)]
    x = torch.randn(5, 8)
    wanted = torch.cat(
        [x @ (part.weight + sum(a.scale * a.up @ a.down for a in part.adapters)).t() for part in parts], dim=1
    )

    def base(x):
        return x @ torch.cat([part.weight for part in parts]).t()

    torch.testing.assert_close(_adapted(base, tuple(parts), torch.float32)(x), wanted)
