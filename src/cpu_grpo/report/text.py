"""Numbers and hostile text as words."""

import re

from cpu_grpo import units
from cpu_grpo.experiment.statistics import POWER, Paired
from cpu_grpo.text import visible

NOTHING = "–"  # noqa: RUF001 - an en dash stands for "does not apply or was not recorded"
NOT_RUN = "not run"
SHOWN = 600  # characters of a completion


def percent(share: float | None) -> str:
    return NOTHING if share is None else f"{100 * share:.1f} %"


def whole_percent(share: float | None) -> str:
    return NOTHING if share is None else f"{100 * share:.0f} %"


def interval_text(low: float, high: float) -> str:
    return f"{100 * low:.1f} to {100 * high:.1f} %"


def points(difference: float) -> str:
    """A difference of shares in percentage points, signed; a true minus, and no sign for zero."""
    rounded = round(100 * difference, 1)
    return "0.0" if rounded == 0 else f"{rounded:+.1f}".replace("-", "\u2212")


def gain_text(gain: Paired) -> str:
    return f"{points(gain.difference)} points (95 % interval {points(gain.low)} to {points(gain.high)})"


def seen_text(smallest: float) -> str:
    """What a difference that was not found could at most have been, most likely."""
    seen = f"{100 * smallest:.1f} points" if smallest < 1 else "no difference"
    return f"{seen} would have been found with {100 * POWER:.0f} % power"


def p_text(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def number(value: float | None, digits: int = 1) -> str:
    return NOTHING if value is None else f"{value:,.{digits}f}"


def count(value: int, noun: str) -> str:
    return f"{value:,} {noun}{'' if value == 1 else 's'}"


def gigabytes(size: float | None) -> str:
    return NOTHING if size is None else units.gigabytes(size)


def duration(seconds: float | None) -> str:
    return NOTHING if seconds is None else units.duration(seconds)


def markdown_inline(text: str) -> str:
    """Text that stays text inside a Markdown table or paragraph: no new cell, line, tag, link, emphasis or code."""
    flat = " ".join(visible(text).split())
    no_tags = re.sub(r"<(?=\S)", "&lt;", flat.replace("&", "&amp;"))
    escaped = re.sub(r"([\\|`*~])", r"\\\1", no_tags)
    return escaped.replace("](", "]\\(").replace("![", "!\\[")


def markdown_block(text: str) -> str:
    """A code block that its content cannot close."""
    shown = visible(text, SHOWN)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    return f"{fence}text\n{shown}\n{fence}"
