"""A tiny language model, tokenizer and workspace, made on the spot."""

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from tiny import save_tiny, tiny_config, tiny_tokenizer

from cpu_grpo.engine.kernels import build
from cpu_grpo.hardware import DTYPES

ROOT = Path(__file__).parents[1]
settings.register_profile("untimed", deadline=None)  # machines are shared
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(params=["compiled", "torch"])
def kernels(request, monkeypatch):
    """With compiled kernels, and without."""
    if request.param == "torch":
        monkeypatch.setattr(build, "_all", dict)
    elif not build._all():
        pytest.skip("there is no C++ compiler here")
    return request.param


@pytest.fixture(params=["fp32", "bf16"])
def narrow_precision(request):
    """Precisions in which this machine has our own products of few rows."""
    need_narrow_products(DTYPES[request.param])
    return request.param


def need_narrow_products(dtype, stored=None):
    """Skips a test that is about our own products of few rows where there are none of these dtypes."""
    kernels = build.native(dtype, stored)
    if not kernels or not kernels.panel:
        pytest.skip("this CPU has no AVX-512 bf16, or there is no C++ compiler")


@pytest.fixture
def tiny_model(tokenizer):
    """A fresh two-layer Llama with random weights."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_config(tokenizer)).eval()


LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
ARCHITECTURES = {
    "llama": ("Llama", {}),
    "llama, scaled rope": ("Llama", {"rope_parameters": LLAMA_3_ROPE}),
    "qwen2, untied": ("Qwen2", {"tie_word_embeddings": False}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
}


@pytest.fixture(params=ARCHITECTURES)
def any_model(request, tokenizer):
    """A tiny model of every architecture that the fast path knows, with biases and norms that matter."""
    import transformers

    name, changes = ARCHITECTURES[request.param]
    settings = tiny_config(tokenizer, **changes).to_dict()
    settings.pop("model_type"), settings.pop("architectures", None)
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**settings)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key or "bias" in key:
                parameter += 0.2 * torch.randn_like(parameter)
    return model


# architecture, query heads, key heads, size of a head, other settings
SHAPES = {
    "1 query a key": ("Qwen3", 2, 2, 16, {}),
    "3 queries a key": ("Llama", 6, 2, 16, {"attention_bias": True, "mlp_bias": True}),
    "4 queries a key": ("Qwen3", 4, 1, 32, {"tie_word_embeddings": False}),
    "5 queries a key, linear rope": ("Llama", 5, 1, 16, {"rope": {"rope_type": "linear", "factor": 4.0}}),
    "6 queries a key, yarn rope": ("Qwen3", 6, 1, 16, {"rope": {"rope_type": "yarn", "factor": 4.0}}),
    "7 queries a key": ("Qwen2", 14, 2, 16, {"hidden_size": 14 * 16}),  # as Qwen2's heads share out the hidden size
    "a head of 5 vectors": ("Qwen3", 3, 1, 80, {}),
}


@pytest.fixture(params=SHAPES)
def shaped_model(request, tokenizer):
    """A tiny model whose heads are whole vectors, with biases and norms that matter."""
    import transformers

    name, heads, kv, size, changes = SHAPES[request.param]
    settings = {"num_attention_heads": heads, "num_key_value_heads": kv, "head_dim": size, "hidden_size": 8 * heads}
    settings |= changes
    settings["initializer_range"] = 0.3 * (32 / settings["hidden_size"]) ** 0.5
    if rope := settings.pop("rope", None):
        settings["rope_parameters"] = rope | {"rope_theta": 10000.0, "original_max_position_embeddings": 64}
    settings = tiny_config(tokenizer, **settings).to_dict()
    settings.pop("model_type"), settings.pop("architectures", None)
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**settings)).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key or "bias" in key:
                parameter += 0.2 * torch.randn_like(parameter)
    return model


@pytest.fixture
def vector_model(tokenizer):
    """A tiny Llama that compiled attention takes."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_config(tokenizer, head_dim=16)).eval()


def with_lora(model, **changes):
    """The model behind a LoRA adapter whose second matrix is not zero, as after some training."""
    from peft import LoraConfig, get_peft_model

    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "o_proj", "down_proj"]} | changes
    torch.manual_seed(1)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for key, parameter in adapted.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=0.3)
    return adapted.eval()


@pytest.fixture(scope="session")
def tiny_directory(tokenizer, tmp_path_factory):
    """The tiny model as a directory of safetensors and tokenizer. Tests must not write to it."""
    return save_tiny(tmp_path_factory.mktemp("tiny"), tokenizer)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """An MLflow database with its schema: making one takes seconds, copying one does not."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path.as_posix()}").search_experiments()
    return path


@pytest.fixture
def workspace(tmp_path, monkeypatch, empty_store):
    """An empty current directory with an MLflow store."""
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    return tmp_path
