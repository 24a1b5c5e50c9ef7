"""How answers look: in columns at a terminal, one after the other elsewhere."""

import io

import pytest
from rich.console import Console

from cpu_grpo.chat.screen import Columns, show


class Said:
    """An answer that is known already, a piece at a time."""

    def __init__(self, name, *pieces, cut_off=False):
        self.name, self.ids, self.cut_off = name, [0] * len(pieces), cut_off
        self.read = 0
        self._pieces = pieces

    def pieces(self):
        for piece in self._pieces:
            self.read += 1
            yield piece


def terminal(width=60, height=10):
    return Console(force_terminal=True, width=width, height=height, file=io.StringIO(), highlight=False)


def lines(columns, console):
    """As plain text."""
    plain = Console(width=console.width, height=console.height, file=io.StringIO())
    plain.print(columns)
    return [line.rstrip() for line in plain.file.getvalue().splitlines()]


def test_one_answer_is_its_text(capsys):
    show([Said("a", "Four", " it", " is.")], Console(file=io.StringIO()))
    assert capsys.readouterr().out == "Four it is.\n"


def test_without_a_terminal_two_answers_stand_one_after_the_other(capsys):
    show([Said("a", "Four."), Said("b", "Fi", "ve.")], Console(file=io.StringIO()))
    assert capsys.readouterr().out == "a:\nFour.\n\nb:\nFive.\n"


def test_at_a_terminal_two_answers_stand_side_by_side(capsys):
    console = terminal(width=60)
    show([Said("left", "aaa ", "bbb"), Said("right", "ccc", " ddd", " eee")], console)
    shown = console.file.getvalue()
    assert "aaa bbb" in shown and "ccc ddd eee" in shown
    assert capsys.readouterr().out == ""


def test_a_narrow_terminal_shows_one_after_the_other(capsys):
    show([Said("a", "Four."), Said("b", "Five.")], terminal(width=30))
    assert capsys.readouterr().out == "a:\nFour.\n\nb:\nFive.\n"


def test_models_take_turns():
    left, right = Said("a", *"abc"), Said("b", *"xyzuv")
    console = terminal()
    seen = []

    class Watched(Said):
        def pieces(self):
            for piece in super().pieces():
                seen.append((left.read, self.read))
                yield piece

    right = Watched("b", *"xyzuv")
    show([left, right], console)
    assert seen == [(1, 1), (2, 2), (3, 3), (3, 4), (3, 5)]


def test_columns_wrap_apart_and_take_the_width():
    columns = Columns(["a", "b"])
    text = "one two three four five six seven"
    columns.add((text, "日本語" * 8))
    rows = lines(columns, terminal(width=40))
    assert rows[0].split() == ["a", "b"]
    assert " ".join(row[:17].strip() for row in rows[1:]).split() == text.split()
    assert "".join(rows[1:]).count("日") == 8
    assert all(len(row) <= 40 for row in rows)


def test_a_long_answer_shows_its_end_while_it_grows_and_all_of_it_afterwards():
    columns = Columns(["a", "b"])
    columns.add(("\n".join(f"line {number}" for number in range(30)), ""))
    growing = lines(columns, terminal(height=10))
    assert growing == [f"line {number}" for number in range(21, 30)]
    columns.whole = True
    assert lines(columns, terminal(height=10))[1:] == [f"line {number}" for number in range(30)]


def test_what_looks_like_markup_is_text():
    columns = Columns(["[red]a", "b"])
    columns.add(("[bold]x[/bold]", ":smile:"))
    assert lines(columns, terminal(width=80))[1].split() == ["[bold]x[/bold]", ":smile:"]


@pytest.mark.parametrize("cut_off", [True, False])
def test_that_an_answer_was_cut_off_is_told_apart_from_it(capsys, cut_off):
    show([Said("a", "Four", cut_off=cut_off)], Console(file=io.StringIO()))
    out, told = capsys.readouterr()
    assert out == "Four\n"
    assert told == cut_off * "notice: the answer of a was cut off after 1 tokens; --max-tokens allows more.\n"


def test_what_was_read_stays_when_an_answer_is_ended(capsys):
    class Ended(Said):
        def pieces(self):
            yield from super().pieces()
            raise KeyboardInterrupt

    console = terminal()
    with pytest.raises(KeyboardInterrupt):
        show([Ended("a", "Four"), Said("b", "Five", " it", " is")], console)
    assert "Four" in console.file.getvalue()
    assert console.file.getvalue().endswith("\x1b[?25h")  # the cursor is back
