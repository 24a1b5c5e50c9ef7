"""What a study's outcomes show, against values worked out by hand."""

import math
from dataclasses import replace

import pytest
from scipy.stats import t, ttest_rel

from cpu_grpo.config.study_schema import Budget, Forgetting, Published, Study, StudyJob
from cpu_grpo.report.speed import speed_section
from cpu_grpo.report.studies import comparison_section
from cpu_grpo.report.text import NOTHING
from cpu_grpo.study.comparison import arms, forgotten, speed_ratios, speeds
from cpu_grpo.study.outcomes import Marks, Outcome

pytestmark = pytest.mark.slow

CONFIG = StudyJob(
    study=Study(name="s", arms={"base": [], "a": ["x"], "b": ["y"]}, reference="a"),
    budget=Budget(name="b", seeds=[1, 2, 3]),
)


def outcome(arm, seed, right, problems="", figures=None):
    marks = Marks(problems or f"drawn {seed}", [1, 1, 2, 2], right)
    return Outcome("s", "b", arm, seed, "job", "commit", "cpu", 1.0, {"test": marks}, figures or {})


ALL = [
    *(outcome("base", seed, right) for seed, right in ((1, "1000"), (2, "0000"), (3, "1000"))),
    *(outcome("a", seed, right) for seed, right in ((1, "1100"), (2, "1000"), (3, "1110"))),
    *(outcome("b", seed, right) for seed, right in ((1, "1110"), (2, "1110"), (3, "1111"))),
]


def test_gains_and_differences_are_paired_seed_by_seed():
    base, a, b = arms(CONFIG, ALL)
    assert [arm.name for arm in (base, a, b)] == ["base", "a", "b"]
    assert a.gain.over_seeds.mean == pytest.approx((0.25 + 0.25 + 0.5) / 3)
    assert b.difference.over_seeds.mean == pytest.approx((0.25 + 0.5 + 0.25) / 3)
    half = t.ppf(0.975, 2) * (0.0625 / 3) ** 0.5 / 3**0.5  # sample variance of 0.25, 0.5, 0.25 is 1/48
    assert b.difference.over_seeds.high == pytest.approx(1 / 3 + half)
    assert a.difference is None and base.gain is None
    assert base.difference.over_seeds.mean == pytest.approx(-1 / 3)


def test_p_values_are_corrected_for_all_arms_of_a_table():
    _, a, b = arms(CONFIG, ALL)
    raw_a = ttest_rel([0.5, 0.25, 0.75], [0.25, 0, 0.25]).pvalue
    raw_b = ttest_rel([0.75, 0.75, 1], [0.25, 0, 0.25]).pvalue
    assert a.gain.over_seeds.p_value == pytest.approx(raw_a)
    assert b.gain.p_corrected == pytest.approx(2 * raw_b)  # Holm: the smaller of two is doubled
    assert a.gain.p_corrected == pytest.approx(max(raw_a, 2 * raw_b))


def test_accuracy_by_level_is_over_seeds_too():
    _, a, _ = arms(CONFIG, ALL)
    assert a.levels[1].mean == pytest.approx((1 + 0.5 + 1) / 3)
    assert a.levels[2].mean == pytest.approx((0 + 0 + 0.5) / 3)


def test_other_problems_are_not_paired():
    moved = [
        replace(own, marks={"test": replace(own.marks["test"], problems="x")}) if own.arm == "b" else own for own in ALL
    ]
    _, a, b = arms(CONFIG, moved)
    assert b.gain is None and b.difference is None
    assert a.gain is not None


def test_a_seed_that_one_arm_lacks_is_left_out_of_the_pair():
    _, a, b = arms(CONFIG, [own for own in ALL if (own.arm, own.seed) != ("a", 3)])
    assert a.seeds == [1, 2] and b.seeds == [1, 2, 3]
    assert b.difference.over_seeds.n == 2
    assert b.gain.over_seeds.n == 3


def test_one_seed_has_no_interval():
    _, _, b = arms(CONFIG, [own for own in ALL if own.seed == 1])
    assert b.difference.over_seeds.mean == 0.25
    assert math.isnan(b.difference.over_seeds.low) and math.isnan(b.difference.p_corrected)


def test_an_arm_without_outcomes_is_not_filled_in():
    assert [arm.name for arm in arms(CONFIG, [own for own in ALL if own.arm != "base"])] == ["a", "b"]


def test_costs_are_means_over_seeds():
    found = [
        outcome("a", 1, "1111", figures={"wall_seconds": 1.0}),
        outcome("a", 2, "1111", figures={"wall_seconds": 4.0}),
    ]
    assert arms(CONFIG, found)[0].figures == {"wall_seconds": 2.5}


def test_speeds_are_ratios_seed_by_seed():
    rates = {("a", 1): 4.0, ("a", 2): 10.0, ("b", 1): 2.0, ("b", 2): 20.0, ("base", 3): 1.0}
    found = speeds(
        CONFIG,
        [outcome(arm, seed, "1", figures={"completions_per_second": rate}) for (arm, seed), rate in rates.items()],
    )
    assert list(found) == ["b"]  # a is the reference, and base has no seed in common with it
    assert found["b"].mean == pytest.approx(1)  # the geometric mean of 1/2 and 2
    half = t.ppf(0.975, 1) * math.log(2)  # deviation of -log 2 and log 2, by the root of 2
    assert found["b"].high == pytest.approx(math.exp(half))


def test_a_speed_is_of_the_last_stage_where_the_others_are_known():
    study = Study(
        name="s", arms={"first": ["x"], "slow": ["x", "y"], "fast": ["x", "z"], "other": ["z"]}, reference="slow"
    )
    config = StudyJob(study=study, budget=Budget(name="b", seeds=[1]))
    totals = {"first": (100.0, 50.0), "slow": (120.0, 70.0), "fast": (110.0, 52.0), "other": (30.0, 10.0)}
    found = [
        replace(
            outcome(arm, 1, "1", figures={"completions": n, "train_seconds": s, "completions_per_second": n / s}),
            runs=["of x", f"of {arm}"],
        )
        for arm, (n, s) in totals.items()
    ]
    assert speed_ratios(config, found, "fast", "slow") == pytest.approx([(10 / 2) / (20 / 20)])
    assert speed_ratios(config, found, "other", "slow") == pytest.approx([3 / (20 / 20)])
    anew = [replace(own, runs=["again", "of fast"]) if own.arm == "fast" else own for own in found]
    assert speed_ratios(config, anew, "fast", "slow") == pytest.approx([110 / 52])  # its first stage was another run


def test_a_speed_section_names_every_arm(tmp_path):
    config = replace(CONFIG, study=replace(CONFIG.study, splits=[], question="How fast?"))
    figures = {"completions_per_second": 3.0, "tokens_per_second": 30.0, "cpu_use": 0.9, "peak_rss_bytes": 2e9}
    faster = figures | {"completions_per_second": 6.0}
    found = speed_section(config, [outcome("a", 1, "1", figures=figures), outcome("b", 1, "1", figures=faster)])
    assert found.answers[-1:] == ["b is 2.00 times as fast as a, in one run."]
    rows = [[cell[0] for cell in row[:3]] for row in found.table.rows]
    assert rows == [["a", NOTHING, "3.00"], ["b", "2.00", "6.00"]]


def test_what_later_stages_undo_is_counted_on_one_level_alone():
    arms_ = {"base": [], "first": ["x"], "last": ["x", "y"]}
    study = Study(name="s", arms=arms_, forgetting=Forgetting(level=1, before="first", after="last"))
    config = StudyJob(study=study, budget=Budget(name="b", seeds=[1, 2, 3]))
    before = [outcome("first", seed, "1100") for seed in (1, 2, 3)]
    after = [outcome("last", seed, right) for seed, right in ((1, "1011"), (2, "0011"), (3, "1111"))]
    found = forgotten(config, before + after)
    assert found.n == 3 and found.mean == pytest.approx((-0.5 - 1 + 0) / 3)
    assert found.p_value == pytest.approx(ttest_rel([0.5, 0, 1], [1, 1, 1]).pvalue)
    assert forgotten(config, before) is None
    assert forgotten(CONFIG, ALL) is None  # which does not ask


SHARED = StudyJob(
    study=Study(
        name="s",
        arms={"base": [], "a": ["x"]},
        reference="base",
        same_problems=True,
        extractions=["strict", "flexible"],
    ),
    budget=Budget(name="b", seeds=[1, 2]),
)


def extracted(arm, seed, strict, flexible):
    marks = Marks("the same", [1] * 4, strict, strict, flexible)
    return Outcome("s", "b", arm, seed, "job", "commit", "cpu", 1.0, {"test": marks})


def test_where_all_seeds_answer_the_same_problems_these_are_drawn_by_chance_too():
    found = [extracted("base", 1, "1000", "1000"), extracted("base", 2, "1000", "1000")]
    found += [extracted("a", 1, "1100", "1110"), extracted("a", 2, "1111", "1111")]
    base, a = arms(SHARED, found)
    assert base.accuracy["test"].mean == 0.25 and base.accuracy["test"].low < 0 < 0.5 < base.accuracy["test"].high
    gain = a.gain.over_seeds
    assert gain.mean == 0.5
    # Of seeds: 0.25 and 0.75, variance 1/8 over 2. Of problems: 0, 1, 1/2 and 1/2, variance 1/6 over 4.
    assert gain.high - gain.mean == pytest.approx(
        t.ppf(0.975, (1 / 16 + 1 / 24) ** 2 / ((1 / 16) ** 2 + (1 / 24) ** 2 / 3)) * (1 / 16 + 1 / 24) ** 0.5
    )


def test_extractions_stand_beside_each_other_and_are_corrected_together():
    found = [extracted("base", seed, "10000000", "10010000") for seed in (1, 2)]
    found += [extracted("a", seed, "11101000", "11111100") for seed in (1, 2)]
    base, a = arms(SHARED, found)
    assert [a.extracted[name][0].mean for name in ("strict", "flexible")] == [0.5, 0.75]
    strict, flexible = (a.extracted[name][1] for name in ("strict", "flexible"))
    assert (strict.over_seeds.mean, flexible.over_seeds.mean) == (0.375, 0.5)
    assert flexible.p_corrected == pytest.approx(2 * flexible.over_seeds.p_value)  # Holm's, the smaller of two
    assert strict.p_corrected == pytest.approx(max(strict.over_seeds.p_value, flexible.p_corrected))
    assert base.extracted["strict"][1] is None


def test_one_seed_on_shared_problems_has_an_interval_over_these():
    found = [extracted("base", 1, "10000000", "10000000"), extracted("a", 1, "11110000", "11110000")]
    _, a = arms(SHARED, found)
    assert a.gain.over_seeds.n == 1 and a.gain.over_seeds.low < a.gain.over_seeds.mean == 0.375
    assert a.gain.over_seeds.p_value == pytest.approx(ttest_rel([1, 1, 1, 1] + [0] * 4, [1] + [0] * 7).pvalue)


def test_the_first_problems_are_told_apart_where_others_reported_on_as_many():
    found = [extracted("base", 1, "1000", "1000"), extracted("a", 1, "0110", "0110"), extracted("a", 2, "1110", "1110")]
    published = Published(problems=2, right={"base": 1, "a": 0})
    few = replace(SHARED, study=replace(SHARED.study, arms={"base": [], "a": ["seed=1"]}, published=published))
    assert [arm.first.mean for arm in arms(few, found)] == [0.5, 0.75]
    assert [arm.first for arm in arms(SHARED, found)] == [None, None]
    table = comparison_section(few, found).table
    cells = {row[0][0]: dict(zip(table.header, row, strict=True)) for row in table.rows}
    assert cells["a"]["First 2 problems"][0] == "75.0 %" and cells["base"]["As published"][0] == "50.0 %"


def test_a_level_on_shared_problems_has_their_chance_too_and_of_one_problem_no_interval():
    marks = Marks("the same", [1, 1, 1, 1, 2], "11101", "11101", "11101")
    found = [Outcome("s", "b", "a", seed, "job", "commit", "cpu", 1.0, {"test": marks}) for seed in (1, 2)]
    (a,) = arms(SHARED, found)
    assert a.levels[1].low < a.levels[1].mean == 0.75 < a.levels[1].high  # equal in both seeds, and not certain
    assert a.levels[2].mean == 1 and math.isnan(a.levels[2].low)
