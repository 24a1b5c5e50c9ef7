"""Intervals and paired comparisons against values known by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpu_grpo.statistics import paired_difference, wilson


def test_wilson_matches_the_published_formula():
    low, high = wilson(8, 10)
    assert low == pytest.approx(0.4901, abs=1e-4)  # (0.8 + z²/20 ± z·sqrt(0.016 + z²/400)) / (1 + z²/10), z = 1.96
    assert high == pytest.approx(0.9433, abs=1e-4)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_what_is_no_proportion(successes, n):
    with pytest.raises(ValueError):
        wilson(successes, n)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_contains_the_proportion_within_0_and_1(case):
    successes, n = case
    low, high = wilson(successes, n)
    assert 0 <= low <= successes / n + 1e-12
    assert successes / n - 1e-12 <= high <= 1


@given(st.integers(1, 100).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_narrows_with_more_problems(case):
    successes, n = case
    few, many = wilson(successes, n), wilson(4 * successes, 4 * n)
    assert many.high - many.low < few.high - few.low


def test_paired_difference_counts_gained_and_lost():
    base = [True] * 10 + [False] * 10
    other = [True] * 9 + [False] * 1 + [True] * 8 + [False] * 2
    found = paired_difference(base, other)
    assert (found.n, found.gained, found.lost) == (20, 8, 1)
    assert found.difference == pytest.approx(0.35)
    assert found.p_value == pytest.approx(2 * (1 + 9) / 2**9)  # exact McNemar: both tails of 9 tosses with 8 or 9 heads


def test_bootstrap_agrees_with_the_normal_approximation_where_that_is_good():
    base = [True] * 400 + [False] * 600
    other = [True] * 300 + [False] * 100 + [True] * 200 + [False] * 400
    found = paired_difference(base, other)
    half = 1.96 * ((0.3 - 0.1**2) / 1000) ** 0.5
    assert found.low == pytest.approx(0.1 - half, abs=0.003)
    assert found.high == pytest.approx(0.1 + half, abs=0.003)


def test_equal_models_differ_by_exactly_nothing():
    found = paired_difference([True, False, True], [True, False, True])
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)


@pytest.mark.parametrize(("base", "other"), [([], []), ([True], [True, False])])
def test_paired_difference_refuses_what_cannot_be_paired(base, other):
    with pytest.raises(ValueError):
        paired_difference(base, other)


PAIRS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


@settings(max_examples=40, deadline=None)
@given(PAIRS, st.integers(0, 5))
def test_interval_contains_the_difference_and_is_reproducible(pairs, seed):
    base, other = [before for before, _ in pairs], [after for _, after in pairs]
    found = paired_difference(base, other, seed=seed)
    assert -1 <= found.low <= found.difference + 1e-12
    assert found.difference - 1e-12 <= found.high <= 1
    assert 0 <= found.p_value <= 1
    assert found == paired_difference(base, other, seed=seed)


@settings(max_examples=40, deadline=None)
@given(PAIRS)
def test_swapping_the_models_flips_the_sign(pairs):
    base, other = [before for before, _ in pairs], [after for _, after in pairs]
    there, back = paired_difference(base, other), paired_difference(other, base)
    assert back.difference == pytest.approx(-there.difference)
    assert back.p_value == pytest.approx(there.p_value)
    assert (back.gained, back.lost) == (there.lost, there.gained)
