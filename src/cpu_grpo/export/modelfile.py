"""Ollama's Modelfile of a GGUF file. Its language: github.com/ollama/ollama/blob/main/docs/modelfile.md"""

from typing import Any

from cpu_grpo.export.gguf_file import Plan
from cpu_grpo.export.turns import go_template, turns_of

NO_TEMPLATE = (
    "The chat template does more than write turns, or there is none, so it could not be put into Ollama's language: "
    "compare a prompt that Ollama makes with the tokenizer's own, and write a TEMPLATE where they differ."
)


def modelfile(plan: Plan, tokenizer: Any, file: str) -> tuple[str, str]:
    """The text, and a sentence on what is missing in it; empty where nothing is.

    Args:
        file: the GGUF file's name, beside it.
    """
    turns = turns_of(tokenizer)
    template = go_template(turns, plan.vocabulary.add_bos) if turns else None
    lines = [f"FROM ./{file}", ""]
    if template is None or turns is None:
        lines += [f"# {NO_TEMPLATE}", ""]
    else:
        lines += [f'TEMPLATE """{template}"""', ""]
        if turns.system:
            lines += [f'SYSTEM """{turns.system}"""', ""]
    ends = [plan.vocabulary.special[name] for name in ("eos", "eot") if name in plan.vocabulary.special]
    lines += [f"PARAMETER stop {_quoted(plan.vocabulary.tokens[end])}" for end in ends]
    return "\n".join(lines) + "\n", "" if template else NO_TEMPLATE


def _quoted(text: str) -> str:
    return f'"{text}"' if '"' not in text else f'"""{text}"""'
