"""A decoder written twice as short as the library's, in float64 numpy, that knows canonical parts only.

It is given the residual stream and must reproduce what the library's module adds to it.
"""

import numpy as np
from scipy.special import erf

from whorl.canonical import Attention, Mlp, ModelShape


def normalised(x: np.ndarray, shape: ModelShape) -> np.ndarray:
    """The residual (n, d) after its norm without gain and bias."""
    if shape.norm_kind == "layer":
        x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + shape.norm_eps)


def with_ones(x: np.ndarray, *, column: bool) -> np.ndarray:
    return np.concatenate([x, np.ones((len(x), 1))], axis=1) if column else x


def rotate(x: np.ndarray, shape: ModelShape, theta: float) -> np.ndarray:
    """Rotary positions on (n, d_head)."""
    r = shape.rotary_dim
    angle = np.arange(len(x))[:, None] * theta ** (-np.arange(0, r, 2) / r)
    cos, sin = np.cos(angle), np.sin(angle)
    half = shape.rotary_layout == "half"
    first, second = (slice(0, r // 2), slice(r // 2, r)) if half else (slice(0, r, 2), slice(1, r, 2))
    out = x.copy()
    out[:, first] = x[:, first] * cos - x[:, second] * sin
    out[:, second] = x[:, second] * cos + x[:, first] * sin
    return out


def unit_rms(x: np.ndarray, gain: np.ndarray, eps: float) -> np.ndarray:
    """Rows that already carry their gain, after the norm whose gain that is."""
    plain = x / gain
    return x / np.sqrt((plain**2).mean(-1, keepdims=True) + eps)


def attention(
    part: Attention,
    shape: ModelShape,
    x: np.ndarray,
    *,
    theta: float = 10000.0,
    scale: float | None = None,
    softcap: float | None = None,
    alibi_scale: float = 1.0,
    q_gain: np.ndarray | None = None,
    k_gain: np.ndarray | None = None,
) -> np.ndarray:
    """What attention adds to the residual, from the normalised input x (n, d)."""
    H, G, n = shape.n_heads, shape.n_kv_heads, len(x)
    scale = shape.d_head**-0.5 if scale is None else scale
    inputs = with_ones(x, column=part.bias_column)
    q = np.stack([inputs @ m.T for m in part.q])  # (H, n, d_head)
    k = np.stack([inputs @ m.T for m in part.k])  # (G, n, d_head)
    q, k = (qk_normed(a, g, shape) for a, g in ((q, q_gain), (k, k_gain)))
    mask = np.triu(np.full((n, n), -np.inf), 1)
    total = np.zeros_like(x) if part.o_bias is None else np.tile(part.o_bias, (n, 1))
    for h in range(H):
        g = h * G // H
        a, b = (rotate(q[h], shape, theta), rotate(k[g], shape, theta)) if shape.rotary_dim else (q[h], k[g])
        scores = scale * a @ b.T
        if softcap:
            scores = softcap * np.tanh(scores / softcap)
        if shape.position == "alibi":
            scores = scores + alibi_scale * 2.0 ** (-8.0 / H * (h + 1)) * np.arange(n)
        scores = scores + mask
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        total = total + weights @ (x @ part.v[g].T) @ part.o[h].T
    return total


def qk_normed(heads: np.ndarray, gain: np.ndarray | None, shape: ModelShape) -> np.ndarray:
    """(heads, n, d_head) after the q/k norm, per head or over all heads together."""
    if gain is None:
        return heads
    if shape.qk_norm == "head":
        return unit_rms(heads, gain, shape.norm_eps)
    flat = heads.transpose(1, 0, 2).reshape(heads.shape[1], -1)
    flat = unit_rms(flat, gain, shape.norm_eps)
    return flat.reshape(heads.shape[1], heads.shape[0], -1).transpose(1, 0, 2)


ACTIVATIONS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: 0.5 * x * (1 + erf(x / np.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
}
ACTIVATIONS["gelu_new"] = ACTIVATIONS["gelu_pytorch_tanh"] = ACTIVATIONS["gelu_tanh"]


def mlp(part: Mlp, shape: ModelShape, x: np.ndarray) -> np.ndarray:
    """What one MLP or expert adds to the residual, from the normalised input x (n, d)."""
    activation = ACTIVATIONS[shape.activation]
    inputs = with_ones(x, column=part.bias_column)
    hidden = inputs @ part.up.T
    hidden = activation(hidden) if part.gate is None else activation(inputs @ part.gate.T) * hidden
    out = hidden @ part.down.T
    return out if part.down_bias is None else out + part.down_bias


def route(router: np.ndarray, x: np.ndarray, n_active: int, *, renormalise: bool) -> np.ndarray:
    """Expert weights (n, E) of top-k softmax routing."""
    logits = x @ router.T
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    kept = np.zeros_like(weights)
    top = np.argsort(-weights, axis=1)[:, :n_active]
    np.put_along_axis(kept, top, np.take_along_axis(weights, top, 1), 1)
    return kept / kept.sum(-1, keepdims=True) if renormalise else kept
