"""Numbers gone bad: an update whose loss or gradients are not finite changes nothing, is told, and can be looked at."""

import math

import pytest
import torch
from transformers import TrainerCallback

from cpu_grpo import CPUGRPOTrainer
from cpu_grpo.engine.soundness import Diverged
from trainers import make, with_scheme

UPDATES = 5
KEPT = ("completion_ids", "advantages", "completion_mask")


class Watch(TrainerCallback):
    """Keeps the weights as they were after each update."""

    def __init__(self):
        self.after = {}

    def on_step_end(self, args, state, control, model=None, **_):
        self.after[state.global_step] = {name: p.detach().clone() for name, p in model.named_parameters()}


def trainer_of(scheme, directory, tokenizer, out, **changes):
    model, options, own = with_scheme(scheme, directory)
    trainer = make(CPUGRPOTrainer, model, tokenizer, out, options, **{"max_steps": UPDATES} | changes | own)
    trainer.add_callback(watch := Watch())
    return trainer, watch.after


def spoil_loss(trainer, updates):
    """Makes the advantages, and so the loss, of these updates infinite, as a reward function's mistake would."""
    right = trainer._generate_and_score_completions

    def drawn(inputs):
        found = right(inputs)
        if trainer.state.global_step + 1 in updates:
            found["advantages"] = found["advantages"] + math.inf
        return found

    trainer._generate_and_score_completions = drawn


def spoil_gradient(trainer, updates):
    """Makes the gradient of one weight NaN in these updates, with a loss that is a number."""
    name, weight = next((n, p) for n, p in trainer.model.named_parameters() if p.requires_grad and "layers.1" in n)
    weight.register_hook(lambda g: g * math.nan if trainer.state.global_step + 1 in updates else g)
    return name


def changed(before, after):
    return [name for name in before if not torch.equal(before[name], after[name])]


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch", [8, 4], ids=["one micro-batch", "two"])
@pytest.mark.parametrize("scheme", ["full", "lean", "lora"])
def test_an_update_without_a_finite_loss_is_skipped_and_kept(tiny_directory, tokenizer, tmp_path, scheme, micro_batch):
    changes = {"per_device_train_batch_size": micro_batch, "gradient_accumulation_steps": 8 // micro_batch}
    trainer, after = trainer_of(scheme, tiny_directory, tokenizer, tmp_path, **changes)
    spoil_loss(trainer, {2, 3})
    with pytest.warns(UserWarning, match=r"Update 2 is skipped, as its loss is not finite; its batch is in .*update-2"):
        trainer.train()
    assert changed(after[1], after[3]) == []
    assert changed(after[3], after[4]) and all(weight.isfinite().all() for weight in after[UPDATES].values())
    history = [row for row in trainer.state.log_history if "update/skipped" in row]
    assert [row["update/skipped"] for row in history] == [0, 1, 1, 0, 0]
    kept = torch.load(tmp_path / "bad_batches" / "update-3.pt", weights_only=True)
    assert kept["reason"] == "loss" and set(KEPT) <= set(kept["batches"][0])
    assert kept["batches"][0]["advantages"].isinf().any()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["full", "lora"])
def test_an_update_without_a_finite_gradient_is_skipped(tiny_directory, tokenizer, tmp_path, scheme):
    trainer, after = trainer_of(scheme, tiny_directory, tokenizer, tmp_path)
    spoil_gradient(trainer, {2})
    with pytest.warns(UserWarning, match="Update 2 is skipped, as its gradient is not finite"):
        trainer.train()
    assert changed(after[1], after[2]) == []
    assert changed(after[2], after[3])


@pytest.mark.slow
def test_lean_takes_no_gradient_from_where_one_is_not_finite(tiny_directory, tokenizer, tmp_path):
    """Its updates are made within backward: what came before is done, what comes after is not."""
    trainer, after = trainer_of("lean", tiny_directory, tokenizer, tmp_path)
    name = spoil_gradient(trainer, {2})
    with pytest.warns(UserWarning, match="Update 2 is skipped, as its gradient is not finite"):
        trainer.train()
    moved = changed(after[1], after[2])
    assert name not in moved and not any("layers.0" in other for other in moved)
    assert all(weight.isfinite().all() for weight in after[UPDATES].values())
    assert name in changed(after[2], after[3])


@pytest.mark.slow
def test_three_such_updates_in_a_row_end_the_run(tiny_directory, tokenizer, tmp_path):
    trainer, _ = trainer_of("full", tiny_directory, tokenizer, tmp_path)
    spoil_loss(trainer, {2, 3, 4, 5})
    with (
        pytest.warns(UserWarning, match="Update 3 is skipped"),
        pytest.raises(Diverged, match=r"Update 4 is skipped.*So it was 3 times in a row: training has diverged"),
    ):
        trainer.train()
    assert sorted(path.stem for path in (tmp_path / "bad_batches").iterdir()) == ["update-2", "update-3", "update-4"]


@pytest.mark.slow
def test_a_model_that_has_no_numbers_to_draw_by_ends_the_run(tiny_directory, tokenizer, tmp_path):
    trainer, _ = trainer_of("full", tiny_directory, tokenizer, tmp_path)
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(math.nan)
    with pytest.raises(Diverged, match="scores hold no numbers"):
        trainer.train()
