"""The user's own mistakes, told in one sentence."""

import errno


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


def explain(error: BaseException) -> str | None:
    """The sentence for an error that is the user's (or their machine's), or None for one that is ours."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = f" while writing {error.filename}" if error.filename else ""
        return f"No space is left on the disk{where}: free some, then run the same command again."
    return None
