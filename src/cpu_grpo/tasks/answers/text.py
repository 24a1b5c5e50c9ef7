"""Answers that are words: a name, a date, `yes`; compared without case, spacing, quotes, articles and full stops."""

import re
from unicodedata import normalize

from cpu_grpo.tasks.answers.marks import MAX_TEXT, anywhere

_AROUND = " \t.,;:!?\"'`*_()[]{}<>\u2018\u2019\u201c\u201d\u00ab\u00bb$\\"
_ARTICLE = re.compile(r"^(?:the|an?)\s+(?=\S)")
_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf) ?\{([^{}\n]{0,1000})\}")


def read(text: str) -> str | None:
    """What stands behind a mark, all of it; None where that is nothing."""
    return text.strip() or None


def search(completion: str) -> str | None:
    """What stands behind the last mark of any kind, or else the last line that holds something."""
    return anywhere(completion) or last_line(completion)


def last_line(completion: str) -> str | None:
    """The last line that holds something."""
    lines = completion[-MAX_TEXT:].split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), None)


def same(found: str, reference: str) -> bool:
    return plain(found) == plain(reference)


def only(text: str) -> bool:
    """Whether that is an answer and nothing else, as far as can be told of text."""
    return bool(plain(text))


def flaw(reference: str) -> str:
    if "\n" in reference.strip():
        return "that has several lines, and answers are read from one"
    return "" if plain(reference) else "that has neither letters nor digits"


def plain(text: str) -> str:
    """What is left to be compared."""
    text = _WRAPPED.sub(r"\1", normalize("NFKC", text[:MAX_TEXT]))
    text = " ".join(text.casefold().split()).strip(_AROUND)
    return _ARTICLE.sub("", text)
