"""Worker: the peak memory of a training run as a user starts it, of all processes of `python pipelines/train.py`.

A task has: directory (where the run finds models/base, and data/ which the first run makes), settings (of Hydra, for
the model and the problems) and training (those of the training besides). Outputs go below the directory.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from processes import ROOT, Json, serve

EVERY = 0.05  # seconds between two looks at the memory


def measure(task: Json) -> Json:
    """One training run, after the stage that draws its problems, if that has not been run there."""
    directory = Path(task["directory"])
    if not (directory / "data").exists():
        _run("data", [*task["settings"], "hydra.run.dir=."], directory)
    with tempfile.TemporaryDirectory(dir=directory) as outputs:
        started = time.perf_counter()
        peak = _run("train", [*task["settings"], *task["training"], f"hydra.run.dir={outputs}"], directory)
        seconds = time.perf_counter() - started
        (results,) = (Path(outputs) / "results" / "train").glob("*.json")
        figures = json.loads(results.read_text(encoding="utf-8"))
    return {
        "peak_bytes": max(peak, figures["peak_rss_bytes"]),
        "seconds": seconds,
        **{key: figures[key] for key in ("peak_rss_bytes", "updates", "completions", "memory", "precision")},
    }


def _run(stage: str, settings: list[str], directory: Path) -> int:
    """Runs a stage of the pipeline; returns the most bytes that it and its children have held at a time.

    Raises:
        RuntimeError: it failed; the message has its last words.
    """
    command = [sys.executable, str(ROOT / "pipelines" / f"{stage}.py"), *settings]
    with tempfile.TemporaryFile("w+") as said:
        running = subprocess.Popen(command, cwd=directory, stdout=said, stderr=subprocess.STDOUT)
        peak = 0
        while running.poll() is None:
            peak = max(peak, _held(running.pid))
            time.sleep(EVERY)
        said.seek(0)
        if running.returncode:
            raise RuntimeError(f"{stage}: {(said.read().strip().splitlines() or ['it said nothing'])[-1]}")
    return peak


def _held(pid: int) -> int:
    """Bytes of memory of a process and of all below it; 0 if it has ended."""
    try:
        process = psutil.Process(pid)
        processes = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    held = 0
    for process in processes:
        try:
            held += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return held


if __name__ == "__main__":
    serve(measure)
