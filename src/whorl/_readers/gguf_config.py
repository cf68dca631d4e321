"""The key/value pairs of a GGUF file as the `config.json` that its family would have, checked against the tensors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from whorl._readers.gguf_header import GgufValue, StoredTensor
from whorl._readers.gguf_names import Family, Heads, part_name
from whorl._readers.subject import DAMAGED
from whorl.errors import MalformedFile, UnsupportedFile, safe_name

_MAX_SIZE = 2**31 - 1

# Converters write 4 * d here without looking at the model.
_NOMINAL_WIDTH = frozenset({"gpt2", "falcon", "bloom"})

# Activations of families whose GGUF files do not name one: the one every converter assumes.
_ACTIVATIONS: Mapping[str, tuple[str, str]] = {
    "gemma": ("hidden_activation", "gelu_pytorch_tanh"),
    "gemma2": ("hidden_activation", "gelu_pytorch_tanh"),
    "gemma3_text": ("hidden_activation", "gelu_pytorch_tanh"),
    "gpt2": ("activation_function", "gelu_new"),
    "gpt_neox": ("hidden_act", "gelu"),
    "falcon": ("activation", "gelu"),
}


@dataclass(frozen=True)
class Keys:
    """The pairs of one architecture, read with their types checked."""

    file: str
    architecture: str
    values: Mapping[str, GgufValue]

    def malformed(self, found: str, expected: str) -> MalformedFile:
        """A refusal of this file."""
        return MalformedFile("file", self.file, found, expected, DAMAGED)

    def find_size(self, key: str) -> int | None:
        """A positive whole number, None when the key is missing."""
        full = f"{self.architecture}.{key}"
        value = self.values.get(full)
        if value is None:
            return None
        if isinstance(value, np.ndarray):
            advice = "Use the safetensors files."
            raise UnsupportedFile("file", self.file, f"'{full}' differs by layer", "one number", advice)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MAX_SIZE:
            raise self.malformed(f"'{full}' is {safe_name(value, 40)}", f"a whole number from 1 to {_MAX_SIZE}")
        return value

    def size(self, key: str) -> int:
        """A positive whole number that must be there."""
        value = self.find_size(key)
        if value is None:
            raise self.malformed(f"no key '{self.architecture}.{key}'", "the sizes of the model")
        return value

    def find_number(self, key: str) -> float | None:
        """A finite number, None when the key is missing."""
        full = f"{self.architecture}.{key}"
        value = self.values.get(full)
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool) or not np.isfinite(value):
            raise self.malformed(f"'{full}' is {safe_name(value, 40)}", "a finite number")
        # stored as float32: the shortest text that rounds to it is what the model's author wrote
        return float(str(np.float32(value))) if isinstance(value, float) else value


@dataclass(frozen=True)
class Sizes:
    """Sizes that are checked against the tensors."""

    n_layers: int
    d_model: int
    n_vocab: int
    n_experts: int
    heads: Heads


def read_sizes(keys: Keys, tensors: Mapping[str, StoredTensor]) -> Sizes:
    """Sizes of the model, checked against every tensor whose shape follows from them.

    Raises:
        MalformedFile: A key is missing or of the wrong kind, or a tensor disagrees.
        UnsupportedFile: Sizes that differ by layer, or key and value heads of different width.
    """
    d_model, n_heads = keys.size("embedding_length"), keys.size("attention.head_count")
    n_kv_heads = keys.find_size("attention.head_count_kv") or n_heads
    d_head = keys.find_size("attention.key_length")
    if d_head is None and d_model % n_heads:
        raise keys.malformed(f"{n_heads} heads for {d_model} residual channels", "a divisor")
    heads = Heads(n_heads, n_kv_heads, d_head or d_model // n_heads)
    if n_heads % n_kv_heads:
        raise keys.malformed(f"{n_heads} query heads for {n_kv_heads} key heads", "a multiple")
    if keys.find_size("attention.value_length") not in {None, heads.d_head}:
        found = "values of another width than the keys"
        raise UnsupportedFile("file", keys.file, found, "one head width", "Use the safetensors files.")
    embed = tensors.get("token_embd.weight")
    if embed is None or len(embed.shape) != 2:
        raise keys.malformed("no matrix 'token_embd.weight'", "a token embedding")
    sizes = Sizes(keys.size("block_count"), d_model, embed.shape[0], _n_experts(keys), heads)
    _check_layers(keys, sizes.n_layers, tensors)
    _check_shapes(keys, sizes, tensors)
    return sizes


def _n_experts(keys: Keys) -> int:
    # some converters write a plain 0 for dense models
    dense = isinstance(count := keys.values.get(f"{keys.architecture}.expert_count"), int) and count == 0
    return 0 if dense else keys.find_size("expert_count") or 0


def _check_layers(keys: Keys, n_layers: int, tensors: Mapping[str, StoredTensor]) -> None:
    parted = (part_name(name) for name in tensors)
    present = {p.layer for p in parted if p is not None and p.layer is not None}
    # counted before any set of n_layers numbers is made: the declared count may be absurd
    if len(present) != n_layers or max(present, default=-1) != n_layers - 1:
        raise keys.malformed(f"{len(present)} layers have tensors and {n_layers} are declared", "all of them")


def _check_shapes(keys: Keys, sizes: Sizes, tensors: Mapping[str, StoredTensor]) -> None:
    heads, d = sizes.heads, sizes.d_model
    n_q, n_kv = heads.n_heads * heads.d_head, heads.n_kv_heads * heads.d_head
    if keys.architecture == "llama" and heads.d_head % 2:
        raise keys.malformed(f"heads of {heads.d_head} rows", "an even number for rotary positions")
    known: dict[str, tuple[int | None, ...]] = {
        "token_embd": (sizes.n_vocab, d), "output": (sizes.n_vocab, d), "position_embd": (None, d),
        "attn_q": (n_q, d), "attn_k": (n_kv, d), "attn_v": (n_kv, d), "attn_output": (d, n_q),
        "attn_qkv": (n_q + 2 * n_kv, d), "ffn_gate": (None, d), "ffn_up": (None, d), "ffn_down": (d, None),
        "ffn_gate_exps": (sizes.n_experts, None, d), "ffn_up_exps": (sizes.n_experts, None, d),
        "ffn_down_exps": (sizes.n_experts, d, None), "ffn_gate_inp": (sizes.n_experts, d),
        "attn_q_norm": (heads.d_head,), "attn_k_norm": (heads.d_head,),
    }  # fmt: skip
    known |= dict.fromkeys(("attn_norm", "attn_norm_2", "ffn_norm", "output_norm", "token_embd_norm"), (d,))
    known |= dict.fromkeys(("post_attention_norm", "post_ffw_norm"), (d,))
    for tensor in tensors.values():
        parted = part_name(tensor.name)
        if parted is None or parted.stem not in known:
            continue
        expected = known[parted.stem] if parted.end == "weight" else known[parted.stem][:1]
        if len(expected) != len(tensor.shape) or any(
            e not in {None, n} for e, n in zip(expected, tensor.shape, strict=True)
        ):
            wanted = f"{tuple('any' if e is None else e for e in expected)}".replace("'", "")
            raise keys.malformed(f"tensor '{safe_name(tensor.name, 40)}' is {tensor.shape}", f"{wanted}, as declared")


def hugging_face_config(
    keys: Keys, family: Family, sizes: Sizes, tensors: Mapping[str, StoredTensor]
) -> dict[str, Any]:
    """The `config.json` of the family, in its own field names, from the pairs and the tensors."""
    config: dict[str, Any] = {
        "model_type": family.model_type,
        "vocab_size": sizes.n_vocab,
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    build = {"gpt2": _gpt2, "gpt_neox": _neox, "falcon": _falcon, "bloom": _bloom}.get(family.model_type, _llama)
    config |= build(keys, sizes, tensors)
    config |= _experts(keys, family, sizes, tensors)
    name, activation = _ACTIVATIONS.get(family.model_type, ("hidden_act", "silu"))
    if family.model_type != "bloom":  # its config.json has no such field
        config[name] = activation
    return {key: value for key, value in config.items() if value is not None}


def _llama(keys: Keys, sizes: Sizes, tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    rotary = keys.find_size("rope.dimension_count")
    partial = rotary / sizes.heads.d_head if rotary else 1.0
    return {
        "hidden_size": sizes.d_model,
        "num_hidden_layers": sizes.n_layers,
        "num_attention_heads": sizes.heads.n_heads,
        "num_key_value_heads": sizes.heads.n_kv_heads,
        "head_dim": sizes.heads.d_head,
        "intermediate_size": _mlp_width(keys, tensors),
        "max_position_embeddings": keys.find_size("context_length"),
        "rms_norm_eps": keys.find_number("attention.layer_norm_rms_epsilon"),
        "rope_theta": keys.find_number("rope.freq_base") or 10_000.0,
        "rope_scaling": _rope_scaling(keys),
        "partial_rotary_factor": None if partial == 1.0 else partial,
        "sliding_window": keys.find_number("attention.sliding_window") or None,  # 0 means none
        "attn_logit_softcapping": keys.find_number("attn_logit_softcapping"),
        "final_logit_softcapping": keys.find_number("final_logit_softcapping"),
        "attention_bias": _biased(tensors),
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
    }


def _biased(tensors: Mapping[str, StoredTensor]) -> bool | None:
    """Whether all four attention maps have biases; None when only some have, which no config field can say."""
    q, o = ("blk.0.attn_q.bias" in tensors), ("blk.0.attn_output.bias" in tensors)
    return q if q == o else None


def _rope_scaling(keys: Keys) -> dict[str, Any] | None:
    kind = keys.values.get(f"{keys.architecture}.rope.scaling.type")
    if not isinstance(kind, str) or kind == "none":
        return None
    factor, length = keys.find_number("rope.scaling.factor"), keys.find_size("rope.scaling.original_context_length")
    scaling = {"rope_type": kind, "factor": factor, "original_max_position_embeddings": length}
    return {key: value for key, value in scaling.items() if value is not None}


def _gpt2(keys: Keys, sizes: Sizes, tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    positions = tensors.get("position_embd.weight")
    return {
        "n_embd": sizes.d_model,
        "n_layer": sizes.n_layers,
        "n_head": sizes.heads.n_heads,
        "n_inner": _mlp_width(keys, tensors),
        "n_positions": positions.shape[0] if positions else keys.find_size("context_length"),
        "layer_norm_epsilon": keys.find_number("attention.layer_norm_epsilon"),
    }


def _neox(keys: Keys, sizes: Sizes, tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    rotary = keys.find_size("rope.dimension_count")
    parallel = keys.values.get(f"{keys.architecture}.use_parallel_residual", True)
    if not isinstance(parallel, bool):
        raise keys.malformed(f"'use_parallel_residual' is {safe_name(parallel, 40)}", "a boolean")
    return {
        "hidden_size": sizes.d_model,
        "num_hidden_layers": sizes.n_layers,
        "num_attention_heads": sizes.heads.n_heads,
        "intermediate_size": _mlp_width(keys, tensors),
        "max_position_embeddings": keys.find_size("context_length"),
        "layer_norm_eps": keys.find_number("attention.layer_norm_epsilon"),
        "rotary_pct": rotary / sizes.heads.d_head if rotary else 1.0,
        "rotary_emb_base": keys.find_number("rope.freq_base") or 10_000.0,
        "use_parallel_residual": parallel,
        "attention_bias": "blk.0.attn_qkv.bias" in tensors,
    }


def _falcon(keys: Keys, sizes: Sizes, tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    heads, two_norms = sizes.heads, "blk.0.attn_norm_2.weight" in tensors
    return {
        "hidden_size": sizes.d_model,
        "num_hidden_layers": sizes.n_layers,
        "num_attention_heads": heads.n_heads,
        "num_kv_heads": heads.n_kv_heads,
        "ffn_hidden_size": _mlp_width(keys, tensors),
        "layer_norm_epsilon": keys.find_number("attention.layer_norm_epsilon"),
        # told from the head counts: the old layouts are "one key head" and "as many as query heads"
        "new_decoder_architecture": two_norms or heads.n_kv_heads not in {1, heads.n_heads},
        "num_ln_in_parallel_attn": 2 if two_norms else 1,
        "multi_query": heads.n_kv_heads == 1,
        "parallel_attn": True,
        "alibi": False,
        "bias": "blk.0.attn_qkv.bias" in tensors,
    }


def _bloom(keys: Keys, sizes: Sizes, tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    del tensors  # the MLP is always four times the residual width
    return {
        "hidden_size": sizes.d_model,
        "n_layer": sizes.n_layers,
        "n_head": sizes.heads.n_heads,
        "layer_norm_epsilon": keys.find_number("attention.layer_norm_epsilon"),
    }


def _experts(keys: Keys, family: Family, sizes: Sizes, tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    if not family.experts:
        return {}
    used = keys.find_size("expert_used_count")
    if family.model_type == "mixtral":
        return {"num_local_experts": sizes.n_experts, "num_experts_per_tok": used}
    shared = tensors.get("blk.0.ffn_up_shexp.weight")
    stack = _first_stack(tensors)
    dense = [i for i in range(sizes.n_layers) if f"blk.{i}.ffn_gate_inp.weight" not in tensors]
    return {
        "num_experts": sizes.n_experts,
        "num_experts_per_tok": used,
        "moe_intermediate_size": stack.shape[1] if stack else None,
        "shared_expert_intermediate_size": shared.shape[0] if shared else None,
        "decoder_sparse_step": 1,
        "mlp_only_layers": dense,
    }


def _first_stack(tensors: Mapping[str, StoredTensor]) -> StoredTensor | None:
    stacks = (t for t in tensors.values() if t.name.endswith(".ffn_up_exps.weight"))
    return next(stacks, None)


def _mlp_width(keys: Keys, tensors: Mapping[str, StoredTensor]) -> int | None:
    """Width of one MLP (of one Mixtral expert): the tensor decides, the declared number must agree."""
    declared = keys.find_size("feed_forward_length")
    up, stack = tensors.get("blk.0.ffn_up.weight"), _first_stack(tensors)
    if up is not None:
        width = up.shape[0] // 2 if keys.architecture == "phi3" else up.shape[0]  # Phi-3: gate and up in one
    elif stack is not None and keys.architecture == "llama":
        width = stack.shape[1]
    else:
        return declared
    if declared not in {None, width} and keys.architecture not in _NOMINAL_WIDTH:
        raise keys.malformed(f"an MLP of {width} channels and {declared} declared", "one width")
    return width
