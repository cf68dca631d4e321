"""From GGUF tensor names and layouts back to the Hugging Face names and layouts of each family.

Converters rename everything and also change some values or their order; each change is undone here:

* Llama, Mistral, Mixtral: the rows of q and k are stored in interleaved-rotary order (pairs 2i, 2i + 1), Hugging Face
  has them half-split (i, i + d_h / 2);
* Gemma 1-3: norm gains are stored as g = 1 + w, Hugging Face has w;
* GPT-NeoX, BLOOM, Falcon: fused q/k/v is stored as all Q, all K, all V; Hugging Face groups it by key/value head;
* GPT-2: projections are stored (out, in); Hugging Face has Conv1D, (in, out);
* experts are stored as one tensor (expert, out, in); Hugging Face files have one matrix for each expert.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from whorl._readers.gguf_header import StoredTensor
from whorl._readers.subject import DAMAGED
from whorl.errors import UnsafeFile, UnsupportedFile, safe_name

Order = NDArray[np.intp]


@dataclass(frozen=True)
class Family:
    """How one GGUF architecture maps to one Hugging Face family.

    Args:
        model_type: `model_type` of `config.json`.
        names: GGUF stem -> Hugging Face stem; "{}" stands for the layer, and only layer tensors have it.
        experts: The same for stacked experts; the second "{}" stands for the expert.
        gain_offset: Stored norm gain minus the Hugging Face one.
        rows: What converters did to row orders: to q and k ("rotary"), to fused q/k/v ("fused").
        transposed: Stems whose matrices Hugging Face keeps as (in, out).
    """

    model_type: str
    names: Mapping[str, str]
    experts: Mapping[str, str] = field(default_factory=dict)
    gain_offset: float = 0.0
    rows: Literal["rotary", "fused"] | None = None
    transposed: frozenset[str] = frozenset()


def _layer(prefix: str, **stems: str) -> dict[str, str]:
    return {stem: f"{prefix}.{{}}.{name}" for stem, name in stems.items()}


def _experts(prefix: str, gate: str, up: str, down: str) -> dict[str, str]:
    names = {"ffn_gate_exps": gate, "ffn_up_exps": up, "ffn_down_exps": down}
    return {stem: f"model.layers.{{}}.{prefix}.experts.{{}}.{name}" for stem, name in names.items()}


_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_ATTENTION = _layer(
    "model.layers",
    attn_norm="input_layernorm",
    attn_q="self_attn.q_proj",
    attn_k="self_attn.k_proj",
    attn_v="self_attn.v_proj",
    attn_output="self_attn.o_proj",
    ffn_norm="post_attention_layernorm",
)
_DENSE = _layer("model.layers", ffn_gate="mlp.gate_proj", ffn_up="mlp.up_proj", ffn_down="mlp.down_proj")
_QK_NORM = _layer("model.layers", attn_q_norm="self_attn.q_norm", attn_k_norm="self_attn.k_norm")
_SANDWICH = _layer(
    "model.layers",
    post_attention_norm="post_attention_layernorm",
    ffn_norm="pre_feedforward_layernorm",
    post_ffw_norm="post_feedforward_layernorm",
)
_SHARED_EXPERT = _layer(
    "model.layers",
    ffn_gate_inp="mlp.gate",
    ffn_gate_inp_shexp="mlp.shared_expert_gate",
    ffn_gate_shexp="mlp.shared_expert.gate_proj",
    ffn_up_shexp="mlp.shared_expert.up_proj",
    ffn_down_shexp="mlp.shared_expert.down_proj",
)
_LLAMA = _OUTER | _ATTENTION | _DENSE
_QWEN_EXPERTS = _experts("mlp", "gate_proj", "up_proj", "down_proj")
_PHI3 = _layer("model.layers", attn_qkv="self_attn.qkv_proj", ffn_up="mlp.gate_up_proj")
_GPT2 = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
} | _layer(
    "transformer.h",
    attn_norm="ln_1",
    attn_qkv="attn.c_attn",
    attn_output="attn.c_proj",
    ffn_norm="ln_2",
    ffn_up="mlp.c_fc",
    ffn_down="mlp.c_proj",
)
_FUSED_LAYER = {"ffn_up": "mlp.dense_h_to_4h", "ffn_down": "mlp.dense_4h_to_h", "attn_norm": "input_layernorm"}
_NEOX = {
    "token_embd": "gpt_neox.embed_in",
    "output_norm": "gpt_neox.final_layer_norm",
    "output": "embed_out",
} | _layer(
    "gpt_neox.layers",
    **_FUSED_LAYER,
    attn_qkv="attention.query_key_value",
    attn_output="attention.dense",
    ffn_norm="post_attention_layernorm",
)
_FALCON = {
    "token_embd": "transformer.word_embeddings",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
} | _layer(
    "transformer.h",
    **_FUSED_LAYER,
    attn_qkv="self_attention.query_key_value",
    attn_output="self_attention.dense",
)
_BLOOM = _FALCON | {"token_embd_norm": "transformer.word_embeddings_layernorm"}
_BLOOM |= _layer("transformer.h", ffn_norm="post_attention_layernorm")
_FALCON_TWO_NORMS = _FALCON | _layer("transformer.h", attn_norm="ln_mlp", attn_norm_2="ln_attn")

_FAMILIES: Mapping[str, Family] = {
    "llama": Family("llama", _LLAMA, rows="rotary"),
    "qwen2": Family("qwen2", _LLAMA),
    "qwen3": Family("qwen3", _LLAMA | _QK_NORM),
    "qwen2moe": Family("qwen2_moe", _LLAMA | _SHARED_EXPERT, experts=_QWEN_EXPERTS),
    "qwen3moe": Family("qwen3_moe", _LLAMA | _QK_NORM | _SHARED_EXPERT, experts=_QWEN_EXPERTS),
    "gemma": Family("gemma", _LLAMA, gain_offset=1.0),
    "gemma2": Family("gemma2", _LLAMA | _SANDWICH, gain_offset=1.0),
    "gemma3": Family("gemma3_text", _LLAMA | _SANDWICH | _QK_NORM, gain_offset=1.0),
    "phi3": Family("phi3", _LLAMA | _PHI3),
    "gpt2": Family("gpt2", _GPT2, transposed=frozenset({"attn_qkv", "attn_output", "ffn_up", "ffn_down"})),
    "gptneox": Family("gpt_neox", _NEOX, rows="fused"),
    "falcon": Family("falcon", _FALCON, rows="fused"),
    "bloom": Family("bloom", _BLOOM, rows="fused"),
}
_MIXTRAL = Family(
    "mixtral",
    _LLAMA | _layer("model.layers", ffn_gate_inp="block_sparse_moe.gate"),
    experts=_experts("block_sparse_moe", "w1", "w3", "w2"),
    rows="rotary",
)

# Rotary tables that a runtime needs and that no Hugging Face file holds: neither weights nor unknown.
_TABLES = frozenset({"rope_freqs", "rope_factors_long", "rope_factors_short", "attn_rot_embd"})

_NAME = re.compile(
    r"(?:blk\.(?P<layer>0|[1-9]\d{0,5})\.)?(?P<stem>[a-z0-9_]+)(?:\.(?P<expert>0|[1-9]\d{0,5}))?\.(?P<end>weight|bias)"
)


@dataclass(frozen=True)
class PartedName:
    """A GGUF tensor name taken apart; `layer` and `expert` are None where the name has none."""

    layer: int | None
    stem: str
    expert: int | None
    end: str


def part_name(name: str) -> PartedName | None:
    """Take a GGUF tensor name apart, None when it does not have the usual form."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    layer, expert = (None if match[key] is None else int(match[key]) for key in ("layer", "expert"))
    return PartedName(layer, match["stem"], expert, match["end"])


@dataclass(frozen=True)
class Heads:
    """Query heads H, key/value heads G and head width d_h, as far as row orders depend on them."""

    n_heads: int
    n_kv_heads: int
    d_head: int


@dataclass(frozen=True)
class View:
    """How one Hugging Face tensor lies in a stored one.

    Args:
        tensor: Where the values are.
        shape: Hugging Face shape.
        first_row: First stored row (for one expert of a stack).
        order: Stored row (or value, for a vector) of each Hugging Face one; None when equal.
        transposed: The stored matrix is the transpose.
        offset: Stored value minus Hugging Face value.
    """

    tensor: StoredTensor
    shape: tuple[int, ...]
    first_row: int = 0
    order: Order | None = None
    transposed: bool = False
    offset: float = 0.0

    @property
    def n_bytes(self) -> int:
        """Stored size of this tensor."""
        return int(np.prod(self.shape, dtype=object)) // self.tensor.kind.block * self.tensor.kind.n_bytes


def find_family(file: str, architecture: str, stems: frozenset[str]) -> Family:
    """The family of a `general.architecture`; Mixtral and Falcon variants are told by the tensors they have.

    Raises:
        UnsupportedFile: An architecture that is not read.
    """
    family = _FAMILIES.get(architecture)
    if family is None:
        found = f"unsupported architecture '{safe_name(architecture, 40)}'"
        raise UnsupportedFile("file", file, found, f"one of {', '.join(_FAMILIES)}", "Use the safetensors files.")
    if architecture == "llama" and "ffn_gate_inp" in stems:
        return _MIXTRAL
    if architecture == "falcon" and "attn_norm_2" in stems:
        return Family("falcon", _FALCON_TWO_NORMS, rows="fused")
    return family


def build_views(
    file: str, family: Family, heads: Heads, tensors: Mapping[str, StoredTensor]
) -> tuple[dict[str, View], tuple[str, ...]]:
    """Every Hugging Face tensor that the stored ones hold, by name in sorted order, and the names left out.

    A tensor that the family does not know keeps its own name, so that the caller can count it as unknown.

    Raises:
        UnsafeFile: Two stored tensors claim one Hugging Face name.
    """
    views: dict[str, View] = {}
    ignored = []
    for tensor in tensors.values():
        parted = part_name(tensor.name)
        if parted is not None and parted.stem in _TABLES:
            ignored.append(tensor.name)
            continue
        for name, view in _views_of(family, heads, tensor, parted):
            if name in views:
                found = f"'{safe_name(tensor.name, 40)}' and '{safe_name(views[name].tensor.name, 40)}' are one tensor"
                raise UnsafeFile("file", file, found, "each tensor once", DAMAGED)
            views[name] = view
    return dict(sorted(views.items())), tuple(sorted(ignored))


def _views_of(
    family: Family, heads: Heads, tensor: StoredTensor, parted: PartedName | None
) -> Iterator[tuple[str, View]]:
    if parted is None:
        yield tensor.name, View(tensor, tensor.shape)
        return
    stack = family.experts.get(parted.stem)
    if stack is not None and parted.layer is not None and len(tensor.dims) == 3 and parted.expert is None:
        n_experts, n_rows, n_columns = tensor.shape
        for expert in range(n_experts):
            name = f"{stack.format(parted.layer, expert)}.{parted.end}"
            yield name, View(tensor, (n_rows, n_columns), first_row=expert * n_rows)
        return
    yield _plain_name(family, tensor, parted), _plain_view(family, heads, tensor, parted)


def _plain_name(family: Family, tensor: StoredTensor, parted: PartedName) -> str:
    if parted.expert is not None:
        # Mixtral files of early 2024 have one tensor for each expert, named blk.0.ffn_up.3.weight
        stack = family.experts.get(f"{parted.stem}_exps")
        if stack is None or parted.layer is None:
            return tensor.name
        return f"{stack.format(parted.layer, parted.expert)}.{parted.end}"
    name = family.names.get(parted.stem)
    if name is None or ("{}" in name) != (parted.layer is not None):
        return tensor.name
    return f"{name.format(parted.layer)}.{parted.end}"


def _plain_view(family: Family, heads: Heads, tensor: StoredTensor, parted: PartedName) -> View:
    shape: tuple[int, ...] = tensor.shape
    transposed = parted.stem in family.transposed and len(shape) == 2
    if parted.stem == "ffn_gate_inp_shexp" and len(shape) == 1:
        shape = (1, *shape)  # converters squeeze the single row away
    is_gain = parted.stem.endswith("norm") and parted.end == "weight"
    return View(
        tensor,
        shape[::-1] if transposed else shape,
        order=_row_order(family, heads, parted.stem),
        transposed=transposed,
        offset=family.gain_offset if is_gain else 0.0,
    )


def _row_order(family: Family, heads: Heads, stem: str) -> Order | None:
    if family.rows == "rotary" and stem in {"attn_q", "attn_k"}:
        return half_split_order(heads.n_heads if stem == "attn_q" else heads.n_kv_heads, heads.d_head)
    if family.rows == "fused" and stem == "attn_qkv":
        return grouped_order(heads)
    return None


@functools.lru_cache(maxsize=8)  # the same for all layers
def half_split_order(n_heads: int, d_head: int) -> Order:
    """Interleaved-rotary row of each half-split row: (h, s, i) lies at (h, i, s), s in range 2."""
    rows: NDArray[Any] = np.arange(n_heads * d_head).reshape(n_heads, d_head // 2, 2)
    return rows.transpose(0, 2, 1).ravel()


@functools.lru_cache(maxsize=8)
def grouped_order(heads: Heads) -> Order:
    """Row in [all Q; all K; all V] of each row in (G, H / G queries + one key + one value, d_h)."""
    n_groups, d_head = heads.n_kv_heads, heads.d_head
    rows = np.arange((heads.n_heads + 2 * n_groups) * d_head)
    q, k, v = np.split(rows, [heads.n_heads * d_head, (heads.n_heads + n_groups) * d_head])
    groups = [q.reshape(n_groups, -1, d_head), k.reshape(n_groups, 1, d_head), v.reshape(n_groups, 1, d_head)]
    return np.concatenate(groups, axis=1).ravel()
