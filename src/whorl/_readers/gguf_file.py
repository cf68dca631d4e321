"""`GgufSource`: a GGUF file, or all parts of a split one, as a tensor source in Hugging Face terms.

The header is checked in `gguf_header`, names and layouts are translated in `gguf_names`, sizes in `gguf_config`;
here bytes are read and turned into numbers. Only the blocks of the wanted rows are read; the block formats are
decoded by the `gguf` library, a few million values at a time.
"""

import contextlib
import math
import os
import re
import stat
import threading
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from whorl._readers import limits
from whorl._readers.gguf_config import Keys, hugging_face_config, read_sizes
from whorl._readers.gguf_header import BlockType, GgufHeader, StoredTensor, read_header
from whorl._readers.gguf_names import View, build_views, find_family, part_name
from whorl._readers.subject import DAMAGED
from whorl.errors import MalformedFile, UnsafeFile, UnsupportedFile, safe_name
from whorl.source import Digest, Floats, TensorInfo

_CHUNK_VALUES = 4_000_000  # decoded at a time; the library needs a few times this in temporaries

_SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")

Bytes = NDArray[np.uint8]


class GgufSource:
    """A `TensorSource` over a GGUF file.

    Args:
        path: The file; of a split model ("name-00001-of-00003.gguf") any part, the others beside it.

    Raises:
        MalformedFile: Broken header, sizes that disagree, truncated data, missing part.
        UnsafeFile: Two readings possible, not a plain file, over a cap.
        UnsupportedFile: Not GGUF, tensor types or an architecture that are not read.
    """

    def __init__(self, path: Path) -> None:
        self._path = Path(path)
        self._files: list[BinaryIO] = []
        self._reading = threading.Lock()  # a file has one position; not every system can read without moving it
        with contextlib.ExitStack() as on_refusal:
            on_refusal.callback(self.close)
            self._open()
            on_refusal.pop_all()

    def _open(self) -> None:
        paths = part_paths(self._path)
        headers = [self._add_part(part) for part in paths]
        _check_parts(paths, headers)
        name, values = paths[0].name, headers[0].values
        stored = _merge(name, headers)
        architecture = values.get("general.architecture")
        if not isinstance(architecture, str):
            raise MalformedFile("file", name, "no text 'general.architecture'", "the model's architecture", DAMAGED)
        purpose = values.get("general.type", "model")
        if not isinstance(purpose, str) or purpose != "model":
            found = f"a GGUF of type '{safe_name(purpose, 40)}'"
            raise UnsupportedFile("file", name, found, "a whole model", "Name the file of the model itself.")
        stems = frozenset(p.stem for p in map(part_name, stored) if p is not None)
        family = find_family(name, architecture, stems)
        keys = Keys(name, architecture, values)
        sizes = read_sizes(keys, stored)
        self._values = values
        self._config = hugging_face_config(keys, family, sizes, stored)
        self._views, self._ignored = build_views(name, family, sizes.heads, stored)
        self._tensors = {
            key: TensorInfo(key, view.tensor.kind.name, view.shape, view.n_bytes) for key, view in self._views.items()
        }

    def _add_part(self, path: Path) -> GgufHeader:
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # before opening: a FIFO would wait for ever
                raise UnsafeFile("file", path.name, "not a plain file", "a plain file", "Name the GGUF file itself.")
            file = path.open("rb")
        except OSError as error:
            found = f"it cannot be opened ({error.strerror})"
            raise MalformedFile("file", path.name, found, "a readable file", "Check the path.") from error
        self._files.append(file)
        return read_header(file, path.name, os.fstat(file.fileno()).st_size, part=len(self._files) - 1)

    @property
    def label(self) -> str:
        """The path as given."""
        return str(self._path)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors under their Hugging Face names; unknown ones keep their GGUF names."""
        return MappingProxyType(self._tensors)

    @property
    def config(self) -> Mapping[str, Any]:
        """What the family's `config.json` would say."""
        return MappingProxyType(self._config)

    @property
    def ignored(self) -> tuple[str, ...]:
        """Stored tensors that are tables of the runtime, not weights."""
        return self._ignored

    @property
    def tokens(self) -> tuple[bytes, ...] | None:
        """The vocabulary in id order as stored (UTF-8 bytes), None when the file has none."""
        found = self._values.get("tokenizer.ggml.tokens")
        return found if isinstance(found, tuple) else None

    def rows(self, name: str, start: int = 0, stop: int | None = None, digest: Digest | None = None) -> Floats:
        """Values of rows [start, stop) in Hugging Face layout, a fresh writable array.

        `digest` sees stored bytes in the order of the Hugging Face rows, so it does not depend on how a tensor is
        cut into blocks of rows. For a transposed matrix and for a vector it sees the blocks that begin in these rows.

        Raises:
            LookupError: Unknown name, or rows outside the tensor.
            MalformedFile: The file became shorter since it was opened.
            UnsupportedFile: A quantised vector whose order converters change.
        """
        view = self._views.get(name)
        if view is None:
            raise LookupError(f"no tensor '{safe_name(name)}' in {self.label}")
        n_rows = view.shape[0] if view.shape else 1
        stop = n_rows if stop is None else stop
        if not 0 <= start <= stop <= n_rows:
            raise IndexError(f"rows {start} to {stop} of '{safe_name(name)}', which has {n_rows}")
        n_values = (stop - start) * math.prod(view.shape[1:])
        if n_values * 8 > limits.MAX_DECODED:
            found = f"tensor '{safe_name(name, 40)}' decodes to {n_values} values"
            raise UnsafeFile("file", self._path.name, found, "less at once", "Read it in blocks of rows.")
        if start == stop:
            return np.empty((0, *view.shape[1:]), _float_type(view.tensor.kind))
        with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity pass on; methods report them
            if view.transposed or len(view.shape) < 2:
                values = self._columns(view, start, stop, digest)
            else:
                values = self._rows(view, start, stop, digest)
            if view.offset:
                values -= values.dtype.type(view.offset)
        return values

    def close(self) -> None:
        """Close the files; reading afterwards raises ValueError."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _rows(self, view: View, start: int, stop: int, digest: Digest | None) -> Floats:
        """Rows of the stored matrix; an outer row of a stack is several of them."""
        tensor = view.tensor
        depth = math.prod(view.shape[1:-1])
        first, last = start * depth, stop * depth
        values = np.empty((last - first, tensor.n_columns), _float_type(tensor.kind))
        step = max(1, _CHUNK_VALUES // tensor.n_columns)
        for low in range(first, last, step):
            high = min(low + step, last)
            raw = self._block(view, low, high) if view.order is None else self._gather(tensor, view.order[low:high])
            if digest is not None:
                digest.update(raw)
            values[low - first : high - first] = _decode(tensor.kind, raw)
        return values.reshape(stop - start, *view.shape[1:])

    def _block(self, view: View, low: int, high: int) -> Bytes:
        """Stored bytes of neighbouring rows, (high - low, row_bytes)."""
        size = view.tensor.row_bytes
        place = view.tensor.offset + (view.first_row + low) * size
        return self._bytes(view.tensor, place, (high - low) * size).reshape(high - low, size)

    def _gather(self, tensor: StoredTensor, rows: NDArray[np.intp]) -> Bytes:
        """Stored bytes of rows in the wanted order, (rows, row_bytes): one read for each run of neighbours."""
        raw = np.empty((len(rows), tensor.row_bytes), np.uint8)
        by_place = np.argsort(rows)
        breaks = np.flatnonzero(np.diff(rows[by_place]) != 1) + 1
        for run in np.split(by_place, breaks):
            place = tensor.offset + int(rows[run[0]]) * tensor.row_bytes
            raw[run] = self._bytes(tensor, place, len(run) * tensor.row_bytes).reshape(len(run), -1)
        return raw

    def _columns(self, view: View, start: int, stop: int, digest: Digest | None) -> Floats:
        """Columns of the stored matrix as rows: a transposed matrix, or a vector (one stored row).

        Every stored row is touched, so the cost of a block is that of the whole matrix; only GPT-2 has such matrices.
        """
        tensor, block = view.tensor, view.tensor.kind.block
        if view.order is not None and block > 1:
            found = f"vector '{safe_name(tensor.name, 40)}' stored as {tensor.kind.name}"
            raise UnsupportedFile(
                "file", self._path.name, found, "F32 vectors", "Use another quantisation of the model."
            )
        low, high = (start // block, -(-stop // block)) if view.order is None else (0, tensor.n_columns)
        raw = self._block_columns(tensor, low, high)  # (blocks, stored rows, block bytes)
        if view.order is not None:
            raw, low = raw[view.order[start:stop]], start
        if digest is not None:
            digest.update(np.ascontiguousarray(raw[-(-start // block) - low :]))
        values = _decode(tensor.kind, raw).transpose(0, 2, 1).reshape(-1, tensor.n_rows)
        values = values[start - low * block : stop - low * block]
        return values.reshape(stop - start, *view.shape[1:]).copy() if view.shape else values.reshape(()).copy()

    def _block_columns(self, tensor: StoredTensor, low: int, high: int) -> Bytes:
        """Stored blocks [low, high) of every row, block index first: (high - low, n_rows, block bytes)."""
        size = tensor.kind.n_bytes
        raw = np.empty((high - low, tensor.n_rows, size), np.uint8)
        if tensor.n_rows == 1:
            raw[:, 0] = self._bytes(tensor, tensor.offset + low * size, (high - low) * size).reshape(-1, size)
            return raw
        step = max(1, _CHUNK_VALUES // tensor.n_columns)
        for row in range(0, tensor.n_rows, step):
            n_rows = min(step, tensor.n_rows - row)
            part = self._bytes(tensor, tensor.offset + row * tensor.row_bytes, n_rows * tensor.row_bytes)
            raw[:, row : row + n_rows] = part.reshape(n_rows, -1, size)[:, low:high].transpose(1, 0, 2)
        return raw

    def _bytes(self, tensor: StoredTensor, place: int, n_bytes: int) -> Bytes:
        """Exactly `n_bytes` at `place` of the file that holds `tensor`."""
        file = self._files[tensor.part]
        try:
            with self._reading:
                file.seek(place)
                data = file.read(n_bytes)
        except OSError as error:
            found = f"it cannot be read ({error.strerror})"
            raise MalformedFile("file", self._path.name, found, "a readable file", "Check the disk.") from error
        if len(data) < n_bytes:
            found = f"byte {place + len(data)} of tensor '{safe_name(tensor.name, 40)}' is gone"
            advice = "The file became shorter while it was read: try again."
            raise MalformedFile("file", self._path.name, found, "the file as it was opened", advice)
        return np.frombuffer(data, np.uint8)


def _float_type(kind: BlockType) -> type[np.float32] | type[np.float64]:
    return np.float64 if kind.name == "F64" else np.float32


def _decode(kind: BlockType, raw: Bytes) -> Floats:
    """Values of stored blocks: (..., n * block bytes) bytes give (..., n * block) numbers."""
    if kind.name in {"F32", "F64", "F16"}:
        values = np.ascontiguousarray(raw).view({"F32": "<f4", "F64": "<f8", "F16": "<f2"}[kind.name])
        return values.astype(_float_type(kind))
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    decoded: Floats = dequantize(np.ascontiguousarray(raw), GGMLQuantizationType[kind.name])
    return decoded


def part_paths(path: Path) -> list[Path]:
    """The files of a model: all parts of a split one, in order, else the file itself.

    Raises:
        MalformedFile: A part is missing, or the part number is not in range.
        UnsafeFile: More than 1000 parts.
    """
    match = _SPLIT.fullmatch(path.name)
    if match is None:
        return [path]
    number, count = int(match["number"]), int(match["count"])
    if not 1 <= number <= count:
        raise MalformedFile("file", path.name, f"part {number} of {count}", "a part number in range", "Rename it back.")
    if count > limits.GGUF_MAX_PARTS:
        raise UnsafeFile("file", path.name, f"{count} parts", f"at most {limits.GGUF_MAX_PARTS}", DAMAGED)
    parts = [path.with_name(f"{match['stem']}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1)]
    missing = [part.name for part in parts if not part.exists()]
    if missing:
        found = f"missing, {count - len(missing)} of {count} parts are present"
        raise MalformedFile("part", missing[0], found, "all parts in one folder", "Fetch the missing parts.")
    return parts


def _check_parts(paths: list[Path], headers: list[GgufHeader]) -> None:
    """Compare the `split.*` keys with the file names."""
    for i, (path, header) in enumerate(zip(paths, headers, strict=True)):
        count, number = header.values.get("split.count", 1), header.values.get("split.no", 0)
        if not isinstance(count, int) or not isinstance(number, int) or (number, count) != (i, len(paths)):
            found = f"part {safe_name(number, 20)} of {safe_name(count, 20)} in its header (parts count from 0)"
            advice = "Parts must keep their names, 'name-00001-of-00003.gguf'."
            raise MalformedFile("part", path.name, found, f"part {i} of {len(paths)}", advice)
    declared = headers[0].values.get("split.tensors.count")
    n_tensors = sum(len(header.tensors) for header in headers)
    if len(headers) > 1 and (not isinstance(declared, int) or declared != n_tensors):
        found = f"{n_tensors} tensors in all parts, {safe_name(declared, 20)} declared"
        raise MalformedFile("file", paths[0].name, found, "all of them", DAMAGED)


def _merge(name: str, headers: list[GgufHeader]) -> dict[str, StoredTensor]:
    stored: dict[str, StoredTensor] = {}
    for header in headers:
        for tensor in header.tensors:
            if tensor.name in stored:
                found = f"tensor '{safe_name(tensor.name, 40)}' in two parts"
                raise UnsafeFile("file", name, found, "each tensor once", DAMAGED)
            stored[tensor.name] = tensor
    return stored
