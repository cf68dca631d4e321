"""From distances and evidence to a lineage graph: the minimum arborescence with a virtual root (ours, after Edmonds).

    cost(i -> j) = distance * (1 + 0.15 (1 - centrality_i)) + mean distance * (evidence against it)

Only pairs judged related have edges. The virtual root stands for "parent not in the set"; its edges cost sqrt(2), the
distance of independent models, so a model takes a parent from the set wherever one is related. Identical models are
one node. MoTHer (arXiv:2405.18432) has the same form with one prior, 0.3 mean(distance) [kurtosis_i > kurtosis_j].

Evidence on direction, and its weight in units of the mean related distance:

    1      a test of the pair (grid, zeros, missing layers), and a merge against its parents
    0.3    the triangle rule: share of decided triangles with i, j in which j, not i, lies between
    0.2    weak priors given with the pair (norm); alone they leave a direction undecided

Centrality is the share of decided triangles that a model lies in the middle of, 1 for the largest of its family. The
factor of up to 15 % is for heavy and light children of one base: trained on like data, the light one lies a little
towards the heavy one, and a detour that saves less than 15 % is believed only through a model that others descend from.

A merge lies amid its parents and so is near to everything that they are near to. It is the parent of a model only if
that model left it at a right angle (|cosine| up to 0.35) to its base and to each of its parents.

Support of an edge is the share of layer bootstraps in which it appears; distances, triangles and centrality are
computed again in each, evidence from tests and merges is kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from whorl.errors import UsageError
from whorl.lineage.arborescence import minimum_arborescence
from whorl.lineage.graph import Angles, Basis, Edge, Graph, Node, Open
from whorl.lineage.merged import Merge
from whorl.lineage.siblings import (
    MIN_LAYERS,
    Ints,
    Triangle,
    layer_weights,
    middles,
    triangle_cosines,
    triangles,
    votes,
)

Doubles = NDArray[np.float64]
Pair = tuple[int, int]

STRANGERS = float(np.sqrt(2.0))
DRAWS = 200
TESTED, TRIANGLE, PRIOR = 1.0, 0.3, 0.2
DETOUR = 0.15
MERGE_CHILD_COSINE = 0.35
NET_TRIANGLES = 2
NEAR = 0.1


@dataclass(frozen=True)
class Frame:
    """Models whose weights lie in one frame.

    Args:
        members: m positions.
        squared: Shape (L, m, m): Euclidean squared distances, layer by layer.
    """

    members: tuple[int, ...]
    squared: Doubles


class Evidence(NamedTuple):
    """Evidence on the direction of a pair: `parent` is one of the two, `tested` is False for a weak prior."""

    parent: int
    child: int
    tested: bool
    why: str


@dataclass(frozen=True)
class Measured:
    """What is known of each pair (i, j), i < j, before a tree is built.

    Args:
        names: One distinct name a model.
        related: True, False, or None where undecided; a missing pair is undecided.
        apart: Per layer 2 - 2 cos, in [0, 4], of every comparable pair. A missing pair is not comparable.
        same: Identical pairs.
        frames: Groups of models in one frame, for the triangle rule; no model is in two.
        evidence: On the direction of pairs.
        merges: Models that are merges of others.
        relations: Name of the relation of a pair, where one was found.
        whys: Why a pair is undecided.
    """

    names: tuple[str, ...]
    related: Mapping[Pair, bool | None]
    apart: Mapping[Pair, Doubles]
    same: Sequence[Pair] = ()
    frames: Sequence[Frame] = ()
    evidence: Sequence[Evidence] = ()
    merges: Sequence[Merge] = ()
    relations: Mapping[Pair, str] = field(default_factory=dict)
    whys: Mapping[Pair, str] = field(default_factory=dict)


def infer(measured: Measured, *, draws: int = DRAWS, seed: int = 0) -> Graph:
    """The lineage graph of several models.

    Args:
        measured: Names, verdicts, distances and evidence.
        draws: Layer bootstraps; 0 gives no support values.
        seed: Of the bootstrap.

    Raises:
        UsageError: names that are not distinct, or a related pair without a distance.
    """
    if len(set(measured.names)) != len(measured.names) or not measured.names:
        raise UsageError("A tree needs at least one model, each with its own name.")
    return _Inference(measured, draws, seed).graph()


class _Inference:
    """One inference: everything that depends on the bootstrap draw is a method of `row`, 0 being all layers alike."""

    def __init__(self, measured: Measured, draws: int, seed: int) -> None:
        self.m, self.seed = measured, seed
        self.weights: dict[int, Doubles] = {}
        self.n = len(measured.names)
        self.group = _groups(self.n, measured.same)
        self.firsts = [i for i in range(self.n) if self.group[i] == i]
        self.pairs = [p for p in combinations(self.firsts, 2) if measured.related.get(p)]
        self.far = [p for p in self.pairs if p not in measured.apart]
        self.pairs = [p for p in self.pairs if p in measured.apart]
        self.draws = draws
        self.merges = {m.child: m for m in measured.merges if self._usable(m)}
        self.near = self._near_copies()
        self.triangles = tuple(t for f in measured.frames for t in self._triangles(f))
        self.strangers_of = {child: self._no_children(m) for child, m in self.merges.items()}
        self.corners = self._corners()
        self.family = {i: [i, *(b if a == i else a for a, b in self.pairs if i in {a, b})] for i in range(self.n)}
        self.tested = {(e.parent, e.child): e for e in measured.evidence if e.tested}
        self.priors = {(e.parent, e.child): e for e in measured.evidence if not e.tested}

    def _usable(self, merge: Merge) -> bool:
        related = {frozenset(p) for p in self.pairs}
        return merge.child in self.firsts and all(frozenset((merge.child, p)) in related for p in merge.parents)

    def _weights(self, n_layers: int) -> Doubles:
        if n_layers not in self.weights:
            self.weights[n_layers] = layer_weights(n_layers, self.draws, self.seed)
        return self.weights[n_layers]

    def _kept(self, frame: Frame) -> list[int]:
        """Places of a frame's members that take part in triangles: no copies, near copies or merges."""
        return [k for k, i in enumerate(frame.members) if i in self.firsts and not {i} & {*self.merges, *self.near}]

    def _near_copies(self) -> dict[int, int]:
        """Models far nearer to one other than to any third: they see what that one sees, and get no vote of their own.

        Of two such models the child of a test, else the later one, goes without.
        """
        distance = self.distances(0)
        children = {e.child for e in self.m.evidence if e.tested}
        found: dict[int, int] = {}
        for i, j in sorted(self.pairs, key=lambda p: (distance[p], p)):
            stays, goes = (j, i) if i in children and j not in children else (i, j)
            others = [k for k in self.firsts if k not in {i, j, *found} and np.isfinite(distance[goes, k])]
            if goes not in found and others and distance[i, j] < NEAR * min(distance[goes, k] for k in others):
                found[goes] = found.get(stays, stays)
        return found

    def _triangles(self, frame: Frame) -> tuple[Triangle, ...]:
        kept = self._kept(frame)
        squared = frame.squared[:, kept][:, :, kept]
        found = triangles(squared, [frame.members[k] for k in kept], self._weights(len(squared)))
        return tuple(t for t in found if self._all_related(t.models))

    def _all_related(self, models: Sequence[int]) -> bool:
        return all(self.m.related.get(p) for p in combinations(sorted(models), 2))

    def _no_children(self, merge: Merge) -> list[int]:
        """Models that did not leave the merge at a right angle to what it was made of."""
        frame = next(f for f in self.m.frames if merge.child in f.members)
        total = frame.squared.mean(axis=0)
        place = {i: k for k, i in enumerate(frame.members)}
        at, made_of = place[merge.child], [place[i] for i in {*merge.parents, merge.origin}]
        others = [i for i in frame.members if i != merge.child and place[i] not in made_of and total[at, place[i]] > 0]
        found = []
        for i in others:
            ways = (total[at, made_of] + total[at, place[i]] - total[made_of, place[i]]) / 2
            cosines = ways / np.sqrt(total[at, made_of] * total[at, place[i]])
            if np.abs(cosines).max() > MERGE_CHILD_COSINE:
                found.append(i)
        return found

    def distances(self, row: int) -> Doubles:
        """Shape (n, n), infinite where there is no edge."""
        found = np.full((self.n, self.n), np.inf)
        for i, j in self.pairs:
            apart = self.m.apart[i, j]
            # Pairs with few layers keep their one value: their edges get no support.
            weights = self._weights(len(apart))[row if len(apart) >= MIN_LAYERS else 0]
            found[i, j] = found[j, i] = np.sqrt(max(float(weights @ apart), 0.0))
        return found

    def counted(self, row: int) -> Doubles:
        """Votes of the triangle rule, shape (n, n), with the layers of one draw."""
        if row == 0:
            return votes(self.triangles, self.n)
        found = np.zeros((self.n, self.n))
        for squared, places, triples in self.corners:
            total = np.tensordot(self._weights(len(squared))[row], squared, axes=1)
            corner = middles(triangle_cosines(total, places))
            kept = np.flatnonzero(corner >= 0)
            between = triples[kept, corner[kept]]
            for step in (1, 2):
                np.add.at(found, (between, triples[kept, (corner[kept] + step) % 3]), 1)
        return found

    def _corners(self) -> list[tuple[Doubles, Ints, Ints]]:
        """Decided triangles of each frame: its squared distances, the corners as places in them and as models."""
        found = []
        for frame in self.m.frames:
            place = {i: k for k, i in enumerate(frame.members)}
            triples = [t.models for t in self.triangles if t.decided and t.models[0] in place]
            if triples:
                models = np.array(triples, dtype=np.intp)
                found.append((frame.squared, np.vectorize(place.__getitem__, otypes=[np.intp])(models), models))
        return found

    def costs(self, row: int) -> Doubles:
        """Cost of every directed edge."""
        distance, counted = self.distances(row), self.counted(row)
        mean = float(np.mean([distance[p] for p in self.pairs])) if self.pairs else 0.0
        centrality = counted.sum(axis=1)
        top = np.array([centrality[self.family[i]].max() for i in range(self.n)])
        off = np.where(top > 0, 1 - centrality / np.maximum(top, 1), 0.0)
        cost = distance * (1 + DETOUR * off[:, None])
        cost += mean * TRIANGLE * counted.T / (counted + counted.T + 1)
        for (parent, child), weight in self._against().items():
            cost[child, parent] += mean * weight
        self._restrict(cost)
        return cost

    def _against(self) -> dict[Pair, float]:
        return dict.fromkeys(self.priors, PRIOR) | dict.fromkeys(self.tested, TESTED)

    def _restrict(self, cost: Doubles) -> None:
        """A merge takes one of its parents, and none of them (nor their base) descends from it."""
        for child, merge in self.merges.items():
            barred = [i for i in range(self.n) if i not in merge.parents]
            cost[barred, child] = np.inf
            cost[child, [*merge.parents, merge.origin, *self.strangers_of[child]]] = np.inf

    def parents(self, cost: Doubles) -> dict[int, int | None]:
        """Primary parent of every node; None: not in the set."""
        k = len(self.firsts)
        table = np.full((k + 1, k + 1), np.inf)
        table[1:, 1:] = cost[np.ix_(self.firsts, self.firsts)]
        # The bar lies above every edge: among related models only one has its parent outside the set.
        finite = table[np.isfinite(table)]
        table[0, 1:] = max(STRANGERS, float(finite.max(initial=0.0)) * (1 + 1e-9))
        found = minimum_arborescence(table, 0)
        return {i: None if not p else self.firsts[p - 1] for i, p in zip(self.firsts, found[1:], strict=True)}

    def graph(self) -> Graph:
        """The graph with support, directions and what is left open."""
        cost = self.costs(0)
        parents = self.parents(cost)
        seen: dict[Pair, int] = {}
        if any(p is not None for p in parents.values()):
            for row in range(1, self.draws + 1):
                for child, parent in self.parents(self.costs(row)).items():
                    if parent is not None:
                        seen[parent, child] = seen.get((parent, child), 0) + 1
        edges = self._edges(cost, parents, seen)
        nodes = tuple(Node(self.m.names[i], self._copies(i)) for i in self.firsts)
        return Graph(nodes, edges, self._open(), self._angles(parents), self._notes())

    def _copies(self, i: int) -> tuple[str, ...]:
        return tuple(self.m.names[j] for j in range(self.n) if self.group[j] == i and j != i)

    def _edges(self, cost: Doubles, parents: Mapping[int, int | None], seen: Mapping[Pair, int]) -> tuple[Edge, ...]:
        distance, counted = self.distances(0), self.counted(0)
        found = []
        bases = self._bases(parents, counted)
        for child in self.firsts:
            parent = parents[child]
            if parent is None:
                continue
            basis, evidence = bases[child]
            support, why = self._support(parent, child, seen)
            others = [] if child in self.merges else self._alternatives(cost, parents, parent, child)
            for at in (parent, *self._further(parents, parent, child)):
                share, interval = self._share(at, child)
                relation = "merged" if share is not None else self._relation(at, child)
                found.append(
                    Edge(
                        self.m.names[at], self.m.names[child], relation, float(distance[at, child]),
                        float(cost[at, child]), support if at == parent else None,
                        why if at == parent else "the further parents of a merge come from its coefficients", basis,
                        evidence, tuple(self.m.names[o] for o in others), share, interval, at == parent,
                    )
                )  # fmt: skip
        return tuple(found)

    def _relation(self, parent: int, child: int) -> str:
        return self.m.relations.get((min(parent, child), max(parent, child)), "related")

    def _share(self, parent: int, child: int) -> tuple[float | None, tuple[float, float] | None]:
        merge = self.merges.get(child)
        if merge is None:
            return None, None
        at = merge.parents.index(parent)
        return merge.coefficients[at], None if merge.intervals is None else merge.intervals[at]

    def _further(self, parents: Mapping[int, int | None], parent: int, child: int) -> list[int]:
        """Parents of a merge beside the primary one, without any that would close a circle."""
        merge = self.merges.get(child)
        if merge is None:
            return []
        return [p for p in merge.parents if p != parent and child not in _ancestors(parents, p)]

    def _support(self, parent: int, child: int, seen: Mapping[Pair, int]) -> tuple[float | None, str]:
        n_layers = len(self.m.apart[min(parent, child), max(parent, child)])
        if not self.draws:
            return None, "no bootstrap was asked for"
        if n_layers < MIN_LAYERS:
            return None, f"{n_layers} comparable layers; a layer bootstrap needs {MIN_LAYERS}"
        if child in self.merges:
            # Which parent is called the first one is arbitrary.
            return sum(seen.get((p, child), 0) for p in self.merges[child].parents) / self.draws, ""
        return seen.get((parent, child), 0) / self.draws, ""

    def _alternatives(self, cost: Doubles, parents: Mapping[int, int | None], parent: int, child: int) -> list[int]:
        bar = cost[parent, child] * (1 + DETOUR)
        others = [i for i in self.firsts if i not in {parent, child} and cost[i, child] <= bar]
        return [i for i in others if child not in _ancestors(parents, i) and self.near.get(i) != parent]

    def _bases(self, parents: Mapping[int, int | None], counted: Doubles) -> dict[int, tuple[Basis, tuple[str, ...]]]:
        """What the direction of the edge into each node rests on, parents before children."""
        found: dict[int, tuple[Basis, tuple[str, ...]]] = {}
        order = sorted((i for i in self.firsts if parents[i] is not None), key=lambda i: len(_ancestors(parents, i)))
        for child in order:
            parent = parents[child]
            if parent is None:
                continue
            above = found.get(parent, ("none", ()))[0] in {"tested", "follows", "triangles"}
            found[child] = self._basis(parent, child, counted, above=above)
        return found

    def _basis(self, parent: int, child: int, counted: Doubles, *, above: bool) -> tuple[Basis, tuple[str, ...]]:
        name = self.m.names
        if child in self.merges:
            return "tested", (_merge_words(self.merges[child], name),)
        for_it, against = int(counted[parent, child]), int(counted[child, parent])
        said = [e.why for e in (self.tested.get((parent, child)), self.priors.get((parent, child))) if e is not None]
        contrary = [f"against it: {e.why}" for e in (self.tested.get((child, parent)),) if e is not None]
        if for_it or against:
            said.append(
                f"triangles decided so: {for_it} with '{name[parent]}' between '{name[child]}' and a third model,"
                f" {against} with '{name[child]}' between '{name[parent]}' and a third"
            )
        words = tuple(said + contrary)
        if (parent, child) in self.tested:
            return "tested", words
        if contrary:
            return "none", words
        if self.near.get(child) == parent or self.near.get(parent) == child:
            return "none", (*words, "near copies of each other, so either may have come first")
        if above:
            return "follows", (
                *words,
                f"'{name[parent]}' has a parent already, so it is not a child of '{name[child]}'",
            )
        prior = (parent, child) in self.priors
        if for_it - against >= NET_TRIANGLES or (prior and for_it > against):
            return "triangles", words
        return ("prior" if prior else "none"), words

    def _open(self) -> tuple[Open, ...]:
        """Pairs of nodes that nothing is decided about, and related pairs that no method could measure."""
        name = self.m.names
        found = [
            Open(name[i], name[j], self.m.whys.get((i, j), "nothing was decided about this pair"))
            for i, j in combinations(self.firsts, 2)
            if self.m.related.get((i, j)) is None
        ]
        return (*found, *(Open(name[i], name[j], "related, but no common frame gives a distance") for i, j in self.far))

    def _angles(self, parents: Mapping[int, int | None]) -> tuple[Angles, ...]:
        """Triangles of a node with two of its neighbours in the tree."""
        near: dict[int, set[int]] = {i: set() for i in self.firsts}
        for child, parent in parents.items():
            if parent is not None:
                near[child].add(parent)
                near[parent].add(child)
        found = []
        for t in self.triangles:
            for at, middle in enumerate(t.models):
                a, b = (k for k in range(3) if k != at)
                if {t.models[a], t.models[b]} <= near[middle]:
                    cosines = (t.cosines[a], t.cosines[at], t.cosines[b])
                    names = [self.m.names[t.models[k]] for k in (a, at, b)]
                    found.append(
                        Angles(names[0], names[1], names[2], cosines, self.m.names[t.nearest], t.agreement, t.decided)
                    )
        return tuple(found)

    def _notes(self) -> tuple[str, ...]:
        dropped = [m for m in self.m.merges if m.child not in self.merges and m.child in self.firsts]
        return tuple(
            f"'{self.m.names[m.child]}' looks like a merge, but not all of its parents are judged related to it"
            for m in dropped
        )


def _merge_words(merge: Merge, names: Sequence[str]) -> str:
    parts = [f"{c:.2f} of '{names[p]}'" for p, c in zip(merge.parents, merge.coefficients, strict=True)]
    origin = f", differences from '{names[merge.origin]}'" if merge.has_base else ""
    return f"a sum of {' and '.join(parts)}{origin}, R2 {merge.r_squared:.3f}; no parent is such a sum of the others"


def _groups(n: int, same: Sequence[Pair]) -> list[int]:
    """First member of the class of identical models that each model is in."""
    group = list(range(n))
    for a, b in same:
        low, high = sorted((group[a], group[b]))
        group = [low if g == high else g for g in group]
    return group


def _ancestors(parents: Mapping[int, int | None], node: int) -> list[int]:
    """The node itself and everything above it on the way of primary parents."""
    found = [node]
    while (above := parents[found[-1]]) is not None:
        found.append(above)
    return found
