"""A byte-level BPE tokenizer as GGUF describes it."""

import json
import re
from dataclasses import dataclass
from typing import Any

from cpu_grpo.errors import UserError

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # GGUF's types of tokens
PADDING = re.compile(r"\[PAD\d+\]")  # what fills a vocabulary up to the embedding's rows
SPLITS = ("llama-bpe", "qwen2", "qwen35", "tekken", "gpt-4o")  # llama.cpp's names of patterns that transformers knows


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file's `tokenizer.*` keys say."""

    tokens: list[str]  # by id
    types: list[int]
    merges: list[str]
    pre: str  # llama.cpp's name of how a text is split before it is merged
    special: dict[str, int]  # bos, eos, unk, pad, eot: those that there are
    add_bos: bool
    template: str


def vocabulary_of(tokenizer: Any, rows: int, ends: list[int]) -> Vocabulary:
    """Of a transformers tokenizer, filled up to the embedding's `rows`.

    Args:
        ends: the model's own end tokens; GGUF takes two, the tokenizer's among them.

    Raises:
        UserError: it is no byte-level BPE, or splits texts in a way that llama.cpp has no name for here.
    """
    found = json.loads(tokenizer.backend_tokenizer.to_str())
    model = found["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise UserError(
            "The model's tokenizer is no byte-level BPE, the one kind that is exported to GGUF: use --to safetensors."
        )
    if not model["merges"]:
        raise UserError("The tokenizer has no merges, and llama.cpp reads no GGUF file without: use --to safetensors.")
    ids = tokenizer.get_vocab()
    if max(ids.values()) >= rows:
        raise UserError(
            f"The tokenizer has {max(ids.values()) + 1:,} tokens and the model {rows:,} rows for them: "
            "resize the model's embedding."
        )
    names = {number: token for token, number in ids.items()}
    added = {token["id"]: token["special"] for token in found["added_tokens"]}
    tokens = [names.get(number, f"[PAD{number}]") for number in range(rows)]
    return Vocabulary(
        tokens=tokens,
        types=[_type(token, number, added) for number, token in enumerate(tokens)],
        merges=[merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]],
        pre=_pre_tokenizer(found),
        special=_special(tokenizer, ends),
        add_bos=tokenizer.bos_token_id is not None and tokenizer.encode("a")[:1] == [tokenizer.bos_token_id],
        template=template_of(tokenizer),
    )


def template_of(tokenizer: Any) -> str:
    """The chat template; empty where there is none."""
    found = tokenizer.chat_template
    return found.get("default", "") if isinstance(found, dict) else found or ""


def _type(token: str, number: int, added: dict[int, bool]) -> int:
    if number in added:
        return CONTROL if added[number] else USER_DEFINED
    return UNUSED if PADDING.fullmatch(token) else NORMAL


def _special(tokenizer: Any, ends: list[int]) -> dict[str, int]:
    found = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk", "pad")}
    if found["eos"] is None and ends:
        found["eos"] = ends[0]
    others = [token for token in ends if token != found["eos"]]
    return {
        name: number for name, number in (found | {"eot": others[0] if others else None}).items() if number is not None
    }


def _pre_tokenizer(found: dict[str, Any]) -> str:
    """llama.cpp's name, by the parts that tokenizer.json lists.

    Raises:
        UserError: they are none that are known here.
    """
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    given = found["pre_tokenizer"] or {}
    parts = given.get("pretokenizers", [given])
    whole = parts[-1].get("type") == "ByteLevel" and not parts[-1].get("add_prefix_space")
    kinds = [part.get("type") for part in parts[:-1]]
    if whole and parts[-1].get("use_regex", True):
        if not kinds:
            return "gpt-2"
        if kinds == ["Digits"] and parts[0].get("individual_digits"):
            return "smollm"
    if whole and kinds == ["Split"] and not parts[-1].get("use_regex", True):
        pattern = parts[0]["pattern"].get("Regex")
        for name in SPLITS:
            if GGUF_PRE_TOKENIZER_SPLITS[name] == pattern:
                return name
    raise UserError(
        "The tokenizer splits texts in a way that has no known name in llama.cpp, so a GGUF file of it "
        "would read prompts otherwise: use --to safetensors."
    )


def add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    """Adds it to a GGUFWriter."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    for name, number in vocabulary.special.items():
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(vocabulary.add_bos)
    if vocabulary.template:
        writer.add_chat_template(vocabulary.template)
