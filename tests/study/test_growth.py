"""Fits of costs against values known by hand, and what the report says of them."""

import numpy as np
import pytest
from scipy.stats import linregress, t

from cpu_grpo.config.study_schema import Axis, Budget, Study, StudyJob
from cpu_grpo.report.growth import growth_section
from cpu_grpo.study.growth import growth
from cpu_grpo.study.outcomes import Outcome

AXIS = Axis(figure="update_seconds", arms={"a": 1, "b": 2, "c": 4, "d": 8})
CONFIG = StudyJob(
    study=Study(name="growth", question="How?", arms={arm: [""] for arm in "abcd"}, axes={"tokens": AXIS}, splits=[]),
    budget=Budget(name="full", seeds=[1, 2]),
)


def outcomes(cost, noise=0.02):
    """Two runs of each arm, a little apart by turns."""
    return [
        Outcome(
            "growth", "full", arm, seed, "job", "commit0", "a CPU", 1.0, {},
            {"update_seconds": cost(x) * (1 + noise * (-1) ** (seed + place)), "peak_rss_bytes": 1e9 + 1e8 * x},
        )
        for place, (arm, x) in enumerate(AXIS.arms.items())
        for seed in (1, 2)
    ]  # fmt: skip


def test_an_exponent_is_found_with_its_interval():
    found = growth(AXIS, "update_seconds", outcomes(lambda x: 3 * x**1.5))
    reference = linregress(np.log([x for x, _ in found.points]), np.log([y for _, y in found.points]))
    half = t.ppf(0.975, 6) * reference.stderr
    assert found.exponent == (
        pytest.approx(reference.slope),
        pytest.approx(reference.slope - half),
        pytest.approx(reference.slope + half),
    )
    assert found.exponent[1] < 1.5 < found.exponent[2]
    assert found.p_curved < 0.05


def test_a_line_is_not_contradicted_by_itself():
    found = growth(AXIS, "update_seconds", outcomes(lambda x: 2 + 3 * x))
    assert found.p_curved > 0.05
    assert found.slope[1] < 3 < found.slope[2] and found.intercept == pytest.approx(2, abs=0.5)


def test_too_few_quantities_give_no_fit():
    assert growth(AXIS, "update_seconds", [own for own in outcomes(lambda x: x) if own.arm in "ab"]) is None
    assert growth(AXIS, "update_seconds", [own for own in outcomes(lambda x: x) if own.seed == 1][:3]) is None


def test_the_section_tells_the_exponent_and_whether_a_line_holds():
    found = growth_section(CONFIG, outcomes(lambda x: 2 + 3 * x))
    assert found.answers[0].startswith("Seconds an update grow as tokens to the power of 0.")
    assert "a straight line is not contradicted (p = " in found.answers[0]
    assert [row[0] for row in found.table.rows] == [("seconds an update by tokens",), ("peak memory by tokens",)]
    assert found.table.rows[1][2] == ("0.1 GB", "0.1 to 0.1")
    assert len(found.plots) == 2 and "tokens" in found.plots[0].svg


def test_what_was_not_run_is_shown_as_not_run():
    found = growth_section(CONFIG, [own for own in outcomes(lambda x: x) if own.arm == "a"])
    assert found.answers == ["2 of 8 jobs are done; the others are not run yet."]
    assert [row[1] for row in found.table.rows] == [("not run",)] * 2 and not found.plots
