"""A run's figures, kept small: what is read is what was written."""

import math

from hypothesis import given
from hypothesis import strategies as st

from cpu_grpo.experiment.history import STEADY, History, thinned

# A column holds whole numbers, or others, throughout.
ROWS = st.lists(st.fixed_dictionaries({"step": st.integers(0, 2**53)}, optional={"a": st.floats(allow_nan=False)}))


@given(ROWS)
def test_rows_are_read_as_they_were_written(rows):
    history = History(rows)
    assert history.rows() == rows and len(history) == len(rows)
    assert all(isinstance(row["step"], int) for row in history.rows())


def test_figures_found_later_belong_to_the_last_row():
    history = History([{"step": 1, "reward": 0.5}, {"step": 2, "reward": math.inf}])
    history.amend({"validation": 0.25})
    assert history.rows() == [{"step": 1, "reward": 0.5}, {"step": 2, "reward": math.inf, "validation": 0.25}]
    assert history.row(-1)["validation"] == 0.25
    assert history.last("reward", 3) == [0.5, math.inf] and history.last("none", 3) == []


def test_samples_of_a_long_run_are_thinned_evenly():
    samples = []
    for step in range(1, 5 * STEADY):
        samples = thinned([*samples, {"step": step, "n": 1}, {"step": step, "n": 2}])
    steps = sorted({row["step"] for row in samples})
    assert STEADY / 2 <= len(steps) <= STEADY and len(samples) == 2 * len(steps)
    assert steps[0] == 1 and steps[-1] > 4.9 * STEADY
    few = [{"step": step} for step in range(STEADY - 1)]
    assert thinned(few) == few
