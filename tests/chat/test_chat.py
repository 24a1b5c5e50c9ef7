"""`python -m cpu_grpo.chat` as a user runs it."""

import io
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

from conftest import ROOT
from cpu_grpo.chat import __main__ as chat
from cpu_grpo.chat import loop, speaker
from cpu_grpo.config.compose import sentences
from cpu_grpo.hardware import Setup

COMMAND = "python -m cpu_grpo.chat "
EXAMPLES = re.search(r"```sh\n(.*?)```", (ROOT / "docs" / "chat.md").read_text(encoding="utf-8"), re.DOTALL)[1]


@pytest.fixture
def run(models, monkeypatch, capsys):
    """Runs the command in this process, with lines on its input; returns code, output and errors."""
    monkeypatch.setattr(speaker, "setup", lambda config: Setup("fp32", 1, 0, 0, ()))

    def run(*arguments, lines=""):
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        code = 0
        try:
            with sentences():
                chat.main(list(arguments))
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("line", [line for line in EXAMPLES.splitlines() if COMMAND in line])
def test_the_commands_of_the_documentation_answer(run, line):
    before, _, after = line.partition(COMMAND)
    lines = before.split("'")[1].encode().decode("unicode_escape") if before else ""
    code, out, _ = run(*shlex.split(after), lines=lines)
    assert code == 0 and out.strip()


def test_a_question_is_answered_and_the_form_is_told(run):
    code, out, told = run("first", "--question", "1 + 1?", "--max-tokens", "20")
    assert code == 0 and len(out) > 5
    assert "notice: first is asked as the task sums asks; --plain leaves that out.\n" in told
    _, plain, told = run("first", "--question", "1 + 1?", "--max-tokens", "20", "--plain")
    assert "is asked as" not in told and plain != out


def test_two_models_answer_the_same_question(run):
    options = ("--question", "1 + 1?", "--max-tokens", "20", "--plain")
    (_, base, _), (_, first, _) = run("base", *options), run("first", *options)
    assert base != first
    assert run("base", "--against", "first", *options)[1] == f"base:\n{base}\nfirst:\n{first}"


def test_from_a_pipe_each_line_is_a_question_of_its_own(run):
    alone = [run("base", "--question", text, "--max-tokens", "20")[1] for text in ("1 + 1?", "2 + 2?")]
    code, out, _ = run("base", "--max-tokens", "20", lines="1 + 1?\n\n  2 + 2?\n1 + 1?")
    assert code == 0
    assert out == "\n".join([*alone, alone[0]])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nope", "--question", "x"], "There is no model 'nope'"),
        (["base", "--against", "nope"], "There is no model 'nope'"),
        (["base", "--task", "nope"], "There is no task called nope: use one of chain_sum"),
        (["base", "--question", " "], "--question is empty"),
        (["base", "--temperature", "-1"], "--temperature -1 is out of bounds"),
        (["base", "--temperature", "nan"], "--temperature nan is out of bounds"),
        (["base", "--max-tokens", "0"], "--max-tokens 0 leaves no room"),
        (["base", "--seed", "-1"], "--seed -1 is out of bounds"),
        (["base", "--question", "x" * 600], "The conversation has"),
    ],
)
def test_what_cannot_be_is_told_in_a_sentence(run, arguments, sentence):
    code, out, told = run(*arguments)
    assert (code, out) == (1, "")
    assert told.startswith(f"error: {sentence}") and told.count("\n") == 1


def converse(monkeypatch, speakers, *lines):
    """Types lines, of which exceptions are keys."""
    typed = iter(lines)

    def typing(prompt):
        line = next(typed)
        if isinstance(line, type):
            raise line
        return line

    monkeypatch.setattr("builtins.input", typing)
    loop.converse(speakers, loop.Console(file=io.StringIO()))


class Known:
    """A model that answers with the number of turns before the question."""

    name = "known"

    def __init__(self, ended=()):
        self.said, self._ended = [], ended

    def answer(self, question):
        return Counted(str(len(self.said)), question in self._ended)

    def remember(self, question, answer):
        self.said += [question, answer.text]

    def forget(self):
        self.said.clear()


class Counted:
    name, cut_off = "known", False

    def __init__(self, text, ended):
        self.text, self.ids, self._ended = text, [], ended

    def pieces(self):
        self.ids.append(1)
        yield self.text
        if self._ended:
            raise KeyboardInterrupt


def test_a_conversation_goes_on_until_it_is_reset(monkeypatch, capsys):
    converse(monkeypatch, [Known()], "a", "", "b", "/reset", "c", "/quit", "never")
    assert capsys.readouterr().out.splitlines() == [loop.COMMANDS, "0", "2", "0"]


def test_keys_end_an_answer_a_line_and_the_conversation(monkeypatch, capsys):
    known = Known(ended=["b"])
    converse(monkeypatch, [known], "a", "b", KeyboardInterrupt, "c", EOFError)
    assert capsys.readouterr().out.split() == [*loop.COMMANDS.split(), "0", "2", "4"]
    assert known.said == ["a", "0", "b", "2", "c", "4"]  # what was read of an answer stays


def test_an_unknown_command_is_told_and_not_asked(monkeypatch, capsys):
    converse(monkeypatch, [Known()], "/rest", "/2 is half?", "/quit")
    assert capsys.readouterr().out.splitlines()[1:] == [f"There is no command '/rest': {loop.COMMANDS}", "0"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudoterminals")
def test_a_conversation_at_a_terminal(models):
    import pty

    own, other = pty.openpty()
    command = [sys.executable, "-m", "cpu_grpo.chat", "base", "--against", "first", "--max-tokens", "400"]
    environment = os.environ | {"COLUMNS": "80", "LINES": "20", "TERM": "xterm"}
    child = subprocess.Popen(
        command, stdin=other, stdout=other, stderr=other, env=environment, start_new_session=True, close_fds=True
    )
    os.close(other)
    seen = ""

    def until(text):
        nonlocal seen
        end = time.monotonic() + 240
        while text not in seen:
            assert time.monotonic() < end, seen
            seen += os.read(own, 4096).decode("utf-8", "replace")
        seen = seen[seen.index(text) + len(text) :]

    try:
        until(loop.COMMANDS)
        until("> ")
        os.write(own, b"hello\n")
        until("first")  # the heads of the columns
        child.send_signal(signal.SIGINT)
        until("> ")
        os.write(own, b"/quit\n")
        assert child.wait(60) == 0
    finally:
        child.kill()
        os.close(own)


@pytest.mark.slow
def test_the_command_ends_quietly_when_nobody_reads_along(models):
    command = f"{shlex.quote(sys.executable)} -m cpu_grpo.chat base --question hello --max-tokens 400 | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=300)
    assert "Traceback" not in done.stderr and "Error" not in done.stderr
