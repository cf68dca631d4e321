"""Gauge of a canonical sublayer: scalar rescalings that leave the function unchanged are balanced away (ours).

Literature methods look at single matrices, but the scale of a single matrix is free: W_q * a with W_k / a is the same
attention. Balancing fixes one representative: equal Frobenius norms of queries and keys per KV group, of values and
outputs per KV group, of up and down per neuron. It removes scalar maps, not general invertible ones. Writers are first
divided by the root mean square of the canonical embedding, which removes a global scale of the residual stream.
"""

import numpy as np
from numpy.typing import NDArray

from whorl.canonical.roles import Attention, Mlp, ModelShape
from whorl.source import Floats


def balanced(part: Attention | Mlp, shape: ModelShape, embed_rms: float) -> dict[str, Floats]:
    """Balanced matrices (out, in) by type, bias columns dropped.

    Args:
        part: Canonical sublayer.
        shape: Facts of its model.
        embed_rms: Root mean square of the canonical embedding, the model's unit of residual size; > 0.
    """
    return _attention(part, shape, embed_rms) if isinstance(part, Attention) else _mlp(part, shape, embed_rms)


def _norms(blocks: Floats) -> NDArray[np.float64]:
    """Frobenius norm of each entry of the first axis."""
    flat = blocks.reshape(blocks.shape[0], -1)
    return np.sqrt(np.einsum("ij,ij->i", flat, flat, dtype=np.float64))


def _ratio(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> NDArray[np.float64]:
    """sqrt(numerator / denominator), 1 where either is 0: a dead head or neuron has nothing to balance."""
    alive = (numerator > 0) & (denominator > 0)
    return np.sqrt(np.divide(numerator, denominator, out=np.ones_like(numerator), where=alive))


def _attention(part: Attention, shape: ModelShape, embed_rms: float) -> dict[str, Floats]:
    groups, per_group, d = shape.n_kv_heads, shape.n_heads // shape.n_kv_heads, shape.d_model
    if shape.qk_norm is None:
        a = _ratio(_norms(part.k), _norms(part.q.reshape(groups, -1)))
        q_scale, k_scale = np.repeat(a, per_group), 1 / a
    else:  # the norm on queries and keys removes their scale: unit root mean square is the only invariant choice
        q_scale, k_scale = _unit(part.q), _unit(part.k)
    b = _ratio(_norms(part.o.reshape(groups, -1)) / embed_rms, _norms(part.v))
    q = part.q[..., :d] * q_scale[:, None, None].astype(part.q.dtype)
    k = part.k[..., :d] * k_scale[:, None, None].astype(part.k.dtype)
    v = part.v * b[:, None, None].astype(part.v.dtype)
    o = part.o / (embed_rms * np.repeat(b, per_group))[:, None, None].astype(part.o.dtype)
    return {"q": q.reshape(-1, d), "k": k.reshape(-1, d), "v": v.reshape(-1, d), "o": np.hstack(list(o))}


def _unit(heads: Floats) -> NDArray[np.float64]:
    norms = _norms(heads)
    size = np.sqrt(heads[0].size)
    return np.divide(size, norms, out=np.ones_like(norms), where=norms > 0)


def _mlp(part: Mlp, shape: ModelShape, embed_rms: float) -> dict[str, Floats]:
    d = shape.d_model
    up = part.up[:, :d]
    found: dict[str, Floats] = {}
    # Without a gate only a positively homogeneous activation lets a factor move from up to down.
    scale_is_free = part.gate is not None or shape.activation == "relu"
    c = _ratio(_norms(part.down.T) / embed_rms, _norms(part.up)) if scale_is_free else np.ones(len(up))
    if part.gate is not None:
        found["gate"] = part.gate[:, :d]
    found["up"] = up * c[:, None].astype(up.dtype)
    found["down"] = part.down / (embed_rms * c)[None, :].astype(part.down.dtype)
    return found
