"""What may be a name: it becomes a file's or a folder's, on any system."""

import re
import unicodedata
from pathlib import PurePath

LONGEST = 100  # bytes: file names, of 255 at most, are made of it
RULE = f"letters, digits and . _ + = @ - (none of . - in front), spaces between, {LONGEST} bytes at most"

_NAME = re.compile(r"[\w+=@][\w.+=@-]*(?: [\w.+=@-]+)*")
_DEVICES = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)  # Windows takes these for devices


def is_name(text: str) -> bool:
    """Whether a file or folder below one of ours may have this name on every system."""
    if len(text.encode("utf-8", "replace")) > LONGEST or text.endswith("."):
        return False
    return bool(_NAME.fullmatch(text)) and not _DEVICES.fullmatch(text)


def is_hub_name(text: str) -> bool:
    """Whether it is a name, or an owner's and a name with a slash between."""
    parts = text.split("/")
    return len(parts) <= 2 and all(map(is_name, parts))


def is_place(text: str) -> bool:
    """Whether it is a name, or a path that ends in one: results are called after its last part."""
    return is_text(text) and is_name(PurePath(text).name)


def is_line(text: str) -> bool:
    """Whether it is one line, short enough for a database's column."""
    return is_text(text) and bool(text.strip()) and len(text.splitlines()) == 1 and len(text) <= 250


def is_text(text: str) -> bool:
    """Whether it has no control characters but ends of lines and tabs, and nothing that UTF-8 cannot write."""
    return not any(unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t" for character in text)


# By a field's `form` in the schema: whether a text has it, and what is asked for in words.
FORMS = {
    "name": (is_name, RULE),
    "hub name": (is_hub_name, f"NAME or OWNER/NAME, each of {RULE}"),
    "place": (is_place, f"a name or a path that ends in one, of {RULE}"),
    "line": (is_line, "one line of at most 250 characters"),
    "text": (is_text, "text without control characters"),
}
