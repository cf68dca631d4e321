"""The minimum arborescence, lineage graphs inferred from known families, and their written forms."""

import itertools
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whorl.errors import UsageError
from whorl.lineage.arborescence import minimum_arborescence
from whorl.lineage.graph import NO_PARENT, Edge, Graph, Node, Open
from whorl.lineage.merged import find_merges
from whorl.lineage.newick import label, newick
from whorl.lineage.siblings import layer_weights
from whorl.lineage.tree import Evidence, Frame, Measured, infer
from whorl.lineage.tree_drawing import svg

LAYERS, SIZE = 8, 400


def cheapest(cost, root):
    """Total cost of the best arborescence by trying every choice of parents."""
    n, best = len(cost), np.inf
    others = [j for j in range(n) if j != root]
    for choice in itertools.product(range(n), repeat=n - 1):
        parent = dict(zip(others, choice, strict=True))
        total = (
            sum(cost[p, j] for j, p in parent.items() if p != j) if all(p != j for j, p in parent.items()) else np.inf
        )
        if total < best and all(reaches(parent, j, root) for j in others):
            best = total
    return best


def reaches(parent, node, root):
    seen = set()
    while node != root:
        if node in seen:
            return False
        seen.add(node)
        node = parent[node]
    return True


@settings(max_examples=120, deadline=None)
@given(st.integers(2, 5), st.integers(0, 2**32 - 1), st.booleans())
def test_arborescence_equals_enumeration(n, seed, ties):
    rng = np.random.default_rng(seed)
    cost = rng.integers(0, 4, (n, n)).astype(float) if ties else rng.random((n, n))
    cost[rng.random((n, n)) < 0.3] = np.inf
    root = int(rng.integers(n))
    best = cheapest(cost, root)
    if not np.isfinite(best):
        with pytest.raises(UsageError, match="cannot be reached"):
            minimum_arborescence(cost, root)
        return
    found = minimum_arborescence(cost, root)
    parent = {j: p for j, p in enumerate(found) if p is not None}
    assert found[root] is None
    assert len(parent) == n - 1
    assert all(reaches(parent, j, root) for j in parent)
    assert sum(cost[p, j] for j, p in parent.items()) == pytest.approx(best)


def test_arborescence_refuses_nan():
    with pytest.raises(UsageError, match="NaN"):
        minimum_arborescence(np.full((2, 2), np.nan))


def family(seed=0, layers=LAYERS, **makes):
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((layers, SIZE))
    updates = [0.3 * rng.standard_normal((layers, SIZE)) for _ in range(5)]
    return {"base": base} | {name: make(base, updates) for name, make in makes.items()}


def measured(found, **more):
    names = tuple(found)
    w = np.stack(list(found.values()), axis=1)
    squared = np.square(w[:, :, None] - w[:, None]).sum(axis=-1)
    norms = np.square(w).sum(axis=-1)
    size = np.sqrt(norms[:, :, None] * norms[:, None])
    apart = np.clip(2 - (norms[:, :, None] + norms[:, None] - squared) / size, 0, 4)
    pairs = list(itertools.combinations(range(len(names)), 2))
    members = tuple(range(len(names)))
    given = {
        "related": dict.fromkeys(pairs, True),
        "apart": {p: apart[:, p[0], p[1]] for p in pairs},
        "frames": [Frame(members, squared)],
        "merges": find_merges(squared, members, layer_weights(len(squared), 50, 0)),
    }
    return Measured(names, **(given | more))


def edges(graph):
    return {(e.parent, e.child) for e in graph.edges}


STAR = {
    "one": lambda b, u: b + u[0],
    "two": lambda b, u: b + u[1],
    "three": lambda b, u: b + u[2],
}


@pytest.mark.parametrize("order", [("base", "one", "two", "three"), ("three", "two", "one", "base")])
def test_a_star_has_its_base_for_root_whatever_the_order(order):
    found = family(**STAR)
    graph = infer(measured({name: found[name] for name in order}), draws=50)
    assert edges(graph) == {("base", "one"), ("base", "two"), ("base", "three")}
    assert graph.roots == ("base",)
    assert {e.basis for e in graph.edges} == {"triangles"}
    assert all(e.support == 1.0 for e in graph.edges)


def test_a_grandchild_hangs_on_its_parent():
    graph = infer(measured(family(**STAR, grand=lambda b, u: b + u[0] + u[3])), draws=20)
    assert ("one", "grand") in edges(graph)
    assert graph.roots == ("base",)


def test_a_heavy_child_trained_on_like_data_stays_with_the_base():
    graph = infer(measured(family(**STAR, heavy=lambda b, u: b + 4 * (0.2 * u[0] + u[4]))), draws=20)
    edge = graph.parents("heavy")[0]
    assert edge.parent == "base"
    assert "one" in edge.alternatives


def test_two_models_alone_have_no_direction():
    graph = infer(measured(family(one=STAR["one"])), draws=20)
    (edge,) = graph.edges
    assert edge.basis == "none"
    assert not edge.decided


@pytest.mark.parametrize(("parent", "child"), [(0, 1), (1, 0)])
def test_a_test_of_the_pair_turns_the_edge(parent, child):
    evidence = [Evidence(parent, child, True, "lies on a grid")]
    graph = infer(measured(family(one=STAR["one"]), evidence=evidence), draws=20)
    (edge,) = graph.edges
    names = ("base", "one")
    assert (edge.parent, edge.child, edge.basis) == (names[parent], names[child], "tested")
    assert edge.evidence == ("lies on a grid",)


def test_a_weak_prior_turns_the_edge_and_decides_nothing():
    graph = infer(measured(family(one=STAR["one"]), evidence=[Evidence(1, 0, False, "longer")]), draws=20)
    (edge,) = graph.edges
    assert (edge.parent, edge.basis) == ("one", "prior")
    assert not edge.decided


def test_a_merge_has_several_parents_and_none_of_them_descends_from_it():
    graph = infer(measured(family(**STAR, soup=lambda b, u: b + 0.5 * u[0] + 0.5 * u[1])), draws=20)
    assert {("one", "soup"), ("two", "soup")} <= edges(graph)
    assert [e.share for e in graph.parents("soup")] == pytest.approx([0.5, 0.5], abs=1e-6)
    assert [e.primary for e in graph.parents("soup")] == [True, False]
    assert graph.children("soup") == ()
    assert graph.roots == ("base",)


def test_a_child_of_a_merge_hangs_on_the_merge():
    soup = {"soup": lambda b, u: b + 0.5 * u[0] + 0.5 * u[1]}
    graph = infer(measured(family(**STAR, **soup, tuned=lambda b, u: b + 0.5 * u[0] + 0.5 * u[1] + u[4])), draws=20)
    assert ("soup", "tuned") in edges(graph)


def test_unrelated_models_have_no_edge_and_undecided_pairs_are_listed():
    found = measured(family(**STAR))
    related = dict(found.related) | {(0, 3): False, (1, 3): False, (2, 3): None}
    graph = infer(measured(family(**STAR), related=related, whys={(2, 3): "too few layers"}), draws=20)
    assert graph.parents("three") == ()
    assert set(graph.roots) == {"base", "three"} or "three" in graph.roots
    assert graph.undecided == (Open("two", "three", "too few layers"),)


def test_identical_models_are_one_node():
    graph = infer(measured(family(**STAR, copy=lambda b, u: b.copy()), same=[(0, 4)]), draws=20)
    assert graph.nodes[0] == Node("base", ("copy",))
    assert "copy" not in {n.name for n in graph.nodes}
    assert edges(graph) == {("base", "one"), ("base", "two"), ("base", "three")}


def test_seven_layers_give_no_support_and_say_why():
    graph = infer(measured(family(layers=7, **STAR)), draws=20)
    assert {e.support for e in graph.edges} == {None}
    assert all("7 comparable layers" in e.support_why for e in graph.edges)


def test_related_without_a_distance_is_listed_not_linked():
    found = measured(family(one=STAR["one"]), apart={}, frames=())
    graph = infer(found, draws=20)
    assert graph.edges == ()
    assert "no common frame" in graph.undecided[0].why


def test_support_falls_where_layers_disagree():
    def torn(b, u):
        return np.where(np.arange(LAYERS)[:, None] % 2 == 0, b + u[0] + u[3], b + u[1] + u[3])

    graph = infer(measured(family(**STAR, torn=torn), merges=()), draws=100)
    assert graph.parents("torn")[0].support < 0.95


def test_same_seed_same_graph():
    found = measured(family(**STAR))
    assert infer(found, draws=30, seed=4) == infer(found, draws=30, seed=4)


def test_names_must_differ():
    with pytest.raises(UsageError, match="own name"):
        infer(Measured(("a", "a"), {}, {}))


HOSTILE = "a'(b):[c],;\n<script>alert(1)</script>&\u202e\"é"


def edge(parent, child, **more):
    given = {
        "relation": "fine-tuned",
        "distance": 0.25,
        "cost": 0.3,
        "support": 0.5,
        "support_why": "",
        "basis": "tested",
    }
    return Edge(parent, child, **(given | more))


def test_newick_of_a_forest():
    graph = Graph(
        (Node("a"), Node("b", ("copy",)), Node("c"), Node("lone")),
        (edge("a", "b"), edge("b", "c", share=0.5), edge("a", "c", primary=False, support=None)),
    )
    text = newick(graph)
    assert text == (
        "((('c'[&support=0.5,also_parent=\"a\"]:0.25)'b'[&support=0.5,copy=\"copy\"]:0.25)'a':0,'lone':0)"
        f"'{NO_PARENT}';"
    )


def test_newick_cannot_be_broken_by_a_name():
    graph = Graph((Node("a"), Node(HOSTILE), Node("c")), (edge("a", "c"), edge(HOSTILE, "c", primary=False)))
    text = newick(graph)
    bare = re.sub(r"\[[^\]]*\]", "", re.sub(r"'(?:[^']|'')*'", "X", text))
    assert bare == "((X:0.25)X:0,X:0)X;"
    assert "\n" not in text
    assert label("it's") == "'it''s'"


def test_a_deep_chain_needs_no_recursion():
    names = [f"m{i}" for i in range(1100)]
    graph = Graph(tuple(map(Node, names)), tuple(edge(a, b) for a, b in itertools.pairwise(names)))
    assert newick(graph).count("(") == 1100


def test_svg_escapes_names_and_draws_every_node():
    graph = Graph(
        (Node("a"), Node(HOSTILE), Node("c"), Node("x" * 500)),
        (edge("a", HOSTILE, basis="none"), edge("a", "c"), edge(HOSTILE, "c", primary=False)),
    )
    text = svg(graph)
    root = ET.fromstring(text)  # noqa: S314  our own text
    space = {"s": "http://www.w3.org/2000/svg"}
    assert len(root.findall(".//s:rect", space)) == 4
    assert "<script" not in text
    assert "\u202e" not in text
    assert {p.get("class") for p in root.findall(".//s:path", space)} >= {"solid", "dashed", "dotted", "head", "stub"}
    assert "prefers-color-scheme: dark" in text
    assert "<style" not in svg(graph, alone=False)


def test_svg_boxes_do_not_overlap():
    graph = infer(measured(family(**STAR, soup=lambda b, u: b + 0.5 * u[0] + 0.5 * u[1])), draws=5)
    boxes = [(float(x), float(y)) for x, y in re.findall(r'<rect x="([\d.]+)" y="([\d.]+)"', svg(graph))]
    for one, other in itertools.combinations(boxes, 2):
        assert abs(one[0] - other[0]) >= 214 or abs(one[1] - other[1]) >= 42
