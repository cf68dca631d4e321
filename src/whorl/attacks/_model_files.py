"""Write an edited model as a Hugging Face folder, and choose which of its tensors an edit touches."""

import contextlib
import fnmatch
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whorl._readers.folder import open_local
from whorl.errors import UsageError, safe_name
from whorl.lab.truth import RECORD_NAME, Record

Array = NDArray[Any]
Tensors = Mapping[str, Array]

DTYPES = ("F32", "F16", "BF16")
_CONFIG_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_STORED_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32", "uint8": "U8"}
COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "generation_config.json",
    "chat_template.jinja",
)
# Token and position tables are looked up, not multiplied: pruning and quantisation recipes leave them alone.
_TABLES = ("embed", "wte", "wpe", "lm_head", "output.weight", "tok_embeddings")


def matrix_names(tensors: Tensors, include: str | None = None) -> tuple[str, ...]:
    """Names of the matrices an edit touches, sorted.

    Args:
        tensors: All tensors of the model.
        include: Shell pattern of names (`*.mlp.*`), or None for every two-dimensional tensor that is no embedding,
            position or output table.

    Raises:
        UsageError: nothing matches.
    """
    if include is None:
        found = [n for n, a in tensors.items() if a.ndim == 2 and not any(table in n for table in _TABLES)]
    else:
        found = [n for n, a in tensors.items() if a.ndim == 2 and fnmatch.fnmatchcase(n, include)]
    if not found:
        raise UsageError(
            f"No matrix matches '{include or 'every layer matrix'}'; names look like '{_example(tensors)}'."
        )
    return tuple(sorted(found))


def _example(tensors: Tensors) -> str:
    return safe_name(min(tensors, default="(no tensors)"))


def edited(tensors: Tensors, changed: Mapping[str, Array]) -> dict[str, Array]:
    """All tensors with some replaced; each keeps the dtype it had, the others are the same arrays.

    Raises:
        UsageError: a value is not finite in that dtype.
    """
    result = dict(tensors)
    for name, array in changed.items():
        result[name] = cast(name, array, tensors[name].dtype)
    return result


def cast(name: str, array: Array, dtype: np.dtype[Any]) -> Array:
    """The array in another float type, refusing values that do not fit."""
    with np.errstate(over="ignore"):
        result = np.ascontiguousarray(array, dtype=dtype)
    if result.dtype.kind == "f" and not np.isfinite(result).all():
        raise UsageError(f"Tensor '{safe_name(name)}' has values that {dtype} cannot hold; write it as F32.")
    return result


def read_model(path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, Any]]:
    """All tensors (float32, or float64 where stored so) and the config of a local folder or file, fully in memory.

    Raises:
        InputRefused: as the readers do.
    """
    source = open_local(path)
    try:
        return {name: np.asarray(source.rows(name)) for name in source.tensors}, dict(source.config)
    finally:
        source.close()


def stored_dtype(path: str | os.PathLike[str]) -> str:
    """The type of `DTYPES` that most values of a local model are stored in; "F32" when that is another type.

    Raises:
        InputRefused: as the readers do.
    """
    source = open_local(path)
    try:
        counts: Counter[str] = Counter()
        for info in source.tensors.values():
            counts[info.dtype] += info.n_values
    finally:
        source.close()
    most = max(counts, key=lambda kind: counts[kind], default="F32")
    return most if most in DTYPES else "F32"


def stored_dtypes(path: str | os.PathLike[str]) -> dict[str, str]:
    """The type to write each tensor of a local model in: its own float type, "F32" where that is a quantised one.

    Raises:
        InputRefused: as the readers do.
    """
    source = open_local(path)
    try:
        return {name: t.dtype if t.dtype in _CONFIG_DTYPES else "F32" for name, t in source.tensors.items()}
    finally:
        source.close()


def write_model(
    folder: Path,
    tensors: Tensors,
    config: Mapping[str, Any],
    copy_from: Path | None = None,
    *,
    record: Record,
    dtype: str | Mapping[str, str] | None = "F16",
    n_shards: int = 1,
    files: Mapping[str, bytes] | None = None,
) -> Path:
    """Write a Hugging Face folder in one step: config, safetensors, tokenizer files and `whorl_truth.json`.

    Args:
        folder: New folder; it appears complete or not at all.
        tensors: Arrays by name.
        config: The `config.json`; its dtype is set to what is written.
        copy_from: Folder whose tokenizer files are copied byte for byte.
        record: What the model is.
        dtype: "F32", "F16", "BF16" (rounded to nearest even), one of these or "F64" by tensor name, or None to keep
            each array's type.
        n_shards: Weight files; above 1 with an index, tensors dealt out in reverse name order.
        files: Further files by name.

    Raises:
        UsageError: the folder exists, an unknown dtype, or values that do not fit the dtype.
    """
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise UsageError(f"Unknown dtype '{dtype}'; expected one of {', '.join(DTYPES)}.")
    shown = dict(config)
    if dtype is not None:
        shown.pop("torch_dtype", None)
        shown["dtype"] = _CONFIG_DTYPES[dtype if isinstance(dtype, str) else _most_values(tensors, dtype)]
    contents = {**_copied(copy_from), **(files or {})}
    contents["config.json"] = (json.dumps(shown, indent=2, sort_keys=True, allow_nan=False) + "\n").encode("utf-8")
    contents[RECORD_NAME] = record.to_json().encode("utf-8")
    with new_folder(folder) as partial:
        _write_weights(partial, tensors, dtype, n_shards)
        for name, data in contents.items():
            (partial / name).write_bytes(data)
    return folder


def _most_values(tensors: Tensors, dtypes: Mapping[str, str]) -> str:
    counts: Counter[str] = Counter()
    for name, array in tensors.items():
        counts[dtypes[name]] += array.size
    return max(counts, key=lambda kind: counts[kind], default="F32")


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder to fill; it gets its name when the block ends well and is removed when it does not.

    Raises:
        UsageError: the folder exists already.
    """
    if folder.exists():
        raise UsageError(f"'{folder}' exists already; choose a new folder or remove it.")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    partial.mkdir(parents=True)
    try:
        yield partial
        for file in sorted(partial.iterdir()):
            _flush(file)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial)
        raise


def _flush(file: Path) -> None:
    file.chmod(0o644)  # some libraries write files that only their owner can read
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())


def _copied(folder: Path | None) -> dict[str, bytes]:
    if folder is None:
        return {}
    return {name: (folder / name).read_bytes() for name in COPIED if (folder / name).is_file()}


def _write_weights(folder: Path, tensors: Tensors, dtype: str | Mapping[str, str] | None, n_shards: int) -> None:
    if n_shards == 1:
        _write_shard(folder / "model.safetensors", tensors, sorted(tensors), dtype)
        return
    names = sorted(tensors, reverse=True)
    weight_map: dict[str, str] = {}
    n_bytes = 0
    for index in range(n_shards):
        file_name = f"model-{index + 1:05d}-of-{n_shards:05d}.safetensors"
        mine = names[index::n_shards]
        n_bytes += _write_shard(folder / file_name, tensors, mine, dtype)
        weight_map.update(dict.fromkeys(mine, file_name))
    value = {"metadata": {"total_size": n_bytes}, "weight_map": weight_map}
    text = json.dumps(value, indent=2, sort_keys=True) + "\n"
    (folder / "model.safetensors.index.json").write_text(text, "utf-8")


def _write_shard(path: Path, tensors: Tensors, names: Sequence[str], dtype: str | Mapping[str, str] | None) -> int:
    """Write one safetensors file with the tensors in this order; returns the bytes of data.

    Written here because the library's writer chooses the order, and orders several metadata entries at random.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    arrays: list[Array] = []
    start = 0
    for name in names:
        stored, array = _stored(name, tensors[name], dtype[name] if isinstance(dtype, Mapping) else dtype)
        header[name] = {"dtype": stored, "shape": list(array.shape), "data_offsets": [start, start + array.nbytes]}
        start += array.nbytes
        arrays.append(array)
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)  # the data starts at a multiple of 8, as readers that map the file expect
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays:
            file.write(array.tobytes())
    return start


def _stored(name: str, array: Array, dtype: str | None) -> tuple[str, Array]:
    """Stored type and the little-endian array."""
    if dtype == "BF16":
        return "BF16", _bfloat16(name, array)
    wanted = array.dtype if dtype is None else np.dtype(_CONFIG_DTYPES[dtype])
    if wanted.name not in _STORED_NAMES:
        raise UsageError(f"Tensor '{safe_name(name)}' has type {wanted}; expected {', '.join(_STORED_NAMES)}.")
    return _STORED_NAMES[wanted.name], cast(name, array, wanted.newbyteorder("<"))


def _bfloat16(name: str, array: Array) -> NDArray[np.uint16]:
    """Bits of the nearest bfloat16, ties to even."""
    bits = cast(name, array, np.dtype("<f4")).view("<u4").astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    if ((rounded & 0x7F80) == 0x7F80).any():
        raise UsageError(f"Tensor '{safe_name(name)}' has values that bfloat16 cannot hold; write it as F32.")
    return rounded
