"""The canonical form of one sublayer: norms, gains and foldable biases moved into the matrices (docs/canonical.md).

Conventions (ours where no source is given): a matrix that reads the residual stream takes the gain of its norm on its
columns; a matrix that writes takes a post-norm's gain on its rows. A LayerNorm output has no mean component, so after
the gain both readers and writers are centred, and the LayerNorm of a centred stream is an RMSNorm without gain
(SliceGPT, arXiv:2401.15024, section 3.2). Results keep the dtype of the raw tensors.
"""

from collections.abc import Mapping

import numpy as np

from whorl.canonical.roles import Attention, Mlp, ModelShape, Part
from whorl.source import Floats

Raw = Mapping[str, Floats]


def canonical(part: Part) -> Attention | Mlp:
    """The canonical form of one sublayer; pure, the part is left unchanged."""
    return canonical_attention(part) if part.kind == "attention" else canonical_mlp(part)


def canonical_attention(part: Part) -> Attention:
    """Q, K, V and O per head, with everything folded that can be folded exactly.

    The value bias goes into the output bias, since attention weights sum to 1. A key bias adds one constant to every
    score of a query, so it is dropped, except with rotary positions, where it meets a rotation first.
    """
    s, raw = part.shape, part.raw
    q, q_bias = _reader(raw, s, "q", "norm_attn")
    k, k_bias = _reader(raw, s, "k", "norm_attn")
    v, v_bias = _reader(raw, s, "v", "norm_attn")
    o, o_bias = _writer(raw, s, "o", _output_bias(raw, v_bias, s), "post_attn_norm")
    if k_bias is not None and s.position != "rotary":
        k_bias = np.zeros_like(k_bias)
    bias_column = q_bias is not None or k_bias is not None
    q = _qk_gain(with_bias_column(q, q_bias) if bias_column else q, raw.get("q_norm"), s)
    k = _qk_gain(with_bias_column(k, k_bias) if bias_column else k, raw.get("k_norm"), s)
    return Attention(
        layer=part.layer,
        q=q.reshape(s.n_heads, s.d_head, -1),
        k=k.reshape(s.n_kv_heads, s.d_head, -1),
        v=v.reshape(s.n_kv_heads, s.d_head, s.d_model),
        o=o.reshape(s.d_model, s.n_heads, s.d_head).transpose(1, 0, 2),
        o_bias=o_bias,
        bias_column=bias_column,
    )


def canonical_mlp(part: Part) -> Mlp:
    """Gate, up and down with norms folded and reader biases as an extra last column."""
    s, raw = part.shape, part.raw
    gate, gate_bias = _reader(raw, s, "gate", "norm_mlp") if "gate" in raw else (None, None)
    up, up_bias = _reader(raw, s, "up", "norm_mlp")
    down, down_bias = _writer(raw, s, "down", raw.get("down.b"), "post_mlp_norm")
    bias_column = gate_bias is not None or up_bias is not None
    return Mlp(
        layer=part.layer,
        expert=part.expert,
        gate=with_bias_column(gate, gate_bias) if bias_column and gate is not None else gate,
        up=with_bias_column(up, up_bias) if bias_column else up,
        down=down,
        down_bias=down_bias,
        bias_column=bias_column,
    )


def canonical_router(part: Part) -> Floats | None:
    """The router of this layer, (n_experts, d) with the norm folded; None where `part` holds none."""
    return _reader(part.raw, part.shape, "router", "norm_mlp")[0] if "router" in part.raw else None


def fold_reader(
    weight: Floats, bias: Floats | None, gain: Floats | None, norm_bias: Floats | None, *, centre: bool
) -> tuple[Floats, Floats | None]:
    """A matrix that reads the normalised residual stream, as one that reads it without gain.

    Args:
        weight: (out, d).
        bias: (out,) or None.
        gain: True gain g (d,), or None when there is no norm to fold.
        norm_bias: LayerNorm bias (d,) or None.
        centre: Remove the mean component of each row (LayerNorm).

    Returns:
        W diag(g) (centred), and b + W norm_bias, None when both are absent.
    """
    if norm_bias is not None:
        constant = (weight @ norm_bias).astype(weight.dtype, copy=False)
        bias = constant if bias is None else bias + constant
    weight = weight if gain is None else weight * gain
    return (centred(weight, axis=1) if centre else weight), bias


def centred(array: Floats, axis: int) -> Floats:
    """The array minus its mean along `axis`; the mean is taken in float64."""
    mean: Floats = array.mean(axis=axis, keepdims=True, dtype=np.float64).astype(array.dtype)
    return array - mean


def with_bias_column(weight: Floats, bias: Floats | None) -> Floats:
    """(out, d) and (out,) -> (out, d + 1); an absent bias is a column of zeros."""
    column = np.zeros(weight.shape[0], weight.dtype) if bias is None else bias
    return np.concatenate([weight, column[:, None]], axis=1)


def gain(raw: Raw, role: str, shape: ModelShape) -> Floats | None:
    """The true gain g of a norm (the stored value plus 1 for Gemma), or None where there is no such norm."""
    stored = raw.get(role)
    return stored + stored.dtype.type(shape.gain_offset) if stored is not None and shape.gain_offset else stored


def _reader(raw: Raw, shape: ModelShape, role: str, norm: str) -> tuple[Floats, Floats | None]:
    if shape.norm_style == "post":
        return raw[role], raw.get(f"{role}.b")
    centre = shape.norm_kind == "layer"
    return fold_reader(raw[role], raw.get(f"{role}.b"), gain(raw, norm, shape), raw.get(f"{norm}.b"), centre=centre)


def _writer(
    raw: Raw, shape: ModelShape, role: str, bias: Floats | None, post_norm: str
) -> tuple[Floats, Floats | None]:
    weight = raw[role]
    if shape.norm_style == "post":
        return weight, bias
    after = gain(raw, post_norm, shape)
    if after is not None:
        weight, bias = weight * after[:, None], None if bias is None else bias * after
    if shape.norm_kind == "layer":
        weight, bias = centred(weight, axis=0), None if bias is None else centred(bias, axis=0)
    return weight, bias


def _output_bias(raw: Raw, v_bias: Floats | None, shape: ModelShape) -> Floats | None:
    """b_o + sum over query heads h of W_o,h b_v,g(h), shape (d,); None when both biases are absent."""
    o_bias = raw.get("o.b")
    if v_bias is None:
        return o_bias
    per_head = np.repeat(v_bias.reshape(shape.n_kv_heads, shape.d_head), shape.n_heads // shape.n_kv_heads, axis=0)
    folded = raw["o"] @ per_head.reshape(-1)
    return folded if o_bias is None else o_bias + folded


def _qk_gain(matrix: Floats, stored: Floats | None, shape: ModelShape) -> Floats:
    """Rows times the q/k norm gain: length d_head (every head alike) or length rows (all heads together)."""
    if stored is None:
        return matrix
    g = stored + stored.dtype.type(shape.gain_offset)
    return matrix * np.tile(g, matrix.shape[0] // g.size)[:, None]
