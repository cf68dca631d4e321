"""Linear assignment: one-to-one matching at least total cost, plain and in two levels (groups, then heads)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whorl.errors import NotComparable, UsageError
from whorl.linalg.blocks import Doubles
from whorl.source import Floats

Indices = NDArray[np.intp]


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


def _members(groups: Sequence[int]) -> list[Indices]:
    labels = np.asarray(groups)
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]


def _checked(cost: NDArray[Any]) -> Doubles:
    if cost.ndim != 2:
        raise UsageError(f"a cost matrix has two axes; found shape {cost.shape}")
    finite = cost.astype(np.float64)
    bad = finite.size - int(np.isfinite(finite).sum())
    if bad:
        raise NotComparable(f"not finite: {bad} of {finite.size} costs are NaN or infinite")
    return finite
