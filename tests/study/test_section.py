"""What the report says of a study: run, half run, or not run."""

import pytest

from cpu_grpo.config.compose import compose_study, study_names
from cpu_grpo.report.studies import section, sections
from cpu_grpo.report.text import NOTHING
from cpu_grpo.study.outcomes import Marks, Outcome, outcome_file, write_outcome

pytestmark = pytest.mark.slow

FIGURES = {"no_spread_share": 0.25, "clipped_share": 0.1, "grad_norm": 1.5, "completions_per_second": 8.0}
FIGURES |= {"peak_rss_bytes": 4e9, "wall_seconds": 90.0}
MARKS = Marks("drawn", [1] * 8, "11000000")


def write(root, arm, seed, right, budget="full"):
    """Of 8 problems, two levels by turns."""
    config = compose_study("progressive", budget)
    marks = Marks(f"drawn {seed}", [1, 2] * 4, "1" * right + "0" * (8 - right))
    figures = {} if arm == "base" else FIGURES
    outcome = Outcome("progressive", budget, arm, seed, "job", "abcdef0123", "a CPU", 60.0, {"test": marks}, figures)
    write_outcome(root / outcome_file(config, arm, seed), outcome)


@pytest.fixture
def whole(tmp_path):
    """The curriculum is better than the mix by 1 to 3 of 8 problems; the hardest alone, as good as it."""
    arms = ("base", "after_level_1", "curriculum", "mix", "hardest")
    for seed, counts in enumerate(
        [(1, 2, 5, 3, 3), (2, 2, 6, 4, 5), (1, 4, 6, 3, 2), (0, 2, 5, 4, 4), (1, 2, 6, 4, 4)], start=1
    ):
        for arm, right in zip(arms, counts, strict=True):
            write(tmp_path, arm, seed, right)
    return tmp_path


def test_every_study_has_a_section_even_if_it_was_not_run(tmp_path):
    found = sections(tmp_path)
    assert [own.name for own in found] == study_names()
    for own in found:
        assert own.question.endswith("?") and own.method
        assert own.answers == [f"Not run yet: `make study NAME={own.name} BUDGET=full` does."]
        assert not own.table.rows and not own.plots


def test_a_clear_difference_is_told_with_its_interval_and_an_unclear_one_with_what_it_could_have_seen(whole):
    better, unclear = (
        next(answer for answer in section(whole, "progressive").answers if answer.startswith(f"{arm} against mix"))
        for arm in ("curriculum", "hardest")
    )
    assert better.startswith("curriculum against mix: +25.0 points (95 % interval over 5 seeds +14.0 to +36.0, p = ")
    assert better.endswith("better.")
    assert "hardest against mix: 0.0 points" in unclear
    assert "we could not tell; " in unclear and unclear.endswith("points would have been found with 80 % power.")


def test_what_the_first_stage_taught_and_the_last_one_undid_is_told(whole):
    (told,) = [answer for answer in section(whole, "progressive").answers if answer.startswith("On level 1 alone")]
    # of 4 problems of level 1 the first stage leaves 1, 1, 2, 1, 1 solved and the last one 3 each time
    assert told.startswith("On level 1 alone, curriculum against after_level_1: +45.0 points (95 % interval +31.1")
    assert told.endswith("the later stages made it better still.")
    for seed in range(1, 6):
        (whole / "results/studies/progressive/full" / f"after_level_1-{seed}.json").unlink()
    assert not any("On level 1 alone" in answer for answer in section(whole, "progressive").answers)


def test_the_table_has_every_arm_with_its_cost(whole):
    table = section(whole, "progressive").table
    assert [row[0] for row in table.rows] == [("base",), ("after_level_1",), ("curriculum",), ("mix",), ("hardest",)]
    cells = {row[0][0]: dict(zip(table.header, row, strict=True)) for row in table.rows}
    assert (
        cells["curriculum"]["Accuracy"][::2] == ("70.0 %", "5 seeds")
        and "40 problems" in cells["curriculum"]["Accuracy"]
    )
    assert cells["curriculum"]["Gain over base (points)"][0] == "+57.5"
    assert cells["curriculum"]["Against mix (points)"][0] == "+25.0"
    assert cells["mix"]["Against mix (points)"] == cells["base"]["Gain over base (points)"] == (NOTHING,)
    assert cells["curriculum"]["Groups without spread"] == ("25.0 %",)
    assert cells["base"]["Wall time"] == (NOTHING,)
    assert cells["curriculum"]["Level 1"][0] == "75.0 %"  # 3 of 4 in each run


def test_where_figures_come_from_is_told(whole):
    method = section(whole, "progressive").method
    assert "results/studies/progressive/full" in method and "study-progressive" in method
    assert "abcdef0" in method and "a CPU" in method


def test_each_figure_leads_to_its_files_and_runs(whole):
    config = compose_study("progressive", "full")
    outcome = Outcome("progressive", "full", "mix", 1, "job", "c", "a CPU", 1.0, {"test": MARKS}, FIGURES, ["ab" * 16])
    write_outcome(whole / outcome_file(config, "mix", 1), outcome)
    table = section(whole, "progressive", address=lambda run: f"http://ui/{run}").sources
    _, files, runs = next(row for row in table.rows if row[0] == ("mix",))
    assert [(file.text, (whole / "reports" / file.href).resolve().is_file()) for file in files] == [
        (f"seed {seed}", True) for seed in range(1, 6)
    ]
    assert [(run.text, run.href) for run in runs] == [("abababab", f"http://ui/{'ab' * 16}")]
    assert [row[0] for row in table.rows] == [(name,) for name in config.study.arms]


def test_a_half_run_study_says_so(whole):
    for seed in (4, 5):
        (whole / "results/studies/progressive/full" / f"mix-{seed}.json").unlink()
    found = section(whole, "progressive")
    assert found.answers[0] == "23 of 25 jobs are done; the others are not run yet."


def test_outcomes_may_be_kept_and_looked_for_elsewhere(whole):
    """As by someone who runs a study again whose outcomes came with the project."""
    (whole / "mine").mkdir()
    (whole / "results/studies/progressive").rename(whole / "mine/progressive")
    assert section(whole, "progressive").table.rows == []
    found = section(whole, "progressive", "mine")
    assert len(found.table.rows) == 5 and "mine/progressive/full" in found.method
    (_, files, _), *_ = found.sources.rows
    assert (whole / "reports" / files[0].href).resolve().is_file()


def test_a_quick_run_is_no_result(tmp_path):
    for arm, right in (("base", 1), ("mix", 4), ("curriculum", 5)):
        write(tmp_path, arm, 1, right, budget="quick")
    found = section(tmp_path, "progressive")
    assert found.answers[0].startswith("Run with budget=quick only, to see that it works: take nothing")
    assert any("with one seed, which tells nothing of the next" in answer for answer in found.answers)


def test_the_plot_shows_every_seed(whole):
    (plot,) = section(whole, "progressive").plots
    assert "dots are seeds" in plot.caption
    assert plot.svg.count("<use ") > 25  # 25 dots, and the axes' ticks


def test_published_results_get_the_interval_that_they_lacked(tmp_path):
    config = compose_study("recipes", "full")
    for arm, figures in {"base": {}, "published_ultra_fast": FIGURES}.items():
        outcome = Outcome("recipes", "full", arm, 1, "job", "abcdef0123", "a CPU", 60.0, {"test": MARKS}, figures)
        write_outcome(tmp_path / outcome_file(config, arm, 1), outcome)
    found = section(tmp_path, "recipes")
    cells = {row[0][0]: dict(zip(found.table.header, row, strict=True)) for row in found.table.rows}
    assert cells["published_ultra_fast"]["As published"] == ("0.0 %", "0.0 to 7.1 %", "n = 50")
    assert cells["base"]["As published"] == ("6.0 %", "2.1 to 16.2 %", "n = 50")
    assert found.answers[-1].startswith("Published, on 50 problems and without intervals: base 6.0 %")
    assert "p = 0.250 at the least: it shows no difference, however the problems fell." in found.answers[-1]


def test_a_name_that_promises_speed_and_does_not_keep_it_is_told(tmp_path):
    config = compose_study("recipes", "full")
    for arm, rate in {"stage3_final": 4.0, "ultra_fast": 9.0, "extreme_fast": 3.0, "hardware_accelerated": 5.0}.items():
        figures = FIGURES | {"completions_per_second": rate}
        outcome = Outcome("recipes", "full", arm, 1, "job", "abcdef0123", "a CPU", 60.0, {"test": MARKS}, figures)
        write_outcome(tmp_path / outcome_file(config, arm, 1), outcome)
    told = [answer for answer in section(tmp_path, "recipes").answers if "in spite of its name" in answer]
    assert told == [
        "extreme_fast makes 0.33 times the completions/s of ultra_fast with one seed, in spite of its name."
    ]


def test_a_name_is_not_contradicted_by_chance(tmp_path):
    """extreme_fast is slower by turns; hardware_accelerated a little, but each time."""
    config = compose_study("recipes", "full")
    rates = {"stage3_final": [4.0, 4.2, 4.1], "ultra_fast": [9.0, 9.5, 9.2], "extreme_fast": [5.0, 12.0, 8.0]}
    for arm, own in (rates | {"hardware_accelerated": [3.8, 4.0, 3.9]}).items():
        for seed, rate in enumerate(own, start=1):
            figures = FIGURES | {"completions_per_second": rate}
            outcome = Outcome("recipes", "full", arm, seed, "job", "c", "a CPU", 60.0, {"test": MARKS}, figures)
            write_outcome(tmp_path / outcome_file(config, arm, seed), outcome)
    (told,) = [answer for answer in section(tmp_path, "recipes").answers if "in spite of its name" in answer]
    assert told == (
        "hardware_accelerated makes 0.95 times the completions/s of stage3_final (95 % interval over 3 seeds 0.95 to "
        "0.95): it was slower each time, in spite of its name."
    )


def test_a_name_that_is_slower_each_time_is_told_with_its_doubt(tmp_path):
    config = compose_study("recipes", "full")
    for arm, own in {"ultra_fast": [9.0, 9.0], "extreme_fast": [8.0, 2.0]}.items():
        for seed, rate in enumerate(own, start=1):
            figures = FIGURES | {"completions_per_second": rate}
            outcome = Outcome("recipes", "full", arm, seed, "job", "c", "a CPU", 60.0, {"test": MARKS}, figures)
            write_outcome(tmp_path / outcome_file(config, arm, seed), outcome)
    (told,) = [answer for answer in section(tmp_path, "recipes").answers if "in spite of its name" in answer]
    assert told.startswith("extreme_fast makes 0.44 times") and told.endswith("more than chance could not be told.")
