"""Export of a Llama-type model to GGUF, as converters write it: names, row order and shapes changed as they do.

Matrices are stored in the asked type; norm gains and biases stay F32. No vocabulary is written (`no_vocab`).
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whorl._readers.gguf_header import TENSOR_TYPES, BlockType
from whorl._readers.gguf_names import find_family, half_split_order
from whorl.errors import MalformedFile, UnsupportedFile, safe_name

QUANTISATIONS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
MODEL_TYPES = ("llama", "mistral")

_TYPES: Mapping[str, BlockType] = {kind.name: kind for kind in TENSOR_TYPES.values()}
_MAX_F16 = 65_504.0


@dataclass(frozen=True)
class _Job:
    """One tensor to write: its values are converted only when its turn comes."""

    name: str
    source: str
    shape: tuple[int, ...]
    kind: BlockType
    order: NDArray[np.intp] | None


def write_gguf(
    path: Path, tensors: Mapping[str, NDArray[Any]], config: Mapping[str, Any], quantisation: str = "Q8_0"
) -> tuple[str, ...]:
    """Write a Llama or Mistral model as one GGUF file; the file appears under its name only when it is whole.

    Args:
        path: File to write, replaced when it exists.
        tensors: Hugging Face name -> array, matrices (out, in), any float type.
        config: The model's `config.json`.
        quantisation: Type of the matrices, one of `QUANTISATIONS`.

    Returns:
        Hugging Face names of the matrices stored as F16 because their rows do not fill whole blocks.

    Raises:
        UnsupportedFile: Another model type, scaled rotary positions, or a tensor that such models do not have.
        MalformedFile: The config lacks a size, or a value does not fit into F16.
    """
    if config.get("model_type") not in MODEL_TYPES:
        found = f"model type '{safe_name(config.get('model_type'), 40)}'"
        raise UnsupportedFile(
            "model", path.name, found, f"one of {', '.join(MODEL_TYPES)}", "Export is for these only."
        )
    if quantisation not in QUANTISATIONS:
        found = f"quantisation '{safe_name(quantisation, 40)}'"
        raise UnsupportedFile("model", path.name, found, f"one of {', '.join(QUANTISATIONS)}", "Choose another one.")
    needed = {"model.embed_tokens.weight"} | (set() if config.get("tie_word_embeddings") else {"lm_head.weight"})
    if not needed <= tensors.keys():
        found = f"no tensor '{min(needed - tensors.keys())}'"
        raise MalformedFile("model", path.name, found, "a whole model", "Is 'tie_word_embeddings' right?")
    jobs = _jobs(path.name, tensors, config, _TYPES[quantisation])
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        _write(part, jobs, tensors, config, quantisation)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return tuple(job.source for job in jobs if len(job.shape) > 1 and job.kind.name != quantisation)


def _size(name: str, config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise MalformedFile("config", name, f"'{key}' is {safe_name(value, 40)}", "a positive whole number", "Mend it.")
    return value


def _heads(name: str, config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Query heads, key/value heads and the width of one head."""
    n_heads = _size(name, config, "num_attention_heads")
    n_kv_heads = _size(name, config, "num_key_value_heads") if config.get("num_key_value_heads") else n_heads
    if config.get("head_dim") is not None:
        return n_heads, n_kv_heads, _size(name, config, "head_dim")
    return n_heads, n_kv_heads, _size(name, config, "hidden_size") // n_heads


def _jobs(name: str, tensors: Mapping[str, NDArray[Any]], config: Mapping[str, Any], wanted: BlockType) -> list[_Job]:
    n_heads, n_kv_heads, d_head = _heads(name, config)
    orders = {
        "q_proj": np.argsort(half_split_order(n_heads, d_head)),
        "k_proj": np.argsort(half_split_order(n_kv_heads, d_head)),
    }
    gguf_names = _gguf_names(_size(name, config, "num_hidden_layers"))
    jobs = []
    for source, array in tensors.items():
        if source.endswith(".rotary_emb.inv_freq"):
            continue  # a table that early Llama files carry; it follows from the config
        stem, _, end = source.rpartition(".")
        if stem not in gguf_names or end not in {"weight", "bias"}:
            found, advice = f"tensor '{safe_name(source)}'", "Export is for plain Llama and Mistral models."
            raise UnsupportedFile("model", name, found, "tensors that such models have", advice)
        if source == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue  # the embedding itself; a second copy would read as an untied model
        order = orders.get(stem.rpartition(".")[2])
        if order is not None and len(order) != array.shape[0]:
            found = f"tensor '{safe_name(source)}' has {array.shape[0]} rows"
            raise MalformedFile("model", name, found, f"{len(order)}, as the config says", "Mend the config.")
        jobs.append(_Job(f"{gguf_names[stem]}.{end}", source, array.shape, _kind(array.shape, wanted), order))
    return jobs


def _gguf_names(n_layers: int) -> dict[str, str]:
    """Hugging Face stem -> GGUF stem for every layer."""
    names = {}
    for gguf, theirs in find_family("", "llama", frozenset()).names.items():
        if "{}" not in theirs:
            names[theirs] = gguf
            continue
        names |= {theirs.format(layer): f"blk.{layer}.{gguf}" for layer in range(n_layers)}
    return names


def _kind(shape: tuple[int, ...], wanted: BlockType) -> BlockType:
    if len(shape) < 2:
        return _TYPES["F32"]
    return wanted if shape[-1] % wanted.block == 0 else _TYPES["F16"]


def _write(
    path: Path, jobs: list[_Job], tensors: Mapping[str, NDArray[Any]], config: Mapping[str, Any], quantisation: str
) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    _add_keys(writer, path.name, tensors, config)
    writer.add_file_type(gguf.LlamaFileType[f"{'ALL' if quantisation == 'F32' else 'MOSTLY'}_{quantisation}"])
    if _TYPES[quantisation].block > 1:
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for job in jobs:
        n_bytes = math.prod(job.shape) // job.kind.block * job.kind.n_bytes
        kind = gguf.GGMLQuantizationType[job.kind.name]
        # any type but uint8: the library then takes the shape as counted in values
        writer.add_tensor_info(job.name, job.shape, np.dtype(np.float32), n_bytes, raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for job in jobs:
            writer.write_tensor_data(_stored(path.name, job, tensors[job.source]))
        for file in writer.fout or []:
            file.flush()
            os.fsync(file.fileno())
    finally:
        writer.close()


def _add_keys(writer: Any, name: str, tensors: Mapping[str, NDArray[Any]], config: Mapping[str, Any]) -> None:
    n_heads, n_kv_heads, d_head = _heads(name, config)
    writer.add_type("model")
    writer.add_context_length(int(config.get("max_position_embeddings") or 2048))
    writer.add_embedding_length(_size(name, config, "hidden_size"))
    writer.add_block_count(_size(name, config, "num_hidden_layers"))
    writer.add_feed_forward_length(_size(name, config, "intermediate_size"))
    writer.add_head_count(n_heads)
    writer.add_head_count_kv(n_kv_heads)
    writer.add_key_length(d_head)
    writer.add_value_length(d_head)
    writer.add_layer_norm_rms_eps(float(config.get("rms_norm_eps", 1e-6)))
    writer.add_rope_dimension_count(d_head)
    writer.add_rope_freq_base(_rope_theta(name, config))
    writer.add_vocab_size(tensors["model.embed_tokens.weight"].shape[0])
    writer.add_tokenizer_model("no_vocab")


def _rope_theta(name: str, config: Mapping[str, Any]) -> float:
    # transformers 5 writes one `rope_parameters`, earlier versions `rope_theta` and `rope_scaling`
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        found, advice = f"rotary positions of type '{safe_name(kind, 40)}'", "Export is for plain ones only."
        raise UnsupportedFile("model", name, found, "plain rotary positions", advice)
    return float(rope.get("rope_theta", config.get("rope_theta", 10_000.0)))


def _stored(name: str, job: _Job, array: NDArray[Any]) -> NDArray[Any]:
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    values = np.ascontiguousarray(array if job.order is None else array[job.order], dtype=np.float32)
    if job.kind.name == "F16" and not np.abs(values).max(initial=0.0) <= _MAX_F16:
        found = f"tensor '{safe_name(job.source)}' has values that are not finite or over {_MAX_F16:.0f}"
        raise MalformedFile("model", name, found, "values that F16 can hold", "Export as F32 or BF16.")
    stored: NDArray[Any] = quantize(values, GGMLQuantizationType[job.kind.name])
    return stored
