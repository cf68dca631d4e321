"""Tiny sources and files for tests, of whorl itself and of its plugins.

`MemorySource` is a real `TensorSource` without files; the writers make valid files, or, through `safetensors_bytes`
with a header of your own, broken ones.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whorl._readers.float_codecs import to_bfloat16
from whorl.source import Digest, Floats, TensorInfo

Arrays = Mapping[str, NDArray[Any]]

_DTYPE_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bool": "BOOL",
    **{f"{kind}{bits}": f"{kind[0].upper()}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}


class MemorySource:
    """A `TensorSource` over arrays in memory.

    Args:
        tensors: Arrays by name: float64, float32, float16 (or integers, which `rows` gives as float32).
        config: What `config` returns.
        label: How messages call it.
    """

    def __init__(self, tensors: Arrays, config: Mapping[str, Any] | None = None, label: str = "memory") -> None:
        self._arrays = {name: np.array(tensors[name]) for name in sorted(tensors)}
        self._config = MappingProxyType(dict(config or {}))
        self._label = label
        self._infos = MappingProxyType(
            {
                name: TensorInfo(name, _DTYPE_NAMES[array.dtype.name], array.shape, array.nbytes)
                for name, array in self._arrays.items()
            }
        )

    @property
    def label(self) -> str:
        """The label given on construction."""
        return self._label

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors by name, in sorted name order."""
        return self._infos

    @property
    def config(self) -> Mapping[str, Any]:
        """The config given on construction."""
        return self._config

    def rows(self, name: str, start: int = 0, stop: int | None = None, digest: Digest | None = None) -> Floats:
        """A fresh copy of rows [start, stop): float64 stays float64, all else becomes float32."""
        if name not in self._arrays:
            raise LookupError(f"no tensor '{name}' in {self.label}")
        array = self._arrays[name]
        part = array[start:stop] if array.ndim else array
        if digest is not None:
            digest.update(np.ascontiguousarray(part).tobytes())
        return np.array(part, np.float64 if array.dtype == np.float64 else np.float32)

    def close(self) -> None:
        """Nothing to close."""


def safetensors_bytes(header: bytes | Mapping[str, Any], data: bytes = b"") -> bytes:
    """A safetensors file from a header (a JSON text, or an object to be written as one) and its data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def encode_safetensors(
    tensors: Arrays, bf16: Iterable[str] | bool = (), metadata: Mapping[str, str] | None = None
) -> bytes:
    """A valid safetensors file.

    Args:
        tensors: Arrays by name; they are laid out in this order.
        bf16: Names of the tensors to be rounded to bfloat16; True for all.
        metadata: Texts for `__metadata__`.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    chunks, position = [], 0
    for name, array in tensors.items():
        half = bf16 is True or (bf16 is not False and name in bf16)
        stored = to_bfloat16(array) if half else np.asarray(array)
        chunk = stored.astype(stored.dtype.newbyteorder("<")).tobytes()
        header[name] = {
            "dtype": "BF16" if half else _DTYPE_NAMES[stored.dtype.name],
            "shape": list(stored.shape),
            "data_offsets": [position, position + len(chunk)],
        }
        position += len(chunk)
        chunks.append(chunk)
    return safetensors_bytes(header, b"".join(chunks))


def write_model_folder(
    path: str | os.PathLike[str],
    tensors: Arrays,
    config: Mapping[str, Any],
    *,
    n_shards: int = 1,
    bf16: Iterable[str] | bool = (),
) -> Path:
    """Write a folder in the Hugging Face layout and return its path.

    Args:
        path: The folder; made if it is missing.
        tensors: Arrays by name.
        config: Content of `config.json`.
        n_shards: 1 writes `model.safetensors`; more write shards and their index, tensors dealt out in turn.
        bf16: As for `encode_safetensors`.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(config), indent=2), encoding="utf-8")
    bf16_names = set(tensors) if bf16 is True else set(bf16 or ())
    if n_shards == 1:
        (folder / "model.safetensors").write_bytes(encode_safetensors(tensors, bf16_names, {"format": "pt"}))
        return folder
    names = [f"model-{number:05}-of-{n_shards:05}.safetensors" for number in range(1, n_shards + 1)]
    weight_map = {tensor: names[place % n_shards] for place, tensor in enumerate(tensors)}
    for name in names:
        part = {tensor: tensors[tensor] for tensor, shard in weight_map.items() if shard == name}
        (folder / name).write_bytes(encode_safetensors(part, bf16_names, {"format": "pt"}))
    total = sum(2 * array.size if name in bf16_names else array.nbytes for name, array in tensors.items())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    return folder
