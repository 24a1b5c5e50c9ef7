"""Little memory: a run waits, takes smaller steps with the same result, and keeps what it learnt if none fits."""

import pytest
import torch

from cpu_grpo import CPUGRPOTrainer, FastOptions
from cpu_grpo.hardware import shortage
from cpu_grpo.hardware.shortage import SPARE, Shortage
from trainers import make

GB = 10**9


@pytest.fixture
def machine(monkeypatch):
    """A machine whose free memory the test says: a list, one value for each look, the last one for good."""

    def with_free(*amounts):
        looks = list(amounts)
        monkeypatch.setattr(shortage, "available_memory", lambda: looks.pop(0) if len(looks) > 1 else looks[0])
        monkeypatch.setattr(shortage, "reusable_memory", lambda: 0)
        monkeypatch.setattr(shortage.time, "sleep", lambda seconds: None)

    return with_free


def test_where_there_is_room_nobody_is_told(machine, recwarn):
    machine(4 * GB)
    watch = Shortage(alarm=pytest.fail)
    assert watch.room_for(4 * GB - SPARE) and not watch.met and not recwarn.list


def test_the_alarm_is_sounded_once(machine):
    machine(GB)
    told = []
    watch = Shortage(alarm=lambda: told.append(True))
    with pytest.warns(UserWarning, match=r"Memory is short: 1\.00 GB are left where 2\.00 GB are needed"):
        assert not watch.room_for(2 * GB, patience=0)
    assert not watch.room_for(2 * GB, patience=0)
    assert told == [True]


@pytest.mark.filterwarnings("ignore:Memory is short")
def test_a_run_goes_on_when_others_give_memory_back(machine):
    machine(GB, GB, GB, GB, 3 * GB)
    assert Shortage().room_for(2 * GB)


def test_the_limit_counts_what_this_process_holds(machine):
    machine(100 * GB)
    holds = shortage.psutil.Process().memory_info().rss
    left = Shortage(limit=holds + GB).left()
    assert GB - 10**8 < left < GB + 10**8


def test_what_was_freed_and_kept_can_be_taken_again(monkeypatch):
    monkeypatch.setattr(shortage, "available_memory", lambda: GB)
    monkeypatch.setattr(shortage, "reusable_memory", lambda: 5 * GB)
    assert GB < Shortage().left() < 6 * GB


@pytest.mark.filterwarnings("ignore:Memory is short")
def test_the_smallest_step_waits_longest_and_then_says_what_it_lacks(machine, monkeypatch):
    machine(GB)
    monkeypatch.setattr(shortage, "PATIENCE", 0.0)
    with pytest.raises(MemoryError, match=r"the smallest step needs 2\.00 GB and 1\.00 GB are left"):
        Shortage().require(2 * GB)


class OnlyRoomFor:
    """A watch that grants small requests only, and counts those that it denied."""

    def __init__(self, most):
        self.most, self.denied, self.granted = most, 0, []

    def room_for(self, needed):
        self.granted.append(needed) if needed <= self.most else None
        self.denied += needed > self.most
        return needed <= self.most

    def require(self, needed):
        self.granted.append(needed)


def trained(model, tokenizer, directory, watch=None, **changes):
    torch.manual_seed(0)
    trainer = make(CPUGRPOTrainer, model, tokenizer, directory, options={"fast": FastOptions("fp32")}, **changes)
    if watch:
        trainer.shortage = watch
    trainer.train()
    return trainer, {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{}, {"loss_type": "grpo"}, {"loss_type": "bnpo"}, {"gradient_accumulation_steps": 2}]
)
def test_smaller_steps_learn_the_same(tiny_directory, tokenizer, tmp_path, changes):
    from cpu_grpo.models.loading import load_model

    plain, expected = trained(load_model(tiny_directory)[0], tokenizer, tmp_path, **changes)
    usual = OnlyRoomFor(10**12)
    trained(load_model(tiny_directory)[0], tokenizer, tmp_path, usual, **changes)
    least = max(usual.granted) // 3
    watch = OnlyRoomFor(least)
    trainer, found = trained(load_model(tiny_directory)[0], tokenizer, tmp_path, watch, **changes)
    assert watch.denied and len(watch.granted) > len(usual.granted)
    assert trainer.step_sizes.tokens < plain.step_sizes.tokens
    for name, parameter in expected.items():
        torch.testing.assert_close(found[name], parameter, rtol=1e-3, atol=1e-5, msg=name)


def test_rollouts_take_fewer_rows_where_memory_is_short(tiny_model, tokenizer, tmp_path):
    watch = OnlyRoomFor(0)
    trainer, _ = trained(tiny_model, tokenizer, tmp_path, watch)
    assert trainer.step_sizes.rows == 4  # one group
