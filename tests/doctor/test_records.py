"""The checks of MLflow, passing and failing."""

import shutil

import pytest

from cpu_grpo.doctor import records
from cpu_grpo.doctor.finding import line
from cpu_grpo.experiment import spool
from cpu_grpo.experiment.store import MlflowStore

SERVER = "http://me:secret@127.0.0.1:9"  # the port that discards: nobody listens


def test_a_store_that_is_not_there_yet_is_not_made(project):
    assert records.store().state == "ok"
    assert not (project / "mlflow.db").exists()


def test_a_store_that_answers_and_one_that_is_none(project, empty_store):
    shutil.copyfile(empty_store, project / "mlflow.db")
    assert records.store() == records.ok("sqlite:///mlflow.db answers")
    (project / "mlflow.db").write_text("no database" * 1000)
    found = records.store()
    assert found.state == "FAIL" and found.fix == "mlflow db upgrade sqlite:///mlflow.db"


def test_a_server_that_does_not_answer_is_told_without_its_password(set_params):
    set_params(tracking__uri=SERVER)
    found = records.store()
    assert found.state == "warn" and "runs go on" in found.said
    assert "secret" not in line("MLflow", found) and "127.0.0.1:9" in found.said


def test_a_server_that_hangs_is_not_waited_for(set_params, monkeypatch):
    import threading

    set_params(tracking__uri=SERVER)
    monkeypatch.setattr(records, "PATIENCE", 0.1)
    monkeypatch.setattr(MlflowStore, "open", lambda self: threading.Event().wait(5))
    assert records.store().state == "warn"


@pytest.mark.parametrize(
    ("target", "fix"), [("sqlite:///mlflow.db", "report.py"), ("http://x", "rm -r cache/tracking")]
)
def test_records_that_wait(project, target, fix):
    assert records.spool().state == "ok"
    journal = spool.begin()
    journal.append({"kind": "run", "time": 1, "target": target})
    journal.append({"kind": "tag", "key": "a", "value": "b"})
    assert records.spool().state == "ok"  # a process is at it
    journal.release()
    found = records.spool()
    assert found.state == "warn" and found.said.startswith(f"2 records wait for {target}")
    assert fix in found.fix
    (waiting,) = spool.left_behind(target)  # they are there still
    assert waiting.waiting() == 2
