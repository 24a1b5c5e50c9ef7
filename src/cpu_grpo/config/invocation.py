"""Which pipeline run (or sweep) this process belongs to: stages are separate processes that must find one another."""

import socket
from pathlib import Path

import psutil


def pipeline_id() -> str:
    """Equal for all stages of one `dvc repro` or experiment; empty for a process that DVC did not start."""
    for process in psutil.Process().parents():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if any(Path(word).name in ("dvc", "dvc.exe") for word in words[:3]) or words[1:3] == ["-m", "dvc"]:
            return f"dvc {socket.gethostname()} {process.pid} {process.create_time():.0f}"
    return ""


def sweep_id(directory: Path) -> str:
    """Equal for all jobs of the multirun that writes to `directory`."""
    return f"sweep {directory.absolute().as_posix()}"
