"""The header of a GGUF file, checked in full before anybody else looks at the file.

Layout (all little-endian): "GGUF", u32 version, u64 tensor count, u64 key count, the key/value pairs, the tensor
table, padding to `general.alignment`, then the data; tensor offsets count from the start of the data, and each
tensor is padded to the alignment. Every length is compared with the size of the file before it is used, so neither
memory nor time can exceed what the file really holds. Sizes are Python integers: nothing wraps.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from whorl._readers import limits
from whorl._readers.stand_ins import HEAD_BYTES, refuse_text_stand_in
from whorl._readers.subject import DAMAGED, INCOMPLETE, Subject
from whorl.errors import MalformedFile, UnsafeFile, UnsupportedFile, safe_name

DEFAULT_ALIGNMENT = 32
VERSIONS = (2, 3)


@dataclass(frozen=True)
class BlockType:
    """One tensor type: `block` values of one row share `n_bytes` bytes."""

    name: str
    block: int
    n_bytes: int


TENSOR_TYPES: Mapping[int, BlockType] = {
    0: BlockType("F32", 1, 4),
    1: BlockType("F16", 1, 2),
    2: BlockType("Q4_0", 32, 18),
    3: BlockType("Q4_1", 32, 20),
    6: BlockType("Q5_0", 32, 22),
    7: BlockType("Q5_1", 32, 24),
    8: BlockType("Q8_0", 32, 34),
    10: BlockType("Q2_K", 256, 84),
    11: BlockType("Q3_K", 256, 110),
    12: BlockType("Q4_K", 256, 144),
    13: BlockType("Q5_K", 256, 176),
    14: BlockType("Q6_K", 256, 210),
    28: BlockType("F64", 1, 8),
    30: BlockType("BF16", 1, 2),
}

# Defined by the format but not decoded here; named so that the refusal can say what the file holds.
UNREAD_TYPES: Mapping[int, str] = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0",
    39: "MXFP4", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip

_BOOL, _STRING, _ARRAY, _UINT32 = 7, 8, 9, 4
_SCALARS: Mapping[int, struct.Struct] = {
    0: struct.Struct("<B"), 1: struct.Struct("<b"), 2: struct.Struct("<H"), 3: struct.Struct("<h"),
    4: struct.Struct("<I"), 5: struct.Struct("<i"), 6: struct.Struct("<f"), 7: struct.Struct("<B"),
    10: struct.Struct("<Q"), 11: struct.Struct("<q"), 12: struct.Struct("<d"),
}  # fmt: skip
_U32, _U64 = _SCALARS[4], _SCALARS[10]

# str, int, float, bool; arrays of numbers as NumPy arrays, arrays of text as tuples of undecoded bytes.
GgufValue = str | int | float | bool | NDArray[Any] | tuple[bytes, ...]


@dataclass(frozen=True)
class StoredTensor:
    """One row of the tensor table.

    Args:
        name: Name in the file.
        kind: Block type.
        dims: Lengths as stored: the contiguous axis first, at most 4, each at least 1.
        offset: First byte, counted from the start of the file.
        part: Which file of a split model holds it, from 0.
    """

    name: str
    kind: BlockType
    dims: tuple[int, ...]
    offset: int
    part: int = 0

    @property
    def n_columns(self) -> int:
        """Length of the contiguous axis."""
        return self.dims[0] if self.dims else 1

    @property
    def n_rows(self) -> int:
        """Number of contiguous rows, all other axes taken together."""
        return math.prod(self.dims[1:])

    @property
    def row_bytes(self) -> int:
        """Stored bytes of one row."""
        return self.n_columns // self.kind.block * self.kind.n_bytes

    @property
    def n_bytes(self) -> int:
        """Stored bytes without padding."""
        return self.n_rows * self.row_bytes

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape, outermost axis first."""
        return self.dims[::-1]


@dataclass(frozen=True)
class GgufHeader:
    """What a checked header says.

    Args:
        version: 2 or 3.
        alignment: Bytes; every tensor starts on a multiple.
        values: The key/value pairs.
        tensors: The tensor table in file order.
        data_start: First byte of the data.
    """

    version: int
    alignment: int
    values: Mapping[str, GgufValue]
    tensors: tuple[StoredTensor, ...]
    data_start: int


class _Cursor:
    """Reads on from the start of the file, never past its end or past the header cap."""

    def __init__(self, file: BinaryIO, name: str, size: int) -> None:
        self.name, self.size = name, size
        self.position = 0
        self.n_strings = 0
        self._file = file
        self._buffer = bytearray()

    def need(self, n_bytes: int, what: str) -> bytearray:
        """Make sure that the next `n_bytes` are in the buffer, which is returned."""
        end = self.position + n_bytes
        if end > self.size:
            found = f"header cut short, {what} ends at byte {end} and {self.size} bytes are present"
            raise MalformedFile("file", self.name, found, "a whole header", INCOMPLETE)
        if end > limits.GGUF_MAX_HEADER:
            found = f"header longer than {limits.GGUF_MAX_HEADER} bytes ({what} ends at byte {end})"
            raise UnsafeFile("file", self.name, found, "a shorter header", DAMAGED)
        if end > len(self._buffer):
            self._grow(end)
        return self._buffer

    def _grow(self, end: int) -> None:
        target = min(self.size, limits.GGUF_MAX_HEADER, max(end, 2 * len(self._buffer), 65_536))
        try:
            self._buffer += self._file.read(target - len(self._buffer))
        except OSError as error:
            found = f"it cannot be read ({error.strerror})"
            raise MalformedFile("file", self.name, found, "a readable file", "Check the disk.") from error
        if len(self._buffer) < end:
            found = f"{len(self._buffer)} of {self.size} bytes could be read"
            raise MalformedFile(
                "file", self.name, found, "all of them", "The file changed while it was read: try again."
            )

    def number(self, form: struct.Struct, what: str) -> Any:
        """The next number."""
        buffer = self.need(form.size, what)
        (value,) = form.unpack_from(buffer, self.position)
        self.position += form.size
        return value

    def raw(self, n_bytes: int, what: str) -> bytes:
        """The next `n_bytes` bytes."""
        buffer = self.need(n_bytes, what)
        self.position += n_bytes
        return bytes(buffer[self.position - n_bytes : self.position])

    def text(self, what: str) -> str:
        """The next string: u64 length, then UTF-8."""
        data = self.raw(self.number(_U64, what), what)
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            found = f"{what} is not UTF-8"
            raise MalformedFile("file", self.name, found, "UTF-8 text", DAMAGED) from error

    def texts(self, count: int, what: str) -> tuple[bytes, ...]:
        """The next `count` strings, undecoded."""
        self.n_strings += count
        if self.n_strings > limits.GGUF_MAX_STRINGS:
            raise UnsafeFile(
                "file", self.name, f"{self.n_strings} strings in arrays", f"at most {limits.GGUF_MAX_STRINGS}", DAMAGED
            )
        items = []
        for _ in range(count):
            buffer, position = self.need(8, what), self.position
            length = int.from_bytes(buffer[position : position + 8], "little")
            buffer = self.need(8 + length, what)
            self.position = position + 8 + length
            items.append(bytes(buffer[position + 8 : self.position]))
        return tuple(items)


def read_header(file: BinaryIO, name: str, size: int, part: int = 0) -> GgufHeader:
    """Read and check a GGUF header.

    Args:
        file: Opened for reading, at its start.
        name: How refusals call the file.
        size: Size of the file, bytes.
        part: Index of this file in a split model, from 0.

    Raises:
        MalformedFile: Cut short, wrong sizes, counts, offsets, dimensions or booleans.
        UnsafeFile: Duplicate key or tensor, overlap, hole, bytes after the last tensor, odd name, over a cap.
        UnsupportedFile: Not GGUF, other version or byte order, nested arrays, tensor types that are not decoded.
    """
    cursor = _Cursor(file, name, size)
    version = _version(cursor)
    n_tensors, n_keys = cursor.number(_U64, "tensor count"), cursor.number(_U64, "key count")
    _check_count(cursor, "tensors", n_tensors, limits.MAX_TENSORS, 24)
    _check_count(cursor, "keys", n_keys, limits.GGUF_MAX_KEYS, 13)
    values: dict[str, GgufValue] = {}
    alignment = DEFAULT_ALIGNMENT
    for _ in range(n_keys):
        key, kind = _key(cursor, values), cursor.number(_U32, "value type")
        values[key] = _value(cursor, kind, key)
        if key == "general.alignment":
            alignment = _alignment(cursor, kind, values[key])
    rows = [_table_row(cursor, part) for _ in range(n_tensors)]
    data_start = _align(cursor.position, alignment)
    tensors = tuple(_placed(row, data_start) for row in rows)
    _check_layout(cursor, tensors, data_start, alignment)
    return GgufHeader(version, alignment, values, tensors, data_start)


def _version(cursor: _Cursor) -> int:
    magic = bytes(cursor.need(min(4, cursor.size), "magic")[:HEAD_BYTES])
    if magic[:4] != b"GGUF":
        raise _not_gguf(cursor.name, magic)
    cursor.position = 4
    version: int = cursor.number(_U32, "version")
    if version in VERSIONS:
        return version
    if version & 0xFFFF == 0:
        found, advice = "big-endian byte order", "Convert the model again on a little-endian machine."
    else:
        found, advice = f"GGUF version {version}", "Convert the model again with a current converter."
    raise UnsupportedFile("file", cursor.name, found, "little-endian GGUF version 2 or 3", advice)


def _not_gguf(name: str, magic: bytes) -> MalformedFile | UnsupportedFile:
    refuse_text_stand_in(magic, Subject("file", name), "GGUF")
    if len(magic) < 4:
        return MalformedFile("file", name, f"only {len(magic)} bytes", "a whole GGUF file", INCOMPLETE)
    found = f"the first bytes '{safe_name(magic[:4].decode('latin-1'))}'"
    return UnsupportedFile("file", name, found, "'GGUF'", "Older GGML files must be converted to GGUF first.")


def _check_count(cursor: _Cursor, what: str, count: int, cap: int, smallest: int) -> None:
    if count * smallest > cursor.size - cursor.position:
        found = f"{count} {what} declared, more than {cursor.size} bytes can hold"
        raise MalformedFile("file", cursor.name, found, "counts that fit into the file", INCOMPLETE)
    if count > cap:
        raise UnsafeFile("file", cursor.name, f"{count} {what}", f"at most {cap}", DAMAGED)


def _key(cursor: _Cursor, seen: Mapping[str, GgufValue]) -> str:
    key = cursor.text("key")
    if not key.isprintable() or not key:
        raise UnsafeFile("file", cursor.name, f"key '{safe_name(key, 40)}'", "printable keys", DAMAGED)
    if len(key.encode()) > limits.GGUF_MAX_KEY_BYTES:
        found = f"a key of {len(key.encode())} bytes"
        raise MalformedFile("file", cursor.name, found, f"at most {limits.GGUF_MAX_KEY_BYTES}", DAMAGED)
    if key in seen:
        raise UnsafeFile("file", cursor.name, f"key '{safe_name(key, 40)}' twice", "each key once", DAMAGED)
    return key


def _value(cursor: _Cursor, kind: int, key: str) -> GgufValue:
    what = f"value of '{safe_name(key, 40)}'"
    if kind == _STRING:
        return cursor.text(what)
    if kind == _ARRAY:
        return _array(cursor, what)
    number: int | float = cursor.number(_scalar(cursor, kind, what), what)
    if kind != _BOOL:
        return number
    if number not in {0, 1}:
        raise MalformedFile("file", cursor.name, f"{what} is a boolean {number}", "0 or 1", DAMAGED)
    return bool(number)


def _scalar(cursor: _Cursor, kind: int, what: str) -> struct.Struct:
    form = _SCALARS.get(kind)
    if form is None:
        found = f"{what} has value type {kind}"
        raise UnsupportedFile("file", cursor.name, found, "a value type from 0 to 12", DAMAGED)
    return form


def _array(cursor: _Cursor, what: str) -> NDArray[Any] | tuple[bytes, ...]:
    kind, count = cursor.number(_U32, what), cursor.number(_U64, what)
    if kind == _ARRAY:
        raise UnsupportedFile("file", cursor.name, f"{what} is an array of arrays", "flat arrays", DAMAGED)
    if kind == _STRING:
        _check_count(cursor, f"strings in {what}", count, limits.GGUF_MAX_STRINGS, 8)
        return cursor.texts(count, what)
    form = _scalar(cursor, kind, what)
    values = np.frombuffer(cursor.raw(count * form.size, what), dtype=form.format)
    if kind == _BOOL and values.size and values.max() > 1:
        raise MalformedFile("file", cursor.name, f"{what} holds a boolean {values.max()}", "0 or 1", DAMAGED)
    return values.astype(bool) if kind == _BOOL else values


def _alignment(cursor: _Cursor, kind: int, value: GgufValue) -> int:
    # the format asks for a multiple of 8, its readers for a power of two: we take what both take
    most = limits.GGUF_MAX_ALIGNMENT
    if kind == _UINT32 and isinstance(value, int) and 8 <= value <= most and value & (value - 1) == 0:
        return value
    found = f"alignment {safe_name(value, 40)} (value type {kind})"
    raise MalformedFile("file", cursor.name, found, f"a power of two from 8 to {most}, as u32", DAMAGED)


def _align(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


def _table_row(cursor: _Cursor, part: int) -> StoredTensor:
    """One row of the tensor table; its offset still counts from the start of the data."""
    name = cursor.text("tensor name")
    shown = f"tensor '{safe_name(name, 40)}'"
    if not name.isprintable() or not name:
        raise UnsafeFile("file", cursor.name, shown, "a printable tensor name", DAMAGED)
    if len(name.encode()) > limits.GGUF_MAX_NAME_BYTES:
        found = f"{shown} has a name of {len(name.encode())} bytes"
        raise MalformedFile("file", cursor.name, found, f"at most {limits.GGUF_MAX_NAME_BYTES}", DAMAGED)
    n_dims = cursor.number(_U32, shown)
    if n_dims > limits.GGUF_MAX_DIMENSIONS:
        raise MalformedFile("file", cursor.name, f"{shown} has {n_dims} dimensions", "at most 4", DAMAGED)
    dims = tuple(cursor.number(_U64, shown) for _ in range(n_dims))
    kind = _tensor_type(cursor, shown, cursor.number(_U32, shown))
    tensor = StoredTensor(name, kind, dims, cursor.number(_U64, shown), part)
    _check_dims(cursor, shown, tensor)
    return tensor


def _tensor_type(cursor: _Cursor, shown: str, number: int) -> BlockType:
    kind = TENSOR_TYPES.get(number)
    if kind is None:
        found = f"{shown} has the unsupported type {UNREAD_TYPES.get(number, number)}"
        known = ", ".join(sorted(t.name for t in TENSOR_TYPES.values()))
        raise UnsupportedFile("file", cursor.name, found, f"one of {known}", "Use another quantisation of the model.")
    return kind


def _check_dims(cursor: _Cursor, shown: str, tensor: StoredTensor) -> None:
    kind, dims = tensor.kind, tensor.dims
    if 0 in dims:
        raise MalformedFile("file", cursor.name, f"{shown} has the dimensions {dims}", "at least 1 each", DAMAGED)
    if tensor.n_columns % kind.block:
        found = f"{shown} ({kind.name}) has rows of {tensor.n_columns} values"
        raise MalformedFile("file", cursor.name, found, f"a multiple of {kind.block}", DAMAGED)
    if math.prod(dims) >= 2**63 or tensor.n_bytes >= 2**63:
        raise MalformedFile("file", cursor.name, f"{shown} has the dimensions {dims}", "below 2^63 values", DAMAGED)


def _placed(row: StoredTensor, data_start: int) -> StoredTensor:
    return StoredTensor(row.name, row.kind, row.dims, data_start + row.offset, row.part)


def _check_layout(cursor: _Cursor, tensors: tuple[StoredTensor, ...], data_start: int, alignment: int) -> None:
    """Names once; offsets aligned; the data one piece without overlap, hole or trailer."""
    seen: set[str] = set()
    for tensor in tensors:
        if tensor.name in seen:
            found = f"tensor '{safe_name(tensor.name, 40)}' twice"
            raise UnsafeFile("file", cursor.name, found, "each tensor once", DAMAGED)
        seen.add(tensor.name)
    end, previous = data_start, ""
    for tensor in sorted(tensors, key=lambda t: t.offset):
        _check_place(cursor, tensor, previous, end, data_start, alignment)
        end, previous = tensor.offset + tensor.n_bytes, tensor.name
    if end > cursor.size and tensors:
        found = f"download incomplete, {cursor.size} of {end} bytes are present"
        raise MalformedFile("file", cursor.name, found, "all of them", INCOMPLETE)
    if cursor.size > _align(end, alignment):
        found = f"{cursor.size - end} bytes after the last tensor"
        raise UnsafeFile("file", cursor.name, found, "nothing but padding there", DAMAGED)


def _check_place(
    cursor: _Cursor, tensor: StoredTensor, previous: str, end: int, data_start: int, alignment: int
) -> None:
    """Check the place of one tensor against `end`, where the tensor before it ends."""
    shown, place = f"tensor '{safe_name(tensor.name, 40)}'", tensor.offset - data_start
    if place % alignment:
        raise MalformedFile("file", cursor.name, f"{shown} starts at {place}", f"a multiple of {alignment}", DAMAGED)
    if tensor.offset < end:
        found = f"{shown} starts at {place}, already used by '{safe_name(previous, 40)}'"
        raise UnsafeFile("file", cursor.name, found, "no overlap", DAMAGED)
    if tensor.offset == _align(end, alignment):
        return
    if tensor.offset >= cursor.size:
        found = f"{shown} starts at {place}, outside the file"
        raise MalformedFile("file", cursor.name, found, "an offset inside it", DAMAGED)
    found = f"{tensor.offset - end} bytes before {shown} belong to no tensor"
    raise UnsafeFile("file", cursor.name, found, "tensors without gaps", DAMAGED)
