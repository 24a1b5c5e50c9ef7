"""Answers that are one of several options, by its letter: `B`, `(B)`, `B. because ...`."""

import re

from cpu_grpo.tasks.answers.marks import MAX_TEXT, anywhere

LETTERS = "ABCDEFGHIJ"
_LETTER = re.compile(
    rf"[\s(\[*$\"'{{]*(?:\\text[a-z]{{0,2}} ?\{{|option|choice)?[\s(\[*]*([{LETTERS}])(?![\w'\u2019])", re.IGNORECASE
)
_ENCLOSED = re.compile(rf"\(([{LETTERS}])\)")
_LISTED = re.compile(rf"^\W{{0,4}}([{LETTERS}])(?:[.):]|\W*$)", re.MULTILINE)
_ALONE = re.compile(rf"(?<![\w'\u2019-])([{LETTERS.replace('A', '').replace('I', '')}])(?![\w'\u2019-])")


def read(text: str) -> str | None:
    """The letter that what stands behind a mark begins with."""
    found = _LETTER.match(text)
    return found[1].upper() if found else None


def search(completion: str) -> str | None:
    """The letter behind the last mark; else the last in brackets, at a line's beginning, or by itself (`A` and `I`
    are words, and don't count there)."""
    if letter := read(anywhere(completion)):
        return letter
    text = completion[-MAX_TEXT:]
    for pattern in (_ENCLOSED, _LISTED, _ALONE):
        if letters := pattern.findall(text):
            return letters[-1].upper()
    return None


def same(found: str, reference: str) -> bool:
    return found == read(reference)


def only(text: str) -> bool:
    found = _LETTER.match(text)
    return found is not None and not text[found.end() :].strip(" .)]}*$\"'")


def flaw(reference: str) -> str:
    return "" if only(reference) else f"that is no letter from {LETTERS[0]} to {LETTERS[-1]}"
