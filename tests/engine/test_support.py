"""The switch between the fast path and TRL's own."""

import warnings

import pytest
from trl import GRPOConfig

from cpu_grpo.engine.support import Switch, unsupported, unsupported_inputs, unsupported_rollout


def settings(tmp_path, **changes):
    return GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **changes)


@pytest.mark.parametrize("changes, more, reason", [
    ({}, {}, None),
    ({"entropy_coef": 0.1}, {}, "it does not know an entropy bonus"),
    ({"top_entropy_quantile": 0.5}, {}, "it does not know top_entropy_quantile"),
    ({}, {"auxiliary_loss": True}, "it does not know a router's auxiliary loss"),
    ({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}, {"processes": 2},
     "it does not know groups that are split over processes (make per_device_train_batch_size a multiple of "
     "num_generations)"),
])  # fmt: skip
def test_settings_that_change_the_learner_are_named(tiny_model, tmp_path, changes, more, reason):
    arguments = {"auxiliary_loss": False, "processes": 1} | more
    assert unsupported(tiny_model, settings(tmp_path, **changes), **arguments) == reason


@pytest.mark.parametrize("changes, batching, reason", [
    ({"repetition_penalty": 1.0}, False, None),
    ({"repetition_penalty": 1.1}, False, "it does not know repetition_penalty"),
    ({"generation_kwargs": {"num_beams": 2}}, False, "it does not know generation_kwargs"),
    ({}, True, "it does not know transformers' continuous batching"),
])  # fmt: skip
def test_settings_that_change_rollouts_are_named(tmp_path, changes, batching, reason):
    assert unsupported_rollout(settings(tmp_path, **changes), batching) == reason


def test_images_are_named():
    assert unsupported_inputs(None, {}) is None
    assert unsupported_inputs([object()], {}) == "it does not know images"


def test_each_reason_is_told_once_and_a_doubt_lasts():
    switch = Switch()
    assert switch.fast(None, None)
    with pytest.warns(UserWarning, match="taken instead of the fast one: it does not know vLLM"):
        assert not switch.fast(None, "it does not know vLLM")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not switch.fast("it does not know vLLM")
        assert switch.fast()
    switch.doubt = "its numbers are wrong"
    with pytest.warns(UserWarning, match="its numbers are wrong"):
        assert not switch.fast()
