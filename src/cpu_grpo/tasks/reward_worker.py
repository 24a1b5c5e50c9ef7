"""The process that reward code runs in: `python -m cpu_grpo.tasks.reward_worker`, one for a run.

It reads a line of JSON a request and writes one a reply (`RewardProcess` is the other side). The first request says
which functions of the user's to load, each further one asks for the rewards of some completions. Whatever the code
prints goes to stderr. It imports neither torch nor Hydra, so that it starts in 60 ms and takes 15 MB, half of them
shared.

It ends with the process that started it, however that one ends: its input ends then. A watching thread sees to it, and
where code doesn't let other threads run, a clock that needs no Python does, at the end of the call's time.
"""

import contextlib
import faulthandler
import importlib
import importlib.util
import inspect
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, BinaryIO

from cpu_grpo.tasks.answers.grader import Grader
from cpu_grpo.tasks.rewards import COMPONENTS, batched, judgements

GRACE = 1.0  # seconds to end by itself once there is nobody to answer
MAX_MESSAGE = 300  # characters of an exception that are told
FLOAT32_MAX = 3.4028234663852886e38  # TRL keeps rewards in fp32
PASSED = (
    "prompts",
    "completions",
    "completion_ids",
    "answer",
    "accepted",
    "trainer_state",
)  # what every function is called with
Functions = dict[str, Callable[..., Any]]


class Unloadable(Exception):
    """Why a function of the user's cannot be had, in a sentence."""


def main() -> None:
    requests, replies = _channel()
    with contextlib.suppress(OSError):  # where memory runs out, the kernel ends this process, not the training
        Path("/proc/self/oom_score_adj").write_text("1000")
    inbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    threading.Thread(target=_watch, args=(requests, inbox), daemon=True).start()
    functions: Functions = {}
    with open(os.devnull, "w") as nowhere:
        while line := inbox.get():
            request = json.loads(line)
            faulthandler.dump_traceback_later(request["seconds"] + GRACE, exit=True, file=nowhere)
            reply = _loaded(functions, **request) if "load" in request else _rewards(functions, **request)
            faulthandler.cancel_dump_traceback_later()
            replies.write(json.dumps(reply).encode() + b"\n")
            replies.flush()


def _channel() -> tuple[BinaryIO, BinaryIO]:
    """Stdin and stdout, which nothing else can read or write any more."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    return requests, replies


def _watch(requests: BinaryIO, inbox: "queue.SimpleQueue[bytes | None]") -> None:
    for line in requests:
        inbox.put(line)
    inbox.put(None)
    time.sleep(GRACE)
    if sys.platform != "win32" and os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)  # with what the code has started
    os._exit(1)


# ---- loading -----------------------------------------------------------------------------------------------------


def _loaded(functions: Functions, load: list[str], kind: str, marks: list[str], seconds: float) -> dict[str, Any]:
    """Adds our functions, and those at the places to load; tells the files that their code is in, or why one cannot be
    had."""
    grader = Grader(kind, tuple(marks))
    grader.flaw("1")  # imports what it needs, which may take longer than a comparison may
    functions |= {name: batched(name, grader) for name in COMPONENTS} | judgements(grader)
    here, before, files = os.getcwd(), set(sys.modules), set()
    folders = [Path(here)]
    if load:
        sys.path.insert(0, here)
    try:
        for place in load:
            where, _, name = place.rpartition(":")
            if where.endswith(".py"):
                folders.append(Path(where).resolve().parent)
            module = _module(where)
            functions[name] = _function(module, where, name)
            files |= {module.__file__} if module.__file__ else set()
    except Unloadable as error:
        return {"error": str(error)}
    return {"files": sorted(files | _own_files(set(sys.modules) - before, folders))}


def _module(where: str) -> ModuleType:
    path = Path(where).resolve()
    try:
        if not where.endswith(".py"):
            return importlib.import_module(where)
        if not path.is_file():
            raise Unloadable(f"There is no file {where}; check the path.")
        for module in list(sys.modules.values()):
            if getattr(module, "__file__", None) == str(path):
                return module
        sys.path.insert(0, str(path.parent))  # as if it were run
        name = str(path) if path.stem in sys.modules else path.stem
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec and spec.loader
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except Unloadable:
        raise
    except BaseException as error:  # SystemExit too
        raise Unloadable(f"{where} cannot be imported ({_told(error)}): mend it.") from error


def _function(module: ModuleType, where: str, name: str) -> Callable[..., Any]:
    function = getattr(module, name, None)
    if function is None:
        raise Unloadable(f"{where} has no function {name}; check the name.")
    if not callable(function):
        raise Unloadable(f"{name} in {where} is no function but {type(function).__name__}; check the name.")
    try:
        inspect.signature(function).bind(**dict.fromkeys(PASSED))
    except TypeError as error:
        raise Unloadable(
            f"{name} in {where} does not take what reward functions are given ({error}): give it the parameters it "
            f"needs of {', '.join(PASSED)}, and **others for the rest."
        ) from error
    except ValueError:  # made in C, and says nothing of its parameters
        pass
    return function


def _own_files(modules: set[str], folders: list[Path]) -> set[str]:
    """The files of those modules that lie in the folders, installed packages apart."""
    paths = {getattr(sys.modules[name], "__dict__", {}).get("__file__") for name in modules}
    own = {path for path in paths if path and any(Path(path).is_relative_to(folder) for folder in folders)}
    return {path for path in own if not Path(path).is_relative_to(sys.prefix)}


# ---- rewards -----------------------------------------------------------------------------------------------------


def _rewards(functions: Functions, name: str, arguments: dict[str, Any], seconds: float) -> dict[str, Any]:
    """A reward for each completion, or in its place the kind of fault and a message; or one fault for them all."""
    count = len(arguments["completions"])
    if state := arguments.get("trainer_state"):
        arguments["trainer_state"] = SimpleNamespace(**state)
    try:
        found = functions[name](**arguments)
        if inspect.isawaitable(found):
            found = _awaited(found)
        if not hasattr(found, "__iter__"):
            return {"fault": ["no list", f"{type(found).__name__} instead of a list of {count} numbers"]}
        rewards = [_reward(value) for value in islice(found, count + 1)]
    except BaseException as error:  # SystemExit too
        return {"fault": ["exception", _told(error)]}
    if len(rewards) != count:
        length = f"more than {count}" if len(rewards) > count else str(len(rewards))
        return {"fault": ["wrong length", f"{length} rewards for {count} completions"]}
    return {"rewards": rewards}


def _awaited(coroutine: Any) -> Any:
    import asyncio  # 8 MB

    return asyncio.run(coroutine)


def _reward(value: Any) -> float | list[str]:
    if value is None:
        return ["none", "None"]
    if isinstance(value, str | bytes):
        return ["no number", f"{value[:MAX_MESSAGE]!r} is {type(value).__name__}"]
    try:
        reward = float(value)
    except OverflowError:
        return ["not finite", "a number of more than 300 digits"]
    except Exception:
        return ["no number", type(value).__name__]
    return reward if abs(reward) <= FLOAT32_MAX else ["not finite", str(reward)]  # NaN compares false


def _told(error: BaseException) -> str:
    """What an exception says, and where it came from: the last line that is neither Python's nor ours."""
    try:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:MAX_MESSAGE].rstrip(": ")
    except Exception:
        text = f"{type(error).__name__}, which cannot be told"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(("<", __file__))]
    own = [frame for frame in frames if not Path(frame.filename).is_relative_to(sys.base_prefix)]
    return f"{text} in {Path(own[-1].filename).name}, line {own[-1].lineno}" if own else text


if __name__ == "__main__":
    main()
