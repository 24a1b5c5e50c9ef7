"""The user's own mistakes, told in one sentence."""

import errno
import re


class UserError(Exception):
    """A mistake the user can mend. The message is one sentence that names the culprit and the fix."""


class Stopped(Exception):
    """A signal ended a run that can be gone on with. The message says how.

    Attributes:
        code: the shell's exit code for it.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


DISK = {
    errno.ENOSPC: ("No space is left on the disk", "free some"),
    errno.EDQUOT: ("The disk quota is used up", "free some"),
    errno.EFBIG: ("Files may not get that large here", "raise the limit"),
    errno.EROFS: ("The disk can only be read", "work on another, or mount it for writing"),
    errno.EACCES: ("Permission is denied", "change it, or work elsewhere"),
    errno.EPERM: ("Permission is denied", "change it, or work elsewhere"),
    errno.ENOTDIR: ("A file lies where a folder is to be", "move it"),
    errno.EEXIST: ("A file lies where a folder is to be", "move it"),
    errno.EIO: ("The disk has an error", "check it"),
}
_NUMBER = re.compile(r"os error (\d+)")  # as libraries written in Rust tell one
_TORCH = "inline_container"  # where torch finds that a file has not taken what it wrote


def explain(error: BaseException) -> str | None:
    """The sentence for an error that is the user's (or their machine's), or None for one that is ours."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, FileNotFoundError) and "temporary directory" in str(error):
        return "No directory for temporary files can be written: set TMPDIR to one."
    number = _disk_error(error)
    if number is None:  # logging, for one, raises an error of its own from the disk's
        return explain(error.__cause__) if error.__cause__ else None
    reason, remedy = DISK[number]
    where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
    return f"{reason}{where}: {remedy}, then run the same command again; what was finished is kept."


def _disk_error(error: BaseException) -> int | None:
    """Which of those in DISK it is, if it is one."""
    if isinstance(error, OSError):
        return error.errno if error.errno in DISK else None
    found = _NUMBER.search(str(error))
    if found and int(found[1]) in DISK:
        return int(found[1])
    return errno.ENOSPC if isinstance(error, RuntimeError) and _TORCH in str(error) else None
