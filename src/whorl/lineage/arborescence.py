"""Minimum arborescence: the cheapest way to give every node but one a single parent (Chu and Liu 1965, Edmonds 1967)."""

import numpy as np
from numpy.typing import NDArray

from whorl.errors import UsageError

Doubles = NDArray[np.float64]


def minimum_arborescence(cost: Doubles, root: int = 0) -> tuple[int | None, ...]:
    """The parent of every node in the spanning arborescence of least total cost.

    Args:
        cost: Shape (n, n): cost of the edge i -> j, infinite where there is none, never NaN. The diagonal is ignored.
        root: The node without a parent.

    Returns:
        One parent a node, None for the root; ties go to the lower index.

    Raises:
        UsageError: some node cannot be reached from the root, or a cost is NaN.
    """
    own = np.array(cost, dtype=np.float64)
    if np.isnan(own).any():
        raise UsageError("the costs of edges hold NaN")
    np.fill_diagonal(own, np.inf)
    own[:, root] = np.inf
    parents = _solve(own, root)
    return tuple(None if j == root else int(parents[j]) for j in range(len(own)))


def _solve(cost: Doubles, root: int) -> NDArray[np.intp]:
    n = len(cost)
    parents = cost.argmin(axis=0)
    parents[root] = root
    if any(not np.isfinite(cost[parents[j], j]) for j in range(n) if j != root):
        raise UsageError("some node cannot be reached from the root")
    cycle = _cycle(parents, root)
    if not cycle:
        return parents
    return _expanded(cost, root, parents, cycle)


def _expanded(cost: Doubles, root: int, parents: NDArray[np.intp], cycle: list[int]) -> NDArray[np.intp]:
    """Contract the cycle to one node (the last), solve, and open it where its parent enters."""
    rest = [j for j in range(len(cost)) if j not in set(cycle)]
    saved = cost[:, cycle] - cost[parents[cycle], cycle]  # entering at v frees the cycle's own edge into v
    small = np.full((len(rest) + 1, len(rest) + 1), np.inf)
    small[:-1, :-1] = cost[np.ix_(rest, rest)]
    small[-1, :-1] = cost[np.ix_(cycle, rest)].min(axis=0)
    small[:-1, -1] = saved[rest].min(axis=1)
    solved = _solve(small, rest.index(root))
    found = parents.copy()
    for at, j in enumerate(rest):
        inside = solved[at] == len(rest)
        found[j] = cycle[int(cost[cycle, j].argmin())] if inside else rest[int(solved[at])]
    entry = rest[int(solved[-1])]
    found[cycle[int(saved[entry].argmin())]] = entry
    return found


def _cycle(parents: NDArray[np.intp], root: int) -> list[int]:
    """Nodes of one cycle, empty when every node leads to the root."""
    clear = {root}
    for start in range(len(parents)):
        walk: list[int] = []
        node = start
        while node not in clear and node not in walk:
            walk.append(node)
            node = int(parents[node])
        if node in walk:
            return walk[walk.index(node) :]
        clear.update(walk)
    return []
