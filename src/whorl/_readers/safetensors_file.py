"""One local safetensors file as a tensor source: row blocks by byte range, decoded to float32 or float64.

No memory map: peak memory is measured, and a mapped file that is cut short kills the process. Data goes through one
small block that stays in the processor's cache; that is as fast as memory allows and, for large arrays, three times
as fast as reading into fresh pages.
"""

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whorl._readers import limits
from whorl._readers.buffers import Buffers
from whorl._readers.float_codecs import FLOAT_CODECS, INTEGER_TYPES, FloatCodec, copy_values
from whorl._readers.local_files import LocalFile, read_exactly
from whorl._readers.safetensors_header import Header, read_header
from whorl._readers.subject import Subject, size_text
from whorl.errors import safe_name
from whorl.source import Digest, Floats, TensorInfo

_QUANTISED_ADVICE = "It is a quantised or index tensor: use the original weights, or a reader that knows its scheme."


class SafetensorsFile:
    """A `TensorSource` over one safetensors file; its header is checked on construction.

    Args:
        file: A path, or a file that was already looked at.
        config: What `config` returns; a safetensors file has none of its own.
        buffers: Memory for decoded arrays; shards of one model share theirs.

    Raises:
        InputRefused: the header breaks a rule, or the path is no regular file.
    """

    def __init__(
        self,
        file: str | os.PathLike[str] | LocalFile,
        config: Mapping[str, Any] | None = None,
        buffers: Buffers | None = None,
    ) -> None:
        if not isinstance(file, LocalFile):
            file = LocalFile.at(file, Subject("file", os.fspath(file)))
        self._file = file
        self._config = config or {}
        self._buffers = buffers or Buffers()
        self._closed = False
        with file.open() as stream:
            self._header = read_header(stream, file.subject.name, file.subject.what)

    @property
    def label(self) -> str:
        """The name of the file as it was given."""
        return self._file.subject.name

    @property
    def header(self) -> Header:
        """The checked header."""
        return self._header

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors by name, in sorted name order."""
        return self._header.tensors

    @property
    def config(self) -> Mapping[str, Any]:
        """The config given on construction."""
        return self._config

    def rows(self, name: str, start: int = 0, stop: int | None = None, digest: Digest | None = None) -> Floats:
        """Decoded rows [start, stop); see `TensorSource.rows`. BOOL tensors come as 0.0 and 1.0.

        Raises:
            UnsupportedFile: an integer, complex or packed type; more than 64 GB in one call.
            MalformedFile: the file ends early, or a BOOL byte is neither 0 nor 1.
            UnsafeFile: the file changed since it was opened.
            LookupError: no such tensor or rows.
        """
        info = self._info(name)
        codec = FLOAT_CODECS.get(info.dtype)
        if codec is None:
            found = f"tensor '{safe_name(name, 80)}' of type {info.dtype}"
            raise self._file.subject.unsupported(found, "floating-point weights", _QUANTISED_ADVICE)
        values = self._read(info, codec, start, stop, digest)
        if info.dtype == "BOOL" and values.size and values.max() > 1:
            found = f"a byte other than 0 and 1 in the BOOL tensor '{safe_name(name, 80)}'"
            raise self._file.subject.malformed(found, "0 or 1")
        return values

    def stored_rows(
        self, name: str, start: int = 0, stop: int | None = None, digest: Digest | None = None
    ) -> NDArray[Any]:
        """Rows [start, stop) as stored: integers and floats as such, bfloat16, float16, float8 as unsigned patterns.

        Raises:
            UnsupportedFile: a complex or packed type.
            MalformedFile, UnsafeFile, LookupError: as `rows`.
        """
        info = self._info(name)
        stored = INTEGER_TYPES.get(info.dtype) or (info.dtype in FLOAT_CODECS and FLOAT_CODECS[info.dtype].stored)
        if not stored:
            found = f"tensor '{safe_name(name, 80)}' of type {info.dtype}"
            raise self._file.subject.unsupported(found, "values of whole bytes", _QUANTISED_ADVICE)
        return self._read(info, FloatCodec(stored, stored, copy_values), start, stop, digest)

    def stored_digest(self, name: str) -> bytes:
        """SHA-256 of the stored bytes of one tensor of any type (`LookupError` when there is none)."""
        self._info(name)
        begin, end = self._header.spans[name]
        digest = hashlib.sha256()
        block = memoryview(bytearray(min(limits.READ_BLOCK, end - begin)))
        with self._file.open() as stream:
            stream.seek(begin)
            for position in range(begin, end, limits.READ_BLOCK):
                part = block[: end - position]
                read_exactly(stream, part, self._file.subject)
                digest.update(part)
        return digest.digest()

    def close(self) -> None:
        """Make further reads an error. No descriptor is held between reads."""
        self._closed = True

    def _info(self, name: str) -> TensorInfo:
        if self._closed:
            raise ValueError(f"read from a closed source: {self.label}")
        if name not in self._header.tensors:
            raise LookupError(f"no tensor '{name}' in {self.label}")
        return self._header.tensors[name]

    def _read(
        self, info: TensorInfo, codec: FloatCodec, start: int, stop: int | None, digest: Digest | None
    ) -> NDArray[Any]:
        shape, first = _row_range(info, start, stop)
        n_decoded = int(np.prod(shape, dtype=object)) * codec.decoded.itemsize
        if n_decoded > limits.MAX_DECODED:
            found = f"{size_text(n_decoded)} asked of tensor '{safe_name(info.name, 80)}' at once"
            raise self._file.subject.unsupported(found, f"at most {size_text(limits.MAX_DECODED)}", "Read row blocks.")
        out = self._buffers.empty(shape, codec.decoded)
        begin = self._header.spans[info.name][0] + first * codec.stored.itemsize
        self._fill(out.reshape(-1), begin, codec, digest)
        return out

    def _fill(self, flat: NDArray[Any], begin: int, codec: FloatCodec, digest: Digest | None) -> None:
        step = limits.READ_BLOCK // codec.stored.itemsize
        block = np.empty(min(step, flat.size), codec.stored)
        with self._file.open() as stream:
            stream.seek(begin)
            for first in range(0, flat.size, step):
                part = block[: flat.size - first]
                stored = part.view(np.uint8).data
                read_exactly(stream, stored, self._file.subject)
                if digest is not None:
                    digest.update(stored)
                codec.fill(part, flat[first : first + part.size])


def _row_range(info: TensorInfo, start: int, stop: int | None) -> tuple[tuple[int, ...], int]:
    """Shape of rows [start, stop) and the number of values before them; a scalar has one row."""
    n_rows = info.shape[0] if info.shape else 1
    stop = n_rows if stop is None else stop
    if not 0 <= start <= stop <= n_rows or (not info.shape and stop - start != 1):
        raise IndexError(f"rows {start} to {stop} of tensor '{info.name}' with {n_rows} rows")
    if not info.shape:
        return (), 0
    per_row = int(np.prod(info.shape[1:], dtype=object))
    return (stop - start, *info.shape[1:]), start * per_row
