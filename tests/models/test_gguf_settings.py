"""What transformers' GGUF reader leaves out is read: rotary scaling, the size of heads, the tokens that end a text."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpu_grpo.models.gguf_header import Header, Malformed
from cpu_grpo.models.gguf_settings import complete, llama3_parameters


def factors_of(size, theta, factor, low, high, context):
    """By transformers' own function of the parameters."""
    import torch
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": context,
    }
    config = LlamaConfig(hidden_size=4 * size, num_attention_heads=4, head_dim=size, rope_parameters=parameters)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = theta ** (-torch.arange(0, size, 2).double() / size)
    return (plain / scaled.double()).numpy()


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_parameters_of_llama_3_are_found_from_its_factors(size, factor):
    found = llama3_parameters(factors_of(size, 500_000.0, factor, 1.0, 4.0, 8192), 500_000.0)
    assert found.pop("original_max_position_embeddings") == pytest.approx(8192, rel=1e-3)
    assert found.pop("high_freq_factor") == pytest.approx(4.0, rel=1e-3)
    assert found == {"rope_type": "llama3", "factor": pytest.approx(factor), "low_freq_factor": 1.0}


@given(
    size=st.sampled_from([8, 64, 128]),
    factor=st.floats(1.5, 40),
    ratio=st.sampled_from([2.0, 4.0, 8.0]),
    context=st.integers(64, 100_000),
)
def test_what_is_found_divides_frequencies_alike_or_is_refused(size, factor, ratio, context):
    factors = factors_of(size, 500_000.0, factor, 1.0, ratio, context)
    try:
        found = llama3_parameters(factors, 500_000.0)
    except Malformed:
        return
    if found:
        again = factors_of(
            size, 500_000.0, found["factor"], 1.0, found["high_freq_factor"], found["original_max_position_embeddings"]
        )
        np.testing.assert_allclose(1 / again, 1 / factors, atol=2e-3)


@pytest.mark.parametrize("factors", [[0.5, 1, 1, 1], [np.nan, 1, 1, 1], [8, 1, 8, 1]])
def test_factors_that_are_none_of_llama_3_are_refused(factors):
    with pytest.raises(Malformed, match=r"its rope_freqs.weight are"):
        llama3_parameters(np.array(factors, float), 10_000.0)


def test_heads_ends_and_scaling_are_the_files(monkeypatch):
    settings = SimpleNamespace(head_dim=128, eos_token_id=2, bos_token_id=1, rope_parameters={"rope_theta": 1e6})
    values = {"general.architecture": "qwen3", "qwen3.attention.key_length": 64, "tokenizer.ggml.eos_token_id": 7}
    values |= {"qwen3.rope.scaling.type": "yarn", "qwen3.rope.scaling.factor": 4.0}
    values["qwen3.rope.scaling.original_context_length"] = 32768
    complete(settings, Header(values), Path("none.gguf"))
    assert (settings.head_dim, settings.eos_token_id, settings.bos_token_id) == (64, 7, None)
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert settings.rope_parameters == {"rope_theta": 1e6} | yarn
    values["qwen3.rope.scaling.type"] = "longrope"
    with pytest.raises(Malformed, match=r"rope.scaling.type is longrope"):
        complete(settings, Header(values), Path("none.gguf"))
