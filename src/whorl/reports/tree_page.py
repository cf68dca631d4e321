"""What the page shows of a lineage graph: the picture, one row an edge, the triangles, and what is left open."""

from dataclasses import dataclass

from markupsafe import Markup

from whorl.lineage.graph import Edge, Graph
from whorl.lineage.tree_drawing import svg
from whorl.reports.shown import number
from whorl.reports.stored_tree import StoredLineage

BASIS = {
    "tested": "tested",
    "follows": "follows from the edge above",
    "triangles": "triangle rule",
    "prior": "undecided (a weak prior only)",
    "none": "undecided",
}


@dataclass(frozen=True)
class EdgeView:
    """One row of the table of edges."""

    edge: Edge
    support: str
    share: str
    basis: str


@dataclass(frozen=True)
class TreeView:
    """A lineage graph."""

    result: StoredLineage
    graph: Graph
    picture: Markup
    edges: tuple[EdgeView, ...]
    found: str
    kind: str = "tree"

    @property
    def title(self) -> str:
        """How many models."""
        return f"Lineage of {len(self.result.models)} models"


def tree_view(result: StoredLineage) -> TreeView:
    """The section of one saved graph."""
    graph = result.graph()
    picture = Markup(svg(graph, alone=False))  # noqa: S704  tree_drawing escapes every text
    return TreeView(result, graph, picture, tuple(_row(e) for e in graph.edges), _found(graph))


def _row(e: Edge) -> EdgeView:
    support = e.support_why if e.support is None else f"{100 * e.support:.0f} %"
    share = "" if e.share is None else number(e.share, 2)
    if e.share_interval is not None:
        share += f" ({number(e.share_interval[0], 2)} to {number(e.share_interval[1], 2)})"
    return EdgeView(e, support, share, BASIS[e.basis])


def _found(graph: Graph) -> str:
    """The graph in one sentence."""
    kin = {e.child for e in graph.edges} | {e.parent for e in graph.edges}
    families = sum(root in kin for root in graph.roots)
    alone = len(graph.nodes) - len(kin)
    merges = sum(not e.primary for e in graph.edges)
    open_ = sum(e.primary and not e.decided for e in graph.edges)
    parts = [
        f"{families} {'family' if families == 1 else 'families'}",
        f"{sum(e.primary for e in graph.edges)} edges",
        f"{open_} of them without a decided direction",
        f"{merges} further parents of merges",
        f"{alone} models without a relative here",
        f"{len(graph.undecided)} undecided pairs",
    ]
    return ", ".join(parts) + "."
