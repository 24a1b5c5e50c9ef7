from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpu_grpo.config.schema import Memory, Train, Trainer
from cpu_grpo.engine.shape import Shape
from cpu_grpo.errors import UserError
from cpu_grpo.plan import choice
from cpu_grpo.plan.choice import Budget, Known, schemes, settle, with_scheme

QWEN = Shape(896, 24, 14, 2, 64, 4864, 151_936, tied=True, biases=True)  # 494 million parameters
KNOWN = Known(QWEN, prompt_tokens=115, shared_tokens=0, compute=4)


def config(scheme="full"):
    trainer = Trainer(per_device_train_batch_size=64, max_completion_length=64, learning_rate=1e-5)
    return Train(name="mine", trainer=trainer, memory=Memory(scheme=scheme))


def gb(amount):
    return Budget(round(amount * 1e9), f"{amount} GB are free")


def need(changed):
    return KNOWN.option(changed).peak.total


def test_what_fits_stays_as_it_is():
    chosen = settle(config(), KNOWN, gb(100))
    assert chosen.config == config() and chosen.changes == ()


def test_micro_batches_get_smaller_before_layers_are_computed_twice():
    whole = need(config())
    chosen = settle(config(), KNOWN, Budget(whole - 1, ""))
    assert chosen.config.memory == config().memory and not chosen.config.trainer.gradient_checkpointing
    assert chosen.config.engine.micro_batch_tokens < config().engine.micro_batch_tokens
    assert chosen.peak.total < whole


def test_layers_are_computed_twice_where_smaller_micro_batches_do_not_do():
    engine = replace(config().engine, micro_batch_tokens=256, rows=16)
    least = need(replace(config(), engine=engine))
    chosen = settle(config(), KNOWN, Budget(least - 1, ""))
    assert chosen.config.trainer.gradient_checkpointing and chosen.config.memory.scheme == "full"


@pytest.mark.parametrize("scheme", ["lean", "lora"])
def test_layers_are_computed_once_where_that_is_asked_and_fits(scheme):
    once = replace(config(scheme), memory=Memory(scheme=scheme, recompute=False))
    assert settle(once, KNOWN, gb(100)).config == once
    assert need(once) > need(config(scheme))


def test_layers_are_computed_twice_all_the_same_where_that_alone_fits():
    once = replace(config("lora"), memory=Memory(scheme="lora", recompute=False))
    smallest = replace(once, engine=replace(once.engine, micro_batch_tokens=256, rows=16))
    chosen = settle(once, KNOWN, Budget(need(smallest) - 1, ""))
    assert chosen.config.trainer.gradient_checkpointing and chosen.peak.total < need(smallest)
    assert chosen.changes[0] == "trainer.gradient_checkpointing=true"


def test_another_scheme_is_not_taken_unasked_but_named():
    with pytest.raises(UserError, match=r"memory\.scheme=full needs .* GB .*, and 4 GB are free: use memory=lean"):
        settle(config(), KNOWN, gb(4))


def test_the_named_alternative_fits():
    with pytest.raises(UserError) as refused:
        settle(config(), KNOWN, gb(4))
    assert "use memory=lean" in str(refused.value)
    assert settle(config("lean"), KNOWN, gb(4)).peak.total <= 4e9


def test_auto_takes_the_most_exact_scheme_that_fits():
    assert settle(config("auto"), KNOWN, gb(100)).config.memory.scheme == "full"
    assert settle(config("auto"), KNOWN, gb(4)).config.memory.scheme == "lean"


def test_lora_is_proposed_with_a_rate_of_its_own():
    least = min(option.peak.total for option in choice._of_scheme(config(), "lean", KNOWN))
    with pytest.raises(UserError, match=r"memory=lora .*trainer\.learning_rate=0\.0001"):
        settle(config("auto"), KNOWN, Budget(least - 1, ""))


def test_where_nothing_fits_the_least_is_named():
    with pytest.raises(UserError, match=r"no scheme fits, the least is [\d.]+ GB with memory=lora"):
        settle(config(), KNOWN, gb(0.5))


@given(
    amount=st.integers(10**8, 2 * 10**11),
    scheme=st.sampled_from(["full", "lean", "lora", "auto"]),
    completions=st.sampled_from([8, 64, 512]),
    length=st.integers(1, 2000),
)
def test_whatever_is_chosen_fits_and_learns_the_same(amount, scheme, completions, length):
    asked = replace(
        config(scheme), trainer=Trainer(per_device_train_batch_size=completions, max_completion_length=length)
    )
    try:
        chosen = settle(asked, KNOWN, Budget(amount, ""))
    except UserError:
        return
    assert chosen.peak.total <= amount
    kept = replace(chosen.config.trainer, gradient_checkpointing=False)
    assert kept == asked.trainer and chosen.config.memory.scheme in (scheme, "full", "lean")


def test_the_limit_is_the_budget_unless_less_is_free(monkeypatch):
    monkeypatch.setattr(choice, "available_memory", lambda: 8 * 10**9)
    assert choice.budget("4GB") == Budget(4 * 10**9, "memory.limit is 4.00 GB")
    assert 8e9 < choice.budget("").bytes < 10e9 and "are free" in choice.budget("").reason
    assert choice.budget("64GB") == choice.budget("") or "are free" in choice.budget("64GB").reason


def test_every_scheme_is_listed_once():
    listed = [option.changes for option in schemes(config("lora"), KNOWN)]
    assert listed == [
        ("memory=full",),
        ("memory=full", "trainer.gradient_checkpointing=true"),
        ("memory=lean",),
        ("memory=lora",),
    ]
    assert len({need(with_scheme(config(), scheme)) for scheme in ("full", "lean", "lora")}) == 3
