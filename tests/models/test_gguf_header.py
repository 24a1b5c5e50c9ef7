"""GGUF headers: what llama.cpp's own writer makes is read, and what lies about itself is refused at once."""

import math
import struct
from pathlib import Path

import numpy
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cpu_grpo.errors import UserError
from cpu_grpo.models.gguf_header import Malformed, Tensor, check_gguf, read_header


@pytest.fixture(scope="session")
def content(gguf_file) -> bytes:
    return gguf_file.read_bytes()


def text(words: str) -> bytes:
    return struct.pack("<Q", len(words.encode())) + words.encode()


def header(*values: bytes, tensors: bytes = b"", count: int = 0, keys: int | None = None, version: int = 3) -> bytes:
    begin = b"GGUF" + struct.pack("<IQQ", version, count, len(values) if keys is None else keys)
    return begin + b"".join(values) + tensors + bytes(64)


def value(kind: int, content: bytes, key: str = "key") -> bytes:
    return text(key) + struct.pack("<I", kind) + content


def array(kind: int, length: int, content: bytes = b"") -> bytes:
    return value(9, struct.pack("<IQ", kind, length) + content)


def tensor(*shape: int, name: str = "t", kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def test_a_models_header_is_read(gguf_file):
    found = check_gguf(gguf_file)
    assert found.values["general.architecture"] == "llama"
    assert found.values["llama.block_count"] == 1
    assert found.values["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    assert found.values["tokenizer.ggml.merges"] == 1  # elements
    shapes = {own.name: own.shape for own in found.tensors}
    assert shapes["blk.0.attn_k.weight"] == (32, 16) and shapes["output_norm.weight"] == (32,)
    assert found.numbers == sum(map(math.prod, shapes.values()))


@pytest.mark.parametrize("order", ["little", "big"])
def test_every_kind_of_value_is_read_in_both_byte_orders(tmp_path, order):
    import gguf

    path = tmp_path / "x.gguf"
    endian = gguf.GGUFEndian.BIG if order == "big" else gguf.GGUFEndian.LITTLE
    writer = gguf.GGUFWriter(path, "llama", endianess=endian)
    values = {"uint8": 5, "int8": -5, "uint16": 500, "int16": -500, "uint32": 7, "int32": -7, "uint64": 2**63}
    values |= {"int64": -(2**62), "float32": 1.5, "float64": math.pi, "bool": True, "string": "é"}
    for kind, own in values.items():
        getattr(writer, f"add_{kind}")(kind, own)
    for name, own in {"texts": ["a", "bé", ""], "numbers": [1, 2, 3], "floats": [0.5], "bools": [True, False]}.items():
        writer.add_array(name, own)
    writer.add_tensor("t", numpy.zeros((3, 4), numpy.float32))
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file()
    writer.close()
    found = check_gguf(path)
    assert {key: found.values[key] for key in values} == values
    assert [found.values[key] for key in ("texts", "numbers", "floats", "bools")] == [3, 3, 1, 2]
    assert found.tensors == [Tensor("t", (4, 3), 0, 0)]


HUGE = 2**63
LIES = {
    "nothing": (b"", "empty file"),
    "another format": (b"PK\x03\x04" + bytes(99), "does not begin with GGUF"),
    "an old version": (header(version=1), "its version 1 is none of 2, 3"),
    "a new version": (header(version=99), "its version 99"),
    "tensors without end": (header(count=HUGE), "speaks of 9,223,372,036,854,775,808 tensors, where at most"),
    "keys without end": (header(keys=HUGE), "808 keys, where at most"),
    "a key without end": (header(struct.pack("<Q", HUGE)), "bytes of text, where at most"),
    "a text without end": (header(value(8, struct.pack("<Q", 2**40))), "bytes of text, where at most"),
    "numbers without end": (header(array(4, HUGE)), "elements of arrays, where at most"),
    "texts without end": (header(array(8, HUGE)), "elements of arrays, where at most"),
    "texts longer than the file": (header(array(8, 2, text("a") + struct.pack("<Q", HUGE))), "within a list of texts"),
    "more elements than a reader can hold": (header(array(0, 3_000_000, bytes(3_000_000))), "at most 2,000,000"),
    "arrays of arrays": (header(array(9, 1, array(9, 1))), "unknown type 9"),
    "an unknown type": (header(value(77, b"")), "unknown type 77"),
    "a key twice": (header(value(0, b"a"), value(0, b"b")), "the key 'key' twice"),
    "a key that is no text": (header(struct.pack("<Q", 1) + b"\xff" + bytes(8)), "is not UTF-8"),
    "no alignment": (header(value(4, bytes(4), key="general.alignment")), "alignment is '0'"),
    "dimensions without end": (header(tensors=text("t") + struct.pack("<I", 2**32 - 1), count=1), "4,294,967,295 dim"),
    "sizes without end": (header(tensors=tensor(2**32, 2**32), count=1), "ends behind the file's"),
    "data behind the file": (header(tensors=tensor(2, offset=2**40), count=1), "ends behind the file's"),
    "a tensor twice": (header(tensors=2 * tensor(2), count=2), "one name"),
    "an unknown quantisation": (header(tensors=tensor(2, kind=999), count=1), "unknown type 999"),
    "half a block": (header(tensors=tensor(33, kind=2), count=1), "no multiple of 32"),
    "layers without end": (
        header(value(4, struct.pack("<I", 10**9), key="llama.block_count"), tensors=tensor(8), count=1),
        "tells of 1,000,000,000 layers",
    ),
    "a width without end": (
        header(value(10, struct.pack("<Q", HUGE), key="llama.embedding_length"), tensors=tensor(8), count=1),
        "numbers or more, and its weights are 1 tensors of 8",
    ),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("content", "reason"), LIES.values(), ids=LIES)
def test_a_header_that_lies_is_refused_in_a_sentence(tmp_path, content, reason):
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(
        UserError, match=r"^bad.gguf cannot be read as a GGUF model \(.*\): it may be truncated"
    ) as caught:
        check_gguf(path)
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_every_truncation_is_refused(content):
    for length in range(0, len(content), 7):
        with pytest.raises(Malformed):
            read_header(content[:length])


EXTREMES = [0, 1, 9, 255, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=1000)
@given(
    changes=st.lists(st.tuples(st.integers(0, 9000), st.sampled_from([1, 4, 8]), st.sampled_from(EXTREMES)), max_size=4)
)
@example(changes=[])
def test_what_passes_is_read_by_the_library_too(content, changes, tmp_path):
    import gguf

    data = bytearray(content)
    for place, size, number in changes:
        data[place : place + size] = (number % 2 ** (8 * size)).to_bytes(size, "little")
    try:
        read_header(bytes(data))
    except Malformed:
        return
    path = Path(tmp_path) / "x.gguf"
    path.write_bytes(data)
    assert gguf.GGUFReader(path).tensors
