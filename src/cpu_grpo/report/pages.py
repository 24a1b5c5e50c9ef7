"""Writes what studies have found into pages of the documentation, between marks: `python -m cpu_grpo.report.pages`.

A page says where, in two lines: `<!-- study NAME -->` and `<!-- end of study -->`. What is between them is replaced by
what the outcomes in results/studies allow to say, in the report's words; the rest of the page stays as it is.
"""

import argparse
import re
import sys
from pathlib import Path

from cpu_grpo.config.compose import sentences, study_names
from cpu_grpo.errors import UserError
from cpu_grpo.files import write_text
from cpu_grpo.report.section import Section
from cpu_grpo.report.studies import section
from cpu_grpo.report.tables import markdown
from cpu_grpo.report.text import markdown_inline

END = "<!-- end of study -->"
BEGIN = re.compile(r"^<!-- study (\S+) -->$", re.MULTILINE)
BLOCK = re.compile(rf"{BEGIN.pattern}.*?^{END}$", re.MULTILINE | re.DOTALL)
BUDGETS = ("full",)  # a quick run is no result, and is not committed


def main(arguments: list[str]) -> None:
    """Writes the pages named, or all of docs/ that have such marks."""
    parser = argparse.ArgumentParser(prog="python -m cpu_grpo.report.pages", description=__doc__)
    parser.add_argument("pages", nargs="*", type=Path, help="Markdown files; without any, those of docs/")
    options = parser.parse_args(arguments)
    for page in options.pages or sorted(Path("docs").glob("*.md")):
        if not page.is_file():
            raise UserError(f"There is no page {page}: name a Markdown file.")
        text = page.read_text(encoding="utf-8")
        if marked(text):
            write_text(page, filled(text, Path()))
            print(page)


def marked(text: str) -> list[str]:
    """The studies that a page has a place for."""
    return BEGIN.findall(text)


def filled(text: str, root: Path) -> str:
    """A page with the findings of the studies that it marks a place for.

    Args:
        root: the directory with results/studies.

    Raises:
        UserError: a mark names no study, or lacks its end.
    """
    for name in marked(text):
        if name not in study_names():
            raise UserError(f"<!-- study {name} --> names no study: use one of {', '.join(study_names())}.")
    if [found[1] for found in BLOCK.finditer(text)] != marked(text) or text.count(END) != len(marked(text)):
        raise UserError(f"A place for a study does not end: put {END} below each <!-- study NAME -->.")
    return BLOCK.sub(lambda found: block(found[1], section(root, found[1], budgets=BUDGETS)), text)


def block(name: str, found: Section) -> str:
    """The place itself, marks included: answers, table, method."""
    if not found.table.rows:  # one sentence of ours, with a command in it
        return "\n\n".join([f"<!-- study {name} -->", *found.answers, markdown_inline(found.method), END])
    parts = ["\n".join(f"- {markdown_inline(answer)}" for answer in found.answers)]
    parts += [markdown_inline(found.table.caption), markdown(found.table)]
    return "\n\n".join([f"<!-- study {name} -->", *parts, markdown_inline(found.method), END])


if __name__ == "__main__":
    with sentences():
        main(sys.argv[1:])
