"""Tiny models with a tokenizer that merges, as GGUF files need one, below models/ of an empty workspace."""

import shutil

import pytest
import torch
from tiny import TEMPLATE, tiny_config

from conftest import LLAMA_3_ROPE
from cpu_grpo.files import write_json
from cpu_grpo.models.integrity import file_hashes
from cpu_grpo.models.loading import RECORD

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXTS = ["the farmer has twelve cows and the buyer has seven", "what is the sum of it and of that?", "12 + 7 = 19"]
KINDS = {
    "llama": ("Llama", {}),
    "llama, untied, linear rope": (
        "Llama",
        {
            "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        },
    ),
    "llama, rope of Llama 3": ("Llama", {"rope_parameters": LLAMA_3_ROPE}),
    "qwen2": ("Qwen2", {}),
    "qwen2, untied": ("Qwen2", {"tie_word_embeddings": False}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3, yarn": (
        "Qwen3",
        {
            "head_dim": 16,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
}


def merging_tokenizer(family):
    """A small byte-level BPE tokenizer that splits texts as the family's do."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if family.startswith("Qwen"):
        split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
        bare = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        raw.pre_tokenizer = pre_tokenizers.Sequence([split, bare])
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(3 * TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=SPECIAL[2], pad_token=SPECIAL[0], chat_template=TEMPLATE
    )


@pytest.fixture
def merging():
    return merging_tokenizer("Llama")


def save(directory, kind, dtype=torch.float32, **record):
    """A model whose numbers fp16 holds exactly, with biases and norms that matter."""
    import transformers

    family, changes = KINDS[kind]
    tokenizer = merging_tokenizer(family)
    settings = tiny_config(tokenizer, **changes).to_dict()
    settings.pop("model_type"), settings.pop("architectures", None)
    settings["vocab_size"] = len(tokenizer) + 5  # as embeddings often have more rows than there are tokens
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**settings)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter += 0.2 * torch.randn_like(parameter)
            parameter.copy_(parameter.half())
    model.to(dtype).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    if record:
        write_json(directory / RECORD, record | {"sha256": file_hashes(directory)})
    return directory


@pytest.fixture(scope="session")
def kept(tmp_path_factory):
    """The models as directories, by kind. Tests must not write to them."""
    root = tmp_path_factory.mktemp("kinds")
    return {kind: save(root / str(number), kind) for number, kind in enumerate(KINDS)}


@pytest.fixture
def place(tmp_path, monkeypatch, kept):
    """An empty current directory with models/tiny, a Llama."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(kept["llama"], tmp_path / "models" / "tiny")
    return tmp_path
