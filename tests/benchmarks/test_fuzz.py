"""The fuzzer finds nothing in the project, and finds what is put there."""

import math
import signal
from random import Random

import pytest
from torture import fuzz as harness
from torture import targets
from torture.fuzz import fuzz
from torture.targets import TARGETS, Target


@pytest.mark.slow
def test_nothing_crashes_hangs_or_is_wrong():
    results = fuzz(3000, seed=7)
    assert [result.findings for result in results] == [[]] * len(TARGETS)
    assert [result.inputs for result in results] == [3000, 3000, 3000, 3000, 3000, 30]
    assert all(result.clean and result.rate > 0 and result.slowest < 1 for result in results)


def run(monkeypatch, target, count=6, **options):
    monkeypatch.setattr(harness, "TARGETS", {"own": Target("own", target)})
    (result,) = fuzz(count, **{"seed": 0} | options)
    return result


def test_inputs_depend_on_their_number_alone(monkeypatch):
    def drawn(seed, count):
        seen = []
        run(monkeypatch, lambda random: seen.append(random.random()) or "", count, seed=seed)
        return seen

    assert drawn(0, 4) + drawn(4, 6) == drawn(0, 10)


def test_a_crash_is_found_and_told_with_its_number(monkeypatch):
    def target(random):
        if random.random() == Random(3).random():
            raise KeyError("x")
        return ""

    result = run(monkeypatch, target)
    assert (result.crashes, result.hangs, result.wrong, result.inputs) == (1, 0, 0, 6)
    assert result.findings == ["own 3: raised KeyError: 'x'"]


def test_a_wrong_answer_is_found(monkeypatch):
    result = run(monkeypatch, lambda random: "is 5", count=30)
    assert (result.wrong, len(result.findings), result.clean) == (30, harness.KEPT, False)


@pytest.mark.skipif(not hasattr(signal, "SIGPROF"), reason="POSIX's")
def test_what_hangs_is_ended_and_found(monkeypatch):
    monkeypatch.setattr(harness, "HANG", 0.05)
    before = signal.getsignal(signal.SIGPROF)

    def target(random):
        while True:
            try:
                math.factorial(20)
            except Exception:
                continue

    result = run(monkeypatch, target, count=2)
    assert (result.hangs, result.inputs) == (2, 2)
    assert signal.getsignal(signal.SIGPROF) == before


def test_time_ends_it_too(monkeypatch):
    assert run(monkeypatch, lambda random: "", count=10**9, seconds=0.05).inputs < 10**7


BROKEN = {
    "extraction": (targets, "correct", lambda completion, accepted, grader: 1.0),
    "kinds": (targets.Grader, "same", lambda self, found, accepted: found is not None),
    "rewards": (targets, "is_number", lambda text: text != "5" and 1 / 0),
    "jsonl": (targets, "rows_of", lambda stream, name: stream.read().decode()),
    "gguf": (targets, "read_header", lambda data: data.decode()),
    "config": (targets, "typed", lambda composed, schema: composed.nothing.at.all),
}


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_finds_what_is_broken(name, monkeypatch):
    module, function, broken = BROKEN[name]
    monkeypatch.setattr(module, function, broken)
    monkeypatch.setattr(harness, "TARGETS", {name: TARGETS[name]})
    (result,) = fuzz(20 * TARGETS[name].every, seed=0)
    assert not result.clean
