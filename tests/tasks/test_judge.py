"""Answers that are compared in a process of their own are compared as in this one, and no formula holds it up."""

import pytest

from cpu_grpo.tasks import judge as module
from cpu_grpo.tasks.answers.grader import Grader
from cpu_grpo.tasks.judge import Judge

pytestmark = pytest.mark.slow

FOUND = [r"\frac{1}{2}", "x^2 + 1", "7", None]
ACCEPTED = [["0.5"], ["2", "1 + x^2"], ["8"], ["1"]]


@pytest.mark.parametrize("kind", ["text", "number"])
def test_quick_comparisons_start_no_process(kind, monkeypatch):
    monkeypatch.setattr(module, "RewardProcess", lambda *_: pytest.fail("started"))
    with Judge(Grader(kind)) as judge:
        assert judge.right(["5", "6", None], [["5"], ["5"], ["5"]]) == [True, False, False]
        assert judge.flaw("5") == ""


def test_mathematics_is_judged_as_it_is_in_process():
    grader = Grader("math")
    with Judge(grader) as judge:
        assert judge.right(FOUND, ACCEPTED) == [True, True, False, False]
        assert judge.right(FOUND, ACCEPTED) == [grader.same(*own) for own in zip(FOUND, ACCEPTED, strict=True)]
        assert judge.flaw(r"\frac{1}{2}") == "" and judge.flaw("") == "that cannot be read"


def test_a_formula_that_takes_for_ever_is_not_right_and_spoils_no_other(monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 2.0)
    endless = "9^{9^{9^{9^{9}}}} - 9^{9^{9^{9^{8}}}}"
    with Judge(Grader("math")) as judge:
        assert judge.right([r"\frac{1}{2}", endless, "12"], [["0.5"], ["7"], ["12"]]) == [True, False, True]
