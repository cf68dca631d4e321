"""The values of a lineage graph: models, edges from parent to child, and what was left open."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

NO_PARENT = "parent not in the set"
Basis = Literal["tested", "follows", "triangles", "prior", "none"]
DECIDED: tuple[Basis, ...] = ("tested", "follows", "triangles")


@dataclass(frozen=True)
class Node:
    """One model, or several that are the same.

    Args:
        name: Name of the first of them.
        copies: Names of the others: identical to it.
    """

    name: str
    copies: tuple[str, ...] = ()


@dataclass(frozen=True)
class Edge:
    """One step of lineage.

    Args:
        parent: Name of a node.
        child: Name of a node.
        relation: What was done to the parent, "related" where no single relation was found.
        distance: Root of 2 - 2 cos over the layers, in [0, 2]; sqrt(2) for independent models.
        cost: The distance with the penalties that the tree was built from.
        support: Share of layer bootstraps whose tree has this edge; None: see `support_why`.
        support_why: Why there is no support value, empty otherwise.
        basis: What the direction rests on. "tested": a test of this pair; "follows": the parent has a parent of its
            own already; "triangles": it lies between this child and a third model more often than the child does, by
            two models or by one and a weak prior; "prior": a weak prior only; "none".
        evidence: Sentences on the direction.
        alternatives: Other parents that cost at most 15 % more.
        share: Coefficient of this parent in a merge, None otherwise.
        share_interval: Its 95 % layer bootstrap interval.
        primary: False for the second and further parents of a merge.
    """

    parent: str
    child: str
    relation: str
    distance: float
    cost: float
    support: float | None
    support_why: str
    basis: Basis
    evidence: tuple[str, ...] = ()
    alternatives: tuple[str, ...] = ()
    share: float | None = None
    share_interval: tuple[float, float] | None = None
    primary: bool = True

    @property
    def decided(self) -> bool:
        """Whether the direction rests on more than a weak prior."""
        return self.basis in DECIDED


@dataclass(frozen=True)
class Open:
    """A pair without an edge because nothing was decided about it."""

    a: str
    b: str
    why: str


@dataclass(frozen=True)
class Angles:
    """A triangle that the tree rests on: a model with two of its neighbours, and the cosines at (a, middle, b)."""

    a: str
    middle: str
    b: str
    cosines: tuple[float, float, float]
    nearest: str
    agreement: float | None
    decided: bool


@dataclass(frozen=True)
class Graph:
    """A lineage graph. Without the further parents of merges it is a forest.

    Args:
        nodes: In the order given.
        edges: Sorted by child, then the primary parent first.
        undecided: Pairs that nothing is decided about.
        triangles: The triangle rule at every model with two neighbours.
        notes: What to know before believing the graph.
    """

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    undecided: tuple[Open, ...] = ()
    triangles: tuple[Angles, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def roots(self) -> tuple[str, ...]:
        """Nodes whose parent is not in the set, in the order given."""
        children = {e.child for e in self.edges}
        return tuple(n.name for n in self.nodes if n.name not in children)

    def children(self, name: str) -> tuple[Edge, ...]:
        """Edges to the children that have this node as primary parent, in the order of the nodes."""
        return tuple(e for e in self.edges if e.primary and e.parent == name)

    def parents(self, name: str) -> tuple[Edge, ...]:
        """Edges from all parents of a node, the primary one first."""
        return tuple(e for e in self.edges if e.child == name)

    def walk(self) -> Iterator[tuple[int, str]]:
        """(depth, node) of the forest, parents before their children, roots in order."""
        waiting = [(0, name) for name in reversed(self.roots)]
        while waiting:
            depth, name = waiting.pop()
            yield depth, name
            waiting += [(depth + 1, e.child) for e in reversed(self.children(name))]

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "nodes": [{"name": n.name, "copies": list(n.copies)} for n in self.nodes],
            "roots": list(self.roots),
            "edges": [_plain(asdict(e)) for e in self.edges],
            "undecided": [asdict(o) for o in self.undecided],
            "triangles": [_plain(asdict(t)) for t in self.triangles],
            "notes": list(self.notes),
        }


def _plain(data: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
            for key, value in data.items()}  # fmt: skip
