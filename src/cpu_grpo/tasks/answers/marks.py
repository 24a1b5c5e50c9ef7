"""The marks that a completion sets before its answer: `####`, `\\boxed{}` and `the answer is`."""

import re

MAX_TEXT = 20_000  # characters that are read: of a completion from its end, of an answer from its beginning
MAX_BOX = 1_000  # characters of a box's content

_HASHES = re.compile(r"####[ \t]*([^\n]*)")
_PHRASE = re.compile(r"\banswer(?: is|:)[ \t]*:?[ \t]*([^\n]*)", re.IGNORECASE)
MARKS = ("####", "boxed", "answer is")


def marked(completion: str, marks: tuple[str, ...]) -> tuple[str, bool] | None:
    """What stands behind the last of these marks, to its line's or the box's end, and whether nothing follows it.

    None where there is no mark.
    """
    text = completion[-MAX_TEXT:]
    found = [own for mark in marks if (own := _last(text, mark))]
    if not found:
        return None
    begin, end = max(found)
    closed = "}$.*)\\] \t\r\n" if text[end:].startswith("}") else None
    return text[begin:end].strip(), not text[end:].strip(closed)


def anywhere(completion: str) -> str:
    """What stands behind the last mark of any kind; empty without one, or where that is nothing."""
    found = marked(completion, MARKS)
    return found[0] if found else ""


def written(answer: str, mark: str) -> str:
    """An answer behind a mark."""
    form = {"####": "#### {}", "boxed": "The answer is \\boxed{{{}}}.", "answer is": "The answer is {}."}[mark]
    return form.format(answer)


def count(completion: str, marks: tuple[str, ...]) -> int:
    """How many of these marks there are."""
    text = completion[-MAX_TEXT:]
    counts = {"####": text.count("####"), "boxed": text.count("\\boxed{"), "answer is": len(_PHRASE.findall(text))}
    return sum(counts[mark] for mark in marks)


def _last(text: str, mark: str) -> tuple[int, int] | None:
    """Where what the last such mark marks begins and ends."""
    if mark == "boxed":
        return _box(text)
    matches = list((_HASHES if mark == "####" else _PHRASE).finditer(text))
    return matches[-1].span(1) if matches else None


def _box(text: str) -> tuple[int, int] | None:
    """The content of the last box, if it is closed."""
    begin = text.rfind("\\boxed{") + len("\\boxed{")
    if begin < len("\\boxed{"):
        return None
    depth = 1
    for place in range(begin, min(begin + MAX_BOX, len(text))):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if not depth:
            return begin, place
    return None
