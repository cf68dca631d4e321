"""A lineage graph as inline SVG: one box a model, parents left of their children, generations in columns.

Solid arrows have a decided direction; dashed lines without a head do not. Further parents of a merge are dotted. All
text is foreign and is escaped; long names lose their middle and keep their ends, where names of models differ. Colours
are CSS variables with a light and a dark set, and never the only signal.
"""

import html
from collections.abc import Mapping
from dataclasses import dataclass

from whorl.lineage.graph import NO_PARENT, Edge, Graph
from whorl.reports.shown import cut_name, cut_text, pixels

BOX, GAP, ROW, HEIGHT = 214.0, 74.0, 58.0, 42.0
MARGIN, TOP, STUB = 16.0, 14.0, 34.0
NAME, DETAIL = 27, 36  # characters that fit a box
LEGEND = (
    ("solid", "parent to child, direction decided"),
    ("dashed", "direction not decided"),
    ("dotted", "further parent of a merge"),
)

STYLE = """
.whorl-tree { --paper: #ffffff; --ink: #1d1d1b; --muted: #5c5b57; --box: #f4f3f0; --edge: #55534e; --warm: #9a3d0c; }
@media (prefers-color-scheme: dark) {
  .whorl-tree { --paper: #171716; --ink: #efeeea; --muted: #aeada7; --box: #262624; --edge: #b4b2ab; --warm: #ff9d5c; }
}
.whorl-tree { font-family: system-ui, "Segoe UI", "DejaVu Sans", sans-serif; background: var(--paper); }
"""


@dataclass(frozen=True)
class Placed:
    """A box: its node, upper left corner, and its two lines of text."""

    name: str
    x: float
    y: float
    title: str
    detail: str


def place(graph: Graph) -> tuple[dict[str, Placed], float, float]:
    """Boxes by node, and the width and height of the picture."""
    column = _columns(graph)
    row = _rows(graph)
    boxes = {}
    for node in graph.nodes:
        x = MARGIN + STUB + column[node.name] * (BOX + GAP)
        y = TOP + row[node.name] * ROW
        copies = f" = {len(node.copies)} more" if node.copies else ""
        title = cut_name(node.name, NAME - len(copies)) + copies
        boxes[node.name] = Placed(node.name, x, y, title, _detail(graph, node.name))
    width = max(b.x for b in boxes.values()) + BOX + MARGIN
    height = max(b.y for b in boxes.values()) + ROW
    return boxes, max(width, 790.0), height + 30


def _columns(graph: Graph) -> dict[str, int]:
    """Generation of each node: one more than its latest parent, further parents of merges included."""
    found: dict[str, int] = {}
    waiting = [n.name for n in graph.nodes]
    while waiting:
        ready = [n for n in waiting if all(e.parent in found for e in graph.parents(n))]
        for name in ready or waiting[:1]:  # a circle cannot occur in our graphs; in a crafted file it must not hang
            above = [found[e.parent] for e in graph.parents(name) if e.parent in found]
            found[name] = 1 + max(above) if above else 0
        waiting = [n for n in waiting if n not in found]
    return found


def _rows(graph: Graph) -> dict[str, float]:
    """Leaves one below the other, inner nodes amid their children, models without kin last."""
    order = [name for _, name in graph.walk()]
    kin = {e.parent for e in graph.edges} | {e.child for e in graph.edges}
    order = [n for n in order if n in kin] + [n for n in order if n not in kin]
    row: dict[str, float] = {}
    leaves = [n for n in order if not graph.children(n)]
    for at, name in enumerate(leaves):
        row[name] = float(at)
    for name in reversed(order):
        below = [row[e.child] for e in graph.children(name)]
        if below:
            row[name] = (below[0] + below[-1]) / 2
    return row


def _detail(graph: Graph, name: str) -> str:
    edges = graph.parents(name)
    if not edges:
        return f"{NO_PARENT}, or undecided" if any(name in {o.a, o.b} for o in graph.undecided) else NO_PARENT
    first = edges[0]
    parts = [cut_name(first.relation, 16)]
    if len(edges) > 1:
        parts = [f"merge {' + '.join('?' if e.share is None else f'{e.share:.2g}' for e in edges)}"]
    parts.append(f"d {first.distance:.3f}")
    if first.support is not None:
        parts.append(f"{100 * first.support:.0f} %")
    return " · ".join(parts)[:DETAIL]


def svg(graph: Graph, *, alone: bool = True, title: str = "Lineage of the models") -> str:
    """The picture.

    Args:
        graph: What to draw.
        alone: Carry its own style sheet; False inside a page that has one with the same classes.
        title: For screen readers.
    """
    boxes, width, height = place(graph)
    lines = [_edge(e, boxes) for e in graph.edges]
    body = [_box(b, graph.parents(b.name)) for b in boxes.values()]
    size = f'viewBox="0 0 {pixels(width)} {pixels(height)}" width="{pixels(width)}" height="{pixels(height)}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="whorl-tree" role="img" {size}>'
    style = f"<style>{STYLE}{SHAPES}</style>" if alone else ""
    alt = f"<title>{_text(title)}</title><desc>{_text(in_words(graph), 4000)}</desc>"
    legend = _legend(height - 14, graph)
    return f"{head}{style}{alt}{''.join(lines)}{''.join(body)}{legend}</svg>\n"


SHAPES = """
.whorl-tree text { fill: var(--ink); font-size: 12.5px; }
.whorl-tree .soft { fill: var(--muted); font-size: 11px; }
.whorl-tree .node rect { fill: var(--box); stroke: var(--muted); stroke-width: 1; }
.whorl-tree .root rect { stroke: var(--ink); stroke-width: 1.8; }
.whorl-tree path { fill: none; stroke: var(--edge); stroke-width: 1.6; }
.whorl-tree path.head { fill: var(--edge); stroke: none; }
.whorl-tree .dashed { stroke-dasharray: 6 4; stroke: var(--warm); }
.whorl-tree .dotted { stroke-dasharray: 1.5 4; stroke-linecap: round; stroke-width: 2; }
.whorl-tree .stub { stroke-dasharray: 2 3; stroke: var(--muted); }
"""


def in_words(graph: Graph) -> str:
    """The graph as sentences, for those who cannot see it."""
    parts = [
        f"{e.child}: {e.relation}, from {e.parent}{'' if e.decided else ', direction not decided'}."
        for e in graph.edges
    ]
    parts += [f"{name}: {NO_PARENT}." for name in graph.roots]
    return " ".join(parts)


def kind_of(edge: Edge) -> str:
    """How the edge is drawn."""
    if not edge.primary:
        return "dotted"
    return "solid" if edge.decided else "dashed"


def _edge(edge: Edge, boxes: Mapping[str, Placed]) -> str:
    a, b = boxes[edge.parent], boxes[edge.child]
    x1, y1, x2, y2 = a.x + BOX, a.y + HEIGHT / 2, b.x, b.y + HEIGHT / 2
    if not edge.primary:
        y1, y2 = y1 + 9, y2 + 9
    kind = kind_of(edge)
    end = x2 - 7 if kind != "dashed" else x2
    # The bend lies in the gap before the child, so that a long edge passes above or below the boxes between.
    bend = x2 - GAP / 2 if x2 - x1 <= GAP + 1 else x1 + GAP / 2
    curve = (
        f"M{pixels(x1)} {pixels(y1)}C{pixels(bend)} {pixels(y1)} {pixels(bend)} {pixels(y2)} {pixels(end)} {pixels(y2)}"
    )
    head = ""
    if kind != "dashed":
        head = f'<path class="head" d="M{pixels(x2)} {pixels(y2)}l-8 -4v8z"/>'
    words = _text("; ".join((f"{edge.parent} to {edge.child}: {edge.relation}", *edge.evidence)), 1000)
    return f'<g><title>{words}</title><path class="{kind}" d="{curve}"/>{head}</g>'


def _box(box: Placed, edges: tuple[Edge, ...]) -> str:
    x, y = pixels(box.x), pixels(box.y)
    stub = ""
    if not edges:
        stub = f'<path class="stub" d="M{pixels(box.x - STUB + 4)} {pixels(box.y + HEIGHT / 2)}H{x}"/>'
    rect = f'<rect x="{x}" y="{y}" width="{pixels(BOX)}" height="{pixels(HEIGHT)}" rx="6"/>'
    name = f'<text x="{pixels(box.x + 10)}" y="{pixels(box.y + 17)}">{_text(box.title)}</text>'
    detail = f'<text class="soft" x="{pixels(box.x + 10)}" y="{pixels(box.y + 33)}">{_text(box.detail)}</text>'
    kind = "node" if edges else "node root"
    return f'<g class="{kind}"><title>{_text(box.name, 300)}</title>{stub}{rect}{name}{detail}</g>'


def _legend(y: float, graph: Graph) -> str:
    """Only the sorts of line that occur."""
    used = {kind_of(e) for e in graph.edges}
    x, parts = MARGIN, []
    for kind, words in LEGEND:
        if kind in used:
            parts.append(f'<path class="{kind}" d="M{pixels(x)} {pixels(y - 4)}h30"/>')
            parts.append(f'<text class="soft" x="{pixels(x + 38)}" y="{pixels(y)}">{words}</text>')
            x += 38 + 5.6 * len(words) + 22
    if graph.edges:
        parts.append(f'<text class="soft" x="{pixels(x)}" y="{pixels(y)}">d: distance · %: bootstrap support</text>')
    return "".join(parts)


def _text(value: object, limit: int = 200) -> str:
    return html.escape(cut_text(value, limit), quote=True)
