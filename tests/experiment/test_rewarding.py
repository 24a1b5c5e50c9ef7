"""The rule for rewards that cannot be had: one bad completion costs its own reward, and too many end the run."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from cpu_grpo.config.schema import Rewards
from cpu_grpo.errors import UserError
from cpu_grpo.experiment.faults import KEPT, LATEST, TEXT, Faults
from cpu_grpo.experiment.rewarding import Rewarding
from cpu_grpo.tasks.answers.grader import Grader
from cpu_grpo.tasks.reward_process import Fault
from cpu_grpo.tasks.rewards import COMPONENTS, reward_functions

HEAD = "import os, signal, sys, time\n"
PATH = Path("faults") / "mine.jsonl"
NO = Fault("exception", "ValueError: no")
NONE = Fault("none", "None")


@pytest.fixture
def rewarding(tmp_path, monkeypatch):
    """Makes a run's rewards with the function `mine` of this body, called on each of the completions."""
    monkeypatch.chdir(tmp_path)

    def make(body, seconds=10.0, faults=1.0):
        lines = "".join(f"    {line}\n" for line in body.splitlines())
        each = (
            f"def each(text):\n{lines}\ndef mine(completions, **others): return [each(text) for text in completions]\n"
        )
        Path("code.py").write_text(HEAD + each)
        return Rewarding(Rewards(custom="code.py:mine", seconds=seconds, faults=faults), Grader(), PATH)

    return make


def called(rewards, completions, **others):
    """What `mine` gives."""
    mine = rewards.functions[-1]
    assert mine.__name__ == "mine"
    return mine(prompts=["ask"] * len(completions), completions=completions, answer=["5"] * len(completions), **others)


def kept():
    return [json.loads(line) for line in PATH.read_text().splitlines()]


def test_functions_carry_names_and_weights_in_one_order(tmp_path):
    custom = ["code.py:shape", "package.module:brevity"]
    found = Rewarding(Rewards(format=0.1, digits=0.5, custom=custom, custom_weights=[2.0, 0.0]), Grader(), PATH)
    assert [function.__name__ for function in found.functions] == ["correct", "format", "digits", "shape", "brevity"]
    assert found.weights == [1.0, 0.1, 0.5, 2.0, 0.0]
    assert Rewarding(Rewards(correct=0.0, custom=custom), Grader(), PATH).weights == [0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("wrap", [str, lambda text: [{"role": "assistant", "content": text}]], ids=["plain", "message"])
def test_components_of_ours_are_what_they_are_in_process(tmp_path, wrap):
    config = Rewards(**dict.fromkeys(COMPONENTS, 1.0))
    columns = {"completions": [wrap("First 12 / 7 ####  5"), wrap("so 5"), wrap("")], "accepted": [["5"], ["6"], ["7"]]}
    with Rewarding(config, Grader(), tmp_path / "faults.jsonl") as rewards:
        plain, weights = reward_functions(config)
        assert rewards.weights == weights
        for guarded, function in zip(rewards.functions, plain, strict=True):
            given = guarded(prompts=[wrap("p")] * 3, completion_ids=[[1]] * 3, log_metric=None, **columns)
            assert (guarded.__name__, given) == (function.__name__, function(**columns))
    assert not (tmp_path / "faults.jsonl").exists()


BAD = {
    "exception": "raise ValueError('7 of all')",
    "crash": "os._exit(1)",
    "hang": "while True: pass",
    "not finite": "return float('nan')",
    "no number": "return '7'",
}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "does"), BAD.items(), ids=BAD)
def test_a_bad_completion_is_scored_0_and_spoils_no_other(rewarding, kind, does, capsys):
    metrics = []
    with rewarding(f"if '7' in text:\n    {does}\nreturn len(text) / 10", seconds=1.0) as rewards:
        state = SimpleNamespace(global_step=4, log_history=[{}])
        for completions in (["a", "b7", "abc"], ["7"]):
            found = called(rewards, completions, trainer_state=state, log_metric=lambda *pair: metrics.append(pair))
            assert found == [0.0 if "7" in text else len(text) / 10 for text in completions]
    assert metrics == [("reward_faults/mine", 1)] * 2
    rows = kept()
    assert [(row["update"], row["function"], row["kind"], row["completion"]) for row in rows] == [
        (5, "mine", kind, "b7"),
        (5, "mine", kind, "7"),
    ]
    assert (rows[0]["prompt"], rows[0]["answer"]) == ("ask", "5")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"warning: the reward mine has no value for a completion ({rows[0]['message']}): it is scored"
    )
    assert str(PATH) in line


def test_none_is_passed_on_counted_and_kept_and_ends_no_run(rewarding, capsys):
    metrics = []
    with rewarding("return None if '7' in text else 1", faults=0.0) as rewards:
        found = called(rewards, ["7", "8"], log_metric=lambda *pair: metrics.append(pair))
    assert found == [None, 1.0]
    assert metrics == [("reward_faults/mine", 1)]
    assert [(row["kind"], row["completion"]) for row in kept()] == [("none", "7")]
    assert "as in TRL, it does not apply; see" in capsys.readouterr().err


def test_without_faults_the_count_is_there_and_the_file_is_not(rewarding, capsys):
    metrics = []
    with rewarding("return 1") as rewards:
        for function in rewards.functions:
            function(completions=["5"], answer=["5"], accepted=[["5"]], log_metric=lambda *pair: metrics.append(pair))
    assert metrics == [("reward_faults/mine", 0)]
    assert not PATH.parent.exists() and not capsys.readouterr().err


@pytest.mark.slow
def test_what_is_too_slow_for_all_at_once_is_asked_one_by_one(rewarding, capsys):
    with rewarding("time.sleep(0.6); return 1", seconds=1.5) as rewards:
        assert called(rewards, ["a", "b", "c"]) == [1.0] * 3
    told = capsys.readouterr().err
    assert "fails on 3 completions together (no answer within 1.5 s) but on none alone" in told
    assert not PATH.exists()


@pytest.mark.slow
def test_completions_that_all_hang_share_four_times_the_limit(rewarding):
    with rewarding("while True: pass", seconds=0.4) as rewards:
        assert called(rewards, ["text"] * 16) == [0.0] * 16
    assert [row["message"] for row in kept()] == ["no answer within 0.1 s"] * 16


def test_too_many_end_the_run_with_a_sentence(rewarding):
    with rewarding("return 1 / (text != '7')", faults=0.1) as rewards:
        assert called(rewards, ["7"] * 6 + ["8"] * 4) == [0.0] * 6 + [1.0] * 4
        with pytest.raises(UserError) as caught:
            called(rewards, ["8", "7"])
    message = "(ZeroDivisionError: division by zero in code.py, line 3)"
    assert str(caught.value) == (
        f"The reward mine failed on 7 of the latest 12 completions, mostly by exception {message}, and rewards.faults "
        f"allows 10% of 64: mend it, or allow more; the completions are in {PATH}."
    )
    assert len(kept()) == 7


@pytest.fixture
def faults(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Faults(PATH, 0.25)


def noted(faults, *scores, name="mine"):
    faults.note(name, 1, list(scores), [{"completion": "text"} for _ in scores])


def test_old_failures_are_forgotten_and_functions_count_by_themselves(faults):
    for _ in range(5):
        noted(faults, *[NO] * 16)
        noted(faults, *[1.0] * LATEST)
    noted(faults, *[NO] * 16)
    noted(faults, *[NO] * 16, name="another")
    with pytest.raises(UserError, match=r"The reward mine failed on 17 of the latest 64 .* allows 25% of 64"):
        noted(faults, NO)


def test_the_share_is_of_a_whole_update_where_that_is_more(faults):
    noted(faults, *[NO] * 32, *[1.0] * 96)
    with pytest.raises(UserError, match="failed on 33 of the latest 128"):
        noted(faults, *[NO] * 33, *[1.0] * 95)


def test_the_most_common_kind_is_told(faults):
    with pytest.raises(UserError, match=r"mostly by hang \(no answer\)"):
        noted(faults, NO, *[Fault("hang", "no answer")] * 16)


def test_some_of_each_kind_are_kept_and_none_at_length(faults, capsys):
    row = {"completion": "9" * 10**6, "prompt": "ask"}
    faults.note("mine", 1, [NONE], [row])
    noted(faults, *[NONE] * 2 * KEPT, NO)
    rows = kept()
    assert [row["kind"] for row in rows].count("none") == KEPT
    assert rows[-1]["kind"] == "exception"
    assert len(rows[0]["completion"]) == TEXT
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_a_new_run_forgets_what_an_old_one_kept(faults):
    faults.forget()
    noted(faults, NO)
    faults.forget()
    assert not PATH.exists()


@pytest.mark.parametrize("name", ["reward", "loss", "step", "correct", "prompt"])
def test_a_function_named_as_a_column_is_refused(name):
    with pytest.raises(UserError, match=rf"rewards\.custom=code\.py:{name}: a column of the results is called {name}"):
        Rewarding(Rewards(custom=f"code.py:{name}"), Grader(), PATH)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_code_that_cannot_be_started_again_ends_the_run(rewarding):
    with rewarding("os._exit(1)") as rewards:
        Path("code.py").unlink()
        with pytest.raises(UserError, match=r"There is no file code\.py"):
            called(rewards, ["a", "b"])
