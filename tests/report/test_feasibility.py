"""What the report says of cost, against figures that are computed by hand."""

from dataclasses import replace

import pytest

from cpu_grpo.config.compose import compose_study
from cpu_grpo.config.study_schema import Published
from cpu_grpo.experiment.statistics import paired_difference
from cpu_grpo.report.feasibility import feasibility
from cpu_grpo.report.findings import Row
from cpu_grpo.report.results import Training
from cpu_grpo.report.text import NOTHING

TRAINING = Training(
    "ultra_fast",
    completions_per_second=2.0,
    update_seconds=30.0,
    peak_rss_bytes=4e9,
    cpu_use=0.955,
    wall_seconds=600.0,
)
BASE = [False] * 20


def row(training, right, p):
    gain = paired_difference(BASE, [True] * right + [False] * (20 - right))
    return Row(training.variant, None, training, gain, True, p_corrected=p)


@pytest.fixture
def rows():
    quick = replace(TRAINING, variant="own", completions_per_second=0.5, wall_seconds=60.0, peak_rss_bytes=5e9)
    return [Row("base", None, None, None, False), row(TRAINING, 12, 0.001), row(replace(quick, cpu_use=0.8), 3, 0.5)]


def test_what_an_hour_brings_and_what_it_takes_is_told(rows):
    found = feasibility(rows, compose_study("recipes", "full").study.published)
    assert found.answers == [
        "1 of 2 trained models gained by more than chance after Holm's correction; ultra_fast took the least time, "
        "10.0 min of training with what it starts from.",
        "An hour is worth 1,800 completions by own, the slowest, and 7,200 completions by ultra_fast, the fastest.",
        "Every training had room in 5.00 GB of memory, its libraries included.",
        "Training kept the cores busy 80 to 96 % of the time; as published, 15 to 91 %.",
    ]


def test_each_recipe_stands_beside_its_published_namesake(rows):
    table = feasibility(rows, compose_study("recipes", "full").study.published).table
    cells = [tuple(cell[0] for cell in line) for line in table.rows]
    assert cells[0] == (
        "ultra_fast", "2.00", "0.047", "30.0 s", "120", "4.00 GB", "96 %", "19 %", "10.0 min", "6.1 min"
    )  # fmt: skip
    assert [cells[1][place] for place in (2, 7, 9)] == [NOTHING] * 3  # nobody has published "own"


def test_a_stage_costs_what_the_stages_before_it_cost_too(rows):
    later = row(replace(TRAINING, variant="stage2", init_from="stage1", wall_seconds=100.0), 12, 0.001)
    first = row(replace(TRAINING, variant="stage1", init_from="base", wall_seconds=550.0), 1, 1.0)
    (told, *_) = feasibility([*rows, first, later], Published()).answers
    assert "; ultra_fast took the least time, 10.0 min" in told  # 650 s by way of stage 1
    (told, *_) = feasibility(
        [*rows, replace(first, training=replace(first.training, wall_seconds=450.0)), later], Published()
    ).answers
    assert "; stage2 took the least time, 9.2 min" in told


def test_a_loss_is_no_gain_however_sure(rows):
    lost = paired_difference([True] * 12 + [False] * 8, BASE)
    (told, *_) = feasibility([replace(rows[1], gain=lost)], Published()).answers
    assert told == "0 of 1 trained model gained by more than chance after Holm's correction."


def test_what_was_not_run_is_not_filled_in(rows):
    found = feasibility(rows[:1], Published())
    assert found.answers == ["Not run: no training has results."] and found.table.rows == []
    bare = feasibility([Row("own", None, Training("own"), None, True)], Published())
    assert bare.answers == [] and [cell[0] for cell in bare.table.rows[0][1:]] == [NOTHING] * 9
