"""How sure a measured accuracy, or a difference of two, can be."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest

RESAMPLES = 10_000


class Interval(NamedTuple):
    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """How another model differs from a base on the same problems.

    `difference` is other minus base, in accuracy; `gained` problems only the other solves, `lost` only the base.
    """

    n: int
    difference: float
    low: float
    high: float
    gained: int
    lost: int
    p_value: float


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval for a proportion; unlike the textbook one it stays honest near 0 and 1.

    Raises:
        ValueError: n is not positive, or successes are not within 0..n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is no proportion.")
    found = binomtest(successes, n).proportion_ci(level, method="wilson")
    return Interval(float(found.low), float(found.high))


def paired_difference(base: Sequence[bool], other: Sequence[bool], level: float = 0.95, seed: int = 0) -> Paired:
    """The difference of two models' accuracies on the same problems, given in the same order.

    The interval is the percentile bootstrap over problems. A problem's difference is -1, 0 or +1, so one resample of n
    problems is one multinomial draw of the three counts. Where every problem has the same difference the bootstrap sees
    no spread and the interval is that one point: take it as "no evidence either way", not as certainty.
    `p_value` is McNemar's exact test: the chance of so lopsided a split of the discordant problems if neither model
    were better; 1 where there are none.

    Raises:
        ValueError: the sequences differ in length or are empty.
    """
    n = len(base)
    if n != len(other):
        raise ValueError(f"{n} results cannot be paired with {len(other)}.")
    if n == 0:
        raise ValueError("There are no results to pair.")
    gained = sum(1 for before, after in zip(base, other, strict=True) if after and not before)
    lost = sum(1 for before, after in zip(base, other, strict=True) if before and not after)
    shares = np.array([gained, lost, n - gained - lost]) / n
    draws = np.random.default_rng(seed).multinomial(n, shares, size=RESAMPLES)
    low, high = np.quantile((draws[:, 0] - draws[:, 1]) / n, [(1 - level) / 2, (1 + level) / 2])
    discordant = gained + lost
    p_value = float(binomtest(gained, discordant).pvalue) if discordant else 1.0
    return Paired(n, (gained - lost) / n, float(low), float(high), gained, lost, p_value)
