"""A run that was interrupted and goes on ends as one that was not, to the last bit; what is damaged is noticed."""

import shutil

import pytest
import torch
from transformers import TrainerCallback

from conftest import need_narrow_products
from cpu_grpo import CPUGRPOTrainer
from cpu_grpo.engine.checkpoint import SEAL, Interrupted, damage, newest_whole, numbered
from trainers import make, with_scheme

TIMES = ("step_time", "rollout/seconds", "rollout/tokens_per_second")
UPDATES = 7


class Stop(TrainerCallback):
    """Interrupts a training after an update, as a crash would."""

    def __init__(self, after):
        self.after = after

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.after:
            raise KeyboardInterrupt


def trained(scheme, directory, tokenizer, out, resume=None, stop=None, run=None, rollout="exact", **changes):
    """The weights and the history of a training in `out`."""
    model, options, own = with_scheme(scheme, directory, rollout=rollout)
    saving = {"max_steps": UPDATES, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
    trainer = make(CPUGRPOTrainer, model, tokenizer, out, options, **saving | changes | own)
    if run:
        return run(trainer)
    if stop is not None:
        trainer.add_callback(Stop(stop))
        with pytest.raises(KeyboardInterrupt):
            trainer.train(resume_from_checkpoint=resume)
        return None
    trainer.train(resume_from_checkpoint=resume)
    weights = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    rows = [row for row in trainer.state.log_history if "train_runtime" not in row]  # that is of this call alone
    history = [{key: value for key, value in row.items() if key not in TIMES} for row in rows]
    return weights, history, trainer


def assert_equal(found, expected):
    assert found[1] == expected[1]
    assert found[0].keys() == expected[0].keys()
    for name, weight in expected[0].items():
        assert torch.equal(found[0][name], weight), name


# Eight problems: with two prompts an update, a pass over them takes four updates.
SETTINGS = {
    "plain": {},
    "a log every third update": {"logging_steps": 3},
    "each rollout learnt from twice": {"num_iterations": 2},
    "a rollout for two updates": {"steps_per_generation": 2},
    "micro-batches": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    "a reference policy": {"beta": 0.1},
}


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["full", "lean", "lora"])
@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)
def test_a_run_that_goes_on_ends_as_one_that_was_not_interrupted(tiny_directory, tokenizer, tmp_path, scheme, changes):
    expected = trained(scheme, tiny_directory, tokenizer, tmp_path / "whole", save_strategy="no", **changes)
    out = tmp_path / "parts"
    trained(scheme, tiny_directory, tokenizer, out, stop=3, **changes)
    trained(scheme, tiny_directory, tokenizer, out, resume=True, stop=6, **changes)  # in the second pass over the data
    found = trained(scheme, tiny_directory, tokenizer, out, resume=True, **changes)
    assert_equal(found, expected)
    assert [number for number, _ in numbered(out)] == [7, 6]
    assert found[2]._logs["completion"] == expected[2]._logs["completion"]


@pytest.mark.parametrize("scheme", ["full", "lean", "lora"])
def test_so_does_one_whose_rollouts_are_in_8_bits(tiny_directory, tokenizer, tmp_path, scheme):
    need_narrow_products(torch.float32, torch.int8)
    expected = trained(scheme, tiny_directory, tokenizer, tmp_path / "whole", save_strategy="no", rollout="int8")
    assert expected[2].rounding.current
    trained(scheme, tiny_directory, tokenizer, tmp_path / "parts", stop=3, rollout="int8")
    assert_equal(trained(scheme, tiny_directory, tokenizer, tmp_path / "parts", resume=True, rollout="int8"), expected)


def test_a_run_may_go_on_from_the_end_of_a_pass_over_the_data(tiny_directory, tokenizer, tmp_path):
    expected = trained("full", tiny_directory, tokenizer, tmp_path / "whole", save_strategy="no")
    trained("full", tiny_directory, tokenizer, tmp_path / "parts", stop=5)  # so that 4, a pass, is the newest
    assert_equal(trained("full", tiny_directory, tokenizer, tmp_path / "parts", resume=True), expected)


def test_a_run_that_goes_on_from_its_very_end_learns_no_more(tiny_directory, tokenizer, tmp_path):
    """Stock transformers makes one more update there."""
    expected = trained("full", tiny_directory, tokenizer, tmp_path / "run")
    again = trained("full", tiny_directory, tokenizer, tmp_path / "run", resume=True)
    assert again[2].state.global_step == UPDATES
    assert_equal(again, expected)


@pytest.fixture
def saved(tiny_directory, tokenizer, tmp_path):
    """A directory with the checkpoints of updates 2 and 3."""
    trained("full", tiny_directory, tokenizer, tmp_path / "run", stop=4)
    return tmp_path / "run"


def truncate(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def alter(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [truncate, alter, lambda path: path.unlink()], ids=["truncated", "altered", "missing"])
def test_every_file_of_a_checkpoint_is_missed_if_it_is_harmed(saved, harm):
    whole = saved / "checkpoint-3"
    for path in sorted(path for path in whole.rglob("*") if path.is_file()):
        copy = saved / "checkpoint-9"
        shutil.copytree(whole, copy)
        harm(copy / path.relative_to(whole))
        assert damage(copy), path
        assert newest_whole(saved)[0] == whole
        shutil.rmtree(copy)
    assert damage(whole) is None


def test_the_newest_whole_checkpoint_is_taken_and_the_others_told(saved, tiny_directory, tokenizer, tmp_path):
    (saved / "checkpoint-3" / SEAL).unlink()
    with pytest.warns(UserWarning, match="checkpoint-3 was not finished: it is passed over"):
        found = trained("full", tiny_directory, tokenizer, saved, resume=True)
    expected = trained("full", tiny_directory, tokenizer, tmp_path / "whole", save_strategy="no")
    assert_equal(found, expected)
    assert [damage(path) for _, path in numbered(saved)] == [None, None]


def test_a_damaged_checkpoint_that_is_named_is_refused(saved, tiny_directory, tokenizer):
    truncate(saved / "checkpoint-3" / "optimizer.pt")
    with pytest.raises(ValueError, match=r"checkpoint-3 has another optimizer\.pt than was written"):
        trained("full", tiny_directory, tokenizer, saved, resume=str(saved / "checkpoint-3"))


def test_without_a_whole_checkpoint_the_directory_is_named(tiny_directory, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="There is no whole checkpoint in"):
        trained("full", tiny_directory, tokenizer, tmp_path, resume=True)


@pytest.mark.parametrize("scheme", ["full", "lean", "lora"])
@pytest.mark.parametrize("asked", [0, 4, 5, 12, 19])  # in a rollout, between micro-batches, in later updates
def test_a_run_that_is_stopped_goes_on_from_its_last_update(tiny_directory, tokenizer, tmp_path, scheme, asked):
    micro = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "save_strategy": "no"}
    expected = trained(scheme, tiny_directory, tokenizer, tmp_path / "whole", **micro)
    times = iter(range(asked))
    stopped = []

    def stop(trainer):
        trainer.stop_asked = lambda: next(times, None) is None
        with pytest.raises(Interrupted):
            trainer.train()
        stopped.append(trainer.save_last_update())

    trained(scheme, tiny_directory, tokenizer, tmp_path / "parts", run=stop, **micro)
    found = trained(scheme, tiny_directory, tokenizer, tmp_path / "parts", resume=bool(stopped[0]), **micro)
    assert_equal(found, expected)
