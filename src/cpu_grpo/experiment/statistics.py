"""How sure a measured accuracy, or a difference of two, can be."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, inf
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binomtest, chi2, norm, t, ttest_1samp

RESAMPLES = 10_000
POWER = 0.8
QUANTILES = 10_000


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
    level: float

    def smallest(self, comparisons: int = 1) -> float:
        """The smallest difference that so many problems would have shown, among so many comparisons."""
        deviation = max(0.0, (self.gained + self.lost) / self.n - self.difference**2) ** 0.5
        return smallest_difference(deviation, self.n, self.level, comparisons)


@dataclass(frozen=True)
class OverSeeds:
    """A mean over runs with seeds of their own; the interval and `p_value` are Student's, nothing (NaN) for one run.

    Attributes:
        deviation: of one of the values that it is the mean of.
        values: how many these are, or would be with as many degrees of freedom; 0: as many as seeds.
    """

    n: int
    mean: float
    low: float
    high: float
    p_value: float
    deviation: float
    level: float
    values: float = 0

    def smallest(self, comparisons: int = 1) -> float:
        """The smallest difference that so many runs would have shown, among so many comparisons."""
        return smallest_difference(self.deviation, self.values or self.n, self.level, comparisons)


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
    return Paired(n, (gained - lost) / n, float(low), float(high), gained, lost, p_value, level)


def least_p_value(before: int, after: int) -> float:
    """The smallest p-value that McNemar's exact test could give two models of which only these totals are known.

    It does where no problem is solved by the weaker model alone, so that all discordant ones speak for the stronger.
    """
    discordant = abs(after - before)
    return float(binomtest(0, discordant).pvalue) if discordant else 1.0


def over_seeds(values: Sequence[float], level: float = 0.95) -> OverSeeds:
    """The mean of one figure over runs that differ in their seed, and so in problems, sampling and initialisation.

    Seeds are a random effect: the interval says what a further run may be expected to average, and its width comes from
    the runs' own spread, which holds the chance of problems, too. With as many problems in each run this is the
    random-effects interval of Hartung and Knapp (2001).

    Raises:
        ValueError: there are no values.
    """
    n = len(values)
    if n == 0:
        raise ValueError("There are no runs to average.")
    mean = float(np.mean(values))
    if n == 1:
        return OverSeeds(1, mean, np.nan, np.nan, np.nan, np.nan, level)
    deviation = float(np.std(values, ddof=1))
    half = float(t.ppf((1 + level) / 2, n - 1)) * deviation / n**0.5
    p_value = float(ttest_1samp(values, 0).pvalue) if deviation else float(mean == 0)
    return OverSeeds(n, mean, mean - half, mean + half, p_value, deviation, level)


def over_seeds_and_problems(values: Sequence[Sequence[float]], level: float = 0.95) -> OverSeeds:
    """The mean of a figure over runs with seeds of their own, all on the same problems: both are drawn by chance.

    The mean's variance is the seeds' part and the problems' part, each estimated from means over the other, which
    counts the chance of a single answer twice, on the safe side; degrees of freedom are Satterthwaite's (1946). Of one
    run it holds the problems' part alone; of one problem there is no interval, as of one run in `over_seeds`.

    Args:
        values: of each run, the figure of each problem, in one order.

    Raises:
        ValueError: runs differ in their number of problems, or there are none.
    """
    if len({len(own) for own in values}) != 1 or not values[0]:
        raise ValueError("Problems are needed, the same in every run.")
    table = np.asarray(values, dtype=float)  # (seeds, problems)
    mean = float(table.mean())
    if table.shape[1] == 1:
        return OverSeeds(len(table), mean, np.nan, np.nan, np.nan, np.nan, level)
    parts = [
        (float(np.var(means, ddof=1)) / means.size, means.size - 1)
        for means in (table.mean(0), table.mean(1))
        if means.size > 1
    ]
    variance = sum(part for part, _ in parts)
    if not variance:
        return OverSeeds(len(table), mean, mean, mean, float(mean == 0), 0.0, level, table.shape[1])
    freedom = variance**2 / sum(part**2 / own for part, own in parts)
    half = float(t.ppf((1 + level) / 2, freedom)) * variance**0.5
    p_value = float(2 * t.sf(abs(mean) / variance**0.5, freedom))
    deviation = (variance * (freedom + 1)) ** 0.5
    return OverSeeds(len(table), mean, mean - half, mean + half, p_value, deviation, level, freedom + 1)


def smallest_difference(deviation: float, n: float, level: float = 0.95, comparisons: int = 1) -> float:
    """The smallest true difference that a two-sided paired t-test of `n` would find with 80 % power.

    Args:
        deviation: standard deviation of one pair's difference.
        comparisons: that Holm's correction is over; it asks the most of the first, Bonferroni's share of the level.
    """
    if n < 2:
        return inf
    if deviation == 0:
        return 0.0
    # statsmodels' solver returns where it began for few pairs and strict levels, as its noncentral t is NaN there. So
    # the test's power is the normal's, averaged over what may be estimated for the deviation, by equal quantiles of it.
    quantiles = (np.arange(QUANTILES) + 0.5) / QUANTILES
    estimates = np.sqrt(chi2.ppf(quantiles, n - 1) / (n - 1))
    critical = t.ppf(1 - (1 - level) / comparisons / 2, n - 1)
    bounds = critical * estimates  # of the mean's distance from zero, in its standard errors

    def lacking(distance: float) -> float:
        return POWER - float(np.mean(norm.sf(bounds - distance) + norm.cdf(-bounds - distance)))

    return float(brentq(lacking, 0, bounds[-1] + 10)) * deviation / n**0.5


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p-values that may be read together, in the order given."""
    from statsmodels.stats.multitest import multipletests

    return [float(value) for value in multipletests(p_values, method="holm")[1]] if len(p_values) else []


def clustered(outcomes: Sequence[Sequence[bool]], level: float = 0.95) -> Interval:
    """Interval of the share of right answers where each problem was answered more than once.

    Answers to one problem resemble each other, so that they count as one cluster (Miller 2024, arXiv 2411.00640, 2.2).

    Args:
        outcomes: of each problem, its answers.

    Raises:
        ValueError: there are fewer than two problems, or one without answers.
    """
    if len(outcomes) < 2 or not all(len(answers) for answers in outcomes):
        raise ValueError("Clustered errors need two problems or more, each with an answer.")
    from statsmodels.regression.linear_model import OLS

    right = np.concatenate([np.asarray(answers, dtype=float) for answers in outcomes])
    problem = np.repeat(np.arange(len(outcomes)), [len(answers) for answers in outcomes])
    found = OLS(right, np.ones_like(right)).fit(cov_type="cluster", cov_kwds={"groups": problem}, use_t=True)
    low, high = found.conf_int(1 - level)[0]
    return Interval(max(0.0, float(low)), min(1.0, float(high)))


def pass_at_k(n: int, right: int, k: int) -> float:
    """Chance that one of `k` answers is right, from `n` answers of which some were: unbiased (Chen et al. 2021, eq. 1).

    Raises:
        ValueError: there are fewer than k answers, or more right ones than answers.
    """
    if not 0 <= right <= n or not 1 <= k <= n:
        raise ValueError(f"{right} right of {n} answers tell nothing of {k}.")
    return 1 - comb(n - right, k) / comb(n, k)
