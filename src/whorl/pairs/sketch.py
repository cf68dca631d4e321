"""Small pictures of every layer in a common frame, to find out which layer corresponds to which (ours).

The directions in which embedding rows vary most are those in which models of one language come to agree by training
alone. The leading quarter of them (of both models together) is left out of every comparison. What remains is spanned by
orthonormal columns x_a, x_b = r^T x_a; the sketch of a layer is x^T (sum_h A_h) x for its flattened QK and OV
operators, at most `WIDTH` x `WIDTH` numbers each: a random part of the remaining space where it is larger.
"""

from dataclasses import dataclass

import numpy as np

from whorl.linalg.blocks import Doubles
from whorl.pairs.operators import ModelOperators
from whorl.source import Floats

LEFT_OUT = 0.25  # share of directions, those in which embeddings vary most
WIDTH = 256


@dataclass(frozen=True, eq=False)
class Basis:
    """Directions that are compared, in both frames.

    Args:
        a: (d_a, m), orthonormal columns.
        b: (d_b, m), orthonormal columns; column k of both is the same direction.
    """

    a: Floats
    b: Floats

    def narrowed(self, width: int, seed: int) -> "Basis":
        """A random part of the space, `width` wide; the basis itself where it is no wider."""
        m = self.a.shape[1]
        if m <= width:
            return self
        turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((m, width)))[0].astype(self.a.dtype)
        return Basis(self.a @ turn, self.b @ turn)


def quiet_basis(a: ModelOperators, b: ModelOperators, r: Floats) -> Basis:
    """All directions of the narrower model but the `LEFT_OUT` share in which embeddings vary most.

    Args:
        a: One model.
        b: The other.
        r: Shape (d_a, d_b), a map between their residual streams.
    """
    (_, square_a), (_, square_b) = a.moments(), b.moments()
    a_is_narrow = a.width <= b.width
    both = square_a + r @ square_b @ r.T if a_is_narrow else r.T @ square_a @ r + square_b
    width = len(both)
    kept = np.linalg.eigh(both)[1][:, : width - int(width * LEFT_OUT)].astype(np.float32)  # ascending
    turn = r.astype(np.float32)
    return Basis(kept, turn.T @ kept) if a_is_narrow else Basis(turn @ kept, kept)


def sketches(model: ModelOperators, x: Floats) -> Doubles:
    """x^T T x at unit norm for the QK and OV operators of every layer: (L, 2, m, m); zeros for a dead layer."""
    found: Doubles = np.zeros((model.n_layers, 2, x.shape[1], x.shape[1]))
    for layer in range(model.n_layers):
        for kind, heads in enumerate(model.layer(layer)):
            found[layer, kind] = x.T @ heads.times(x)
    return normalised(found)


def normalised(stack: Doubles) -> Doubles:
    """Matrices at unit Frobenius norm; zeros stay zeros."""
    norm = np.sqrt(np.einsum("...ij,...ij->...", stack, stack))[..., None, None]
    return np.divide(stack, norm, out=np.zeros_like(stack), where=norm > 0)


def layer_similarities(a: Floats, b: Floats) -> Doubles:
    """Mean cosine of QK and OV sketches of every pair of layers, (L_a, L_b)."""
    return np.asarray(a.reshape(len(a), -1) @ b.reshape(len(b), -1).T / 2, dtype=np.float64)


def live_layers(stack: Doubles) -> Doubles:
    """Which layers have live QK and OV operators, (L,) of 0 and 1."""
    return np.any(stack != 0, axis=(2, 3)).all(axis=1).astype(np.float64)


def path_scores(scores: Doubles) -> Doubles:
    """The largest sum of similarities along a monotone path, per layer of the shallower model, for many score matrices.

    Args:
        scores: (b, L_a, L_b).

    Returns:
        (b,), never negative: layers may be left out at no cost.
    """
    count, rows, columns = scores.shape
    best = np.zeros((columns + 1, count))
    for i in range(rows):
        above = best.copy()
        for j in range(columns):
            matched = above[j] + scores[:, i, j]
            best[j + 1] = np.maximum(np.maximum(above[j + 1], best[j]), matched)
    return best[-1] / min(rows, columns)
