"""Reward functions in a process of their own, so that nothing that their code does can harm the training."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any

from cpu_grpo.errors import UserError
from cpu_grpo.files import fingerprint, sha256
from cpu_grpo.tasks.answers.grader import Grader
from cpu_grpo.tasks.rewards import NUMBERS

PATIENCE = 4  # times the limit that completions may take together where each is asked for alone
LOAD_SECONDS = 120.0  # that importing the reward code may take
END_SECONDS = 2.0  # that a process may take to end by itself
COMMAND = [sys.executable, "-P", "-m", "cpu_grpo.tasks.reward_worker"]


@dataclass(frozen=True)
class Fault:
    """Why there is no reward.

    Attributes:
        kind: `exception`, `hang`, `crash`, `none`, `not finite`, `no number`, `no list` or `wrong length`.
        message: what happened, in words.
    """

    kind: str
    message: str


class RewardProcess:
    """The process, as a context. One that hangs or dies is replaced by the next call.

    Attributes:
        code: stands for the user's reward code; empty where there is none.
    """

    def __init__(self, custom: list[str], grader: Grader = NUMBERS) -> None:
        """`custom`: where the user's functions are, as `FILE.py:FUNCTION` or `package.module:FUNCTION`."""
        self._custom = custom
        self._grader = grader
        self._process: subprocess.Popen[bytes] | None = None
        self.code = ""

    def __enter__(self) -> "RewardProcess":
        """Raises UserError where a function cannot be loaded."""
        self._start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._process is None:
            return
        if error is None or isinstance(error, Exception):  # else it may be at work
            _close(self._process)
        self._end(END_SECONDS)

    def rewards(self, name: str, arguments: dict[str, Any], seconds: float) -> list[float | Fault] | Fault:
        """What a function gives for each of `arguments["completions"]`, or why it gives nothing at all.

        Args:
            arguments: what it is called with, as JSON can tell it.
            seconds: how long that may take; the process is ended then.

        Raises:
            UserError: the process had to be started again and could not be.
        """
        if self._process is None:
            self._start()
        reply = self._ask({"name": name, "arguments": arguments, "seconds": seconds})
        if isinstance(reply, Fault):
            return reply
        if "fault" in reply:
            return Fault(*reply["fault"])
        return [Fault(*reward) if isinstance(reward, list) else reward for reward in reply["rewards"]]

    def _start(self) -> None:
        """Starts the process and loads the user's functions."""
        # In a session of its own: Ctrl-C is not for it, and what it starts can be ended with it.
        self._process = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        reply = self._ask({"load": self._custom, **asdict(self._grader), "seconds": LOAD_SECONDS})
        if isinstance(reply, Fault):
            named = ", ".join(self._custom) or "the process for them"
            raise UserError(f"rewards.custom: {named} cannot be loaded ({reply.message}): mend it.")
        if "error" in reply:
            self._end()
            raise UserError(f"rewards.custom: {reply['error']}")
        code = fingerprint([sha256(Path(path)) for path in reply["files"]]) if reply["files"] else ""
        if self.code and code != self.code:
            self._end()
            raise UserError("The reward code has changed since the run began: run the same command again.")
        self.code = code

    def _ask(self, request: dict[str, Any]) -> dict[str, Any] | Fault:
        """The reply to a request; a process that gives none within the request's seconds is ended."""
        process, seconds = self._process, request["seconds"]
        assert process and process.stdin and process.stdout
        requests, answers = process.stdin, process.stdout
        line, replies = json.dumps(request).encode() + b"\n", []

        def exchange() -> None:
            with suppress(OSError):  # the process is gone
                requests.write(line)
                requests.flush()
                replies.append(answers.readline())

        # In a thread: pipes know no time limit, and one whose process has ended stays open if that process forked.
        thread = Thread(target=exchange, daemon=True)
        thread.start()
        thread.join(seconds)
        if replies and replies[0].endswith(b"\n"):
            return json.loads(replies[0])
        hangs = thread.is_alive()
        code = self._end(0.0 if hangs else END_SECONDS)
        thread.join(END_SECONDS)
        if not thread.is_alive():
            _close(process)
        return Fault("hang", f"no answer within {seconds:g} s") if hangs else Fault("crash", _ending(code))

    def _end(self, patience: float = 0.0) -> int:
        """Ends the process, if it doesn't by itself in these seconds, and all that it has started; its exit code."""
        process, self._process = self._process, None
        assert process
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)
        if sys.platform == "win32":
            process.kill()
        else:
            with suppress(ProcessLookupError, PermissionError):  # nobody is left
                os.killpg(process.pid, signal.SIGKILL)
        return process.wait()


def scores(
    process: RewardProcess,
    name: str,
    lists: dict[str, list[Any]],
    seconds: float,
    fixed: dict[str, Any] | None = None,
    fails_together: Callable[[str], None] | None = None,
) -> list[float | Fault]:
    """A function's reward for each completion, or why there is none: from one call, or one for each if that fails.

    Args:
        lists: its arguments, with something for each completion.
        fixed: its other arguments.
        fails_together: told the reason where it fails on all completions together, but on none alone.
    """
    count, fixed = len(lists["completions"]), fixed or {}
    found = process.rewards(name, lists | fixed, seconds)
    if not isinstance(found, Fault):
        return found
    if count == 1:
        return [found]
    share = seconds * min(1, PATIENCE / count)
    alone = [
        process.rewards(name, {key: values[i : i + 1] for key, values in lists.items()} | fixed, share)
        for i in range(count)
    ]
    rewards = [single if isinstance(single, Fault) else single[0] for single in alone]
    if fails_together and not any(isinstance(reward, Fault) for reward in rewards):
        fails_together(found.message)
    return rewards


def _close(process: "subprocess.Popen[bytes]") -> None:
    """Closes its pipes, at which an idle one ends."""
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):
            assert pipe
            pipe.close()


def _ending(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"its process ended with exit code {code}"
    return f"its process was ended by {signal.Signals(-code).name}"
