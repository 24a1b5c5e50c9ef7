"""What is measured faster is chosen once for a machine, so that a busy neighbour turns no results."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from cpu_grpo import files
from cpu_grpo.engine.kernels import choices as module
from cpu_grpo.engine.kernels.choices import chosen


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """A cache of its own, and a process that has chosen nothing yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    held: dict[str, bool] = {}
    monkeypatch.setattr(module, "choices", lambda: held)
    return held


@pytest.fixture
def share(monkeypatch):
    """Sets the share of its time that the process seems to get while it measures."""

    def of(value):
        seconds, used_seconds = itertools.count(), itertools.count()
        used = value * torch.get_num_threads()
        clock = SimpleNamespace(perf_counter=lambda: next(seconds), process_time=lambda: next(used_seconds) * used)
        monkeypatch.setattr(module, "time", clock)

    return of


def test_it_is_measured_once_and_kept_for_other_processes(alone, share):
    share(1.0)
    assert chosen("a", lambda: True)
    assert chosen("a", lambda: pytest.fail("measured again"))
    alone.clear()  # another process
    assert chosen("a", lambda: pytest.fail("measured again"))
    assert not chosen("b", lambda: False)


def test_what_was_measured_beside_a_busy_neighbour_is_not_kept(alone, share, tmp_path):
    share(0.5)
    measured = []
    assert chosen("a", lambda: measured.append(1) or True)
    assert len(measured) == module.ATTEMPTS and not list(tmp_path.rglob("choice-*"))
    alone.clear()
    assert not chosen("a", lambda: False)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"taken": 1}', '{"taken": "yes"}', "\x00"])
def test_a_damaged_file_is_made_again(alone, share, tmp_path, text):
    share(1.0)
    chosen("a", lambda: True)
    (file,) = tmp_path.rglob("choice-*")
    file.write_text(text)
    alone.clear()
    assert not chosen("a", lambda: False)
    alone.clear()
    assert not chosen("a", lambda: pytest.fail("measured again"))


def test_without_a_home_directory_it_is_measured(alone, share, monkeypatch):
    def none():
        raise RuntimeError

    share(1.0)
    monkeypatch.setattr(files, "cache_directory", none)
    assert chosen("a", lambda: True)


def test_what_a_checkpoint_holds_is_taken(alone):
    alone.update({"a": False})
    assert not chosen("a", lambda: pytest.fail("measured"))
