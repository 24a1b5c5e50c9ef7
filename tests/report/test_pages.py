"""What studies have found stands in the documentation as the committed outcomes have it."""

import shutil
from collections import Counter
from pathlib import Path

import pytest

from conftest import ROOT
from cpu_grpo.config.compose import study_names
from cpu_grpo.errors import UserError
from cpu_grpo.report.pages import END, filled, main, marked

PAGES = {page: page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md"))}
PLACE = f"# Mine\n\n<!-- study progressive -->\nformer words\n{END}\n\nmy words, 12.5 %\n"


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if marked(PAGES[page])], ids=lambda page: page.name)
def test_a_page_agrees_with_the_outcomes_that_are_committed(page):
    assert filled(PAGES[page], ROOT) == PAGES[page], f"{page.name} is out of date: run `make docs`"


def test_every_study_has_its_place_in_one_page():
    assert Counter(name for text in PAGES.values() for name in marked(text)) == Counter(study_names())


@pytest.mark.slow
def test_what_is_between_the_marks_is_replaced_and_nothing_else(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "results/studies/progressive", "results/studies/progressive")
    Path("page.md").write_text(PLACE, encoding="utf-8")
    main(["page.md"])
    text = Path("page.md").read_text(encoding="utf-8")
    begin, end = "# Mine\n\n<!-- study progressive -->\n", f"{END}\n\nmy words, 12.5 %\n"
    assert text.startswith(begin) and text.endswith(end) and capsys.readouterr().out == "page.md\n"
    inside = text[len(begin) : -len(end)]
    assert "former words" not in inside
    # 39.6 % of 5 times 240 problems, counted in the files by hand: 475
    assert "| curriculum    | 39.6 %; 34.5 to 44.6 %; 5 seeds; 1200 problems |" in inside
    shutil.rmtree("results/studies/progressive/full")
    main(["page.md"])
    assert "Not run yet" in Path("page.md").read_text(encoding="utf-8")


def test_a_quick_run_is_not_told_in_a_page(tmp_path):
    shutil.copytree(ROOT / "results/studies/progressive/full", tmp_path / "results/studies/progressive/quick")
    assert "Not run yet" in filled(PLACE, tmp_path)


def test_a_page_without_a_place_stays_as_it_is(tmp_path):
    assert filled("# Mine\n", tmp_path) == "# Mine\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (PLACE.replace("progressive", "progresive"), "progresive --> names no study: use one of few_problems, growth"),
        (PLACE.replace(END, ""), "does not end"),
        (PLACE.replace("former words", "<!-- study recipes -->"), "does not end"),
        (f"{PLACE}{END}\n", "does not end"),
    ],
)
def test_a_wrong_mark_is_told(text, told, tmp_path):
    with pytest.raises(UserError) as caught:
        filled(text, tmp_path)
    assert told in str(caught.value)


def test_a_page_that_is_none_is_told(tmp_path):
    with pytest.raises(UserError, match=r"There is no page .*nothing\.md"):
        main([str(tmp_path / "nothing.md")])
