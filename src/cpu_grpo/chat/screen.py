"""Answers as they come: in two columns where a terminal is wide enough, else one after the other."""

import sys
import time
from collections.abc import Iterator
from itertools import zip_longest

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from cpu_grpo.chat.speaker import Answer
from cpu_grpo.text import one_line

NARROW = 50  # columns of a terminal that are too few for two of text
REFRESH = 0.1  # seconds between two pictures


def show(answers: list[Answer], console: Console) -> None:
    """Reads the answers and shows them meanwhile; says of those that were cut off that they were."""
    if len(answers) > 1 and console.is_terminal and console.width >= NARROW:
        _side_by_side(answers, console)
    else:
        _one_after_the_other(answers)
    for answer in answers:
        if answer.cut_off:
            tell(f"the answer of {answer.name} was cut off after {len(answer.ids)} tokens; --max-tokens allows more.")


def tell(sentence: str) -> None:
    """A notice, apart from what models say."""
    print(f"notice: {one_line(sentence)}", file=sys.stderr, flush=True)


def _one_after_the_other(answers: list[Answer]) -> None:
    for number, answer in enumerate(answers):
        if len(answers) > 1:
            print("\n" * bool(number) + f"{one_line(answer.name)}:")
        try:
            for piece in answer.pieces():
                print(piece, end="", flush=True)
        finally:
            print(flush=True)


def _side_by_side(answers: list[Answer], console: Console) -> None:
    """The models take turns, a token each."""
    columns = Columns([answer.name for answer in answers])
    drawn = 0.0
    with Live(columns, console=console, auto_refresh=False) as live:
        try:
            for pieces in _by_turns([answer.pieces() for answer in answers]):
                columns.add(pieces)
                if time.monotonic() - drawn > REFRESH:
                    live.refresh()
                    drawn = time.monotonic()
        finally:
            columns.whole = True  # what was above the terminal's top joins what scrolls by


def _by_turns(streams: list[Iterator[str]]) -> Iterator[tuple[str, ...]]:
    """A piece of each; empty ones of streams that have ended."""
    return zip_longest(*streams, fillvalue="")


class Columns:
    """Texts side by side, under their names.

    Attributes:
        whole: all lines are shown; else the last that the terminal has room for.
    """

    def __init__(self, names: list[str]) -> None:
        self.whole = False
        self._names = [one_line(name) for name in names]
        self._texts = [""] * len(names)

    def add(self, pieces: tuple[str, ...]) -> None:
        """Goes on with each text."""
        self._texts = [text + piece for text, piece in zip(self._texts, pieces, strict=True)]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table.grid(padding=(0, 3, 0, 0), expand=True)
        for _ in self._texts:
            table.add_column(ratio=1, overflow="fold")
        table.add_row(*(Text(name, style="bold") for name in self._names))
        table.add_row(*map(Text, self._texts))
        lines = console.render_lines(table, options.update(height=None), pad=False)
        room = len(lines) if self.whole else console.height - 1
        for line in lines[-room:]:
            yield from line
            yield Segment.line()
