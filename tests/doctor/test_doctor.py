"""`python -m cpu_grpo.doctor` as a user runs it."""

import re
import subprocess
import sys

import pytest

from conftest import ROOT
from cpu_grpo.doctor import __main__ as doctor
from cpu_grpo.doctor import checks
from cpu_grpo.doctor.finding import INSTALL, Finding, examined, line, ok
from cpu_grpo.errors import UserError

PAGE = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")


def run(monkeypatch, *findings):
    monkeypatch.setattr(checks, "checks", lambda: iter([(f"thing {n}", lambda f=f: f) for n, f in enumerate(findings)]))
    return doctor.main([])


def test_a_line_for_each_and_code_1_only_where_something_fails(monkeypatch, capsys):
    good, poor, bad = ok("is fine"), Finding("warn", "is poor", "mend it"), Finding("FAIL", "is bad", "mend that")
    assert run(monkeypatch, good, poor) == 0
    assert capsys.readouterr().out == "ok    thing 0: is fine\nwarn  thing 1: is poor\n      fix: mend it\n"
    assert run(monkeypatch, good, bad, poor) == 1
    assert capsys.readouterr().out.splitlines()[1:3] == ["FAIL  thing 1: is bad", "      fix: mend that"]


def test_a_check_that_cannot_be_made_is_a_finding(monkeypatch, capsys):
    def lacks():
        import nowhere_to_be_found  # noqa: F401

    def wrong():
        raise UserError("seed is wrong: use 1.")

    def broken():
        raise RuntimeError("http://me:secret@host is odd\nand more")

    assert examined(lacks).fix == INSTALL and "nowhere_to_be_found cannot be imported" in examined(lacks).said
    assert examined(wrong).said == "seed is wrong: use 1"
    assert examined(broken).said == "cannot be told (RuntimeError: http://host is odd)"
    assert [examined(check).state for check in (lacks, wrong, broken)] == ["FAIL"] * 3


def test_what_is_shown_is_a_line_without_passwords():
    shown = line("x", Finding("warn", "a\x1b[2J\nb http://me:secret@host", "f"))
    assert shown == "warn  x: a\ufffd[2J b http://host\n      fix: f"


def test_an_old_python_is_told_before_anything_is_imported(monkeypatch, capsys):
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    assert doctor.main([]) == 1
    assert capsys.readouterr().out.startswith("FAIL  python: 3.9 is older than 3.11")


def test_the_documentation_has_every_line(project):
    rows = re.findall(r"^\| ([\w. ]+) \|", PAGE, re.MULTILINE)[1:]
    assert rows == [what for what, _ in checks.checks()]


@pytest.mark.slow
def test_the_command_of_the_documentation(project):
    command = re.search(r"```sh\npython (.*)\n```", PAGE)[1].split()
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, timeout=300)
    told = re.findall(r"^(?:ok|warn|FAIL) +([\w. ]+): ", done.stdout, re.MULTILINE)
    assert told == [what for what, _ in checks.checks()]
    assert done.stdout.count("\n      fix: ") == len(re.findall(r"^(?:warn|FAIL) ", done.stdout, re.MULTILINE))
    assert "FAIL  DVC: this folder is not initialised\n      fix: dvc init\n" in done.stdout
    assert done.returncode == 1 and "Traceback" not in done.stderr


@pytest.mark.slow
def test_it_works_where_torch_and_mlflow_cannot_be_imported(project, empty_store):
    (project / "mlflow.db").write_bytes(empty_store.read_bytes())
    code = (
        "import runpy, sys; sys.modules['torch'] = sys.modules['mlflow'] = None; sys.argv = ['doctor']; "
        "runpy.run_module('cpu_grpo.doctor', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    found = {what: state for state, what in re.findall(r"^(ok|warn|FAIL) +([\w. ]+): ", done.stdout, re.MULTILINE)}
    assert found["torch"] == "FAIL" and "torch: torch cannot be imported" in done.stdout
    assert found["MLflow"] == "FAIL" and "MLflow: mlflow cannot be imported" in done.stdout
    assert found["packages"] == found["params.yaml"] == "ok" and found["stages"] == "warn"
    assert done.returncode == 1 and done.stderr == ""
