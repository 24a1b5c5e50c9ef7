"""Arms that a machine is too small for are left out, unless a larger one has run them."""

import pytest

from cpu_grpo.config.compose import compose_study
from cpu_grpo.config.study_schema import Budget, Study, StudyJob
from cpu_grpo.study import machine
from cpu_grpo.study.machine import job_count, runnable
from cpu_grpo.study.outcomes import Outcome

STUDY = Study(
    name="s",
    arms={"all": [""], "two": ["hardware.threads=2"], "later": ["", "hardware.threads=16"], "base": []},
    common="variant=ultra_fast",
)


@pytest.mark.parametrize(
    ("cores", "expected"),
    [(1, ["all", "base"]), (2, ["all", "base"]), (3, ["all", "two", "base"]), (64, ["all", "two", "later", "base"])],
)
def test_an_arm_has_fewer_threads_than_the_machine_has_cores(monkeypatch, cores, expected):
    monkeypatch.setattr(machine, "usable_cores", lambda: cores)
    assert runnable(STUDY) == expected


def test_what_a_larger_machine_has_run_counts(monkeypatch):
    monkeypatch.setattr(machine, "usable_cores", lambda: 2)
    config = StudyJob(study=STUDY, budget=Budget(name="full", seeds=[1, 2, 3]))
    outcome = Outcome("s", "full", "two", 1, "job", "c", "a CPU", 1.0, {})
    assert (job_count(config, []), job_count(config, [outcome])) == (6, 9)


def test_only_threads_keep_arms_of_the_studies_from_running(monkeypatch):
    monkeypatch.setattr(machine, "usable_cores", lambda: 2)
    study = compose_study("hardware", "full").study
    left_out = set(study.arms) - set(runnable(study))
    assert left_out == {"threads_2", "threads_4", "threads_8", "threads_16", "threads_32"}
