"""Finding the answer in a completion, and deciding whether it is right.

The text comes from a model and may be hostile: nothing is evaluated, every pattern runs in linear time, and a number
of more than MAX_DIGITS digits is no number.
"""

import re
from collections.abc import Iterator
from fractions import Fraction

MAX_DIGITS = 40
MAX_TEXT = 20_000  # characters of a completion that are read, from its end

# [sign][currency]digits with commas[.decimals][/denominator]; a sign right behind a digit, letter or bracket is a minus
# between two numbers, not a sign.
_NUMBER = re.compile(r"((?<![\w)])[-\u2212+])?[$€£]?((?:\d[\d,]*)?(?:\.?\d+))( ?/ ?\d+)?", re.ASCII)
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+", re.ASCII)
_LEADING = re.compile(r"\s*[-\u2212+]?[$€£]?[-\u2212+]?\.?\d", re.ASCII)
_MARK = re.compile(r"####[ \t]*([^\n]*)")


def strict(completion: str) -> str | None:
    """The number right after the last `####`, as text; None without one."""
    marks = _MARK.findall(completion[-MAX_TEXT:])
    return next(_numbers(marks[-1]), None) if marks else None


def flexible(completion: str) -> str | None:
    """The last number of the completion, as text; None without one."""
    found = list(_numbers(completion[-MAX_TEXT:]))
    return found[-1] if found else None


EXTRACTORS = {"strict": strict, "flexible": flexible}


def number(text: str) -> Fraction | None:
    """The value of the first number in `text` (`-1,234.50`, `$5`, `3/4`, `12 apples.`), exactly; None without one."""
    found = next(_numbers(text), None)
    return None if found is None else Fraction(found)


def is_number(text: str) -> bool:
    """Whether a text is a number, perhaps with a unit behind it: `$5`, `12 apples`, but not `B2`."""
    return bool(_LEADING.match(text)) and number(text) is not None


def same(extracted: str | None, reference: str) -> bool:
    """Whether an extracted answer equals the reference: as numbers where both are, else as text."""
    if extracted is None:
        return False
    if is_number(extracted) and is_number(reference):
        return number(extracted) == number(reference)
    return _plain(extracted) == _plain(reference)


def _numbers(text: str) -> Iterator[str]:
    """Every number in `text`, in a form that Fraction reads."""
    for sign, digits, denominator in _NUMBER.findall(text):
        # `1,2,3` is a list of numbers and `1,234` is one number.
        parts = [digits.replace(",", "")] if _THOUSANDS.fullmatch(digits) else [p for p in digits.split(",") if p]
        for place, part in enumerate(parts):
            first, last = place == 0, place == len(parts) - 1
            if len(part) > MAX_DIGITS or len(denominator) > MAX_DIGITS:
                continue
            below = denominator.strip(" /") if last else ""
            if below and (int(below) == 0 or "." in part):
                below = ""
            minus = "-" if first and sign in ("-", "\u2212") else ""
            yield minus + part + (f"/{below}" if below else "")


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")
