"""JSON lines of unknown origin: read in pieces, or refused with the line's number."""

import io
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpu_grpo import files
from cpu_grpo.errors import UserError
from cpu_grpo.files import numbered_rows, read_jsonl, rows_of

ROW = b'{"a": 1}\n'


def refused(path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_jsonl(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message and len(message) < 500 + len(str(path))
    return message.removeprefix(str(path))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            ROW + b'{"a": "\xe9"}\n',
            ", line 2 is not JSON, as it is not UTF-8 (byte 8 is 0xe9): mend that line, or save",
        ),
        (ROW + b"\xed\xa0\x80\n", ", line 2 is not JSON, as it is not UTF-8 (byte 1 is 0xed)"),
        (ROW.decode().encode("utf-16"), ", line 1 is UTF-16 or UTF-32: save the file as UTF-8"),
        (ROW.decode().encode("utf-32"), ", line 1 is UTF-16 or UTF-32"),
        (
            b"[" + ROW + b"," + ROW + b"]",
            ", line 1 begins one JSON array, where one object a line is read: `jq -c '.[]'",
        ),
        (b'[{"a": 1}, {"a": 2}]', ", line 1 is one JSON array, where one object a line is read: `jq -c '.[]'"),
        (ROW + b"[1]", ", line 2 is not a JSON object but list"),
        (ROW + b"\x00", ", line 2 is not JSON"),
        (ROW + b'{"a": ' + b"[" * 10**6, ", line 2 is not JSON (maximum recursion depth"),
        (ROW + b'{"a": ' + b"9" * 5000 + b"}", ", line 2 is not JSON (Exceeds the limit (4300 digits)"),
        (b'{"a": 1, "b": 2, "a": 3}', ", line 1 is not JSON (the key 'a' stands in it twice)"),
        (b'{"x": {"' + b"k" * 9999 + b'": 1, "' + b"k" * 9999 + b'": 1}}', "(9,999 characters) stands in it twice"),
    ],
)
def test_a_bad_line_is_told(tmp_path, content, told):
    assert told in refused(tmp_path / "f.jsonl", content)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r", b"\n\n \n"])
@pytest.mark.parametrize("begin", [b"", b"\xef\xbb\xbf"])
def test_lines_of_every_system_are_read(tmp_path, begin, end):
    path = tmp_path / "f.jsonl"
    path.write_bytes(begin + end.join([b'{"a": 1}', '{"a": "x\u2028y\u0085z"}'.encode(), b'{"a": 3}']))
    assert [row["a"] for row in read_jsonl(path)] == [1, "x\u2028y\u0085z", 3]
    assert [number for number, _ in numbered_rows(path)] == [
        1 + place * (3 if b" " in end else 1) for place in range(3)
    ]


def test_what_json_can_say_comes_through(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text('{"a": "\\ud800", "b": "\\u0000", "c": NaN, "d": -1e999, "e": ' + "9" * 4000 + "}\n")
    (row,) = read_jsonl(path)
    assert (row["a"], row["b"], row["d"], len(str(row["e"]))) == ("\ud800", "\x00", float("-inf"), 4000)


def test_a_line_of_a_gigabyte_is_refused_without_being_read(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "f.jsonl"
    with path.open("wb") as stream:
        stream.write(ROW + b'{"a": "')
        stream.truncate(2**30)  # takes no space
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"f.jsonl, line 2 is longer than 16 MiB: put one JSON object on each line"):
        read_jsonl(path)
    unit = 1 if sys.platform == "darwin" else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < 100_000_000


def test_a_line_may_have_the_longest_length_but_no_more(monkeypatch):
    monkeypatch.setattr(files, "LONGEST_LINE", len(ROW) - 1)
    assert len(list(rows_of(io.BytesIO(3 * ROW), "f"))) == 3
    assert len(list(rows_of(io.BytesIO(ROW.rstrip()), "f"))) == 1
    with pytest.raises(UserError, match="line 2 is longer"):
        list(rows_of(io.BytesIO(ROW + b'{"a": 12}\n'), "f"))


def test_rows_are_handed_on_as_they_are_read():
    class Endless(io.RawIOBase):
        def readline(self, size=-1):
            return ROW

    rows = rows_of(Endless(), "f")
    assert [next(rows) for _ in range(3)] == [(1, {"a": 1}), (2, {"a": 1}), (3, {"a": 1})]


@given(st.binary(max_size=200) | st.text(alphabet='{}[]":,\\ud8001eE-.\n\r \x00a').map(str.encode))
def test_any_bytes_are_rows_or_refused_in_a_sentence(data):
    try:
        found = list(rows_of(io.BytesIO(data), "f.jsonl"))
    except UserError as error:
        assert str(error).startswith("f.jsonl, line ")
    else:
        assert all(isinstance(row, dict) for _, row in found)
        assert json.dumps(found)
