"""What the documentation consists of: its pages, the links and headings in them, and the commands that it shows."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from conftest import ROOT

PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")), *sorted(ROOT.glob("docs/**/*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^()\s]+)\)")


@dataclass(frozen=True)
class Command:
    """A line of a block of shell commands."""

    page: str
    words: tuple[str, ...]  # without quotes and comment
    comment: str

    def __str__(self) -> str:
        return " ".join(self.words)


def commands() -> list[Command]:
    """All that the pages show; one that is part of a line, behind & or ;, counts by itself."""
    found = []
    for page in PAGES:
        for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
            for line in block.splitlines() if language == "sh" else []:
                comment = re.search(r"\s#\s(.*)$", line)
                lexer = shlex.shlex(line, posix=True, punctuation_chars=";&")
                lexer.whitespace_split = True
                parts: list[list[str]] = [[]]
                for word in lexer:
                    if set(word) <= {";", "&"}:
                        parts.append([])
                    else:
                        parts[-1].append(word)
                own = page.relative_to(ROOT).as_posix()
                found += [Command(own, tuple(part), comment[1] if comment else "") for part in parts if part]
    return found


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def links(page: Path) -> list[str]:
    """Targets within the project, as they are written."""
    return [target for target in LINK.findall(prose(page)) if not re.match(r"[a-z]+://|mailto:", target)]


def anchors(page: Path) -> set[str]:
    """What a link to one of a page's headings ends in, as GitHub makes it."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    words = [re.sub(r"[^\w\- ]", "", heading.strip().lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in words}
