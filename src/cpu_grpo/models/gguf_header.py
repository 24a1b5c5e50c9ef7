"""The header of a GGUF file, read with bounds before a library reads it without.

    magic, version, tensor count, key count | key, type, value ... | tensor name, dimensions, type, offset ... | data

Every count and length in it is a number that the file may lie about. They are held against the file's size here, and
what is read takes time in proportion to the header. The format: github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from struct import Struct, error
from typing import Any

from cpu_grpo.errors import UserError
from cpu_grpo.models.checking import unbelievable
from cpu_grpo.text import shown

VERSIONS = (2, 3)
LARGEST = 256 << 20  # bytes of a header
KEYS, TENSORS = 10_000, 100_000
ELEMENTS = 2_000_000  # of all arrays: the reader makes objects of each; the largest vocabularies have two thirds
NAME = 1 << 16  # bytes of a key, and of a tensor's name
TEXT = 64 << 20  # bytes of a text: some hold a whole tokenizer
DIMENSIONS = 4

STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRUCTS = {order + letter: Struct(order + letter) for order in "<>" for letter in SCALARS.values()}
# What follows a family's name in keys of sizes, and what config.json calls them.
SIZES = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.key_length": "head_dim",
    "expert_count": "num_experts",
    "vocab_size": "vocab_size",
    "ggml.tokens": "vocab_size",
}


class Malformed(Exception):
    """What is wrong, in words that end a sentence."""


@dataclass(frozen=True)
class Tensor:
    name: str
    shape: tuple[int, ...]
    kind: int  # GGML's number of how it is quantised
    offset: int  # from where the data begin


@dataclass
class Header:
    """What it says, arrays aside."""

    values: dict[str, Any] = field(default_factory=dict)
    tensors: list[Tensor] = field(default_factory=list)

    @property
    def numbers(self) -> int:
        """Weights in all tensors."""
        return sum(prod(tensor.shape) for tensor in self.tensors)


def check_gguf(path: Path) -> Header:
    """The header of a file.

    Raises:
        UserError: it is no GGUF file, or its header is damaged or a lie.
    """
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return read_header(data)
    except (Malformed, ValueError) as problem:  # the latter of an empty file, which cannot be mapped
        raise UserError(
            f"{path.name} cannot be read as a GGUF model ({problem}): it may be truncated; fetch it again."
        ) from problem


def read_header(data: Any) -> Header:
    """The same of bytes.

    Raises:
        Malformed: they are none.
    """
    cursor = _Cursor(data)
    if bytes(data[:4]) != b"GGUF":
        raise Malformed("it does not begin with GGUF")
    cursor.place = 4
    if cursor.scalar("I") & 0xFFFF == 0:  # written by a machine of the other byte order
        cursor.order = ">"
    cursor.place = 4
    if (version := cursor.scalar("I")) not in VERSIONS:
        raise Malformed(f"its version {version} is none of {', '.join(map(str, VERSIONS))}")
    tensors, keys = cursor.count("tensors", TENSORS, 24), cursor.count("keys", KEYS, 13)
    header = Header()
    for _ in range(keys):
        key = cursor.text(NAME)
        if key in header.values:
            raise Malformed(f"it has the key {shown(key)} twice")
        header.values[key] = cursor.value(cursor.scalar("I"))
        if cursor.place > LARGEST:
            raise Malformed(f"its header has more than {LARGEST:,} bytes")
    header.tensors = [cursor.tensor() for _ in range(tensors)]
    _check_tensors(header, cursor.place, len(data))
    if doubt := unbelievable(_sizes(header), tensors, header.numbers):
        raise Malformed(f"it tells of {doubt}")
    return header


class _Cursor:
    """A place in the bytes, which moves forward as they are read."""

    def __init__(self, data: Any) -> None:
        self.data = data
        self.place = 0
        self.order = "<"
        self.elements = 0

    def scalar(self, kind: str) -> Any:
        structure = STRUCTS[self.order + kind]
        try:
            (value,) = structure.unpack_from(self.data, self.place)
        except error as problem:
            raise Malformed(f"it ends at byte {len(self.data):,}, within the header") from problem
        self.place += structure.size
        return value

    def count(self, what: str, most: int, smallest: int) -> int:
        """How many there are of something that takes `smallest` bytes each at least."""
        found = int(self.scalar("Q"))
        left = (len(self.data) - self.place) // smallest
        if found > min(most, left):
            raise Malformed(f"it speaks of {found:,} {what}, where at most {min(most, left):,} are possible")
        return found

    def text(self, most: int) -> str:
        length = self.count("bytes of text", most, 1)
        begin, self.place = self.place, self.place + length
        try:
            return bytes(self.data[begin : self.place]).decode("utf-8")
        except UnicodeDecodeError as problem:
            raise Malformed(f"a text at byte {begin:,} is not UTF-8") from problem

    def value(self, kind: int) -> Any:
        """A key's value; of an array, how many elements it has."""
        if kind == STRING:
            return self.text(TEXT)
        return self.array() if kind == ARRAY else self.scalar(_scalar(kind))

    def array(self) -> int:
        kind = self.scalar("I")
        size = 8 if kind == STRING else STRUCTS[self.order + _scalar(kind)].size  # arrays of arrays are refused
        length = self.count("elements of arrays", ELEMENTS - self.elements, size)
        self.elements += length
        if kind == STRING:
            self.skip_texts(length)
        else:
            self.place += size * length
        return length

    def skip_texts(self, count: int) -> None:
        """So many, without a look into them: vocabularies are long."""
        lengths, data, place, end = STRUCTS[self.order + "Q"], self.data, self.place, len(self.data) - 8
        for _ in range(count):
            if place > end:
                raise Malformed(f"it ends at byte {len(data):,}, within a list of texts")
            place += 8 + lengths.unpack_from(data, place)[0]
        if place > len(data):
            raise Malformed(f"it ends at byte {len(data):,}, within a list of texts")
        self.place = place

    def tensor(self) -> Tensor:
        name = self.text(NAME)
        dimensions = self.scalar("I")
        if not 1 <= dimensions <= DIMENSIONS:
            raise Malformed(f"its tensor {shown(name)} has {dimensions:,} dimensions")
        shape = tuple(self.scalar("Q") for _ in range(dimensions))
        return Tensor(name, shape, self.scalar("I"), self.scalar("Q"))


def _scalar(kind: int) -> str:
    if kind not in SCALARS:
        raise Malformed(f"it has a value of the unknown type {kind}")
    return SCALARS[kind]


def _check_tensors(header: Header, end: int, size: int) -> None:
    """That all data lie within the file, behind the header, and no name stands twice."""
    from gguf.constants import GGML_QUANT_SIZES

    kinds = {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()}
    alignment = header.values.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        raise Malformed(f"its general.alignment is {shown(str(alignment))}, which is no power of two")
    begin = -(-end // alignment) * alignment
    if len({tensor.name for tensor in header.tensors}) < len(header.tensors):
        raise Malformed("two of its tensors have one name")
    for tensor in header.tensors:
        if tensor.kind not in kinds:
            raise Malformed(f"its tensor {shown(tensor.name)} is of the unknown type {tensor.kind}")
        block, stored = kinds[tensor.kind]
        if tensor.shape[0] % block:
            raise Malformed(f"its tensor {shown(tensor.name)} has rows that are no multiple of {block}")
        if begin + tensor.offset + prod(tensor.shape) // block * stored > size:
            raise Malformed(f"its tensor {shown(tensor.name)} ends behind the file's {size:,} bytes")


def _sizes(header: Header) -> dict[str, int]:
    """Under the names of config.json; the largest where several keys tell one."""
    found: dict[str, int] = {}
    for key, value in header.values.items():
        name = SIZES.get(key.partition(".")[2])
        if name and isinstance(value, int):
            found[name] = max(value, found.get(name, 0))
    return found
