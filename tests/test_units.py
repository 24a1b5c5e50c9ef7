import pytest

from cpu_grpo.units import duration, gigabytes, in_bytes


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("4GiB", 4 * 2**30),
        ("3.5 GB", 3_500_000_000),
        ("800MB", 800_000_000),
        ("512 mib", 512 * 2**20),
        ("", None),
        ("4", None),
        ("lots", None),
        ("-1GB", None),
        ("0GB", None),
        ("iB", None),
        ("4iB", None),
    ],
)
def test_amounts_of_memory_are_read_as_written(text, amount):
    assert in_bytes(text) == amount


def test_amounts_are_told_with_their_unit():
    assert gigabytes(1_234_000_000) == "1.23 GB"
    assert [duration(seconds) for seconds in (5.04, 150, 9000)] == ["5.0 s", "2.5 min", "2.5 h"]
