"""The documentation can be read from its front door: short, whole, and without a link that leads nowhere."""

import re
import shutil
from pathlib import Path

import hydra
import pytest

from conftest import ROOT
from cpu_grpo.config.compose import CONF, typed
from cpu_grpo.config.schema import Pipeline, Task
from cpu_grpo.tasks.sources import jsonl
from documented import FENCE, PAGES, anchors, links

LOG = ROOT / "docs" / "log.md"
ENTRY = re.compile(r"^## (\d{4}-\d\d-\d\d): ", re.MULTILINE)


def test_the_front_door_is_short():
    assert (ROOT / "README.md").stat().st_size <= 9 * 1024


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page):
    for target in links(page):
        place, _, anchor = target.partition("#")
        found = (page.parent / place).resolve() if place else page
        assert found.exists() and ROOT in (found, *found.parents), target
        assert not anchor or anchor in anchors(found), target


def reached(start: Path) -> set[Path]:
    """The pages that a reader comes to by links."""
    found, left = set(), [start]
    while left:
        page = left.pop()
        if page not in found and page.suffix == ".md":
            found.add(page)
            left += [(page.parent / target.partition("#")[0]).resolve() for target in links(page) if target[0] != "#"]
    return found


def test_every_page_can_be_reached_and_the_index_lists_those_of_subjects():
    assert reached(ROOT / "README.md") == set(PAGES)
    listed = {(ROOT / "docs" / target.partition("#")[0]).resolve() for target in links(ROOT / "docs" / "README.md")}
    assert {*(ROOT / "docs").glob("*.md")} - {ROOT / "docs" / "README.md"} <= listed


def test_every_experiment_is_led_to_by_a_lesson():
    lessons = set(links(LOG))
    for page in sorted((ROOT / "docs" / "log").glob("*.md")):
        for anchor in anchors(page):
            assert not re.match(r"\d{4}-", anchor) or f"log/{page.name}#{anchor}" in lessons, anchor


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "log").glob("*.md")), ids=lambda page: page.name)
def test_the_newest_experiment_comes_first(page):
    days = ENTRY.findall(page.read_text(encoding="utf-8"))
    assert days and days == sorted(days, reverse=True)


def blocks(language: str) -> list[str]:
    """Of the page on tasks."""
    text = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    return [block for own, block in FENCE.findall(text) if own == language]


def test_the_problems_that_are_shown_are_read(tmp_path):
    """As someone would copy them into a file."""
    (block,) = blocks("json")
    (tmp_path / "mine.jsonl").write_text(block, encoding="utf-8")
    found = jsonl(Task(kind="jsonl", path=str(tmp_path / "mine.jsonl")))
    assert [problem.accepted for problem in found] == [["16"], ["2.5", "5/2"], ["4"]]
    assert (found[1].id, found[1].split, len(found[2].history)) == ("half", "train", 2)


def test_the_pipeline_that_is_shown_is_one(tmp_path):
    (block,) = blocks("yaml")
    shutil.copytree(CONF, tmp_path / "conf")
    (tmp_path / "conf/mine.yaml").write_text(block, encoding="utf-8")
    with hydra.initialize_config_dir(str(tmp_path / "conf"), version_base="1.3"):
        found = typed(hydra.compose("mine"), Pipeline)
    assert (found.task.kind, found.task.path) == ("jsonl", "mine.jsonl")
    assert list(found.variants) == found.evaluation.models[1:] == ["ultra_fast"]
    assert found.variants["ultra_fast"].trainer.max_completion_length == 100
