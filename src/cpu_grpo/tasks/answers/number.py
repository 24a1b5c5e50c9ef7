"""Answers that are numbers, compared exactly: `-1,234.50`, `$5`, `3/4`, `3 1/2`, `1.5 million`, `1e3`, `\\frac{1}{2}`.

The text comes from a model and may be hostile: nothing is evaluated, every pattern runs in linear time, and what is
written like a number but cannot be read as one (over MAX_DIGITS digits, a time of day, digits of other scripts beside
it) is unreadable. An unreadable number is no answer, and it hides what stands before it: a guess would be worse.
"""

import re
from collections.abc import Iterable, Iterator
from fractions import Fraction
from unicodedata import category

from cpu_grpo.tasks.answers.marks import MAX_TEXT

MAX_DIGITS = 40
LONGEST = 4 * MAX_DIGITS  # characters of a number that stands by itself

# [sign][currency]digits with commas[.decimals], then an exponent, the rest of a mixed number or of a time of day, a
# denominator, and a word such as million. A sign right behind a digit, letter or bracket is a minus between two
# numbers, not a sign.
_MINUS, _SLASH = "-\u2212\uff0d", "/\u2044\u2215"
_NUMBER = re.compile(
    rf"((?<![\w)])[{_MINUS}+])?[$€£]?((?:\d[\d,]*)?(?:\.?\d+))"
    rf"(?:([eE][{_MINUS}+]?\d+)|(:\d[\d:]*)| (\d+[{_SLASH}]\d+))?"
    rf"( ?[{_SLASH}] ?\d+)?( (?:hundred|thousand|million|billion|trillion)\b)?",
    re.ASCII | re.IGNORECASE,
)
_PLAIN_MINUS = str.maketrans(dict.fromkeys(_MINUS, "-"))
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+", re.ASCII)
_LEADING = re.compile(rf"\s*[{_MINUS}+]?[$€£]?[{_MINUS}+]?\.?\d", re.ASCII)
LEAD = 4  # characters: a number that begins before these may have begun before the text: `3 | / 4`
_BETWEEN_DIGITS = "\u066b\u066c\u207a\u207b\u208a\u208b"  # Arabic separators; raised and lowered signs
SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}

_FRACTION = re.compile(r"\\[dtc]?frac ?(?:\{ ?(-?[\d.,]+) ?\} ?\{ ?(\d+) ?\}|(\d)(\d))", re.ASCII)
_FORMULA = re.compile(r"\\[dtc]?frac ?\{[^{}\n]{0,200}\} ?\{[^{}\n]{0,200}\}")
_GROUPED = re.compile(r"(?<=\d)(?:\\[,!; ]|\{,\})(?=\d{3}(?!\d))", re.ASCII)
_UNREADABLE = f"1e{MAX_DIGITS + 1}"


def read(text: str) -> str | None:
    """The first number of what stands behind a mark, in a form that Fraction reads; None without one."""
    return next(_numbers(text), None)


def search(completion: str) -> str | None:
    """The last number of a completion; None without one."""
    found = list(_numbers(completion[-MAX_TEXT:], cut=len(completion) > MAX_TEXT))
    return found[-1] if found else None


def same(found: str, reference: str) -> bool:
    """Whether both are numbers, and equal."""
    return is_number(found) and is_number(reference) and number(found) == number(reference)


def only(text: str) -> bool:
    """Whether there is nothing but a number, perhaps with a sign, a currency or a percent sign."""
    text = _spelled_out(text[: LONGEST + 1]).rstrip(" .%\\")
    return len(text) <= LONGEST and bool(_NUMBER.fullmatch(text)) and read(text) is not None


def flaw(reference: str) -> str:
    """Why no answer can ever match; empty where one can."""
    return "" if is_number(reference) else "that is no number"


def number(text: str) -> Fraction | None:
    """The value of the first number in `text` (`-1,234.50`, `$5`, `3/4`, `12 apples.`), exactly; None without one."""
    found = next(_numbers(text[:MAX_TEXT]), None)
    return None if found is None else Fraction(found)


def is_number(text: str) -> bool:
    """Whether a text is a number, perhaps with a unit behind it: `$5`, `12 apples`, but not `B2`."""
    return bool(_LEADING.match(_spelled_out(text[:MAX_TEXT]))) and number(text) is not None


def _spelled_out(text: str) -> str:
    """Fractions and grouped digits of LaTeX as they are written without it; other fractions as what cannot be read."""
    if "\\" not in text and "{,}" not in text:
        return text
    text = _FRACTION.sub(_fraction, _GROUPED.sub(",", text))
    return _FORMULA.sub(_UNREADABLE, text)


def _fraction(match: re.Match[str]) -> str:
    above, below = (match[1], match[2]) if match[1] else (match[3], match[4])
    before, after = match.string[: match.start()][-1:], match.string[match.end() :][:1]
    return f"{' ' if before.isdigit() else ''}{above}/{below}{' ' if after.isdigit() else ''}"


def _numbers(text: str, cut: bool = False) -> Iterator[str | None]:
    """Every number in `text`, in a form that Fraction reads; None for one that is unreadable.

    Args:
        cut: whether there is text before, so that a number at the beginning may be half of one.
    """
    text = _spelled_out(text)
    plain = text.isascii()
    for match in _NUMBER.finditer(text):
        sign, digits, exponent, clock, mixed, denominator, scale = match.groups()
        single = bool(_THOUSANDS.fullmatch(digits))  # `1,2,3` is a list of numbers and `1,234` is one number
        half = cut and single and match.start() < LEAD
        named = exponent and text[: match.start()][-1:].isalpha()  # `0x1e5`, `a1e5`
        if half or clock or named or (mixed and denominator) or not (plain or _stands_alone(text, match)):
            yield None
            continue
        parts = [digits.replace(",", "")] if single else [part for part in digits.split(",") if part]
        if sign and sign in _MINUS:
            parts[0] = "-" + parts[0]
        *others, last = parts
        yield from (_written(other) for other in others)
        if mixed and not _proper(last, mixed):
            yield _written(last)
            (last, denominator), mixed = _halves(mixed), None
        yield _written(last, exponent, mixed, denominator, scale)


def _written(
    above: str,
    exponent: str | None = None,
    mixed: str | None = None,
    denominator: str | None = None,
    scale: str | None = None,
) -> str | None:
    """A number as Fraction reads it; None where it is too long."""
    power = exponent.translate(_PLAIN_MINUS)[1:] if exponent else "0"
    below = (_halves(mixed)[1] if mixed else denominator.strip(" " + _SLASH) if denominator else "").lstrip("0")
    if max(len(above.lstrip("-")), len(below)) > MAX_DIGITS or len(power) > 5 or abs(int(power)) > MAX_DIGITS:
        return None
    if not (exponent or below or scale):
        return above
    value = Fraction(above) * Fraction(10) ** int(power)
    if mixed:
        value += Fraction(int(_halves(mixed)[0]), int(below)) * (-1 if above.startswith("-") else 1)
    elif below:
        value /= int(below)
    return str(value * SCALES[scale.strip().lower()] if scale else value)


def _halves(fraction: str) -> tuple[str, str]:
    above, below = re.split(f"[{_SLASH}]", fraction)
    return above, below


def _proper(whole: str, fraction: str) -> bool:
    """Whether a fraction behind a number makes a mixed one of it: `3 1/2`, but not `3.5 1/2` or `3 5/2`."""
    above, below = _halves(fraction)
    return "." not in whole and max(len(above), len(below)) <= MAX_DIGITS and 0 < int(above) < int(below)


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
