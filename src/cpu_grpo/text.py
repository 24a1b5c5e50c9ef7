"""Text from models, data and servers, made safe to show on a terminal or a page."""

import unicodedata

REORDERING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
LINE = 4000  # characters of a message


def visible(text: str, most: int | None = None) -> str:
    """The text without control, reordering or broken characters; of `most` characters, and a word on the others."""
    text = text.replace("\r\n", "\n")
    left_out = len(text) - most if most is not None else 0
    kept = text[:most]
    if not kept.isprintable():
        kept = "".join("\ufffd" if unprintable(character) else character for character in kept)
    return f"{kept} … ({left_out:,} more characters)" if left_out > 0 else kept


def one_line(text: str, most: int = LINE) -> str:
    """The same in a line: what is in it can neither steer a terminal nor pass for another message."""
    return visible(" ".join(text.split()), most)


def shown(text: str, most: int = 60) -> str:
    """A text inside a sentence: as Python writes it, for its spaces and ends to be seen, and cut."""
    return repr(text) if len(text) <= most else f"{text[:most]!r}... ({len(text):,} characters)"


def unprintable(character: str) -> bool:
    """Whether it would steer a terminal, reorder what stands around it, or could not be written as UTF-8."""
    if character in "\n\t":
        return False
    return character in REORDERING or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
