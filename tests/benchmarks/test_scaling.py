"""The benchmark of cores: which counts it takes, where it lets workers run, and what it makes of their answers."""

import os
from pathlib import Path

import pytest
from bench import Bench
from rows import scaling


@pytest.mark.parametrize(
    ("cores", "counts"),
    [(0, []), (1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (4, [2, 4]), (6, [2, 4, 6]), (16, [2, 4, 8, 16])],
)
def test_counts_double_up_to_all_cores(cores, counts):
    assert scaling.core_counts(cores) == counts


def test_a_core_is_taken_once_and_only_where_it_may_be():
    cores = scaling.physical_cores()
    assert 1 <= len(cores) <= len(os.sched_getaffinity(0)) and set(cores) <= os.sched_getaffinity(0)


@pytest.fixture
def asked(monkeypatch):
    """Four cores, on which speed grows by half when cores double; what was asked, by worker and cores."""
    seen = []

    def ask(worker, task, before, OMP_NUM_THREADS):
        count = int(OMP_NUM_THREADS)
        assert before.args == (0, [0, 2, 4, 6][:count])
        seen.append((worker, task["model"], count))
        seconds = 64 / (1.5 if count == 4 else 1)
        return {"seconds": [seconds] * len(task.get("groups", [0])), "cpu_use": 0.5}

    monkeypatch.setattr(scaling, "ask", ask)
    monkeypatch.setattr(scaling, "physical_cores", lambda: [0, 2, 4, 6])
    return seen


def test_speed_is_a_share_of_what_more_cores_could_bring(asked):
    figures = scaling.scaling(Bench("", 1, 1, Path("plot.png"), {}))
    assert [(worker, model, count) for worker, model, count in asked] == [
        (worker, model, count)
        for worker, model in (("rollout", "494m"), ("rollout", "135m"), ("update", "494m"))
        for count in (2, 4)
    ]
    assert len(figures) == 5  # of either model's rollouts two sizes, and the update
    for figure in figures:
        assert figure.value == pytest.approx(0.75) and figure.met and "4 cores against 2" in figure.measure
        assert figure.bound == pytest.approx(2 * figure.other) and figure.ours == pytest.approx(1.5 * figure.other)
    assert figures[0].other == pytest.approx(16 / 64)  # 2 completions of 8 tokens


def test_on_one_core_there_is_nothing_to_compare(asked, monkeypatch):
    monkeypatch.setattr(scaling, "physical_cores", lambda: [0])
    figures = scaling.scaling(Bench("", 1, 1, Path("plot.png"), {}))
    assert {figure.missing for figure in figures} == {"not run: one core"} and all(f.met is None for f in figures)
