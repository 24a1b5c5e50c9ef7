"""Journals on their way to a store that fails in every way: each record arrives once, in order, or stays."""

import time

import pytest

from cpu_grpo.experiment import delivery, spool
from cpu_grpo.experiment.delivery import Begun, Delivery, Point


class Memory:
    """A store that keeps what it is sent, and fails as it is told."""

    def __init__(self):
        self.down = False
        self.deaf = {}  # how many calls of a kind take what they are given, and then fail
        self.refused = ()  # tags
        self.seconds = 0  # that points take
        self.runs, self.points, self.others, self.ends = [], [], [], []

    def begin(self, record, run_id, alive):
        self._call()
        if record["mark"] not in self.runs:
            self.runs.append(record["mark"])
        self._answer("begin")
        return Begun("run-1", "", 0)

    def log_points(self, run_id, points):
        self._call()
        time.sleep(self.seconds)
        self.points += points
        self._answer("points")

    def send(self, journal, record):
        self._call()
        if record.get("key") in self.refused:
            raise ValueError("what a tag")
        self.others.append(record.get("key") or record["kind"])

    def fail(self, journal):
        self._call()
        self.ends.append(journal.id)

    def arrived(self, run_id, key):
        self._call()
        return [(point.step, point.time) for point in self.points if point.key == key]

    def answers(self):
        return not self.down

    def refuses(self, error):
        return isinstance(error, ValueError)

    def _call(self):
        if self.down:
            raise ConnectionError("http://user:secret-word@there is away")

    def _answer(self, kind):
        if self.deaf.get(kind, 0):
            self.deaf[kind] -= 1
            raise ConnectionError("the answer got lost")

    @property
    def steps(self):
        return [point.step for point in self.points]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(delivery, "PAUSE", 0.01)
    return tmp_path


def begun(again=""):
    journal = spool.begin()
    head = {"kind": "run", "time": 0, "target": "there", "mark": ["local_id", journal.id], "again": again}
    journal.append(head)
    return journal


def point(step, at=None):
    return {"kind": "metrics", "time": at or step, "step": step, "values": {"reward": step / 4, "kl": 0.5}}


def sent(journal, store, *records, patience=20):
    """Sends a journal to which records are added meanwhile; returns how many stay."""
    own = Delivery(journal, store, "there", print)
    own.begin(patience)
    for record in records:
        journal.append(record)
        own.more()
    return own.finish(patience)


def test_records_arrive_in_order_and_leave_nothing_behind(here):
    store = Memory()
    tag, end = {"kind": "tag", "key": "a"}, {"kind": "status"}
    assert sent(begun(), store, tag, *map(point, range(1, 500)), end) == 0
    assert store.steps[::2] == list(range(1, 500)) and store.others == ["a", "status"]
    assert not list(spool.SPOOL.iterdir())


@pytest.mark.parametrize("deaf", [{"begin": 1}, {"points": 1}, {"begin": 2, "points": 3}])
def test_what_arrived_although_the_answer_got_lost_is_not_sent_again(here, deaf):
    store = Memory()
    store.deaf = deaf
    assert sent(begun(), store, *map(point, range(1, 500))) == 0
    assert store.steps[::2] == list(range(1, 500))
    assert len(store.runs) == 1


def test_what_a_process_sent_and_was_killed_before_it_noted_is_not_sent_again(here):
    store, journal = Memory(), begun()
    store.points = [Point("reward", 0.25, 1, 1), Point("kl", 0.5, 1, 1)]
    journal.append(point(1))
    journal.append(point(2))
    journal.release()
    assert sent(begun(), store) == 0
    assert store.steps == [1, 1, 2, 2]


def test_a_run_that_goes_on_does_not_repeat_steps_that_were_sent_in_its_first_life(here):
    store = Memory()
    sent(begun(), store, point(1), point(2), point(3))
    assert sent(begun(again="run-1"), store, point(3, at=99), point(4, at=100)) == 0
    assert store.steps[::2] == [1, 2, 3, 4]


def test_a_record_that_is_refused_holds_up_no_others(here, capsys):
    store = Memory()
    store.refused = ("bad",)
    tags = [{"kind": "tag", "key": key} for key in ("good", "bad", "better")]
    assert sent(begun(), store, *tags, point(1)) == 0
    assert store.others == ["good", "better"] and store.steps == [1, 1]
    assert capsys.readouterr().out.count("did not take a record (what a tag)") == 1


def test_a_journal_stays_where_the_store_is_away_and_goes_with_the_next(here, capsys):
    store = Memory()
    store.down = True
    first = begun()
    assert sent(first, store, point(1), patience=0.1) == 2
    assert "takes no records (http://there is away): the run goes on" in capsys.readouterr().out
    store.down = False
    assert sent(begun(), store, point(2), point(3)) == 0
    assert store.steps[::2] == [1, 2, 3] and len(store.runs) == 2
    assert store.ends == [first.id]  # no status of it was recorded
    assert not list(spool.SPOOL.iterdir())


def test_what_a_slow_store_has_not_taken_by_the_end_goes_with_the_next(here, monkeypatch):
    store = Memory()
    store.seconds = 0.1
    with monkeypatch.context() as patch:
        patch.setattr(delivery, "POINTS", 2)
        patch.setattr(delivery, "MOST", 0.3)
        assert 0 < sent(begun(), store, *map(point, range(1, 50))) < 50
    while list(spool.SPOOL.glob("*/")):  # its thread holds the journal until the store has taken what it is at
        assert sent(begun(), store) == 0
    assert store.steps[::2] == list(range(1, 50))


def test_a_journal_of_a_process_that_lives_is_left_to_it(here):
    store, living = Memory(), begun()
    living.append(point(1))
    assert sent(begun(), store, point(2)) == 0
    assert store.steps == [2, 2]
    living.release()
    assert sent(begun(), store) == 0
    assert sorted(store.steps) == [1, 1, 2, 2]


def test_the_line_in_which_a_process_died_costs_no_other(here):
    store, journal = Memory(), begun()
    journal.append(point(1))
    journal._add(b'{"kind": "metr')
    journal.release()
    journal = spool.reopen(journal.id, "there")
    assert sent(journal, store, point(2)) == 0
    assert store.steps == [1, 1, 2, 2]


def test_an_artifact_is_sent_as_it_was_when_it_was_recorded(here):
    path, journal = here / "figures.json", begun()
    path.write_text("1")
    kept = journal.directory / journal.keep(path)
    path.write_text("2")
    assert kept.read_text() == "1" and kept.name == path.name
