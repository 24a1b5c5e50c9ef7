"""A training as a user starts it, in a process of its own, on the tiny model; and one that is sent a signal."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from torture import runs
from torture.runs import TRAIN

# Runs a stage, and sends its process a signal when a function of ours is called for the n-th time.
SIGNALLED = """
import importlib, os, runpy, signal, sys
place, left, number, *sys.argv = sys.argv[1:]
module, _, names = place.partition(":")
owner, (*path, name) = importlib.import_module(module), names.split(".")
for part in path:
    owner = getattr(owner, part)
right, left = getattr(owner, name), int(left)
def called(*arguments, **named):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), int(number))
    return right(*arguments, **named)
setattr(owner, name, called)
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def command(directory, **changes):
    """The keys of a tiny training run in the current directory."""
    return runs.command(directory, Path(), **changes)


def run(arguments, place=None, call=1, number=signal.SIGKILL):
    start = [sys.executable, "-c", SIGNALLED, place, str(call), str(int(number))] if place else [sys.executable]
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [*start, TRAIN, *arguments], capture_output=True, text=True, check=False, env=environment, timeout=300
    )
