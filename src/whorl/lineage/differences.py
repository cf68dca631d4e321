"""W_B - W_A tensor by tensor, in row blocks: sizes, inner products, equal values and zeros (ours).

    dd = |W_B - W_A|^2      aa = |W_A|^2      bb = |W_B|^2      ab = <W_A, W_B>      (Frobenius, float64)

Values count as equal when they agree after rounding to the coarser stored mantissa, so that a cast is no difference.
A tensor that fills one tensor on disk is streamed; a fused or transposed one is decoded whole, one at a time.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from whorl.canonical.layout import Key, Stored
from whorl.canonical.model import CanonicalModel
from whorl.canonical.roles import MATRIX_ROLES
from whorl.errors import MalformedFile
from whorl.lineage.exact import MANTISSA_BITS, rounded
from whorl.source import Floats, TensorSource

ROWS_PER_BLOCK = 512
TABLE_ROLES = ("embed", "unembed", "pos_embed")

LayerMap = tuple[tuple[int | None, int | None], ...]


@dataclass(frozen=True, eq=False)
class RoleRows:
    """One role of a model as `RowBlocks`, (out, in); vectors are one row.

    Args:
        source: The model's tensors.
        stored: The tensor on disk that holds the role.
        role: The role.
        n_rows: Only this many leading rows; None for all.
    """

    source: TensorSource
    stored: Stored
    role: str
    n_rows: int | None = None

    @property
    def dtype(self) -> str:
        """Stored type, as `TensorInfo.dtype`."""
        return self.source.tensors[self.stored.name].dtype

    @property
    def bits(self) -> int:
        """Mantissa bits of the stored type; quantised types decode to float32 and count as such."""
        return MANTISSA_BITS.get(self.dtype, MANTISSA_BITS["F32"])

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns), without reading anything."""
        rows, columns = self._whole_shape()
        return (rows if self.n_rows is None else min(rows, self.n_rows)), columns

    def blocks(self) -> Iterator[Floats]:
        """Consecutive row blocks."""
        rows = self.shape[0]
        whole = None if self._streams() else self._decoded()
        for start in range(0, rows, ROWS_PER_BLOCK):
            yield self._between(start, min(start + ROWS_PER_BLOCK, rows), whole)

    def sample(self, n_rows: int) -> Floats:
        """Up to `n_rows` rows, in four runs spread over the matrix."""
        rows = self.shape[0]
        if rows <= n_rows:
            return np.concatenate(list(self.blocks()))
        whole = None if self._streams() else self._decoded()
        run = n_rows // 4
        starts = np.linspace(0, rows - run, 4).astype(int)
        return np.concatenate([self._between(int(s), int(s) + run, whole) for s in starts])

    def _streams(self) -> bool:
        stored = self.stored
        whole = len(stored.roles) == 1 and stored.row is None and not stored.split.transposed
        return whole and len(stored.shape) == 2

    def _between(self, start: int, stop: int, whole: Floats | None) -> Floats:
        return self.source.rows(self.stored.name, start, stop) if whole is None else whole[start:stop]

    def _decoded(self) -> Floats:
        first, last = (0, None) if self.stored.row is None else (self.stored.row, self.stored.row + 1)
        array = self.stored.unpack(self.source.rows(self.stored.name, first, last))[self.role]
        return np.atleast_2d(array)

    def _whole_shape(self) -> tuple[int, int]:
        split = self.stored.split
        shape = self.stored.shape if self.stored.row is None else self.stored.shape[1:]
        if split.transposed and len(shape) == 2:
            shape = (shape[1], shape[0])
        rows = shape[0]
        if len(split.counts) > 1:
            rows = split.groups * split.counts[self.stored.roles.index(self.role)] * split.width
        return (rows, shape[1]) if len(shape) == 2 else (1, rows)


@dataclass(frozen=True, eq=False)
class RolePair:
    """The same role in both models, equal shapes.

    Args:
        role: Role, with `.b` for a bias.
        layer_a: Layer in A, None outside the layers.
        layer_b: Layer in B.
        expert: Routed expert, or None.
        a: Rows of A.
        b: Rows of B.
    """

    role: str
    layer_a: int | None
    layer_b: int | None
    expert: int | None
    a: RoleRows
    b: RoleRows

    @property
    def name(self) -> str:
        """Name on disk in A; a role of a fused tensor is named after it."""
        fused = len(self.a.stored.roles) > 1 or self.a.stored.row is not None
        suffix = f"[{self.role}{'' if self.expert is None else f' {self.expert}'}]" if fused else ""
        return self.a.stored.name + suffix

    @property
    def is_layer_matrix(self) -> bool:
        """Whether this is a weight matrix inside a layer."""
        return self.layer_a is not None and self.role in MATRIX_ROLES

    @property
    def bits(self) -> int:
        """The coarser stored mantissa."""
        return min(self.a.bits, self.b.bits)


@dataclass(frozen=True)
class Kept:
    """What happens where one side is not zero: the survivors of pruning on that side.

    Args:
        n_zero: Zeros on this side.
        n_equal: Non-zero values that equal the other side's.
        same: Squared norm of this side.
        other: Squared norm of the other side at the same places.
        dot: Their inner product.
        n_fours: Groups of four neighbours in a row (0 when the width is not divisible by four).
        n_two_four: Of those, groups with at least two zeros on this side.
    """

    n_zero: int
    n_equal: int
    same: float
    other: float
    dot: float
    n_fours: int
    n_two_four: int

    @property
    def cosine(self) -> float | None:
        """Cosine of the survivors with the other side, None when nothing survives."""
        return _cosine(self.same, self.other, self.dot)


@dataclass(frozen=True, eq=False)
class TensorDifference:
    """The sums of one role pair; see the module's formulae.

    Args:
        pair: What was compared.
        n: Values.
        n_equal: Values equal at the coarser mantissa.
        aa: Squared norm of A.
        bb: Squared norm of B.
        dd: Squared norm of the difference.
        ab: Inner product.
        largest: Largest magnitude in A and in B.
        kept: Zeros and survivors of A and of B.
        constant: Whether A holds one single value, as fresh norm gains do.
    """

    pair: RolePair
    n: int
    n_equal: int
    aa: float
    bb: float
    dd: float
    ab: float
    largest: tuple[float, float]
    kept: tuple[Kept, Kept]
    constant: bool

    @property
    def equal(self) -> bool:
        """Whether every value is equal."""
        return self.n == self.n_equal

    @property
    def cosine(self) -> float | None:
        """Cosine of the two tensors as vectors, None when one is zero."""
        return _cosine(self.aa, self.bb, self.ab)


def role_pairs(a: CanonicalModel, b: CanonicalModel, layers: LayerMap) -> Iterator[RolePair]:
    """Every role that both models have with equal shapes, in the order of A's layers in the map, then outside them.

    Token tables of different height are compared on their leading common rows.
    """
    ours, theirs = dict(a.layout.slots()), dict(b.layout.slots())
    for i, j in layers:
        if i is None or j is None:
            continue
        for (role, layer, expert), stored in ours.items():
            other = theirs.get((role, j, expert))
            if layer == i and other is not None:
                yield from _same_shape(_pair(a, b, (role, i, expert), j, stored, other))
    for key, stored in ours.items():
        if key[1] is None and key in theirs:
            yield from _same_shape(_pair(a, b, key, None, stored, theirs[key]))


def measure(pair: RolePair) -> TensorDifference:
    """All sums of one pair in a single pass.

    Raises:
        MalformedFile: a value is NaN or infinite.
    """
    sums, counts = np.zeros(4), np.zeros(2, np.int64)
    kept = np.zeros((2, 7))
    largest, low, high = np.zeros(2), np.inf, -np.inf
    for x, y in zip(pair.a.blocks(), pair.b.blocks(), strict=True):
        equal = rounded(x, pair.bits) == rounded(y, pair.bits)
        u, v = x.astype(np.float64, copy=False), y.astype(np.float64, copy=False)
        sums += _sums(u, v)
        counts += (x.size, int(equal.sum()))
        kept += (_kept(u, v, equal), _kept(v, u, equal))
        low, high = min(low, float(u.min())), max(high, float(u.max()))
        largest = np.maximum(largest, (max(float(u.max()), -float(u.min())), max(float(v.max()), -float(v.min()))))
    if not np.isfinite(sums).all():
        raise MalformedFile("tensor", pair.name, "NaN or infinite values", "finite numbers", "No method can use it.")
    aa, bb, dd, ab = (float(value) for value in sums)
    sides = _as_kept(kept[0]), _as_kept(kept[1])
    top = float(largest[0]), float(largest[1])
    return TensorDifference(pair, int(counts[0]), int(counts[1]), aa, bb, dd, ab, top, sides, low == high)


def total(tensors: Iterable[TensorDifference]) -> tuple[int, int, float, float, float, float]:
    """n, n_equal, aa, bb, dd, ab summed over tensors."""
    rows: Sequence[tuple[float, ...]] = [(t.n, t.n_equal, t.aa, t.bb, t.dd, t.ab) for t in tensors]
    n, n_equal, aa, bb, dd, ab = np.array(rows).reshape(-1, 6).sum(axis=0).tolist()
    return int(n), int(n_equal), aa, bb, dd, ab


def _pair(
    a: CanonicalModel, b: CanonicalModel, key: Key, layer_b: int | None, stored: Stored, other: Stored
) -> RolePair:
    role, layer, expert = key
    rows = None
    if role in TABLE_ROLES:
        rows = min(stored.shape[0], other.shape[0])
    left, right = RoleRows(a.source, stored, role, rows), RoleRows(b.source, other, role, rows)
    return RolePair(role, layer, layer_b, expert, left, right)


def _same_shape(pair: RolePair) -> Iterator[RolePair]:
    if pair.a.shape == pair.b.shape and min(pair.a.shape):
        yield pair


def _sums(u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
    d = v - u
    return np.array([np.vdot(u, u), np.vdot(v, v), np.vdot(d, d), np.vdot(u, v)])


def _kept(x: NDArray[np.float64], other: NDArray[np.float64], equal: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The fields of `Kept` for side `x`."""
    alive = x != 0
    n_zero = x.size - int(alive.sum())
    fours = x.size // 4 if x.shape[1] % 4 == 0 else 0
    two_four = int(((~alive).reshape(-1, 4).sum(axis=1) >= 2).sum()) if fours and n_zero else 0
    there = other if not n_zero else np.where(alive, other, 0.0)
    sums = np.vdot(x, x), np.vdot(there, there), np.vdot(x, there)
    return np.array([n_zero, int((equal & alive).sum()), *sums, fours, two_four])


def _as_kept(row: NDArray[np.float64]) -> Kept:
    n_zero, n_equal, same, other, dot, fours, two_four = row.tolist()
    return Kept(int(n_zero), int(n_equal), same, other, dot, int(fours), int(two_four))


def _cosine(x: float, y: float, dot: float) -> float | None:
    return float(dot / np.sqrt(x * y)) if x > 0 and y > 0 else None
