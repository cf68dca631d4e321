"""Gauge of a sublayer: scalar rescalings that leave the function unchanged are balanced away (ours).

Literature methods look at single matrices, but the scale of a single matrix is free: W_q * a with W_k / a is the same
attention. Balancing fixes one representative: equal Frobenius norms of queries and keys per KV group, of values and
outputs per KV group, of up and down per neuron. It removes scalar maps, not general invertible ones. Writers are first
divided by the root mean square of the canonical embedding, which removes a global scale of the residual stream.
Where a norm follows a sublayer, one factor on its whole output is free too: balanced values and outputs, up and down
then get unit root mean square.

All balancing factors follow from sums of squares per row of a reader (q, k, v, gate, up) and per column of a writer
(o, down), after norms are folded; bias columns do not count.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from whorl.canonical.roles import Attention, Mlp, ModelShape
from whorl.source import Floats

Doubles = NDArray[np.float64]
WRITERS = ("o", "down")


def scales(squares: Mapping[str, Doubles], shape: ModelShape, embed_rms: float) -> dict[str, Doubles]:
    """Balancing factors of one sublayer: per row of a reader, per column of a writer.

    Args:
        squares: Sums of squares by type, (rows,) for readers and (columns,) for writers, norms folded.
        shape: Facts of the model.
        embed_rms: Root mean square of the canonical embedding, the model's unit of residual size; > 0.
    """
    return _attention(squares, shape, embed_rms) if "q" in squares else _mlp(squares, shape, embed_rms)


def balanced(part: Attention | Mlp, shape: ModelShape, embed_rms: float) -> dict[str, Floats]:
    """Balanced matrices (out, in) of a canonical sublayer by type, bias columns dropped."""
    matrices = plain_matrices(part, shape.d_model)
    squares = {t: _squares(w, axis=0 if t in WRITERS else 1) for t, w in matrices.items()}
    factors = scales(squares, shape, embed_rms)
    return {t: w * _shaped(factors[t], t).astype(w.dtype) for t, w in matrices.items()}


def plain_matrices(part: Attention | Mlp, d_model: int) -> dict[str, Floats]:
    """The matrices (out, in) of a canonical sublayer by type, without bias columns."""
    if isinstance(part, Attention):
        q, k, v = (heads[..., :d_model].reshape(-1, d_model) for heads in (part.q, part.k, part.v))
        return {"q": q, "k": k, "v": v, "o": np.hstack(list(part.o))}
    gate = {} if part.gate is None else {"gate": part.gate[:, :d_model]}
    return gate | {"up": part.up[:, :d_model], "down": part.down}


def _shaped(factor: Doubles, kind: str) -> Doubles:
    """A row vector for the columns of a writer, a column vector for the rows of a reader."""
    return factor[None, :] if kind in WRITERS else factor[:, None]


def _squares(w: Floats, axis: int) -> Doubles:
    return np.einsum("ij,ij->j" if axis == 0 else "ij,ij->i", w, w, dtype=np.float64)


def _ratio(numerator: Doubles, denominator: Doubles) -> Doubles:
    """Fourth root of a ratio of squared norms; 1 where either is 0: a dead head or neuron has nothing to balance."""
    alive = (numerator > 0) & (denominator > 0)
    return np.divide(numerator, denominator, out=np.ones_like(numerator), where=alive) ** 0.25


def _attention(squares: Mapping[str, Doubles], shape: ModelShape, embed_rms: float) -> dict[str, Doubles]:
    groups, d_head, per_group = shape.n_kv_heads, shape.d_head, shape.n_heads // shape.n_kv_heads
    q, k, v, o = (squares[t].reshape(groups, -1).sum(axis=1) for t in ("q", "k", "v", "o"))  # (G,)
    a, b = _ratio(k, q), _ratio(o / embed_rms**2, v)
    to_v, to_o = b, 1 / (embed_rms * b)
    if shape.norm_style == "sandwich":
        product = np.sqrt(v * o) / embed_rms  # squared norm of either side once balanced
        to_v = to_v * _common(product, d_head * shape.d_model)
        to_o = to_o * _common(product, per_group * d_head * shape.d_model)
    found = {"v": np.repeat(to_v, d_head), "o": np.repeat(to_o, per_group * d_head)}
    if shape.qk_norm is None:
        return found | {"q": np.repeat(a, per_group * d_head), "k": np.repeat(1 / a, d_head)}
    # The norm on queries and keys removes their scale: unit root mean square per head is the only invariant choice.
    return found | {t: np.repeat(_unit(squares[t].reshape(-1, d_head), shape.d_model), d_head) for t in ("q", "k")}


def _unit(squares: Doubles, d_model: int) -> Doubles:
    total = squares.sum(axis=1)
    n = squares.shape[1] * d_model
    return np.sqrt(np.divide(n, total, out=np.ones_like(total), where=total > 0))


def _common(squares: Doubles, size: int) -> Doubles:
    """One factor that gives balanced blocks unit root mean square together; 1 for a dead block, which has no scale.

    Args:
        squares: Sum of squares of each block, 0 where it or its partner is zero.
        size: Weights in a block.
    """
    alive = squares > 0
    factor = np.sqrt(alive.sum() * size / squares.sum()) if alive.any() else 1.0
    return np.where(alive, factor, 1.0)


def _mlp(squares: Mapping[str, Doubles], shape: ModelShape, embed_rms: float) -> dict[str, Doubles]:
    # Without a gate only a positively homogeneous activation lets a factor move from up to down.
    scale_is_free = "gate" in squares or shape.activation == "relu"
    c = _ratio(squares["down"] / embed_rms**2, squares["up"]) if scale_is_free else np.ones_like(squares["up"])
    found = {"up": c, "down": 1 / (embed_rms * c)}
    if shape.norm_style == "sandwich":
        product = (
            np.sqrt(squares["up"] * squares["down"]) / embed_rms if scale_is_free else squares["down"] / embed_rms**2
        )
        common = _common(product, shape.d_model)
        found["down"] = found["down"] * common
        if scale_is_free:
            found["up"] = found["up"] * common
    return found | ({"gate": np.ones_like(squares["gate"])} if "gate" in squares else {})
