"""Rung 3: the map between two residual streams from attention operators alone, without tokens (ours).

First frame, from vectors that rotate with the model: the mean unit embedding row m, which needs no matching of tokens,
and all words T_i m, T_j T_i m ... in the head-summed flattened operators of aligned layers and their transposes. If
B = R^T A R for every operator and vector, then w_B = w_A R for every word, so R = polar(sum_w w_A^T w_B).

Then R <- polar(sum_j A_j R B_j^T + A_j^T R B_j) as long as the mean cosine of A_j and R B_j R^T grows. In spaces wider
than `WIDTH` the products are taken with random orthonormal probes, drawn anew in each step: A_j R Z (B_j Z)^T.

There words grow from no more parents than are needed, and at most `FITTED_OF_WIDE` layers are fitted.

Only every other aligned layer is fitted; the others are left for scoring, since a fit finds agreement in what it sees.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from whorl.linalg.blocks import Doubles
from whorl.pairs.operators import HeadOperators, ModelOperators, polar, unit
from whorl.source import Floats

WIDTH = 256
MAX_STEPS = 60
MAX_STEPS_STREAMED = 6  # each reads the fitted layers again
GAIN = 1e-3  # of the mean cosine, in the best of the last `PATIENCE` steps
PATIENCE = 2
MAX_DEPTH = 4
FITTED_OF_WIDE = 4  # one pair of operators of full rank determines a map; layers that are fitted are not scored


@dataclass(frozen=True)
class OperatorFrame:
    """A frame from operators.

    Args:
        r: (d_a, d_b).
        cosine: Mean cosine of the fitted operators under it; large by construction.
    """

    r: Doubles
    cosine: float


def operator_frame(a: ModelOperators, b: ModelOperators, fitted: Sequence[tuple[int, int]], seed: int) -> OperatorFrame:
    """The frame in which the operators of the given aligned layers agree best, by local search from one start.

    Args:
        a: One model.
        b: The other.
        fitted: Aligned layers to fit, at least one.
        seed: Of the probes.
    """
    r = polar(words(a, [i for i, _ in fitted], b.width).T @ words(b, [j for _, j in fitted], a.width))
    rng = np.random.default_rng(seed)
    streamed = max(a.width, b.width) > WIDTH
    best, found, stale = -np.inf, r, 0
    for _ in range(MAX_STEPS_STREAMED if streamed else MAX_STEPS):
        total, cosine = _step(a, b, fitted, r, _probes(b.width, rng))
        stale = 0 if cosine > best + GAIN else stale + 1
        if cosine > best:
            best, found = cosine, r
        if stale >= PATIENCE:
            break
        r = polar(total)
    return OperatorFrame(found, best)


def words(model: ModelOperators, layers: Sequence[int], other_width: int) -> Doubles:
    """Unit vectors that rotate with the model, (n, d): the mean unit row and words in the operators applied to it.

    Words grow until they are twice as many as the dimensions to be mapped, or of `MAX_DEPTH` letters. In wide models the
    last ones grow from evenly spread parents, as many as are needed.
    """
    wanted = 2 * min(model.width, other_width)
    wide = max(model.width, other_width) > WIDTH
    mean = model.moments()[0]
    last = mean[None] / max(float(np.linalg.norm(mean)), np.finfo(np.float64).tiny)
    found, count = [last], 1
    for _ in range(MAX_DEPTH):
        if count >= wanted:
            break
        parents = -(-(wanted - count) // (4 * len(layers)))  # each has four children a layer
        if wide and parents < len(last):
            last = last[np.linspace(0, len(last) - 1, parents).astype(np.intp)]
        last = unit(np.concatenate(list(_letters(model, layers, last)))).astype(np.float64)
        found.append(last)
        count += len(last)
    return np.concatenate(found)


def _letters(model: ModelOperators, layers: Sequence[int], vectors: Doubles) -> Iterator[Doubles]:
    columns = vectors.T.astype(np.float32)
    for layer in layers:
        for heads in model.layer(layer):
            yield heads.times(columns).T.astype(np.float64)
            yield heads.transposed_times(columns).T.astype(np.float64)


def _probes(width: int, rng: np.random.Generator) -> Floats:
    """Orthonormal columns, (d, min(d, WIDTH)); the identity in small spaces."""
    if width <= WIDTH:
        return np.eye(width, dtype=np.float32)
    return np.linalg.qr(rng.standard_normal((width, WIDTH)).astype(np.float32))[0]


def _step(
    a: ModelOperators, b: ModelOperators, fitted: Sequence[tuple[int, int]], r: Doubles, z: Floats
) -> tuple[Doubles, float]:
    """The matrix whose polar factor is the next map, and the mean cosine of the operators under the present one."""
    turn = r.astype(np.float32)
    mapped = turn @ z
    total, cosines = np.zeros(r.shape), []
    for i, j in fitted:
        for one, other in zip(a.layer(i), b.layer(j), strict=True):
            for x, y in _images(one, other, mapped, z):
                scale = float(np.linalg.norm(x)) * float(np.linalg.norm(y))
                if scale > 0:
                    total += (x @ y.T) / scale
                    cosines.append(float(np.vdot(x, turn @ y)) / scale)
    return total, float(np.mean(cosines)) if cosines else 0.0


def _images(a: HeadOperators, b: HeadOperators, mapped: Floats, z: Floats) -> Iterator[tuple[Floats, Floats]]:
    """A R Z with B Z, and A^T R Z with B^T Z."""
    yield a.times(mapped), b.times(z)
    yield a.transposed_times(mapped), b.transposed_times(z)
