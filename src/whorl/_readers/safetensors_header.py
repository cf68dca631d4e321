"""Strict check of a safetensors header, done before anything is allocated or read.

Format: 8 bytes little-endian length N, N bytes of JSON `{name: {dtype, shape, data_offsets}, "__metadata__": ...}`,
then the data, which the tensors must cover without overlap, hole or rest. Stricter than the reference parser
(safetensors 0.8): a tensor name twice, an unknown field, a name with unprintable characters and blanks before the
first brace are refused, because other readers could see another model in such a file.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, BinaryIO

from whorl._readers import limits, strict_json
from whorl._readers.float_codecs import DTYPE_BITS
from whorl._readers.stand_ins import HEAD_BYTES, refuse_non_safetensors
from whorl._readers.strict_json import kind_of
from whorl._readers.subject import DAMAGED, INCOMPLETE, Subject, size_text
from whorl.errors import safe_name
from whorl.source import TensorInfo

_FIELDS = {"dtype", "shape", "data_offsets"}
_PREFIX_BYTES = 8


@dataclass(frozen=True)
class Header:
    """A header that passed every check.

    Args:
        tensors: By name, in sorted name order.
        spans: By name, first byte and end byte in the *file*.
        metadata: The `__metadata__` texts.
        file_size: Size of the whole file the header was checked against.
        sha256: Digest of the length field and the header text, hexadecimal.
    """

    tensors: Mapping[str, TensorInfo]
    spans: Mapping[str, tuple[int, int]]
    metadata: Mapping[str, str]
    file_size: int
    sha256: str


def read_header(stream: BinaryIO, name: str, what: str = "file", cap: int = limits.MAX_HEADER_LOCAL) -> Header:
    """Check the header of a seekable file.

    Args:
        stream: The file, open for reading in binary.
        name: Its name for messages.
        what: Its kind for messages.
        cap: Largest header in bytes.

    Raises:
        InputRefused: see `header_length` and `parse_header`.
    """
    file_size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    head = stream.read(HEAD_BYTES)
    length = header_length(head, file_size, name, what, cap)
    stream.seek(_PREFIX_BYTES)
    text = stream.read(length)
    if len(text) != length:
        raise Subject(what, name).malformed(f"{len(text)} of {length} bytes of its header", "all", INCOMPLETE)
    return parse_header(text, file_size, name, what)


def header_length(
    head: bytes, file_size: int, name: str, what: str = "file", cap: int = limits.MAX_HEADER_LOCAL
) -> int:
    """Length of the header text in bytes, from the first bytes of the file.

    Args:
        head: First `HEAD_BYTES` bytes, or all of a shorter file.
        file_size: Size of the whole file in bytes.
        name: Name of the file for messages.
        what: Its kind for messages.
        cap: Largest length accepted.

    Raises:
        MalformedFile: shorter than 8 bytes, no header, a length past the end of the file, another kind of text.
        UnsafeFile: a length over `cap`.
        UnsupportedFile: the first bytes are those of another known format.
    """
    subject = Subject(what, name)
    refuse_non_safetensors(head, subject)
    if file_size < _PREFIX_BYTES or len(head) < _PREFIX_BYTES:
        raise subject.malformed(size_text(file_size), "safetensors, at least 8 bytes", INCOMPLETE)
    length = int.from_bytes(head[:_PREFIX_BYTES], "little")
    if length == 0:
        raise subject.malformed("a header of 0 bytes", "a JSON header")
    if length > cap:
        raise subject.unsafe(f"a header of {size_text(length)}", f"at most {size_text(cap)}", DAMAGED)
    if length > file_size - _PREFIX_BYTES:
        found = f"a header of {size_text(length)} in a file of {size_text(file_size)}"
        raise subject.malformed(found, "a header inside the file", INCOMPLETE)
    return length


def parse_header(text: bytes, file_size: int, name: str, what: str = "file") -> Header:
    """Check a header text against the size of its file.

    Args:
        text: The header without its length field.
        file_size: Size of the whole file in bytes.
        name: Name of the file for messages.
        what: Its kind for messages.

    Raises:
        MalformedFile: not the JSON the format demands, or offsets that do not fit shapes, types or the file.
        UnsafeFile: a key twice, overlap, hole, bytes after the last tensor, strange names, over the caps.
        UnsupportedFile: a type that is not known, more than 16 dimensions.
    """
    subject = Subject(what, name)
    if not text.startswith(b"{"):
        raise subject.malformed("a header that does not begin with '{'", "a JSON object without leading blanks")
    fields = strict_json.parse_object(
        text, what, name, max_bytes=limits.MAX_HEADER_LOCAL, max_depth=limits.HEADER_DEPTH, unsigned=True
    )
    metadata = _metadata(fields.pop("__metadata__", {}), subject)
    if len(fields) > limits.MAX_TENSORS:
        raise subject.unsafe(f"{len(fields)} tensors", f"at most {limits.MAX_TENSORS}", DAMAGED)
    data_start = _PREFIX_BYTES + len(text)
    tensors, spans = {}, {}
    for tensor in sorted(fields):
        tensors[tensor], begin, end = _entry(tensor, fields[tensor], subject)
        spans[tensor] = (data_start + begin, data_start + end)
    _check_cover(spans, data_start, file_size, subject)
    digest = hashlib.sha256(len(text).to_bytes(_PREFIX_BYTES, "little") + text).hexdigest()
    return Header(MappingProxyType(tensors), MappingProxyType(spans), metadata, file_size, digest)


def check_tensor_name(name: str, subject: Subject) -> None:
    """Refuse names that a person or another reader could take for a different one.

    Raises:
        UnsafeFile: empty, over 512 characters, or with a control, bidi, surrogate or other unprintable character.
    """
    if not name:
        raise subject.unsafe("a tensor without a name", "tensor names", DAMAGED)
    if len(name) > limits.MAX_NAME_CHARACTERS:
        found = f"a tensor name of {len(name)} characters"
        raise subject.unsafe(found, f"at most {limits.MAX_NAME_CHARACTERS}", DAMAGED)
    if not name.isprintable():
        raise subject.unsafe(f"tensor name '{safe_name(name, 40)}'", "printable characters only")


def _metadata(value: Any, subject: Subject) -> Mapping[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise subject.malformed("__metadata__ that is not text to text", "an object of texts")
    n_bytes = sum(len(key.encode()) + len(text.encode()) for key, text in value.items())
    if n_bytes > limits.MAX_METADATA:
        raise subject.unsafe(
            f"__metadata__ of {size_text(n_bytes)}", f"at most {size_text(limits.MAX_METADATA)}", DAMAGED
        )
    return MappingProxyType(value)


def _entry(name: str, value: Any, subject: Subject) -> tuple[TensorInfo, int, int]:
    """One tensor: its description, first and end byte relative to the data."""
    check_tensor_name(name, subject)
    if type(value) is not dict:
        raise subject.malformed(f"tensor '{_short(name)}' is {kind_of(value)}", "an object per tensor")
    if value.keys() != _FIELDS:
        fields = ", ".join(safe_name(field, 40) for field in sorted(value)[:5]) or "none"
        raise subject.malformed(f"tensor '{_short(name)}' has the fields {fields}", "dtype, shape, data_offsets")
    bits = _bits(name, value["dtype"], subject)
    shape = _naturals(name, "shape", value["shape"], subject)
    n_bytes = _stored_bytes(name, shape, bits, subject)
    offsets = _naturals(name, "data_offsets", value["data_offsets"], subject)
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise subject.malformed(f"tensor '{_short(name)}' has offsets {_some(offsets)}", "a begin and an end after it")
    begin, end = offsets
    if end - begin != n_bytes:
        found = f"tensor '{_short(name)}' has {end - begin} bytes"
        raise subject.malformed(found, f"{n_bytes} for {value['dtype']} of shape {_some(shape)}")
    return TensorInfo(name, value["dtype"], shape, n_bytes), begin, end


def _bits(name: str, dtype: Any, subject: Subject) -> int:
    if not isinstance(dtype, str):
        raise subject.malformed(f"tensor '{_short(name)}' has {kind_of(dtype)} as dtype", "a text")
    if dtype not in DTYPE_BITS:
        found = f"tensor '{_short(name)}' of type '{safe_name(dtype, 40)}'"
        raise subject.unsupported(found, f"one of {', '.join(DTYPE_BITS)}", "Ask its owner for one of these types.")
    return DTYPE_BITS[dtype]


def _naturals(name: str, field: str, values: Any, subject: Subject) -> tuple[int, ...]:
    if type(values) is not list:
        raise subject.malformed(f"tensor '{_short(name)}' has {kind_of(values)} as {field}", "a list of integers")
    for value in values:
        if type(value) is not int:  # bool is a subclass of int, so `isinstance` would let it pass
            raise subject.malformed(f"tensor '{_short(name)}' has {kind_of(value)} in {field}", "integers")
        if not 0 <= value <= limits.MAX_COUNT:
            raise subject.malformed(f"tensor '{_short(name)}' has {value} in {field}", f"0 to {limits.MAX_COUNT}")
    return tuple(values)


def _stored_bytes(name: str, shape: tuple[int, ...], bits: int, subject: Subject) -> int:
    if len(shape) > limits.MAX_DIMENSIONS:
        found = f"tensor '{_short(name)}' with {len(shape)} dimensions"
        raise subject.unsupported(found, f"at most {limits.MAX_DIMENSIONS}", "Ask its owner for ordinary weights.")
    n_values, bound = 1, 1
    for length in shape:
        n_values *= length
        bound *= length or 1  # as NumPy counts: an empty axis does not excuse absurd other axes
    if bound * 8 > limits.MAX_COUNT:  # 8: bytes of the widest type, stored or decoded
        raise subject.malformed(f"tensor '{_short(name)}' of shape {_some(shape)}", "fewer than 2^60 values")
    if n_values * bits % 8:
        raise subject.malformed(f"tensor '{_short(name)}' of {n_values} values of {bits} bits", "whole bytes")
    return n_values * bits // 8


def _check_cover(spans: Mapping[str, tuple[int, int]], data_start: int, file_size: int, subject: Subject) -> None:
    """The tensors cover the data exactly once, without hole or rest."""
    position, before = data_start, ""
    for name, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
        if begin < position:
            found = f"tensor '{_short(name)}' covers bytes {begin - data_start}-{end - data_start}"
            raise subject.unsafe(f"{found}, already used by '{_short(before)}'", "no overlap", DAMAGED)
        if begin > position:
            found = f"a hole of {size_text(begin - position)} before tensor '{_short(name)}'"
            raise subject.unsafe(found, "no byte outside the tensors", DAMAGED)
        position, before = end, name
    if position > file_size:
        sizes = (size_text(file_size), size_text(position))
        telling = sizes[0] != sizes[1] and not sizes[1].endswith("bytes")
        found = f"{sizes[0]} of {sizes[1]} are present" if telling else f"{file_size} of {position} bytes are present"
        raise subject.malformed(found, "all", INCOMPLETE)
    if position < file_size:
        found = f"{size_text(file_size - position)} after the last tensor"
        raise subject.unsafe(found, "the file to end there (a second format may hide behind)", DAMAGED)


def _short(name: str) -> str:
    return safe_name(name, 80)


def _some(numbers: tuple[int, ...]) -> str:
    return safe_name(list(numbers), 80)
