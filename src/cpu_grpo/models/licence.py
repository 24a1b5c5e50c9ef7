"""Which licence a model's own files name. They are taken at their word, and nothing is guessed."""

import re
from pathlib import Path
from typing import Any

IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,40}")  # as the hub and SPDX have them


def licence_of_card(directory: Path) -> str:
    """By the YAML front matter of the directory's README.md; empty where there is none."""
    from huggingface_hub import metadata_load

    card = directory / "README.md"
    if not card.is_file():
        return ""
    try:
        found: dict[str, Any] = metadata_load(card) or {}
        return identifier(found.get("license"))
    except Exception:  # whatever a card that is no YAML, or no mapping, makes a parser stumble over
        return ""


def identifier(value: Any) -> str:
    """A licence's short name; empty for what is none."""
    return value if isinstance(value, str) and IDENTIFIER.fullmatch(value) else ""
