"""How a cost grows with a quantity: fitted exponents with intervals, and whether a straight line is contradicted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cpu_grpo.config.study_schema import Axis
from cpu_grpo.study.outcomes import Outcome

MEMORY = "peak_rss_bytes"


@dataclass(frozen=True)
class Growth:
    """A cost over a quantity, from single runs.

    `exponent` b is that of cost ~ quantity^b; `slope` that of cost = intercept + slope x quantity; `p_curved` the
    chance of so much curvature (a square term) if the line were true.
    """

    points: list[tuple[float, float]]
    exponent: tuple[float, float, float]  # estimate, low, high
    slope: tuple[float, float, float]
    intercept: float
    p_curved: float


def growth(axis: Axis, figure: str, outcomes: Sequence[Outcome], level: float = 0.95) -> Growth | None:
    """Of one figure along an axis; None unless three quantities or more were run, with a run more than that.

    The fits are ordinary least squares with Student's intervals, every run a point.
    """
    found = [(axis.arms[own.arm], own.figures[figure]) for own in outcomes if own.arm in axis.arms]
    if len({x for x, _ in found}) < 3 or len(found) < 4:
        return None
    x, y = (np.array(values, dtype=float) for values in zip(*sorted(found), strict=True))
    scaled = x / x.max()  # squares of small and large numbers would lose digits
    line = _fit(y, x)
    curve = _fit(y, scaled, scaled**2)
    return Growth(
        points=sorted(found),
        exponent=_slope(_fit(np.log(y), np.log(x)), level),
        slope=_slope(line, level),
        intercept=float(line.params[0]),
        p_curved=float(curve.pvalues[2]),
    )


def _fit(y: np.ndarray, *columns: np.ndarray) -> Any:
    from statsmodels.regression.linear_model import OLS

    return OLS(y, np.column_stack([np.ones_like(y), *columns])).fit()


def _slope(fit: Any, level: float) -> tuple[float, float, float]:
    low, high = fit.conf_int(1 - level)[1]
    return float(fit.params[1]), float(low), float(high)
