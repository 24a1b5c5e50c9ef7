"""Answers that are mathematics: expressions, sets, intervals, matrices, compared by math-verify as what they mean.

It computes symbolically, which a hostile formula can make take for ever: `same` and `flaw` belong into a process that
can be ended (`cpu_grpo.tasks.judge`). What is found in a completion is only text.
"""

import logging
import re
from typing import Any

from cpu_grpo.tasks.answers import text
from cpu_grpo.tasks.answers.marks import MAX_TEXT, anywhere

LONGEST = 1_000  # characters of a formula
_FORMULA = re.compile(
    r"\$\$([^$]{1,1000})\$\$|\$([^$\n]{1,1000})\$|\\\(([^\n]{1,1000}?)\\\)|\\\[((?:(?!\\\]).){1,1000})\\\]", re.S
)

read = text.read


def search(completion: str) -> str | None:
    """What stands behind the last mark of any kind; else the last formula between `$`, else the last line."""
    if found := anywhere(completion):
        return found
    formulas = _FORMULA.findall(completion[-MAX_TEXT:])
    return next(filter(None, formulas[-1])).strip() if formulas else text.last_line(completion)


def same(found: str, reference: str) -> bool:
    from math_verify import verify

    ours, wanted = _parsed(found), _parsed(reference)
    return bool(ours and wanted) and verify(wanted, ours, timeout_seconds=None)


def only(text: str) -> bool:
    return bool(text.strip())


def flaw(reference: str) -> str:
    return "" if _parsed(reference) else "that math-verify cannot read"


def _parsed(formula: str) -> list[Any]:
    """What math-verify makes of a formula; empty where it makes nothing of it."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of the time limit that the process has
    bare = formula[:LONGEST].strip().strip("$").removeprefix("\\(").removesuffix("\\)").strip(" .")
    wanted = [LatexExtractionConfig(), ExprExtractionConfig()]
    return parse(f"${bare}$", extraction_config=wanted, parsing_timeout=None)
