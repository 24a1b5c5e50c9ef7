"""Whether a search proposes what it may, learns from what it saw, and says what matters."""

from dataclasses import replace

import pytest

from cpu_grpo.config.compose import compose_study
from cpu_grpo.config.study_schema import Budget, Range, Study, StudyJob
from cpu_grpo.report.search import search_section
from cpu_grpo.study import jobs
from cpu_grpo.study.outcomes import Marks, Outcome
from cpu_grpo.study.search import as_keys, importances, next_values

STUDY = Study(
    name="search",
    question="What matters?",
    arms={"trial": [""]},
    splits=["validation"],
    search={"group": Range(choices=[2, 4, 8]), "rate": Range(low=1e-6, high=1e-4, log=True)},
    trials_at_random=4,
)
CONFIG = StudyJob(study=STUDY, budget=Budget(name="full", seeds=[1, 2, 3]), arm="trial", results="results/studies")


def outcome(trial, values, right):
    marks = Marks("drawn", [1] * 100, "1" * right + "0" * (100 - right))
    figures = {"no_spread_share": 0.5, "wall_seconds": 60.0}
    return Outcome(
        "search", "full", "trial", trial, "job", "commit0", "a CPU", 1.0, {"validation": marks}, figures, [], values
    )


def seen(score):
    """Thirty trials at random, whose right answers are told by their values."""
    found = []
    for trial in range(1, 31):
        values = next_values(replace(STUDY, trials_at_random=100), found, trial)
        found.append(outcome(trial, values, score(values)))
    return found


def test_values_are_within_bounds_and_the_same_each_time():
    for trial in range(1, 9):
        values = next_values(STUDY, [], trial)
        assert values["group"] in (2, 4, 8) and 1e-6 <= values["rate"] <= 1e-4
        assert values == next_values(STUDY, [], trial)
    assert len({next_values(STUDY, [], trial)["rate"] for trial in range(1, 9)}) == 8


def test_a_search_learns_from_the_trials_before():
    before = seen(lambda values: 80 if values["group"] == 8 else 20)
    asked = [next_values(STUDY, before, trial)["group"] for trial in range(31, 51)]
    assert asked.count(8) >= 14  # by chance a third of 20


def test_the_key_that_decides_is_the_important_one():
    found = importances(STUDY, seen(lambda values: 80 if values["group"] == 8 else 20))
    assert found["group"] > 0.9 and sum(found.values()) == pytest.approx(1)


def test_equal_trials_tell_nothing():
    assert importances(STUDY, [outcome(1, next_values(STUDY, [], 1), 50)]) == {}


def test_values_become_keys_of_a_command():
    assert as_keys({"trainer.num_generations": 8.0, "trainer.beta": 0.04, "trainer.learning_rate": 1e-05}) == [
        "trainer.num_generations=8",
        "trainer.beta=0.04",
        "trainer.learning_rate=1e-05",
    ]


def test_a_stopped_search_goes_on_with_the_values_it_would_have_had(workspace, monkeypatch):
    ran = []

    def trained(_, stage, *__):
        ran.append(stage.keys)
        figures = dict.fromkeys((*jobs.SUMS, *jobs.MEANS, "peak_rss_bytes"), 1.0)
        return figures | {"mlflow_run_id": "run"}

    monkeypatch.setattr(jobs, "_trained", trained)
    monkeypatch.setattr(jobs, "_evaluated", lambda *_: (Marks("drawn", [1, 1], "10"), "run"))
    whole = [jobs.run_job(replace(CONFIG, seed=trial), workspace / "out") for trial in (1, 2, 3)]
    assert len(ran) == 3 and all(as_keys(own.values)[1] in keys for own, keys in zip(whole, ran, strict=True))
    assert jobs.run_job(replace(CONFIG, seed=2), workspace / "out") == whole[1] and len(ran) == 3
    (workspace / "results/studies/search/full/trial-3.json").unlink()
    assert jobs.run_job(replace(CONFIG, seed=3), workspace / "out").values == whole[2].values


def test_its_section_names_the_best_trial_and_warns_of_it():
    outcomes = seen(lambda values: 80 if values["group"] == 8 else 20)
    found = search_section(replace(CONFIG, budget=Budget(name="full", seeds=list(range(1, 31)))), outcomes)
    assert found.answers[0].startswith("The best of 30 trials had group 8, rate ")
    assert "80.0 % (71.1 to 86.7 % of 100 validation problems)" in found.answers[0]
    assert "looks better than it is" in found.answers[0]
    assert "group 9" in found.answers[1] or "group 100" in found.answers[1]  # of the variance, in percent
    assert len(found.table.rows) == 30 and found.table.rows[0][3][0] == "80.0 %"
    assert [plot.name for plot in found.plots] == ["study-search-importance", "study-search-trials"]


def test_the_projects_own_search_never_reads_the_test_split():
    assert compose_study("search", "full").study.splits == ["validation"]
