"""Do two models compute the same inside one residual frame, whatever the coordinates inside heads and neurons? (ours)

Per matched layer, with norms folded and without any alignment:

    QK   A_h = Q_h^T K_g(h)     OV   B_h = O_h V_g(h)     gate rows     up_j (x) down_j

Each is unchanged by rescaling queries against keys, values against outputs, neurons, and gains against their readers.
The cosine is scale-free and taken over all heads (neurons) of the layer; none of the d x d operators is formed.
"""

from collections.abc import Sequence

import numpy as np

from whorl.canonical.form import canonical_attention, canonical_mlp
from whorl.canonical.model import CanonicalModel
from whorl.canonical.roles import Attention, Mlp, Part
from whorl.source import Floats

LayerCosine = tuple[int, int, float]


def same_frame_cosines(
    a: CanonicalModel, b: CanonicalModel, layers: Sequence[tuple[int, int]]
) -> tuple[LayerCosine, ...]:
    """(layer of A, layer of B, smallest cosine of its operators), one pass, one sublayer of each in memory.

    Args:
        a: One model.
        b: The other; equal sizes.
        layers: Matched layers.
    """
    result: list[LayerCosine] = []
    for i, j in layers:
        cosines = [_cosine(x, y) for x, y in zip(a.layer_parts(i), b.layer_parts(j), strict=True)]
        result.append((i, j, min(cosines)))
    return tuple(result)


def _cosine(x: Part, y: Part) -> float:
    if x.kind == "attention":
        return _attention(canonical_attention(x), canonical_attention(y))
    return _mlp(canonical_mlp(x), canonical_mlp(y))


def _attention(x: Attention, y: Attention) -> float:
    group = np.arange(len(x.q)) * len(x.k) // len(x.q)
    qk = _ratio(_products(x.q, x.k[group], y.q, y.k[group]))
    out = [part.o.transpose(0, 2, 1) for part in (x, y)]  # (H, d_h, d)
    return min(qk, _ratio(_products(out[0], x.v[group], out[1], y.v[group])))


def _products(q: Floats, k: Floats, q2: Floats, k2: Floats) -> tuple[float, float, float]:
    """<M, M>, <M', M'>, <M, M'> for M_h = Q_h^T K_h: sum of (Q Q'^T) * (K K'^T), each d_h x d_h."""

    def inner(left: Floats, right: Floats, left2: Floats, right2: Floats) -> float:
        one = left.astype(np.float64) @ left2.astype(np.float64).transpose(0, 2, 1)
        other = right.astype(np.float64) @ right2.astype(np.float64).transpose(0, 2, 1)
        return float(np.vdot(one, other))

    return inner(q, k, q, k), inner(q2, k2, q2, k2), inner(q, k, q2, k2)


def _mlp(x: Mlp, y: Mlp) -> float:
    terms = [(_dots(u, u) * _dots(v, v), _dots(s, s) * _dots(t, t), _dots(u, s) * _dots(v, t))
             for u, v, s, t in ((x.up, x.down.T, y.up, y.down.T),)]  # fmt: skip
    sums = [(float(p.sum()), float(q.sum()), float(r.sum())) for p, q, r in terms]
    if x.gate is not None and y.gate is not None:
        sums.append((_norm(x.gate, x.gate), _norm(y.gate, y.gate), _norm(x.gate, y.gate)))
    return min(_ratio(values) for values in sums)


def _dots(x: Floats, y: Floats) -> Floats:
    return np.einsum("ij,ij->i", x.astype(np.float64), y.astype(np.float64))


def _norm(x: Floats, y: Floats) -> float:
    return float(_dots(x, y).sum())


def _ratio(values: tuple[float, float, float]) -> float:
    """Cosine; two zero operators are equal, one zero operator has nothing in common with the other."""
    xx, yy, xy = values
    if xx == 0 and yy == 0:
        return 1.0
    return xy / float(np.sqrt(xx * yy)) if xx > 0 and yy > 0 else 0.0
