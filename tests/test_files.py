"""Outputs appear whole or not at all; input mistakes are told with file and line."""

import errno
import os
import shutil
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cpu_grpo.errors import UserError
from cpu_grpo.files import (
    fingerprint,
    new_directory,
    read_jsonl,
    require_space,
    sha256,
    write_json,
    write_jsonl,
    write_text,
)


class Interrupted(BaseException):
    """Like Ctrl-C: no Exception."""


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_new_directory_appears_with_its_content(tmp_path):
    with new_directory(tmp_path / "models" / "base") as partial:
        (partial / "weights").write_text("new")
        assert names(tmp_path / "models") == [partial.name]  # not yet under its own name
    assert names(tmp_path / "models") == ["base"]
    assert (tmp_path / "models" / "base" / "weights").read_text() == "new"


def test_new_directory_replaces_the_old_one_whole(tmp_path):
    target = tmp_path / "base"
    target.mkdir()
    (target / "stale").write_text("old")
    with new_directory(target) as partial:
        (partial / "weights").write_text("new")
        assert names(target) == ["stale"]  # readers see the old one until the end
    assert names(target) == ["weights"]
    assert names(tmp_path) == ["base"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, Interrupted])
def test_new_directory_leaves_nothing_behind_on_an_error(tmp_path, error):
    with pytest.raises(error), new_directory(tmp_path / "base") as partial:
        (partial / "half").write_text("half")
        raise error
    assert names(tmp_path) == []


def test_new_directory_keeps_the_old_one_on_an_error(tmp_path):
    target = tmp_path / "base"
    target.mkdir()
    (target / "weights").write_text("old")
    with pytest.raises(RuntimeError), new_directory(target) as partial:
        (partial / "weights").write_text("half")
        raise RuntimeError
    assert names(tmp_path) == ["base"]
    assert (target / "weights").read_text() == "old"


@pytest.mark.skipif(os.name != "posix", reason="permission bits are POSIX's")
def test_outputs_are_readable_by_others(tmp_path):
    with new_directory(tmp_path / "base"):
        pass
    write_text(tmp_path / "card.json", "{}")
    assert (tmp_path / "base").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "card.json").stat().st_mode & 0o777 == 0o644


def test_write_text_makes_the_folders_and_keeps_the_text(tmp_path):
    path = tmp_path / "a" / "b" / "card.txt"
    write_text(path, "zwölf\n")
    assert path.read_bytes() == "zwölf\n".encode()
    assert names(path.parent) == ["card.txt"]


def test_write_text_that_fails_keeps_the_old_file_and_no_half_one(tmp_path, monkeypatch):
    path = tmp_path / "card.json"
    write_text(path, "old")

    def full(source, target):
        assert path.read_text() == "old"  # untouched while the new one was written
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["card.json"]


def test_write_json_ends_in_a_newline_and_keeps_other_scripts(tmp_path):
    write_json(tmp_path / "a.json", {"name": "Ω"})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "name": "Ω"\n}\n'


def test_a_missing_jsonl_is_named(tmp_path):
    with pytest.raises(UserError) as caught:
        read_jsonl(tmp_path / "none.jsonl")
    assert str(tmp_path / "none.jsonl") in str(caught.value)
    assert "check the path" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        (b'{"a": 1}\n{"a": \n', 2, "not JSON"),
        (b'{"a": 1}\n\n\nnonsense\n', 4, "not JSON"),  # blank lines count
        (b'{"a": 1}\r\n{"a" 2}\r\n', 2, "not JSON"),
        (b'{"a": "\xff"}\n', 1, "not JSON"),
        (b'{"a": 1}\n[1, 2]\n', 2, "list"),
        (b'"text"\n', 1, "str"),
        (b"7\n", 1, "int"),
        (b"null\n", 1, "NoneType"),
    ],
)
def test_a_bad_line_is_told_with_its_number(tmp_path, content, line, reason):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_jsonl(path)
    assert f"{path}, line {line} is not" in str(caught.value)
    assert reason in str(caught.value)
    assert "that line" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"  \n"])
def test_an_empty_jsonl_has_no_rows(tmp_path, content):
    (tmp_path / "rows.jsonl").write_bytes(content)
    assert read_jsonl(tmp_path / "rows.jsonl") == []


def test_windows_line_ends_and_a_byte_order_mark_are_read(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}')
    assert read_jsonl(tmp_path / "rows.jsonl") == [{"a": 1}, {"a": 2}]


VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(st.text(), VALUES)))
def test_any_rows_survive_the_round_trip(tmp_path, rows):
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert read_jsonl(tmp_path / "rows.jsonl") == rows


def test_sha256_of_a_file_is_the_published_one(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_fingerprint_tells_values_apart_but_not_the_order_of_keys():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert len(fingerprint("x")) == 12


def test_too_little_space_is_told_in_gigabytes(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_500_000_000))
    with pytest.raises(UserError) as caught:
        require_space(tmp_path / "models", 2_000_000_000)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'models'} has 1.5 GB")
    assert "2.0 GB are needed" in message
    assert "free some space" in message


def test_exactly_enough_space_is_enough(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    require_space(tmp_path, 1000)
    with pytest.raises(UserError):
        require_space(tmp_path, 1001)
