"""Updates of weights held in bf16: small ones arrive, and they are Adafactor's."""

import pytest
import torch

from cpu_grpo.engine.schemes.lean import Lean, descend

BF16 = torch.bfloat16


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def parameter(*shape, dtype=torch.float32, seed=0):
    return torch.nn.Parameter(torch.randn(shape, generator=generator(seed)).to(dtype))


def adafactor(weight, gradients, lr, decay=0.0):
    """As the paper writes it (algorithms 4 and 5, no momentum, absolute steps), in double precision."""
    weight, rows, columns, squares = weight.double(), 0.0, 0.0, 0.0
    for t, gradient in enumerate(gradients, 1):
        gradient, old = gradient.double(), 1 - t**-0.8
        fresh = gradient.square() + 1e-30
        if weight.dim() == 2:
            rows = old * rows + (1 - old) * fresh.mean(dim=1)
            columns = old * columns + (1 - old) * fresh.mean(dim=0)
            squares = rows[:, None] * columns / rows.mean()
        else:
            squares = old * squares + (1 - old) * fresh
        step = gradient / squares.sqrt()
        step = step / max(1.0, float(step.square().mean().sqrt()))
        weight = weight * (1 - lr * decay) - lr * step
    return weight


@pytest.mark.parametrize("shape", [(7,), (1, 5), (40, 3), (64, 48)])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("some", [16, 2**20])
def test_updates_are_adafactors(kernels, shape, decay, some, monkeypatch):
    monkeypatch.setattr("cpu_grpo.engine.schemes.lean.SOME", some)
    weight = parameter(*shape)
    gradients = [torch.randn(shape, generator=generator(seed)) * 10.0 ** (seed - 3) for seed in range(1, 5)]
    wanted = adafactor(weight.detach(), gradients, 0.01, decay)
    optimizer = Lean([weight], lr=0.01, weight_decay=decay)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    torch.testing.assert_close(weight.detach().double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("kernels")
def test_a_gradient_of_zeros_changes_nothing():
    weight = parameter(8, 8, dtype=BF16)
    before = weight.detach().clone()
    optimizer = Lean([weight], lr=0.1)
    for _ in range(3):
        weight.grad = torch.zeros(8, 8, dtype=BF16)
        optimizer.step()
    assert weight.equal(before)


@pytest.mark.usefixtures("kernels")
def test_a_gradient_that_is_not_finite_spoils_its_own_update_alone():
    """With any trainer, also one that never asks for the norm."""
    weights = [torch.nn.Parameter(torch.ones(4, 8, dtype=BF16)) for _ in range(2)]
    optimizer = Lean(weights, lr=0.5)
    for bad in (True, False):
        for weight in weights:
            weight.grad = torch.full((4, 8), float("nan") if bad else 1.0, dtype=BF16)
        optimizer.step()
        assert all(weight.eq(1).all() for weight in weights) == bad
        assert all(weight.isfinite().all() for weight in weights)


@pytest.mark.usefixtures("kernels")
def test_a_sum_of_tiny_updates_arrives_where_rounding_to_nearest_loses_it():
    """Each update is a thousandth of what bf16 can tell apart at 1; 2,000 of them move fp32 weights by 0.0156."""
    tiny, updates = 2**-7 / 1000, 2000
    nearest, weight = torch.ones(256, 64, dtype=BF16), torch.nn.Parameter(torch.ones(256, 64, dtype=BF16))
    optimizer = Lean([weight], lr=tiny)
    for _ in range(updates):
        weight.grad = torch.ones(256, 64, dtype=BF16)
        optimizer.step()
        nearest -= tiny
    moved = 1 - weight.detach().float().mean()
    # The sum of 2,000 steps of 0 or 2^-8 each, over 16,384 weights: its mean is known to about 1 in 1,000.
    assert moved == pytest.approx(tiny * updates, rel=0.02)
    assert nearest.equal(torch.ones_like(nearest))


@pytest.mark.usefixtures("kernels")
def test_rounding_at_random_takes_the_two_neighbours_with_chances_that_keep_the_mean():
    numbers = torch.tensor([1.0, 1.0 + 2**-7 * 0.25, -3.0 - 2**-6 * 0.9, 1e-30, 0.0, -0.0])
    start = torch.full((200_000, len(numbers)), 0.5, dtype=BF16)
    drawn = start.clone()
    # 0.5 * kept - step is the number, exactly enough: the kept part is 0.
    descend(drawn, torch.ones_like(drawn), torch.ones(len(drawn)), -numbers, 0.0, generator())
    drawn, wanted = drawn.double(), numbers.double()
    below = numbers.view(torch.int32).bitwise_and(-(2**16)).view(torch.float32).double()
    above = (numbers.view(torch.int32).bitwise_and(-(2**16)) + 2**16).view(torch.float32).double()
    assert ((drawn == below) | (drawn == above)).all()
    gap = (above - below).abs()
    chance = (wanted - below).abs() / gap
    tolerance = 5 * gap * (chance * (1 - chance) / len(drawn)).sqrt() + 1e-12 * wanted.abs()
    assert ((drawn.mean(dim=0) - wanted).abs() <= tolerance).all()
    assert drawn[:, 0].eq(1).all() and drawn[:, 4:].eq(0).all()


@pytest.mark.usefixtures("kernels")
def test_random_numbers_of_neighbours_and_of_one_update_and_the_next_have_nothing_to_do_with_each_other():
    ups, random = [], generator()
    for _ in range(2):
        weight = torch.ones(500, 400, dtype=BF16)
        descend(weight, torch.ones_like(weight), torch.ones(500), torch.full((400,), -(2.0**-8)), 1.0, random)
        ups.append((weight > 1).double() - 0.5)
    first, second = ups
    assert abs(first.mean()) < 0.01
    for a, b in ((first[1:], first[:-1]), (first[:, 1:], first[:, :-1]), (first, second)):
        assert abs((a * b).mean()) * 4 < 5 / a.numel() ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_updates_within_backward_are_those_of_a_step_after_it(dtype):
    def trained(within):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4)).to(dtype)
        optimizer = Lean(model.parameters(), lr=0.01)
        norms = []
        for seed in range(3):
            optimizer.within_backward = within
            model(torch.randn(5, 8, generator=generator(seed)).to(dtype)).float().square().sum().backward()
            assert all((p.grad is None) == within for p in model.parameters())
            grads = [p.grad.float().norm() for p in model.parameters() if p.grad is not None]
            optimizer.step()
            norms.append(optimizer.gradient_norm())
            if grads:
                assert norms[-1] == pytest.approx(float(torch.stack(grads).norm()), rel=1e-5)
        return torch.cat([p.detach().flatten() for p in model.parameters()]), norms

    (after, norms), (within, within_norms) = trained(False), trained(True)
    assert norms == pytest.approx(within_norms, rel=1e-2 if dtype == BF16 else 1e-5)
    # In bf16 the order of updates decides which random numbers each gets.
    torch.testing.assert_close(after.float(), within.float(), rtol=0, atol=0.02 if dtype == BF16 else 1e-6)


def test_the_seed_decides_the_rounding():
    def once(seed):
        weight = parameter(64, 64, dtype=BF16)
        optimizer = Lean([weight], lr=1e-4, seed=seed)
        weight.grad = parameter(64, 64, seed=1).detach().to(BF16)
        optimizer.step()
        return weight.detach()

    assert once(1).equal(once(1))
    assert not once(1).equal(once(2))


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_state_is_of_rows_and_columns_only_and_survives_saving(dtype):
    weight, other = parameter(64, 48, dtype=dtype), parameter(64, 48, dtype=dtype)
    first = Lean([weight], lr=0.01)
    weight.grad = parameter(64, 48, dtype=dtype, seed=1).data
    first.step()
    numbers = sum(value.numel() for value in first.state[weight].values() if torch.is_tensor(value))
    assert numbers == 64 + 48
    second = Lean([other], lr=0.01)
    second.load_state_dict(first.state_dict())
    for name, value in first.state[weight].items():
        assert torch.equal(torch.as_tensor(second.state[other][name]), torch.as_tensor(value))
