"""From where on training problems are learnt by heart, against values worked out by hand."""

import pytest
from scipy.stats import ttest_1samp

from cpu_grpo.config.compose import compose_study
from cpu_grpo.report.overfitting import learning_plots, overfitting_answers
from cpu_grpo.study.outcomes import Marks, Outcome
from cpu_grpo.study.overfitting import overfitting, trained_on

CONFIG = compose_study("few_problems", "full")


def marks(right, n):
    return Marks("drawn", [1] * n, "1" * right + "0" * (n - right))


def outcome(arm, seed, train, of, test):
    """The first so many of its training problems are solved, and so many of 100 test problems."""
    found = {"train": marks(train, of), "test": marks(test, 100)}
    return Outcome("few_problems", "full", arm, seed, "job", "commit", "cpu", 1.0, found)


def study(trained, few, many):
    """The base solves the first 4 of 320 training problems and 20 of 100 test problems; two arms, over three seeds."""
    found = [outcome("base", seed, 4, 320, 20) for seed in (1, 2, 3)]
    for seed, (train, test) in enumerate(trained, start=1):
        found.append(outcome(few, seed, train, 10, test))
        found.append(outcome(many, seed, 80, 160, 50 + seed))
    return found


def test_the_number_of_training_problems_is_read_from_the_arm():
    assert [trained_on(CONFIG.study, arm) for arm in ("base", "n5", "n320")] == [0, 5, 320]


def test_the_gap_is_the_gain_on_its_own_problems_less_the_gain_on_others():
    few, many = overfitting(CONFIG, study([(10, 30), (10, 35), (9, 30)], "n10", "n160"))
    assert (few.arm, few.problems, many.arm, many.problems) == ("n10", 10, "n160", 160)
    # the base solves 4 of the first 10 problems, so 0.4, and 4 of the first 160
    gaps = [(1.0 - 0.4) - 0.10, (1.0 - 0.4) - 0.15, (0.9 - 0.4) - 0.10]
    assert few.gap.over_seeds.mean == pytest.approx(sum(gaps) / 3)
    assert few.gap.over_seeds.p_value == pytest.approx(ttest_1samp(gaps, 0).pvalue)
    assert many.gap.p_corrected == pytest.approx(2 * many.gap.over_seeds.p_value)  # Holm's, the smaller of two
    assert few.gap.p_corrected == pytest.approx(few.gap.over_seeds.p_value)
    assert many.gap.over_seeds.mean == pytest.approx(0.5 - 4 / 160 - 0.32)
    assert few.train == [1.0, 1.0, 0.9] and few.test == [0.3, 0.35, 0.3]


def test_the_most_problems_that_are_learnt_by_heart_are_told():
    own = study([(10, 30), (10, 35), (9, 30)], "n10", "n160")
    own = [one for one in own if one.arm != "n160"]
    own += [outcome("n160", seed, right, 160, 50) for seed, right in ((1, 50), (2, 54), (3, 49))]  # about as on test
    (told,) = overfitting_answers(overfitting(CONFIG, own))
    assert told.startswith(
        "Overfitting was found with up to 10 training problems: there the gain on them was +45.0 points"
    )


def test_what_could_not_be_told_says_what_would_have_been_found():
    own = study([(10, 30), (4, 35), (5, 30)], "n10", "n160")
    own = [one for one in own if one.arm != "n160"]
    (told,) = overfitting_answers(overfitting(CONFIG, own))
    assert told.startswith("Where overfitting starts we could not tell; the largest sign of it is n10's")
    assert told.endswith("; no difference would have been found with 80 % power.")


def test_one_seed_has_a_curve_and_no_answer():
    own = [one for one in study([(10, 30)], "n10", "n160") if one.seed == 1]
    assert overfitting_answers(overfitting(CONFIG, own)) == []
    (plot,) = learning_plots(CONFIG, own)
    assert "training problems (number)" in plot.svg and "test problems" in plot.svg


def test_a_study_without_numbers_of_problems_has_no_such_curve():
    config = compose_study("progressive", "full")
    own = Outcome("progressive", "full", "mix", 1, "job", "commit", "cpu", 1.0, {"test": marks(3, 9)})
    assert learning_plots(config, [own]) == [] and overfitting_answers(overfitting(config, [own])) == []
