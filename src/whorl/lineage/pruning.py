"""Was one model cut out of the other: zeros among its weights, or neurons, heads and width that are gone? (ours)

Unstructured: the share of zeros rises, and where a weight survives it equals the other model's or follows it.
Structured: every neuron (head, residual coordinate) that is left is found among the larger model's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from whorl.canonical.model import CanonicalModel
from whorl.linalg.matching import assign
from whorl.lineage.differences import Kept, LayerMap, RolePair, RoleRows, TensorDifference
from whorl.source import Floats

MIN_EXTRA_ZEROS = 0.05  # share; trained weights hold next to none, and pruning recipes start at 0.1
MIN_SURVIVOR_COSINE = 0.5  # unrelated weights give 0 +- 1/sqrt(n); SparseGPT updates stay above 0.9 (ours)
TWO_FOUR_SHARE = 0.999
MAGNITUDE = 0.99  # probability that a zeroed weight was smaller than a kept one; random zeros give 0.5
SAMPLE_ROWS = 32
MAX_LAYERS = 3  # matched layers looked at for neurons and heads
MAX_ITEMS = 192  # neurons or heads of the smaller model matched per layer
TABLE_ROWS = 2048  # token rows on which residual coordinates are matched


@dataclass(frozen=True)
class Zeros:
    """Unstructured pruning of one side.

    Args:
        share: Zeros among the layer matrices of the pruned side.
        share_other: Zeros among those of the other.
        equal: Share of survivors that equal the other model's.
        cosine: Cosine of the survivors.
        pattern: "2:4" or "unstructured".
        magnitude: Probability that a zeroed weight was smaller, in the other model, than a kept one of the same matrix
            (of the same four for 2:4); None when the sample holds no such pair.
    """

    share: float
    share_other: float
    equal: float
    cosine: float
    pattern: str
    magnitude: float | None

    @property
    def by_magnitude(self) -> bool:
        """Whether the smallest weights were zeroed."""
        return self.magnitude is not None and self.magnitude >= MAGNITUDE


def find_zeros(tensors: Sequence[TensorDifference], side: int) -> Zeros | None:
    """Zeros of side 0 (A) or 1 (B) that the other side does not have; None when there are no more than there."""
    # A matrix that is zero altogether belongs to an idle layer, not to a pruned one.
    matrices = [t for t in tensors if t.pair.is_layer_matrix and t.kept[side].n_zero < t.n]
    n = sum(t.n for t in matrices)
    if not n:
        return None
    ours, theirs = (sum(t.kept[s].n_zero for t in matrices) / n for s in (side, 1 - side))
    cosine = _cosine([t.kept[side] for t in matrices])
    if ours - theirs < MIN_EXTRA_ZEROS or cosine is None:
        return None
    pruned = [t for t in matrices if t.kept[side].n_zero > t.kept[1 - side].n_zero]
    fours = [t.kept[side] for t in pruned]
    n_fours = sum(k.n_fours for k in fours)
    two_four = n_fours > 0 and sum(k.n_two_four for k in fours) >= TWO_FOUR_SHARE * n_fours
    survivors = n - sum(t.kept[side].n_zero for t in matrices)
    equal = sum(t.kept[side].n_equal for t in matrices) / max(survivors, 1)
    ranks = [value for t in pruned if (value := _smaller_first(t.pair, side, two_four)) is not None]
    magnitude = float(np.mean(ranks)) if ranks else None
    return Zeros(ours, theirs, equal, cosine, "2:4" if two_four else "unstructured", magnitude)


def _cosine(kept: Sequence[Kept]) -> float | None:
    same, other, dot = (sum(values) for values in zip(*((k.same, k.other, k.dot) for k in kept), strict=True))
    return float(dot / np.sqrt(same * other)) if same > 0 and other > 0 else None


def _smaller_first(pair: RolePair, side: int, in_fours: bool) -> float | None:
    """P(|w| of a zeroed weight < |w| of a kept one), ties half, on sampled rows."""
    sides = pair.a.sample(SAMPLE_ROWS), pair.b.sample(SAMPLE_ROWS)
    gone, size = sides[side] == 0, np.abs(sides[1 - side])
    return _within_fours(gone, size) if in_fours else _rank_probability(gone.ravel(), size.ravel())


def _within_fours(gone: NDArray[np.bool_], size: Floats) -> float | None:
    """The same, over all pairs of a zeroed and a kept weight inside one group of four."""
    gone, size = gone.reshape(-1, 4), size.reshape(-1, 4)
    mixed = gone[:, :, None] & ~gone[:, None, :]  # (groups, zeroed, kept)
    if not mixed.any():
        return None
    smaller = (size[:, :, None] < size[:, None, :]) + 0.5 * (size[:, :, None] == size[:, None, :])
    return float(smaller[mixed].mean())


def _rank_probability(gone: NDArray[np.bool_], size: Floats) -> float | None:
    """Area under the curve, by ranks (Mann and Whitney 1947)."""
    from scipy.stats import rankdata

    n_gone, n_kept = int(gone.sum()), int((~gone).sum())
    if not n_gone or not n_kept:
        return None
    kept_ranks = float(rankdata(size)[~gone].sum())
    return (kept_ranks - n_kept * (n_kept + 1) / 2) / (n_gone * n_kept)


@dataclass(frozen=True)
class Subset:
    """Items of the smaller model found in the larger.

    Args:
        what: "neurons", "heads" or "width".
        n_small: Items of the smaller model.
        n_large: Items of the larger model.
        cosine: Median cosine of matched items.
        null: Largest cosine that chance gives for as many candidates: sqrt(2 ln n / d).
    """

    what: str
    n_small: int
    n_large: int
    cosine: float
    null: float

    @property
    def holds(self) -> bool:
        """Whether the median match lies above the middle between chance and equality."""
        return self.cosine >= (1 + self.null) / 2


def find_subsets(a: CanonicalModel, b: CanonicalModel, layers: LayerMap, columns: "Columns | None") -> list[Subset]:
    """What the smaller side of every differing size keeps of the larger.

    Args:
        a: One model.
        b: The other.
        layers: Matched layers.
        columns: Residual coordinates that correspond, when the widths differ; see `match_columns`.
    """
    found: list[Subset] = []
    chosen = [(i, j) for i, j in layers if i is not None and j is not None]
    chosen = [chosen[k] for k in np.unique(np.linspace(0, len(chosen) - 1, min(MAX_LAYERS, len(chosen))).astype(int))]
    if columns is not None:
        found.append(columns.subset)
    if a.shape.d_mlp != b.shape.d_mlp and not a.shape.n_experts and not b.shape.n_experts:
        roles = tuple(r for r in ("gate", "up") if r != "gate" or (a.shape.gated and b.shape.gated))
        found.append(_subset("neurons", a, b, chosen, columns, roles, 1))
    if a.shape.n_heads != b.shape.n_heads and a.shape.d_head == b.shape.d_head:
        found.append(_subset("heads", a, b, chosen, columns, ("q",), a.shape.d_head))
    return found


@dataclass(frozen=True, eq=False)
class Columns:
    """Residual coordinates of two models that correspond.

    Args:
        of_a: Coordinates of A, ascending in B's order.
        of_b: Coordinates of B.
        subset: How well they match.
    """

    of_a: NDArray[np.intp]
    of_b: NDArray[np.intp]
    subset: Subset

    def cut(self, x: Floats, side: int) -> Floats:
        """The corresponding columns of a reader of A (0) or B (1)."""
        return x[:, self.of_a if side == 0 else self.of_b]


def match_columns(a: CanonicalModel, b: CanonicalModel) -> Columns:
    """Residual coordinates of different widths, matched on the leading rows of the token tables (same ids assumed)."""
    left, right = _table(a), _table(b)
    n = min(len(left), len(right))
    cosine = _unit(left[:n].T) @ _unit(right[:n].T).T
    rows, columns, _ = assign(-cosine)
    small, large = sorted(cosine.shape)
    median = float(np.median(cosine[rows, columns]))
    order = np.argsort(columns)
    return Columns(rows[order], columns[order], Subset("width", small, large, median, _chance(large, n)))


def _table(model: CanonicalModel) -> Floats:
    stored = model.layout.outer["embed"]
    return model.source.rows(stored.name, 0, min(TABLE_ROWS, stored.shape[0]))


def _subset(
    what: str,
    a: CanonicalModel,
    b: CanonicalModel,
    layers: Sequence[tuple[int, int]],
    columns: Columns | None,
    roles: Sequence[str],
    height: int,
) -> Subset:
    cosines: list[float] = []
    sizes, width = (0, 0), 1
    for i, j in layers:
        x = _items(a, i, roles, columns, 0, height)
        y = _items(b, j, roles, columns, 1, height)
        sizes, width = (len(x), len(y)), x.shape[1]
        small, large = (x, y) if len(x) <= len(y) else (y, x)
        small = small[np.unique(np.linspace(0, len(small) - 1, min(MAX_ITEMS, len(small))).astype(int))]
        scores = _unit(small) @ _unit(large).T
        cosines += scores[assign(-scores)[:2]].tolist()
    return Subset(what, min(sizes), max(sizes), float(np.median(cosines)), _chance(max(sizes), width))


def _items(
    model: CanonicalModel,
    layer: int,
    roles: Sequence[str],
    columns: Columns | None,
    side: int,
    height: int,
) -> Floats:
    """Items as rows: a neuron is its gate and up rows side by side, a head all its query rows."""
    slots = {key: stored for key, stored in model.layout.slots() if key[1] == layer}
    pieces = []
    for role in roles:
        rows = RoleRows(model.source, slots[role, layer, None], role)
        array = np.concatenate(list(rows.blocks()))
        array = array if columns is None else columns.cut(array, side)
        pieces.append(array.reshape(len(array) // height, -1))
    return np.concatenate(pieces, axis=1)


def _unit(x: Floats) -> Floats:
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x / np.where(norm > 0, norm, 1))


def _chance(n: int, d: int) -> float:
    return float(np.sqrt(2 * np.log(max(n, 2)) / max(d, 1)))
