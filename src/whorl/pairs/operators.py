"""Attention as partial isometries: the QK and OV operator of every head with all singular values set to one (ours).

A_h = Q_h^T K_g(h) and B_h = O_h V_g(h) are invariants of every rescaling inside attention (docs/canonical.md), but a few
large singular values dominate them, and those lie where all models of one language and recipe agree. What a model was
initialised with survives longest in the many small ones. So an operator A = U S V^T is replaced by its polar factor
U V^T over the values above `KEPT` of the largest, scaled to unit Frobenius norm. Measured on same-recipe twins against
copies trained longer than their parent: the least distance between both groups grew from 1.3 to 20 in units of the
unrelated maximum (with `whorl.pairs.sketch`, which leaves leading embedding directions out).

Nothing is formed at d x d: with Gram matrices G_L = L L^T, G_R = R R^T of the factors of L^T R and the SVD
U S V^T = G_L^(1/2) G_R^(1/2) of a d_h x d_h core, the polar factor is (U^T G_L^(-1/2) L)^T (V^T G_R^(-1/2) R).

The bias column of queries and keys is left out: its constant coordinate lines up in any two models without any frame.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from whorl.canonical.embedding import canonical_embedding
from whorl.canonical.form import canonical_attention
from whorl.canonical.model import CanonicalModel
from whorl.canonical.roles import Attention
from whorl.errors import NotComparable
from whorl.linalg.blocks import Doubles
from whorl.source import Floats

KEPT = 1e-3  # singular values below this share of the largest are rounding, not direction
_ROUNDING = 1e-12  # squares of a factor's singular values below this share of the largest: no direction left
WIDE = 256
"""In wider residual streams pairwise comparison takes samples: of tokens, directions, layers (docs of each say which)."""

CACHED_VALUES = 1 << 25  # 128 MiB per model: small models are read once, large ones once per pass


@dataclass(frozen=True, eq=False)
class HeadOperators:
    """The flattened operators left_h^T right_h of one kind in one layer.

    Args:
        left: (H, r, d), rows orthogonal; zero rows where a singular value was left out, all zero for a dead head.
        right: (H, r, d), likewise; each live head has unit Frobenius norm.
        values: (H, r) singular values of the operators before flattening, descending.
    """

    left: Floats
    right: Floats
    values: Doubles

    def times(self, x: Floats) -> Floats:
        """The sum over heads applied to columns: T x, (d, n)."""
        left, right = (m.reshape(-1, m.shape[-1]) for m in (self.left, self.right))
        return np.asarray(left.T @ (right @ x))

    def transposed_times(self, x: Floats) -> Floats:
        """T^T x, (d, n)."""
        left, right = (m.reshape(-1, m.shape[-1]) for m in (self.left, self.right))
        return np.asarray(right.T @ (left @ x))

    def within(self, x: Floats) -> "HeadOperators":
        """The operators seen through orthonormal columns x, (d, m): x^T A_h x by its factors (H, r, m)."""
        return HeadOperators(self.left @ x, self.right @ x, self.values)

    def norms(self) -> Doubles:
        """Frobenius norm of each head, (H,)."""
        products = (self.left @ self.left.transpose(0, 2, 1)) * (self.right @ self.right.transpose(0, 2, 1))
        return np.sqrt(np.maximum(products.sum(axis=(1, 2), dtype=np.float64), 0.0))

    def inner_products(self, other: "HeadOperators") -> Doubles:
        """<A_h, A'_h'> for all heads of both, (H, H')."""
        H, r, _ = self.left.shape
        G, q, _ = other.left.shape
        sides = (x.reshape(H * r, -1) @ y.reshape(G * q, -1).T for x, y in _sides(self, other))
        product = np.multiply(*sides)
        return product.reshape(H, r, G, q).sum(axis=(1, 3), dtype=np.float64)

    def cosines(self, other: "HeadOperators") -> Doubles:
        """Cosine of every pair of heads, (H, H'); NaN where one is dead."""
        scale = np.outer(self.norms(), other.norms())
        return np.divide(self.inner_products(other), scale, out=np.full(scale.shape, np.nan), where=scale > 0)


def _sides(a: HeadOperators, b: HeadOperators) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
    return (a.left, b.left), (a.right, b.right)


@dataclass(frozen=True, eq=False)
class LayerOperators:
    """Flattened QK and OV operators of one layer."""

    qk: HeadOperators
    ov: HeadOperators

    def __iter__(self) -> Iterator[HeadOperators]:
        """QK, then OV."""
        return iter((self.qk, self.ov))

    def within(self, x: Floats) -> "LayerOperators":
        """Both kinds seen through orthonormal columns x, (d, m)."""
        return LayerOperators(self.qk.within(x), self.ov.within(x))


def layer_operators(attention: Attention) -> LayerOperators:
    """The flattened operators of one canonical attention.

    Raises:
        NotComparable: a value is not finite in float64 products.
    """
    d = attention.o.shape[1]
    qk = flattened(attention.q[..., :d], attention.k[..., :d])
    return LayerOperators(qk, flattened(attention.o.transpose(0, 2, 1), attention.v))


def flattened(left: Floats, right: Floats) -> HeadOperators:
    """Polar factors of left_h^T right_g(h).

    Args:
        left: (H, r, d).
        right: (G, r, d), G divides H; head h uses group h G // H.

    Raises:
        NotComparable: values that are not finite in float64 products, or so small that their inverse is not.
    """
    repeat = len(left) // len(right)
    (root_l, inverse_l), (root_r, inverse_r) = (_roots(x) for x in (left, right))
    root_r, inverse_r = (np.repeat(x, repeat, axis=0) for x in (root_r, inverse_r))
    u, s, vt = np.linalg.svd(root_l @ root_r)
    kept = (s > KEPT * s[:, :1]) & (s > 0)
    scale = (kept / np.maximum(kept.sum(axis=1, keepdims=True), 1) ** 0.25)[:, :, None]  # (H, r, 1)
    kind = np.result_type(left.dtype, np.float32)
    with np.errstate(over="ignore"):  # looked at in the next line
        to_left = (scale * (u.transpose(0, 2, 1) @ inverse_l)).astype(kind)
        to_right = (scale * (vt @ inverse_r)).astype(kind)
    if not (np.isfinite(to_left).all() and np.isfinite(to_right).all()):
        raise NotComparable("degenerate: attention weights are too small to be brought to one size")
    return HeadOperators(to_left @ left, _grouped(to_right, right, repeat), s)


def _grouped(maps: Floats, right: Floats, repeat: int) -> Floats:
    """maps_h right_g(h), (H, r, d), without a copy of `right` per head."""
    G, r, d = right.shape
    return (maps.reshape(G, repeat * r, r) @ right).reshape(G * repeat, r, d)


def _roots(x: Floats) -> tuple[Doubles, Doubles]:
    """G^(1/2) and G^(-1/2) of G = x x^T in float64, (H, r, r) each; the inverse lives where x has directions."""
    with np.errstate(over="ignore", invalid="ignore"):  # looked at in the next line
        gram = np.stack([wide @ wide.T for wide in (head.astype(np.float64) for head in x)])
    if not np.isfinite(gram).all():
        raise NotComparable("not finite: squares of attention weights overflow")
    squares, vectors = np.linalg.eigh(gram)
    root = np.sqrt(np.maximum(squares, 0.0))
    alive = squares > _ROUNDING * np.maximum(squares[:, -1:], np.finfo(np.float64).tiny)
    inverse = np.divide(1.0, root, out=np.zeros_like(root), where=alive & (root > 0))
    turned = vectors.transpose(0, 2, 1)
    return (vectors * root[:, None, :]) @ turned, (vectors * inverse[:, None, :]) @ turned


class ModelOperators:
    """One open model as pairwise comparison sees it: flattened operators by layer, and its embedding rows.

    Layers of a small model are kept after the first read (`CACHED_VALUES`); of a large one each call reads its file.

    Args:
        model: Open; stays so and belongs to the caller.
    """

    def __init__(self, model: CanonicalModel) -> None:
        self.model = model
        s = model.shape
        self._cached = 4 * s.n_layers * s.n_heads * s.d_head * s.d_model <= CACHED_VALUES
        self._layers: dict[int, LayerOperators] = {}
        self._embedding: _Embedding | None = None

    @property
    def n_layers(self) -> int:
        """Layers L."""
        return self.model.shape.n_layers

    @property
    def width(self) -> int:
        """Residual width d."""
        return self.model.shape.d_model

    def layer(self, index: int) -> LayerOperators:
        """The flattened operators of one layer."""
        if index in self._layers:
            return self._layers[index]
        return self.of(canonical_attention(self.model.attention_part(index)))

    def of(self, attention: Attention) -> LayerOperators:
        """The flattened operators of a layer whose canonical attention is in memory."""
        if attention.layer in self._layers:
            return self._layers[attention.layer]
        found = layer_operators(attention)
        if self._cached:
            self._layers[attention.layer] = found
        return found

    def spectra(self) -> dict[str, Doubles]:
        """Singular values of every head before flattening: `qk` and `ov`, (L, H, r)."""
        found = [(qk.values, ov.values) for qk, ov in map(self.layer, range(self.n_layers))]
        return {"qk": np.array([qk for qk, _ in found]), "ov": np.array([ov for _, ov in found])}

    def unit_rows(self) -> Iterator[Floats]:
        """Canonical embedding rows scaled to unit length, in blocks; zero rows stay zero."""
        return (unit(block) for block in canonical_embedding(self.model))

    def moments(self) -> tuple[Doubles, Doubles]:
        """Mean (d,) and second moment (d, d), trace 1, of the unit rows; neither depends on the order of tokens."""
        found = self._read_embedding()
        trace = np.trace(found.square)
        if not trace > 0:
            raise NotComparable(f"degenerate: the embedding of {self.model.label} is all zero")
        return found.total / len(found.lengths), found.square / trace

    def lengths(self) -> Doubles:
        """Length of every canonical embedding row, (n,); read together with the moments."""
        return self._read_embedding().lengths

    def _read_embedding(self) -> "_Embedding":
        """One pass over the embedding, kept."""
        if self._embedding is None:
            total, square = np.zeros(self.width), np.zeros((self.width, self.width))
            lengths = [np.zeros(0)]
            for block in canonical_embedding(self.model):
                length = np.linalg.norm(block, axis=1, keepdims=True)
                lengths.append(length[:, 0].astype(np.float64))
                rows = _scaled(block, length)
                total += rows.sum(axis=0, dtype=np.float64)
                square += rows.T @ rows
            self._embedding = _Embedding(total, square, np.concatenate(lengths))
        return self._embedding


@dataclass(frozen=True, eq=False)
class _Embedding:
    """Of all embedding rows: sum (d,) and second moment (d, d) of unit rows, and lengths (n,)."""

    total: Doubles
    square: Doubles
    lengths: Doubles


def unit(rows: Floats) -> Floats:
    """Rows scaled to unit length; zero rows stay zero."""
    return _scaled(rows, np.linalg.norm(rows, axis=1, keepdims=True))


def _scaled(rows: Floats, length: Floats) -> Floats:
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)


def polar(matrix: Doubles) -> Doubles:
    """The nearest matrix with orthonormal rows (or columns, if it has fewer columns): U W^T of U S W^T."""
    u, _, wt = np.linalg.svd(matrix, full_matrices=False)
    return np.asarray(u @ wt)
