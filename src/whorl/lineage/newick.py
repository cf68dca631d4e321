"""Newick text of a lineage graph (the Newick 1986 standard, with quoted labels and comments).

Inner nodes have labels: every model is a node. The forest hangs on one root, "parent not in the set". Lengths are
distances; the support of an edge, copies of a model and further parents of a merge stand in comments, which readers of
plain Newick pass over:

    (('tuned'[&support=1]:0.21,'merged'[&support=0.98,also_parent="other"]:0.15)'base':0)'parent not in the set';
"""

import re

from whorl.lineage.graph import NO_PARENT, Graph

# Brackets would end a comment and control characters break lines; quotes are doubled or escaped.
_NOT_IN_LABEL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_NOT_IN_COMMENT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\[\]\"'%,=]")


def newick(graph: Graph) -> str:
    """The graph as one line of Newick; parts of a directed graph that a tree cannot hold go into comments."""
    roots = ",".join(_subtree(graph, name) for name in graph.roots)
    return f"({roots}){label(NO_PARENT)};"


def label(name: str) -> str:
    """A quoted label: quotes doubled, control characters percent-encoded."""
    return "'" + _NOT_IN_LABEL.sub(_percent, name).replace("'", "''") + "'"


def _subtree(graph: Graph, top: str) -> str:
    """One tree, built from the leaves up so that deep chains need no recursion."""
    order = [top]
    for name in order:
        order.extend(e.child for e in graph.children(name))
    text: dict[str, str] = {}
    for name in reversed(order):
        inside = [text.pop(e.child) for e in graph.children(name)]
        text[name] = (
            (f"({','.join(inside)})" if inside else "") + label(name) + _comment(graph, name) + _length(graph, name)
        )
    return text[top]


def _length(graph: Graph, name: str) -> str:
    edges = graph.parents(name)
    return f":{edges[0].distance:.6g}" if edges else ":0"


def _comment(graph: Graph, name: str) -> str:
    edges = graph.parents(name)
    parts = []
    if edges and edges[0].support is not None:
        parts.append(f"support={edges[0].support:.4g}")
    if edges and not edges[0].decided:
        parts.append("direction=undecided")
    parts += [f'also_parent="{_quoted(e.parent)}"' for e in edges[1:]]
    node = next(n for n in graph.nodes if n.name == name)
    parts += [f'copy="{_quoted(copy)}"' for copy in node.copies]
    return f"[&{','.join(parts)}]" if parts else ""


def _quoted(name: str) -> str:
    return _NOT_IN_COMMENT.sub(_percent, name)


def _percent(found: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", errors="replace"))
