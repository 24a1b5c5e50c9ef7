"""Rollouts with weights in 8 bits: their choice, what the learner makes of them, and when they are given up."""

import warnings

import pytest
import torch

from conftest import need_narrow_products
from cpu_grpo import CPUGRPOTrainer, FastOptions
from cpu_grpo.engine import rounding
from cpu_grpo.engine.decoder import decoder
from cpu_grpo.engine.rollout import Sampling, generate, packed
from cpu_grpo.engine.rounding import BOUND, CAP, Rounding, learns_in_8_bits
from cpu_grpo.models.loading import load_model
from rollouts import ENDS, LIMIT, REQUESTS, complete, differences, tokens
from trainers import make, with_scheme

BF16 = torch.bfloat16
WEIGHT = torch.zeros(4, 4, dtype=BF16)


@pytest.fixture(autouse=True)
def bytes_are_multiplied():
    need_narrow_products(torch.float32, torch.int8)


@pytest.mark.parametrize(
    ("rollout", "faster", "taken"),
    [("exact", True, False), ("int8", False, True), ("auto", True, True), ("auto", False, False)],
)
def test_8_bits_are_taken_where_asked_for_or_faster(monkeypatch, rollout, faster, taken):
    monkeypatch.setattr(rounding, "int8_pays", lambda *_: faster)
    chosen = Rounding(rollout, 0.0)
    assert chosen.taken(WEIGHT, BF16, 8) == taken == chosen.current
    assert chosen.cap == (CAP if taken else 0)
    assert Rounding(rollout, 5.0).cap == 5


def test_a_difference_beyond_the_bound_ends_them_with_one_sentence():
    chosen = Rounding("int8", 0.0)
    assert chosen.taken(WEIGHT, BF16, 8)
    chosen.see(torch.tensor([[-0.9 * BOUND, 0.9 * BOUND, 0.0]]), 2)
    assert chosen.close() is None
    chosen.see(torch.tensor([[1.5 * BOUND]]), 1)  # an update's parts are counted together
    chosen.see(torch.tensor([[-1.5 * BOUND]]), 1)
    assert (
        chosen.close()
        == "Rollouts in 8 bits are off by 0.15 in log-probs on average, more than 0.1: from now on they are exact."
    )
    assert not chosen.taken(WEIGHT, BF16, 8) and chosen.cap == 0
    chosen.see(torch.tensor([[9.0]]), 1)
    assert chosen.close() is None


def test_differences_of_exact_rollouts_are_none_of_its_business():
    chosen = Rounding("exact", 0.0)
    chosen.see(torch.tensor([[9.0]]), 1)
    assert chosen.close() is None


def test_asking_for_8_bits_on_a_machine_without_is_an_error(monkeypatch):
    monkeypatch.setattr(rounding, "int8_available", lambda: False)
    with pytest.raises(ValueError, match="multiplies no bytes"):
        Rounding("int8", 0.0)
    assert not Rounding("auto", 0.0).refused


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("shared", [True, False])
def test_log_probs_are_a_little_off_and_all_layers_are_computed_at_once(any_model, precision, shared):
    def completed(model):
        return generate(model, REQUESTS, Sampling(), LIMIT, ENDS, seed=0, rows=7)

    model = packed(decoder(any_model), precision, 7, shared, rounded=True)
    assert model.at_once is not None
    found = completed(model)
    far = differences(any_model, REQUESTS, found).abs()
    assert 1e-3 < far.mean() < 0.15  # random weights magnify it: measured 0.01 to 0.1
    assert tokens(found) != tokens(complete(any_model, REQUESTS, Sampling(), precision=precision, rows=7))


def test_rollouts_follow_the_learned_weights_and_are_weighed(tiny_directory, tokenizer, tmp_path, monkeypatch):
    weighed = []
    import cpu_grpo.engine.trainer as module

    original = module.weigh_advantages
    monkeypatch.setattr(
        module, "weigh_advantages", lambda part, off, cap: weighed.append(cap) or original(part, off, cap)
    )
    model, _ = load_model(tiny_directory)
    options = {"fast": FastOptions("fp32", rollout="int8")}
    trainer = make(CPUGRPOTrainer, model, tokenizer, tmp_path, options, learning_rate=3e-3, max_steps=4)
    trainer.train()
    logged = [entry["rollout/logp_difference_mean"] for entry in trainer.state.log_history if "reward" in entry]
    assert len(logged) == 4 and min(logged) > 1e-4 and max(logged) < BOUND  # stale weights would be off by far more
    assert set(weighed) == {CAP}


def test_rollouts_too_far_off_are_exact_from_then_on_also_after_a_checkpoint(
    tiny_directory, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr(rounding, "BOUND", 1e-6)
    model, _ = load_model(tiny_directory)
    options = {"fast": FastOptions("fp32", rollout="int8")}
    changes = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "num_iterations": 1}
    trainer = make(CPUGRPOTrainer, model, tokenizer, tmp_path, options, **changes)
    with pytest.warns(UserWarning, match="from now on they are exact") as told:
        trainer.train()
    assert len([warning for warning in told if "exact" in str(warning.message)]) == 1
    logged = [entry["rollout/logp_difference_mean"] for entry in trainer.state.log_history if "reward" in entry]
    assert logged[0] > 1e-4 and max(logged[1:]) < 1e-5
    model, _ = load_model(tiny_directory)
    again = make(CPUGRPOTrainer, model, tokenizer, tmp_path, options, **changes | {"max_steps": 4})
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        again.train(resume_from_checkpoint=True)
    assert again.rounding.refused and not again.rounding.current


@pytest.mark.parametrize(
    ("learner", "faster", "taken"),
    [("exact", True, False), ("int8", False, True), ("auto", True, True), ("auto", False, False)],
)
def test_the_learner_rounds_frozen_weights_where_asked_or_faster(monkeypatch, learner, faster, taken):
    monkeypatch.setattr(rounding, "int8_pays", lambda *_: faster)
    assert learns_in_8_bits(learner, WEIGHT, BF16) == taken
    assert not learns_in_8_bits(learner, torch.zeros(4, 4, requires_grad=True), BF16)


def test_adapters_learn_in_8_bits_nearly_what_they_learn_exactly(tiny_directory, tokenizer, tmp_path):
    ended = {}
    for learner in ("exact", "int8"):
        torch.manual_seed(0)
        model, options, own = with_scheme("lora", tiny_directory, learner=learner)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        trainer = make(CPUGRPOTrainer, model, tokenizer, tmp_path / learner, options, max_steps=3, **own)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # the self-check agrees
            trainer.train()
        adapters = {name: p.detach() for name, p in trainer.model.named_parameters() if "lora_B" in name}
        ended[learner] = torch.cat([p.flatten() for p in adapters.values()])
        frozen = {name: p for name, p in trainer.model.named_parameters() if not p.requires_grad}
        assert len(frozen) == len(before) and all(
            torch.equal(p, before[name.removeprefix("base_model.model.").replace(".base_layer", "")])
            for name, p in frozen.items()
        )
    assert not torch.equal(ended["exact"], ended["int8"])
    assert torch.cosine_similarity(ended["exact"], ended["int8"], dim=0) > 0.9


def test_a_learner_in_8_bits_needs_weights_that_are_frozen(tiny_directory, tokenizer, tmp_path):
    model, _ = load_model(tiny_directory)
    with pytest.raises(ValueError, match="all weights learn: train adapters"):
        make(CPUGRPOTrainer, model, tokenizer, tmp_path, {"fast": FastOptions("fp32", learner="int8")})


def test_a_learner_in_8_bits_needs_a_machine_with_them(tiny_directory, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(rounding, "int8_available", lambda: False)
    model, options, _ = with_scheme("lora", tiny_directory, learner="int8")
    with pytest.raises(ValueError, match="multiplies no bytes"):
        make(CPUGRPOTrainer, model, tokenizer, tmp_path, options)
