"""The shard index `model.safetensors.index.json` and what its shards must hold."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from whorl._readers import limits, strict_json
from whorl._readers.file_names import check_plain_name, refuse_lookalikes
from whorl._readers.safetensors_file import SafetensorsFile
from whorl._readers.safetensors_header import check_tensor_name
from whorl._readers.strict_json import kind_of
from whorl._readers.subject import CRAFTED, DAMAGED, Subject
from whorl.errors import safe_name
from whorl.source import TensorInfo

INDEX_NAME = "model.safetensors.index.json"
WEIGHTS_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class ShardIndex:
    """A checked index.

    Args:
        name: Name of the index file.
        weight_map: Shard file name by tensor name.
        total_size: `metadata.total_size` as written, None where it is absent.
    """

    name: str
    weight_map: Mapping[str, str]
    total_size: float | None

    @property
    def shards(self) -> tuple[str, ...]:
        """Shard file names, each once, sorted."""
        return tuple(sorted(set(self.weight_map.values())))


def parse_index(data: bytes, name: str = INDEX_NAME) -> ShardIndex:
    """Check an index text on its own; `join_shards` checks it against its shards.

    Raises:
        MalformedFile: not an object, no `weight_map`, or one that is not text to text; a `total_size` that is not a
            natural number.
        UnsafeFile: a key twice, a tensor or shard name that breaks the name rules, over the caps.
    """
    subject = Subject("index", name)
    fields = strict_json.parse_object(data, "index", name)
    weight_map = fields.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        found = "no weight_map" if "weight_map" not in fields else f"weight_map is {kind_of(weight_map)}"
        raise subject.malformed(found if weight_map != {} else "an empty weight_map", "an object, tensor to shard")
    if len(weight_map) > limits.MAX_TENSORS:
        raise subject.unsafe(f"{len(weight_map)} tensors", f"at most {limits.MAX_TENSORS}", DAMAGED)
    for tensor, shard in weight_map.items():
        check_tensor_name(tensor, subject)
        if not isinstance(shard, str):
            raise subject.malformed(f"tensor '{safe_name(tensor, 80)}' maps to {kind_of(shard)}", "a shard name")
    index = ShardIndex(name, MappingProxyType(weight_map), _total_size(fields.get("metadata"), subject))
    _check_shards(index, subject)
    return index


def join_shards(
    index: ShardIndex, shards: Mapping[str, SafetensorsFile], dispensable: Collection[str] = ()
) -> dict[str, SafetensorsFile]:
    """The file of each tensor, after checking that index and shards agree.

    Args:
        index: The checked index.
        shards: Every shard of the index by file name, opened.
        dispensable: Tensors that the index may list although no shard holds them.

    Raises:
        UnsafeFile: one tensor in two shards.
        MalformedFile: a tensor missing from its shard, or in a shard but not in the index.
    """
    home: dict[str, str] = {}
    for shard in sorted(shards):
        for tensor in shards[shard].tensors:
            if tensor in home:
                found = f"tensor '{safe_name(tensor, 80)}' is also in shard '{safe_name(home[tensor], 60)}'"
                raise Subject("shard", shard).unsafe(found, "each tensor in one shard")
            home[tensor] = shard
    subject = Subject("index", index.name)
    for tensor, shard in sorted(index.weight_map.items()):
        if home.get(tensor) != shard and not (tensor in dispensable and tensor not in home):
            found = f"tensor '{safe_name(tensor, 80)}' is not in its shard '{safe_name(shard, 60)}'"
            raise subject.malformed(found, "tensors where the index says")
    for tensor in sorted(home.keys() - index.weight_map.keys()):
        found = f"tensor '{safe_name(tensor, 80)}' is not in the index"
        raise Subject("shard", home[tensor]).malformed(found, "the tensors of the index, no others")
    return {tensor: shards[home[tensor]] for tensor in sorted(home)}


def index_notes(index: ShardIndex, tensors: Mapping[str, TensorInfo]) -> list[str]:
    """What an index says that its shards contradict without changing any reading of them.

    Converters copy `total_size` and a tied head from the index of the pickled original, and no loader reads the size.
    """
    lacking = sorted(index.weight_map.keys() - tensors.keys())
    notes = [f"the index lists '{safe_name(name, 80)}', which no shard holds: taken as tied" for name in lacking]
    total = sum(info.n_bytes for info in tensors.values())
    # Older transformers releases counted a BOOL value as 1/8 byte, which also made the sum a float.
    bits = sum(info.n_bytes * (1 if info.dtype == "BOOL" else 8) for info in tensors.values())
    if index.total_size not in (None, total, bits / 8):
        notes.append(
            f"the index states a total_size of {safe_name(index.total_size, 40)}; its tensors have {total} bytes"
        )
    return notes


def refuse_second_model(single: SafetensorsFile, joined: Mapping[str, SafetensorsFile]) -> None:
    """Refuse a whole-model file beside shards unless both hold the same weights.

    Reads both once when their headers agree.

    Raises:
        UnsafeFile: names, types, shapes or stored bytes differ.
    """
    described = {tensor: file.tensors[tensor] for tensor, file in joined.items()}
    differing = sorted(described.keys() ^ single.tensors.keys()) or [
        tensor for tensor in described if described[tensor] != single.tensors[tensor]
    ]
    differing = differing or [tensor for tensor in described if not _same_bytes(single, joined[tensor], tensor)]
    if differing:
        found = f"tensor '{safe_name(differing[0], 80)}' differs from the one in the shards of the index"
        raise Subject("file", single.label).unsafe(found, "one model in one folder", CRAFTED)


def _same_bytes(first: SafetensorsFile, second: SafetensorsFile, tensor: str) -> bool:
    return first.stored_digest(tensor) == second.stored_digest(tensor)


def _check_shards(index: ShardIndex, subject: Subject) -> None:
    if len(index.shards) > limits.MAX_SHARDS:
        raise subject.unsafe(f"{len(index.shards)} shards", f"at most {limits.MAX_SHARDS}", DAMAGED)
    for shard in index.shards:
        check_plain_name(shard, subject, WEIGHTS_SUFFIX)
    refuse_lookalikes(index.shards, subject)


def _total_size(metadata: Any, subject: Subject) -> float | None:
    if metadata is None:
        return None
    if not isinstance(metadata, dict):
        raise subject.malformed(f"metadata is {kind_of(metadata)}", "an object")
    total = metadata.get("total_size")
    if total is not None and (type(total) not in (int, float) or total < 0):
        raise subject.malformed("total_size is not a natural number", "the number of bytes")
    return total
