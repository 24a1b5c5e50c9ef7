"""The user's own mistakes, told in one sentence."""

import errno


class UserError(Exception):
    """A mistake the user can mend. The message is one sentence that names the culprit and the fix."""


def explain(error: BaseException) -> str | None:
    """The sentence for an error that is the user's (or their machine's), or None for one that is ours."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = f" while writing {error.filename}" if error.filename else ""
        return f"No space is left on the disk{where}: free some, then run the same command again."
    return None
