"""Answers that a regular expression describes: a problem's reference is the expression, which must match in full."""

import regex

from cpu_grpo.tasks.answers import text

SECONDS = 0.1  # that a match may take: an expression of the user's may take for ever on a model's text

read = text.read
search = text.search


def same(found: str, reference: str) -> bool:
    """Whether the expression matches what was found, as it stands or without a full stop at its end."""
    try:
        matches = (regex.fullmatch(reference, own, timeout=SECONDS) for own in (found, found.rstrip(" .")))
        return any(match is not None for match in matches)
    except (TimeoutError, regex.error):
        return False


def only(text: str) -> bool:
    return bool(text.strip())


def flaw(reference: str) -> str:
    try:
        regex.compile(reference)
    except regex.error as error:
        return f"that is no regular expression ({error})"
    return ""
