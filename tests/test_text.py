"""Text of unknown origin on a terminal: it can neither steer it nor pass for another message."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpu_grpo.config.compose import sentences
from cpu_grpo.errors import Stopped, UserError
from cpu_grpo.experiment.tracking import warn
from cpu_grpo.text import one_line, shown, unprintable, visible

STEERING = "\x1b[2J\x1b]0;title\x07\x9b31m\r\nerror: other\u202e\u2028\ud800\x00"


@given(st.text())
def test_what_is_shown_is_text(text):
    line = one_line(text)
    assert not any(unprintable(character) for character in visible(text) + line)
    assert "\n" not in line and "\t" not in line and len(line.encode("utf-8")) <= 4 * len(text)


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs"])))
def test_plain_text_stays_as_it_is(text):
    assert visible(text) == text


def test_long_text_is_cut():
    assert visible("x" * 700, 600).endswith("x … (100 more characters)")
    assert len(one_line("x" * 10**6)) < 4100
    assert shown("x" * 10**6) == repr("x" * 60) + "... (1,000,000 characters)"
    assert shown("a\nb") == r"'a\nb'"


@pytest.mark.parametrize(("error", "begin"), [(UserError, "error: "), (lambda text: Stopped(text, 3), "stopped: ")])
def test_a_message_is_one_line_that_steers_nothing(capsys, error, begin):
    with pytest.raises(SystemExit), sentences():
        raise error(f"x {STEERING} y")
    printed = capsys.readouterr().err
    assert printed.startswith(f"{begin}x ") and printed.endswith(" y\n")
    assert printed[:-1].isprintable()


def test_a_servers_answer_is_one_line_that_steers_nothing(capsys):
    warn(f"MLflow did not take a record ({STEERING})")
    assert capsys.readouterr().err[:-1].isprintable()
