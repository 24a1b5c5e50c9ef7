"""What is left of an address once nothing in it is secret."""

import logging

import pytest

from cpu_grpo.config.redaction import redact_file, redact_logs, redacted, redacted_values


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("http://user:pw@host:5000/path", "http://host:5000/path"),
        ("https://token@host/", "https://host/"),
        ("http://user:p@w@host", "http://host"),
        ("postgresql://user:p/w@host:5432/runs", "postgresql://host:5432/runs"),
        ("postgresql://user:12/w@host/runs", "postgresql://host/runs"),
        ("http://host:5000/path@there", "http://there"),  # as it might have been a password
        ("http://host/?token=pw&x=1", "http://host/?token=***&x=1"),
        ("http://host/?x=1&access_token=pw&sig=pw", "http://host/?x=1&access_token=***&sig=***"),
        ("mssql:///?odbc_connect=PWD%3Dpw", "mssql:///?odbc_connect=***"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("http://host:5000", "http://host:5000"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
    ],
)
def test_an_address_keeps_all_but_its_secrets(address, told):
    assert redacted(address) == told
    assert redacted(f"it said '{address}' and more, to me@there") == f"it said '{told}' and more, to me@there"
    assert redacted_values({"a": [address, 1], "b": {"c": address}}) == {"a": [told, 1], "b": {"c": told}}


def test_what_is_logged_has_no_secrets():
    before = logging.getLogRecordFactory()
    redact_logs()
    try:
        arguments = ("http://user:pw@host", 3)
        record = logging.getLogRecordFactory()("any", logging.INFO, "file", 1, "%s after %d tries", arguments, None)
    finally:
        logging.setLogRecordFactory(before)
    assert record.getMessage() == "http://host after 3 tries"


def test_a_file_loses_its_secrets_if_it_is_there(tmp_path):
    path = tmp_path / "overrides.yaml"
    path.write_text("- tracking.uri=http://user:pw@host\n")
    redact_file(path)
    redact_file(tmp_path / "none.yaml")
    assert path.read_text() == "- tracking.uri=http://host\n"
