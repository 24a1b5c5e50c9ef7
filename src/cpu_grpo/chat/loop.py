"""Questions from a terminal, where they make a conversation, or from a pipe, where each stands for itself."""

import sys
from collections.abc import Iterable
from contextlib import suppress

from rich.console import Console

from cpu_grpo.chat.screen import show
from cpu_grpo.chat.speaker import Speaker
from cpu_grpo.errors import UserError
from cpu_grpo.text import one_line, shown

COMMANDS = "/reset begins a new conversation, /quit or Ctrl-D ends, Ctrl-C ends an answer."


def ask(speakers: list[Speaker], question: str, console: Console) -> None:
    """Shows every model's answer; what was read of them, until Ctrl-C perhaps, becomes part of the conversation.

    Raises:
        UserError: a model cannot answer.
    """
    answers = [speaker.answer(question) for speaker in speakers]
    try:
        show(answers, console)
    finally:
        for speaker, answer in zip(speakers, answers, strict=True):
            if answer.ids:
                speaker.remember(question, answer)


def ask_each(speakers: list[Speaker], questions: Iterable[str], console: Console) -> None:
    """Asks a question a line, each in a conversation of its own, with an empty line between the answers."""
    first = True
    for line in questions:
        if question := clean(line):
            if not first:
                print()
            for speaker in speakers:
                speaker.forget()
            ask(speakers, question, console)
            first = False


def converse(speakers: list[Speaker], console: Console) -> None:
    """A conversation at a terminal, until /quit or Ctrl-D."""
    with suppress(ImportError):  # Windows has none
        import readline  # noqa: F401  # input then edits lines and knows those before

    print(COMMANDS)
    while True:
        try:
            line = clean(input("> "))
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            continue
        if line == "/quit":
            return
        if line == "/reset":
            for speaker in speakers:
                speaker.forget()
        elif line.startswith("/") and line[1:].isalpha():
            print(f"There is no command {shown(line)}: {COMMANDS}")
        elif line:
            try:
                ask(speakers, line, console)
            except KeyboardInterrupt:
                print()
            except UserError as error:
                print(f"error: {one_line(str(error))}", file=sys.stderr)


def clean(text: str) -> str:
    """A question without space around it, and without what is no text: tokenizers fail on halves of characters."""
    return text.encode("utf-8", "replace").decode().strip()
