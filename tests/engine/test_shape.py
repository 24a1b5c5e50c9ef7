import json

import pytest
import torch

from conftest import with_lora
from cpu_grpo.config.schema import Shape as Sizes
from cpu_grpo.engine import shape
from cpu_grpo.engine.decoder import decoder
from cpu_grpo.errors import UserError

QWEN = Sizes("qwen2", 896, 24, 14, 2, 0, 4864, 151936, True)


def test_a_models_weights_are_counted_from_its_config(any_model, tmp_path):
    any_model.save_pretrained(tmp_path)
    found = shape.of_directory(tmp_path)
    assert found.parameters == sum(parameter.numel() for parameter in any_model.parameters())
    assert found == shape.of_decoder(decoder(any_model))


def test_qwen2_has_494_million_parameters():
    assert shape.of_config(QWEN).parameters == 494_032_768


def test_adapters_are_counted_as_peft_makes_them(tiny_model):
    adapted = with_lora(tiny_model, target_modules="all-linear")
    made = sum(parameter.numel() for name, parameter in adapted.named_parameters() if "lora_" in name)
    assert shape.of_decoder(decoder(tiny_model)).adapters(rank=4) == made


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"model_type": "gpt2", "vocab_size": 9}', '{"model_type": "llama"}', '{"model_type": []}']
)
def test_what_is_no_decoders_config_has_no_shape(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    assert shape.of_directory(tmp_path) is None


@pytest.mark.parametrize("size", ["32", [32], -1, 10**400, 1.5, 2**40])
def test_sizes_that_are_none_make_no_shape(size, tmp_path):
    settings = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 16}
    settings |= {"hidden_size": size, "vocab_size": 100, "model_type": "llama"}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert shape.of_directory(tmp_path) is None


def test_an_embedding_counts_twice_unless_the_config_ties_it(tmp_path):
    settings = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    settings |= {"intermediate_size": 16, "vocab_size": 100, "model_type": "llama"}
    (tmp_path / "config.json").write_text(json.dumps(settings | {"tie_word_embeddings": True}))
    tied = shape.of_directory(tmp_path).parameters
    (tmp_path / "config.json").write_text(json.dumps(settings))  # transformers' own default for Llama: not tied
    assert shape.of_directory(tmp_path).parameters == tied + 800


def test_a_size_that_is_left_out_is_named():
    with pytest.raises(UserError, match=r"model\.shape\.vocab_size is missing"):
        shape.of_config(Sizes("qwen2", 896, 24, 14, 2, 0, 4864, 0))


def test_no_shape_in_the_configuration_is_none():
    assert shape.of_config(Sizes()) is None


@pytest.mark.parametrize("dtype, size", [(torch.float32, 4), (torch.bfloat16, 2)], ids=str)
def test_a_config_tells_how_wide_the_numbers_of_its_file_are(tiny_model, dtype, size, tmp_path):
    tiny_model.to(dtype).save_pretrained(tmp_path)
    assert shape.stored_bytes(tmp_path) == size
