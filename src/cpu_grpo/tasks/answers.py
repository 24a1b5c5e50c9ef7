"""Finding the answer in a completion, and deciding whether it is right.

The text comes from a model and may be hostile: nothing is evaluated, every pattern runs in linear time, and what is
written like a number but cannot be read as one (over MAX_DIGITS digits, an exponent, digits of other scripts beside it)
is unreadable. An unreadable number is no answer, and it hides what stands before it: a guess would be worse.
"""

import re
from collections.abc import Iterable, Iterator
from fractions import Fraction
from unicodedata import category

MAX_DIGITS = 40
MAX_TEXT = 20_000  # characters that are read: of a completion from its end, of an answer from its beginning

# [sign][currency]digits with commas[.decimals][exponent][/denominator]; a sign right behind a digit, letter or bracket
# is a minus between two numbers, not a sign.
_MINUS, _SLASH = "-\u2212\uff0d", "/\u2044\u2215"
_NUMBER = re.compile(
    rf"((?<![\w)])[{_MINUS}+])?[$€£]?((?:\d[\d,]*)?(?:\.?\d+))([eE][{_MINUS}+]?\d+)?( ?[{_SLASH}] ?\d+)?", re.ASCII
)
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+", re.ASCII)
_LEADING = re.compile(rf"\s*[{_MINUS}+]?[$€£]?[{_MINUS}+]?\.?\d", re.ASCII)
LEAD = 4  # characters: a number that begins before these may have begun before the text: `3 | / 4`
_MARK = re.compile(r"####[ \t]*([^\n]*)")
_BETWEEN_DIGITS = "\u066b\u066c\u207a\u207b\u208a\u208b"  # Arabic separators; raised and lowered signs


def strict(completion: str) -> str | None:
    """The number right after the last `####`, as text; None without one."""
    marks = _MARK.findall(completion[-MAX_TEXT:])
    return next(_numbers(marks[-1]), None) if marks else None


def flexible(completion: str) -> str | None:
    """The last number of the completion, as text; None without one."""
    found = list(_numbers(completion[-MAX_TEXT:], cut=len(completion) > MAX_TEXT))
    return found[-1] if found else None


EXTRACTORS = {"strict": strict, "flexible": flexible}


def number(text: str) -> Fraction | None:
    """The value of the first number in `text` (`-1,234.50`, `$5`, `3/4`, `12 apples.`), exactly; None without one."""
    found = next(_numbers(text[:MAX_TEXT]), None)
    return None if found is None else Fraction(found)


def is_number(text: str) -> bool:
    """Whether a text is a number, perhaps with a unit behind it: `$5`, `12 apples`, but not `B2`."""
    return bool(_LEADING.match(text[:MAX_TEXT])) and number(text) is not None


def same(extracted: str | None, reference: str) -> bool:
    """Whether an extracted answer equals the reference: as numbers where both are, else as text."""
    if extracted is None:
        return False
    if is_number(extracted) and is_number(reference):
        return number(extracted) == number(reference)
    return _plain(extracted) == _plain(reference)


def _numbers(text: str, cut: bool = False) -> Iterator[str | None]:
    """Every number in `text`, in a form that Fraction reads; None for one that is unreadable.

    Args:
        cut: whether there is text before, so that a number at the beginning may be half of one.
    """
    plain = text.isascii()
    for match in _NUMBER.finditer(text):
        sign, digits, exponent, denominator = match.groups()
        single = bool(_THOUSANDS.fullmatch(digits))  # `1,2,3` is a list of numbers and `1,234` is one number
        half = cut and single and match.start() < LEAD
        if half or exponent or not (plain or _stands_alone(text, match)):
            yield None
            continue
        parts = [digits.replace(",", "")] if single else [part for part in digits.split(",") if part]
        for place, part in enumerate(parts):
            minus = "-" if place == 0 and sign and sign in _MINUS else ""
            below = denominator.strip(" " + _SLASH) if denominator and place == len(parts) - 1 else ""
            yield _written(minus + part, below)


def _written(above: str, below: str) -> str | None:
    """A number by another, if any, as Fraction reads it."""
    if len(above.lstrip("-")) > MAX_DIGITS or len(below) > MAX_DIGITS:
        return None
    if not below or int(below) == 0:
        return above
    return str(Fraction(above) / int(below)) if "." in above else f"{above}/{below}"


def _stands_alone(text: str, match: re.Match[str]) -> bool:
    """Whether neither a digit of another script touches a number, nor any through characters that nobody sees."""
    before, after = range(match.start() - 1, -1, -1), range(match.end(), len(text))
    return not (_meets_digit(text, before) or _meets_digit(text, after))


def _meets_digit(text: str, places: Iterable[int]) -> bool:
    hidden = False
    for place in places:
        character = text[place]
        if category(character) not in ("Cf", "Mn", "Me"):
            foreign = character.isnumeric() or character in _BETWEEN_DIGITS
            return foreign and (hidden or not character.isascii())
        hidden = True
    return False


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")
