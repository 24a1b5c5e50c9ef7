"""Intervals and paired comparisons against values known by hand."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from cpu_grpo.experiment.statistics import (
    clustered,
    holm,
    least_p_value,
    over_seeds,
    paired_difference,
    pass_at_k,
    smallest_difference,
    wilson,
)


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


@pytest.mark.parametrize(("before", "after", "p"), [(3, 0, 0.25), (3, 3, 1), (3, 2, 1), (0, 6, 0.03125)])
def test_the_least_p_value_is_that_of_the_most_favourable_pairing(before, after, p):
    """Three lost and none gained: 2 / 2^3."""
    n = 8
    outcomes = [[True] * right + [False] * (n - right) for right in (before, after)]
    assert least_p_value(before, after) == pytest.approx(p) == pytest.approx(paired_difference(*outcomes).p_value)


def test_over_seeds_is_students_interval():
    """Sleep data of Student (1908), as R documents t.test(extra ~ group, data = sleep, paired = TRUE)."""
    differences = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    found = over_seeds(differences)
    assert (found.n, found.mean) == (10, pytest.approx(1.58))
    assert (found.low, found.high) == (pytest.approx(0.7001142, abs=1e-6), pytest.approx(2.4598858, abs=1e-6))
    assert found.p_value == pytest.approx(0.002833, abs=1e-6)


def test_one_seed_tells_nothing_of_the_next():
    found = over_seeds([0.1])
    assert found.mean == 0.1 and math.isnan(found.low) and math.isnan(found.p_value) and found.smallest() == math.inf


def test_equal_runs_have_no_width():
    assert over_seeds([0.0, 0.0]).p_value == 1
    found = over_seeds([0.2, 0.2])
    assert (found.low, found.high, found.p_value) == (pytest.approx(0.2), pytest.approx(0.2), 0)


def test_no_runs_have_no_mean():
    with pytest.raises(ValueError):
        over_seeds([])


def test_the_smallest_difference_matches_tables_of_power():
    """Cohen (1988): 34 pairs find an effect of 0.5 with 80 % power; R's power.t.test(n = 5, type = "paired")."""
    assert smallest_difference(1.0, 34) == pytest.approx(0.5, abs=0.01)
    assert smallest_difference(2.0, 34) == pytest.approx(1.0, abs=0.02)
    assert smallest_difference(0.0, 5) == 0 and smallest_difference(1.0, 1) == math.inf


@pytest.mark.parametrize("n", [2, 3, 5, 240])
@pytest.mark.parametrize("comparisons", [1, 3, 17])
def test_the_smallest_difference_is_found_as_often_as_promised(n, comparisons):
    """In tests of differences drawn at random."""
    effect = over_seeds([-1.0, 1.0, *[0.0] * (n - 2)]).smallest(comparisons) / (2 / (n - 1)) ** 0.5
    draws = np.random.default_rng(0).normal(effect, 1, (20_000, n))
    assert (ttest_1samp(draws, 0, axis=1).pvalue < 0.05 / comparisons).mean() == pytest.approx(0.8, abs=0.01)


def test_a_paired_difference_says_what_it_could_have_seen():
    base, other = [True] * 50 + [False] * 50, [True] * 40 + [False] * 10 + [True] * 10 + [False] * 40
    found = paired_difference(base, other)
    assert found.smallest() == pytest.approx(
        (1.96 + 0.8416) * 0.2**0.5 / 10, rel=0.02
    )  # deviation of 20 discordant in 100


def test_holm_matches_a_published_example():
    """Four tests, as in the article on the Holm-Bonferroni method: 0.005 is multiplied by 4, 0.01 by 3."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_clustered_errors_are_those_of_the_problems_means():
    """With as many answers to each problem, clustering is Student's interval of the problems' means."""
    outcomes = [
        [True, True, True],
        [True, False, True],
        [False, False, False],
        [True, False, False],
        [True, True, False],
    ]
    means = over_seeds([sum(answers) / 3 for answers in outcomes])
    assert clustered(outcomes) == (pytest.approx(max(0, means.low)), pytest.approx(min(1, means.high)))


def test_repeated_answers_are_no_new_problems():
    once = clustered([[i % 3 == 0] for i in range(30)])
    thrice = clustered([[i % 3 == 0] * 3 for i in range(30)])
    assert thrice == (pytest.approx(once.low), pytest.approx(once.high))


@pytest.mark.parametrize("outcomes", [[], [[True]], [[True], []]])
def test_clustered_refuses_what_has_no_clusters(outcomes):
    with pytest.raises(ValueError):
        clustered(outcomes)


@pytest.mark.parametrize(("n", "right", "k", "expected"), [(5, 2, 1, 0.4), (5, 2, 2, 0.7), (4, 0, 3, 0), (4, 2, 3, 1)])
def test_pass_at_k_counts_the_draws_without_a_right_one(n, right, k, expected):
    assert pass_at_k(n, right, k) == pytest.approx(expected)  # 1 - C(3, 2) / C(5, 2) = 1 - 3/10


@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_all_draws(case):
    n, right, k = case
    draws = list(combinations([True] * right + [False] * (n - right), k))
    assert pass_at_k(n, right, k) == pytest.approx(sum(map(any, draws)) / len(draws))


@pytest.mark.parametrize(("n", "right", "k"), [(3, 4, 1), (3, 1, 4), (3, 1, 0), (3, -1, 1)])
def test_pass_at_k_refuses_what_it_cannot_tell(n, right, k):
    with pytest.raises(ValueError):
        pass_at_k(n, right, k)
