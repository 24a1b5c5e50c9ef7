"""What a check yields."""

from collections.abc import Callable
from dataclasses import dataclass

from cpu_grpo.config.redaction import redacted
from cpu_grpo.errors import UserError
from cpu_grpo.text import one_line

INSTALL = "python -m pip install -r requirements.lock"


@dataclass(frozen=True)
class Finding:
    """How one thing is.

    Attributes:
        state: ok; warn, with which runs work less well; FAIL, with which they do not.
        said: what was found, the rest of a sentence about it.
        fix: a command, where all is not well.
    """

    state: str
    said: str
    fix: str = ""


Check = Callable[[], Finding]


def ok(said: str) -> Finding:
    return Finding("ok", said)


def warn(said: str, fix: str) -> Finding:
    return Finding("warn", said, fix)


def fail(said: str, fix: str) -> Finding:
    return Finding("FAIL", said, fix)


def examined(check: Check) -> Finding:
    """What a check finds; that it cannot be made is told, too, and keeps no other from being made."""
    try:
        return check()
    except ImportError as error:
        return fail(f"{error.name or 'a package'} cannot be imported ({told(error)})", INSTALL)
    except UserError as error:
        return fail(str(error).rstrip("."), "python pipelines/compose.py")
    except Exception as error:  # of a broken installation anything may come
        return fail(f"cannot be told ({type(error).__name__}: {told(error)})", INSTALL)


def line(what: str, finding: Finding) -> str:
    """A finding as it is printed, with its fix in a second line."""
    fix = f"\n      fix: {finding.fix}" if finding.fix else ""
    return f"{finding.state:<4}  {what}: {one_line(redacted(finding.said))}{fix}"


def told(error: BaseException) -> str:
    """An error in a few words."""
    return one_line(redacted(next(iter(str(error).splitlines()), "")), 200)
