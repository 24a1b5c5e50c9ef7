"""The models and prompts that are measured: the same weights and tokens for every engine."""

import os
import random
from pathlib import Path
from typing import Any

import torch
from processes import Json

from cpu_grpo.engine.decoder import decoder
from cpu_grpo.engine.shape import Shape, of_decoder
from cpu_grpo.hardware import usable_cores
from cpu_grpo.models.loading import load_model, load_tokenizer

NEVER = 2**31 - 1  # an end token that no vocabulary has: completions run to the limit
SEED, WARM_UP_SEED = 0, 1  # of prompts: an engine that remembers prompts must not know those that are timed
TRAINING = {  # TRL's settings in every training run that is measured: a log in memory, and nothing else beside the work
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": [],
    "use_cpu": True,
    "dataloader_pin_memory": False,
    "disable_tqdm": True,
}
SIZES = {  # of models with random weights
    "494m": {
        "hidden_size": 896,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "intermediate_size": 4864,
        "vocab_size": 151_936,
    },
    "1544m": {
        "hidden_size": 1536,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "intermediate_size": 8960,
        "vocab_size": 151_936,
    },
}
TINY = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 128,
}
PIECES = [" seven", " red", " apples", " and", " 12", " are", " in", " a", " box", ".", "s", "1"]


def use_all_cores() -> None:
    """The same threads for every engine: OMP_NUM_THREADS where set, else one a core."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or usable_cores()))


def load(task: Json, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """The model and tokenizer of a task.

    `model` is 135m (SmolLM2, from the directory `base`), 494m or 1544m (the shapes of Qwen2-0.5B and Qwen2.5-1.5B with
    random weights and the tokenizer of `base`); with an empty `base` all are tiny ones of the same architectures.
    """
    tokenizer = load_tokenizer(Path(task["base"])) if task["base"] else _tiny_tokenizer()
    if task["model"] == "135m" and task["base"]:
        return load_model(Path(task["base"]), dtype)[0], tokenizer
    return _random_model(task, tokenizer, dtype), tokenizer


def shape(model: Any) -> Shape:
    """The model's sizes."""
    return of_decoder(decoder(model))


def prompts(tokenizer: Any, count: int, tokens: int, seed: int) -> list[str]:
    """Different texts of exactly `tokens` tokens each."""
    draw = random.Random(seed)
    found: list[str] = []
    while len(found) < count:
        text = _text(tokenizer, tokens, draw)
        if text and text not in found:
            found.append(text)
    return found


def prompt_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts)["input_ids"]


def _text(tokenizer: Any, tokens: int, draw: random.Random) -> str | None:
    """A text of exactly so many tokens, or None if luck would have it otherwise."""
    text = draw.choice("ABCDEFGHIJ")
    for _ in range(8 * tokens):
        longer = text + draw.choice(PIECES)
        length = len(tokenizer(longer)["input_ids"])
        if length <= tokens:
            text = longer
        if length == tokens:
            return text
    return None


def _random_model(task: Json, tokenizer: Any, dtype: torch.dtype) -> Any:
    import transformers

    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    sizes = SIZES[task["model"]] if task["base"] else TINY | {"vocab_size": len(tokenizer)}
    family = "Llama" if task["model"] == "135m" else "Qwen2"
    config = getattr(transformers, f"{family}Config")(
        **sizes, **special, tie_word_embeddings=True, max_position_embeddings=2048
    )
    torch.manual_seed(0)
    return getattr(transformers, f"{family}ForCausalLM")._from_config(config, dtype=dtype).eval()


def _tiny_tokenizer() -> Any:
    """One token a byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = ["<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    raw = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", pad_token="<|end|>")
