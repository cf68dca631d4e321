"""A saved lineage graph (`whorl tree --out`), every field checked: edges between models that it holds, and no circle."""

from typing import Annotated, Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from whorl.lineage.graph import Angles, Basis, Edge, Graph, Node, Open
from whorl.reports.stored_parts import Count, PValue, Share, Strict, Text, Verdict
from whorl.reports.stored_survey import NamedModel, StoredSkipped

Distance = Annotated[FiniteFloat, Field(ge=0, le=2)]
Cosine = Annotated[FiniteFloat, Field(ge=-1, le=1)]


class StoredNode(Strict):
    """`whorl.lineage.graph.Node`."""

    name: Text
    copies: list[Text]


class StoredEdge(Strict):
    """`whorl.lineage.graph.Edge`."""

    parent: Text
    child: Text
    relation: Text
    distance: Distance
    cost: Annotated[FiniteFloat, Field(ge=0)]
    support: Share | None
    support_why: Text
    basis: Basis
    evidence: list[Text]
    alternatives: list[Text]
    share: Annotated[FiniteFloat, Field(ge=0)] | None
    share_interval: Annotated[list[FiniteFloat], Field(min_length=2, max_length=2)] | None
    primary: bool


class StoredOpen(Strict):
    """`whorl.lineage.graph.Open`."""

    a: Text
    b: Text
    why: Text


class StoredAngles(Strict):
    """`whorl.lineage.graph.Angles`."""

    a: Text
    middle: Text
    b: Text
    cosines: Annotated[list[Cosine], Field(min_length=3, max_length=3)]
    nearest: Text
    agreement: Share | None
    decided: bool


class StoredFound(Strict):
    """`whorl.lineage.evidence_of_pairs.PairFound`."""

    a: Count
    b: Count
    verdict: Verdict
    related: bool | None
    relation: Text
    p_value: PValue | None
    p_adjusted: PValue | None
    distance: Distance | None
    measured: Text | None
    why: Text


class TreeConfig(Strict):
    """Settings that the graph depends on."""

    methods: list[Text]
    alpha: Share
    fdr: Share
    seed: Count


class StoredLineage(Strict):
    """`Tree.to_dict()`."""

    schema_: Annotated[Literal[1], Field(alias="schema")]
    kind: Literal["tree"]
    status: Text
    whorl_version: Text
    nodes: list[StoredNode]
    roots: list[Text]
    edges: list[StoredEdge]
    undecided: list[StoredOpen]
    triangles: list[StoredAngles]
    notes: list[Text]
    models: list[NamedModel]
    pairs: list[StoredFound]
    skipped: list[StoredSkipped]
    does_not_show: list[Text]
    environment: dict[str, Text]
    config: TreeConfig

    @model_validator(mode="after")
    def _edges_make_a_forest(self) -> Self:
        names = {n.name for n in self.nodes}
        copies = [c for n in self.nodes for c in n.copies]
        if len(names) != len(self.nodes) or sorted([*names, *copies]) != sorted(m.name for m in self.models):
            raise ValueError("the nodes are not the models, each once")
        if any(not {e.parent, e.child} <= names for e in self.edges):
            raise ValueError("an edge leads to a model that is not in the tree")
        first = {e.child: e.parent for e in self.edges if e.primary}
        if len(first) != sum(e.primary for e in self.edges) or {e.child for e in self.edges} != set(first):
            raise ValueError("a model does not have exactly one first parent")
        if any(_leads_back(name, first) for name in names):
            raise ValueError("the edges run in a circle")
        if any(p.a >= p.b or p.b >= len(self.models) for p in self.pairs):
            raise ValueError("a pair names a model that is not there")
        return self

    def graph(self) -> Graph:
        """The graph as a value."""
        return Graph(
            tuple(Node(n.name, tuple(n.copies)) for n in self.nodes),
            tuple(_edge(e) for e in self.edges),
            tuple(Open(o.a, o.b, o.why) for o in self.undecided),
            tuple(
                Angles(
                    t.a, t.middle, t.b, (t.cosines[0], t.cosines[1], t.cosines[2]), t.nearest, t.agreement, t.decided
                )
                for t in self.triangles
            ),
            tuple(self.notes),
        )


def _leads_back(name: str, parent: dict[str, str]) -> bool:
    seen = {name}
    while name in parent:
        name = parent[name]
        if name in seen:
            return True
        seen.add(name)
    return False


def _edge(e: StoredEdge) -> Edge:
    interval = None if e.share_interval is None else (e.share_interval[0], e.share_interval[1])
    return Edge(
        e.parent, e.child, e.relation, e.distance, e.cost, e.support, e.support_why, e.basis, tuple(e.evidence),
        tuple(e.alternatives), e.share, interval, e.primary,
    )  # fmt: skip
