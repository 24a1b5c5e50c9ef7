"""Each measurement runs in a process of its own: a task goes in as JSON, an answer comes out as JSON.

So peaks of memory are separate, and no engine finds memory or compiled code that another one left. Only the standard
library is imported here, as vLLM's own environment imports this module too.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent  # where workers find what they share
ROOT = HERE.parent
QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}

Json = dict[str, Any]


class WorkerFailed(Exception):
    """A worker died; the message says how."""


def ask(
    worker: str, task: Json, python: str = sys.executable, before: Callable[[], None] | None = None, **environment: str
) -> Json:
    """Runs one of `workers` on a task; returns its answer.

    Args:
        before: called in the new process before it starts.

    Raises:
        WorkerFailed: the worker ended with an error or was killed.
    """
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [python, "-m", f"workers.{worker}", json.dumps(task)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | QUIET | {"PYTHONPATH": path} | environment,
        preexec_fn=before,
        check=False,
    )
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise WorkerFailed(f"{worker} was killed by {name}" + (", out of memory?" if name == "SIGKILL" else ""))
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        raise WorkerFailed(f"{worker}: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}")
    return json.loads(lines[-1])


def serve(work: Callable[[Json], Json]) -> None:
    """A worker's main: whatever `work` prints goes to stderr, and its answer alone to stdout."""
    with contextlib.redirect_stdout(sys.stderr):
        answer = work(json.loads(sys.argv[1]))
    print(json.dumps(answer))


def interleaved(counts: dict[str, int]) -> Iterator[str]:
    """Each name as often as its count says, spread evenly: a drift of the machine hits all alike."""
    turns = [(turn / count, place, name) for place, (name, count) in enumerate(counts.items()) for turn in range(count)]
    yield from (name for _, _, name in sorted(turns))
