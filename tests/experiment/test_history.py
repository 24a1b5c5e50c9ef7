"""What a run tells of its updates: read as it was written, whatever the disk does meanwhile."""

import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpu_grpo.experiment.history import RECENT, STEADY, History, Journal, Samples

A = {"a": st.floats(allow_nan=False), "ü": st.floats(0)}
ROWS = st.lists(st.fixed_dictionaries({"step": st.integers(0, 2**53)}, optional=A), max_size=3 * RECENT)


@given(ROWS, st.data())
def test_rows_are_read_as_they_were_written_and_go_on_from_any_checkpoint(rows, data):
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = Path(scratch, "checkpoint")
        checkpoint.mkdir()
        history = History(Path(scratch, "history.jsonl"))
        at = data.draw(st.integers(0, len(rows)))
        for row in rows[:at]:
            history.append(row)
        history.copy_to(checkpoint)
        recent = history.recent()
        for row in rows[at:]:
            history.append(row)
        assert history.rows() == rows
        assert all(isinstance(row["step"], int) for row in history.rows())
        again = History(Path(scratch, "history.jsonl"))
        again.go_on(checkpoint, recent)
        assert again.rows() == rows[:at]
        for row in rows[at:]:
            again.append(row)
        assert again.rows() == rows
        assert again.last("a", 3) == [row["a"] for row in rows[-3:] if "a" in row]


def test_figures_found_later_belong_to_the_last_row(tmp_path):
    history = History(tmp_path / "history.jsonl")
    history.append({"step": 1, "reward": 0.5})
    history.append({"step": 2, "reward": math.inf, "kl": math.nan})
    history.amend({"validation": 0.25})
    assert history.rows() == [{"step": 1, "reward": 0.5}, {"step": 2, "reward": math.inf, "validation": 0.25}]
    assert history.step == 2
    assert history.last("reward", 3) == [0.5, math.inf] and history.last("none", 3) == []


def test_a_run_does_not_hold_the_figures_of_all_its_updates(tmp_path):
    history = History(tmp_path / "history.jsonl")
    for step in range(100):
        history.append({"step": step})
    assert len(history.recent()) == RECENT
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 99


def test_what_a_full_disk_refuses_is_written_once_there_is_room(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "rows.jsonl")
    journal.append([{"n": 1}])
    whole = Path.open

    def half(path, mode):
        with whole(path, mode) as stream:
            stream.write(b'{"n":')
        raise OSError("no space left")

    with monkeypatch.context() as full:
        full.setattr(Path, "open", lambda path, mode: half(path, mode) if mode == "ab" else whole(path, mode))
        journal.append([{"n": 2}])
        assert journal.rows() == [{"n": 1}, {"n": 2}]
        with pytest.raises(OSError, match="no space"):
            journal.copy_to(tmp_path / "checkpoint")
    journal.append([{"n": 3}])
    assert journal.rows() == [{"n": 1}, {"n": 2}, {"n": 3}]
    assert (tmp_path / "rows.jsonl").read_text() == '{"n": 1}\n{"n": 2}\n{"n": 3}\n'


def test_text_that_is_no_unicode_is_kept(tmp_path):
    journal = Journal(tmp_path / "rows.jsonl")
    journal.append([{"completion": "\ud800 \u2028\r\n"}])
    assert journal.rows() == [{"completion": "\ud800 \u2028\r\n"}]


def test_a_run_that_begins_anew_leaves_nothing_of_the_one_before(tmp_path):
    Journal(tmp_path / "rows.jsonl").append([{"n": 1}])
    journal = Journal(tmp_path / "rows.jsonl")
    assert journal.rows() == []
    journal.append([{"n": 2}])
    assert (tmp_path / "rows.jsonl").read_text() == '{"n": 2}\n'


def test_samples_of_a_long_run_are_thinned_evenly(tmp_path):
    samples = Samples(tmp_path / "samples.jsonl")
    for step in range(1, 5 * STEADY):
        samples.add([{"step": step, "n": 1}, {"step": step, "n": 2}])
        if step == STEADY:
            assert len(samples.rows()) == STEADY  # of half of them
    steps = sorted({row["step"] for row in samples.rows()})
    assert STEADY / 2 <= len(steps) <= STEADY and len(samples.rows()) == 2 * len(steps)
    assert steps[0] == 1 and steps[-1] > 4.9 * STEADY and samples.steps() == steps


def test_samples_go_on_from_a_checkpoint(tmp_path):
    samples = Samples(tmp_path / "samples.jsonl")
    samples.add([{"step": 1}])
    (tmp_path / "checkpoint").mkdir()
    samples.copy_to(tmp_path / "checkpoint")
    samples.add([{"step": 2}])
    again = Samples(tmp_path / "samples.jsonl")
    again.go_on(tmp_path / "checkpoint")
    again.add([{"step": 3}])
    assert again.rows() == [{"step": 1}, {"step": 3}] and again.steps() == [1, 3]
