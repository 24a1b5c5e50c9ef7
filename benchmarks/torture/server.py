"""A real MLflow server on this machine that can be killed and started again."""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen


class Server:
    """Keeps its database and artifacts in a directory; its address stays the same from start to start.

    Attributes:
        uri: its address.
        log: what it has said.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = directory / "server.log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers, after seconds. Raises RuntimeError if it ends instead."""
        self.directory.mkdir(parents=True, exist_ok=True)
        store = f"sqlite:///{(self.directory / 'server.db').absolute().as_posix()}"
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--backend-store-uri", store]
        command += ["--host", "127.0.0.1", "--port", str(self._port)]
        environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
        # Modules that none may keep compiled would be compiled anew at each start, which takes longer than all else.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        environment.setdefault("PYTHONPYCACHEPREFIX", str(self.directory / "compiled"))
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self.directory, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        while not self._answers():
            if self._process.poll() is not None:
                raise RuntimeError(f"The MLflow server does not start; {self.log} says why.")
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            with urlopen(f"{self.uri}/health", timeout=2) as answer:
                return answer.status == 200
        except (URLError, OSError):
            return False

    def kill(self) -> None:
        """At once, with SIGKILL, wherever it is; no harm if it is down."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def points(self, key: str) -> list[tuple[str, int, float]]:
        """Run, step and value of each point of a metric in the order in which they arrived; the server may be down."""
        with sqlite3.connect(self.directory / "server.db") as connection:
            return connection.execute(
                "SELECT run_uuid, step, value FROM metrics WHERE key = ? ORDER BY rowid", [key]
            ).fetchall()
