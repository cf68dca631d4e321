"""Linear assignment: one-to-one matching at least total cost, plain, in two levels (groups, then heads), and of rows by
their cosine, with a list of candidates where the whole matrix of cosines would be too large.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whorl.errors import NotComparable, UsageError
from whorl.linalg.blocks import Doubles
from whorl.source import Floats

Indices = NDArray[np.intp]

DENSE_ROWS = 2048  # up to here all cosines are weighed; one dense assignment of this size takes about a second
NEIGHBOURS = 32
PROJECTED = 512
"""Wider rows are compared in so many random directions when only near neighbours are weighed: cosines then err by 0.04."""
_ROWS_AT_ONCE = 512


def assign(cost: Floats) -> tuple[Indices, Indices, float]:
    """The matching of min(m, n) rows and columns with the least total cost.

    Args:
        cost: Shape (m, n), finite; m and n may differ.

    Returns:
        Matched rows (ascending), their columns, and the total cost in float64.

    Raises:
        NotComparable: a cost is NaN or infinite; a NaN would otherwise pick the matching.
        UsageError: not two-dimensional.
    """
    from scipy.optimize import linear_sum_assignment

    finite = _checked(cost)
    rows, columns = linear_sum_assignment(finite)
    return rows, columns, float(finite[rows, columns].sum())


def match_heads(distance: Floats, groups: Sequence[int], groups_other: Sequence[int]) -> list[tuple[int, int]]:
    """Match attention heads so that heads of one key/value group go to heads of one group.

    An inner assignment over the heads of every group pair gives the group costs, an outer one matches the groups: the
    least total distance among all matchings that respect the groups. Where two groups differ in size the inner
    assignment leaves heads out; the cost of a group pair is then the mean distance times the size of the larger group
    (ours), so that small groups are not preferred.

    Args:
        distance: Shape (H, H'), finite, lower is closer.
        groups: Group of each head of the first model, length H, any labels.
        groups_other: Likewise for the second model, length H'.

    Returns:
        Pairs (head, head'), ascending by the first.

    Raises:
        NotComparable: a distance is NaN or infinite.
        UsageError: shapes disagree.
    """
    finite = _checked(distance)
    if finite.shape != (len(groups), len(groups_other)):
        raise UsageError(f"distance {finite.shape} does not fit {len(groups)} and {len(groups_other)} heads")
    ours, theirs = _members(groups), _members(groups_other)
    inner = [[assign(finite[np.ix_(a, b)]) for b in theirs] for a in ours]
    cost = np.array(
        [
            [found[2] / len(found[0]) * max(len(a), len(b)) for b, found in zip(theirs, line, strict=True)]
            for a, line in zip(ours, inner, strict=True)
        ]
    ).reshape(len(ours), len(theirs))
    pairs: list[tuple[int, int]] = []
    for i, j in zip(*assign(cost)[:2], strict=True):
        rows, columns, _ = inner[i][j]
        pairs += zip(ours[i][rows].tolist(), theirs[j][columns].tolist(), strict=True)
    return sorted(pairs)


@dataclass(frozen=True, eq=False)
class RowMatching:
    """One-to-one pairs of rows of two matrices.

    Args:
        rows: Rows of the first, ascending, min(m, n) of them.
        partners: Their rows of the second.
        sparse: Whether only near neighbours were weighed.
    """

    rows: Indices
    partners: Indices
    sparse: bool


def match_rows(
    a: Floats,
    b: Floats,
    rng: np.random.Generator,
    *,
    either_sign: bool = False,
    neighbours: int = NEIGHBOURS,
    dense_rows: int = DENSE_ROWS,
) -> RowMatching:
    """The one-to-one matching of rows with the largest total cosine.

    Both sides are shuffled first. So whatever the solver does with ties, and whatever edges complete a list of candidates,
    the matching of A with reordered rows of B is the reordered matching in distribution: row numbers carry nothing into
    it, and if the rows of B are in random order, so are the partners, exactly. That makes it fit for a permutation test.

    With more than `dense_rows` rows on a side only the `neighbours` nearest of every row and of every column are weighed
    (float32, in blocks, of at most `PROJECTED` random directions), and the diagonal after shuffling, which guarantees that
    a full matching exists.

    Args:
        a: Shape (m, d), no zero rows.
        b: Shape (n, d), no zero rows.
        rng: Shuffles; use a stream that does not depend on the models.
        either_sign: Weigh |cosine|.
        neighbours: Candidates of each row and column.
        dense_rows: Largest side for which all cosines are weighed.

    Raises:
        NotComparable: a cosine is NaN or infinite, as a zero row makes it.
        UsageError: not two matrices of equal width.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise UsageError(f"rows to match need one width; found shapes {a.shape} and {b.shape}")
    sparse = max(len(a), len(b)) > dense_rows
    dtype = np.dtype(np.float32 if sparse else np.float64)
    order_a, order_b = rng.permutation(len(a)), rng.permutation(len(b))
    if sparse:
        a, b = _projected(a, b, rng)
    left, right = _unit(a, dtype)[order_a], _unit(b, dtype)[order_b]
    if sparse:
        rows, partners = _assign_candidates(left, right, neighbours, either_sign)
    else:
        rows, partners, _ = assign(-_signless(left @ right.T, either_sign))
    ascending = np.argsort(order_a[rows])
    return RowMatching(order_a[rows][ascending], order_b[partners][ascending], sparse)


def _assign_candidates(left: Floats, right: Floats, k: int, either_sign: bool) -> tuple[Indices, Indices]:
    """Assignment over near neighbours and the diagonal; unit rows."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    m, n = len(left), len(right)
    diagonal = np.arange(min(m, n))
    along = np.einsum("ij,ij->i", left[: len(diagonal)], right[: len(diagonal)])
    rows, columns, cosines = _candidates(left, right, k, either_sign)
    edges = np.concatenate([rows * n + columns, diagonal * n + diagonal])
    values = np.concatenate([cosines, _signless(along, either_sign)])
    edges, first = np.unique(edges, return_index=True)
    # costs lie in [1, 3]: a cost of zero would be no edge
    graph = csr_array((2.0 - values[first].astype(np.float64), (edges // n, edges % n)), shape=(m, n))
    found_rows, found_columns = min_weight_full_bipartite_matching(graph)
    return np.asarray(found_rows, np.intp), np.asarray(found_columns, np.intp)


def _candidates(left: Floats, right: Floats, k: int, either_sign: bool) -> tuple[Indices, Indices, Floats]:
    """Row, column and cosine of the k nearest of every row and of every column; some pairs occur twice."""
    rows, columns, by_row = _nearest(left, right, k, either_sign)
    columns_too, rows_too, by_column = _nearest(right, left, k, either_sign)  # cheaper than sorting along columns
    return (
        np.concatenate([rows, rows_too]),
        np.concatenate([columns, columns_too]),
        np.concatenate([by_row, by_column]),
    )


def _nearest(left: Floats, right: Floats, k: int, either_sign: bool) -> tuple[Indices, Indices, Floats]:
    """Row, column and cosine of the k nearest of every row of `left`."""
    n = len(right)
    per_row = min(k, n)
    near, values = np.empty((len(left), per_row), np.intp), np.empty((len(left), per_row), left.dtype)
    for start in range(0, len(left), _ROWS_AT_ONCE):
        cosines = _signless(left[start : start + _ROWS_AT_ONCE] @ right.T, either_sign)
        _require_finite(cosines)
        found = np.argpartition(cosines, n - per_row, axis=1)[:, n - per_row :]
        near[start : start + len(found)] = found
        values[start : start + len(found)] = np.take_along_axis(cosines, found, 1)
    return np.arange(len(left)).repeat(per_row), near.ravel(), values.ravel()


def _projected(left: Floats, right: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Rows in `PROJECTED` random directions; as they are where they have no more. Lengths do not matter here."""
    width = left.shape[1]
    if width <= PROJECTED:
        return left, right
    turn = rng.standard_normal((width, PROJECTED), dtype=np.float32)
    return left @ turn, right @ turn


def _unit(matrix: Floats, dtype: np.dtype[Any]) -> Floats:
    """Rows at unit length, norms in float64; a zero row becomes NaN, which is refused later."""
    norms = np.sqrt(np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((matrix / norms[:, None]).astype(dtype, copy=False))


def _signless(cosines: Floats, either_sign: bool) -> Floats:
    return np.abs(cosines, out=cosines) if either_sign else cosines


def _members(groups: Sequence[int]) -> list[Indices]:
    labels = np.asarray(groups)
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]


def _checked(cost: NDArray[Any]) -> Doubles:
    if cost.ndim != 2:
        raise UsageError(f"a cost matrix has two axes; found shape {cost.shape}")
    finite = cost.astype(np.float64)
    _require_finite(finite)
    return finite


def _require_finite(cost: NDArray[Any]) -> None:
    bad = cost.size - int(np.isfinite(cost).sum())
    if bad:
        raise NotComparable(f"not finite: {bad} of {cost.size} costs are NaN or infinite")
