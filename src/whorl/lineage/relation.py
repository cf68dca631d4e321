"""The relation of two related models and its direction (the order of tests is part of the definition; ours).

    identical, cast, re-laid-out     exact: equal values, the same after a cast, the same in another order
    requantised                      one side lies on a grid, and the difference is no larger than its steps
    lora-of                          the difference has one small rank
    fine-tuned                       a dense difference with nothing more special behind it
    pruned                           zeros, or neurons, heads or width that are gone
    layers-dropped, -duplicated, -inserted, -reordered
    tokens-added                     only rows at the end of the vocabulary were added
    disguised copy; derived, disguised     other coordinates; the operators are equal, or only alike

The first that holds names the relation, and all facts are kept. Pairs are expected to be related: nothing here tests
that. Where raw tensors do not correspond ("no exact frame"), only the layer map and aligned cosines can speak.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from whorl.canonical.model import CanonicalModel
from whorl.errors import NotComparable
from whorl.linalg.layers import LayerPath
from whorl.lineage import facts as tests
from whorl.lineage.differences import LayerMap, TensorDifference, measure, role_pairs
from whorl.lineage.direction import Direction, Evidence, decide
from whorl.lineage.exact import same_values
from whorl.lineage.facts import SIDES, Fact
from whorl.lineage.layer_map import MIN_MATCH, LayerMatch, is_idle, match_layers
from whorl.lineage.low_rank import find_low_rank
from whorl.lineage.pruning import Columns, find_subsets, find_zeros, match_columns
from whorl.lineage.same_function import LayerCosine, same_frame_cosines

COPY_COSINE = 1 - 1e-3  # operators of a function-preserving edit stored in float16 stay above 1 - 1e-5
BEYOND_NOISE = 10.0  # how many times more the raw tensors must differ than the operators, to call it a disguise

ORDER = (
    "identical", "cast", "re-laid-out", "requantised", "lora-of", "fine-tuned", "pruned", "layers-dropped",
    "layers-duplicated", "layers-inserted", "layers-reordered", "tokens-added", "disguised copy", "derived, disguised",
)  # fmt: skip


@dataclass(frozen=True)
class Relation:
    """What two related models are to each other.

    Args:
        name: The first fact that holds in the order of `ORDER`, or "undecided".
        facts: All tests, in that order.
        direction: Which one is the parent, if that can be told.
        layer_map: (layer of A, layer of B) in B's order, None where a layer has no partner; None when not found.
    """

    name: str
    facts: tuple[Fact, ...]
    direction: Direction
    layer_map: LayerMap | None


def find_relation(
    a: CanonicalModel,
    b: CanonicalModel,
    alignment_path: LayerPath | LayerMap | None = None,
    frame_exact_hint: bool | None = None,
    aligned: Sequence[LayerCosine] | None = None,
) -> Relation:
    """The relation of a pair that is already known to be related.

    Args:
        a: One model, open.
        b: The other.
        alignment_path: Layers that correspond, as another method has found them; used where raw tensors do not correspond,
            and only there: a monotone path cannot show layers that are used twice.
        frame_exact_hint: True or False when it is known whether raw tensors correspond; None to find out.
        aligned: (layer of A, layer of B, cosine of their operators in a common frame), for disguised pairs.

    Raises:
        MalformedFile: a value is NaN or infinite.
    """
    exact = same_values(a, b, ())
    if exact.relation in ("identical", "re-laid-out"):
        return _exact(a, b, exact.relation, exact.why)
    given = alignment_path.pairs if isinstance(alignment_path, LayerPath) else alignment_path
    columns = _columns(a, b) if frame_exact_hint is not False else None
    match = _match(a, b, columns) if frame_exact_hint is not False else None
    if match is None or (match.median < MIN_MATCH and not frame_exact_hint):
        return _disguised(a, b, given, aligned)
    return _in_exact_frame(a, b, match, columns, aligned)


def _exact(a: CanonicalModel, b: CanonicalModel, relation: str, why: str) -> Relation:
    same = tuple((i, i) for i in range(min(a.shape.n_layers, b.shape.n_layers)))
    types = _types(a), _types(b)
    if relation == "re-laid-out" or types[0] == types[1]:
        return _named([Fact(relation, True, why)], [], None if relation == "re-laid-out" else same)
    numbers: dict[str, float | int | str] = {"types_a": types[0], "types_b": types[1]}
    fact = Fact("cast", True, f"{why} ({types[0]} and {types[1]})", numbers)
    return _named([fact], _lossy(a, b), same)


def _types(model: CanonicalModel) -> str:
    """Stored types of the layer matrices and tables, most frequent first."""
    kinds = [model.source.tensors[name].dtype for name in model.inventory.used]
    names, counts = np.unique(kinds, return_counts=True)
    return ", ".join(str(names[i]) for i in np.argsort(-counts))


def _lossy(a: CanonicalModel, b: CanonicalModel) -> list[Evidence]:
    """A cast to fewer bits that dropped digits cannot be undone; one that dropped none has no direction."""
    layers = tuple((i, i) for i in range(a.shape.n_layers))
    for pair in role_pairs(a, b, layers):
        if pair.a.bits == pair.b.bits:
            continue
        if measure(pair).dd > 0:
            parent = SIDES[0] if pair.a.bits > pair.b.bits else SIDES[1]
            kinds = (pair.a.dtype, pair.b.dtype) if parent == "a" else (pair.b.dtype, pair.a.dtype)
            return [Evidence("lossy cast", parent, f"{kinds[1]} dropped digits that the {kinds[0]} file still has")]
    return []


def _columns(a: CanonicalModel, b: CanonicalModel) -> Columns | None:
    return match_columns(a, b) if a.shape.d_model != b.shape.d_model else None


def _match(a: CanonicalModel, b: CanonicalModel, columns: Columns | None) -> LayerMatch | None:
    """The layers by raw weights; None where no tensors have equal shapes."""
    if columns is not None and not columns.subset.holds:
        return None
    try:
        return match_layers(a, b, columns)
    except NotComparable:
        return None


def _in_exact_frame(
    a: CanonicalModel,
    b: CanonicalModel,
    match: LayerMatch,
    columns: Columns | None,
    aligned: Sequence[LayerCosine] | None,
) -> Relation:
    tensors = [measure(pair) for pair in role_pairs(a, b, match.pairs)]
    same_build = _same_build(a, b, match)
    grids = tests.find_quantised(tensors, 0), tests.find_quantised(tensors, 1)
    quantised, evidence = tests.requantised(grids)
    # A coarse grid rounds small weights to zero: zeros of a quantised side say nothing about pruning.
    zeros, more = tests.pruned_zeros(
        (None if grids[0] else find_zeros(tensors, 0), None if grids[1] else find_zeros(tensors, 1))
    )
    evidence += more
    special = _special(quantised, zeros, same_build)
    adapter = tests.lora(find_low_rank([] if special else tensors), tensors, blocked=special)
    disguise: list[Fact] = []
    if not special and not adapter.holds and any(not t.equal for t in tensors):
        disguise = _inside(a, b, match, tensors, aligned)
    blocked = special or next((f.why for f in (adapter, *disguise) if f.holds), "")
    also = "; " + quantised.why if quantised.numbers and not quantised.holds else ""
    facts = [quantised, adapter, tests.fine_tuned(tensors, blocked=blocked, also=also), zeros, *disguise]
    for subset in find_subsets(a, b, match.pairs, columns):
        fact, more = tests.pruned_parts(subset, SIDES[_smaller(a, b, subset.what)])
        facts.append(fact)
        evidence += more
    for found, signs in (_layers(a, b, match), _tokens(a, b, tensors)):
        facts += found
        evidence += signs
    return _named(facts, evidence, match.pairs)


def _special(quantised: Fact, zeros: Fact, same_build: str) -> str:
    """Why neither an adapter nor a plain fine-tune explains the difference."""
    if same_build:
        return same_build
    if quantised.holds:
        return "the difference is the rounding of a grid"
    return "one side is full of zeros" if zeros.holds else ""


def _same_build(a: CanonicalModel, b: CanonicalModel, match: LayerMatch) -> str:
    """The first size in which the models differ, "" when there is none."""
    for what in ("n_layers", "d_model", "d_mlp", "n_heads", "n_kv_heads", "d_head", "n_experts"):
        x, y = getattr(a.shape, what), getattr(b.shape, what)
        if x != y:
            return f"the models are of different build: {what} is {x} and {y}"
    return "" if match.monotone and len(match.matched) == a.shape.n_layers else "the layers match in another order"


def _smaller(a: CanonicalModel, b: CanonicalModel, what: str) -> int:
    size = {"neurons": "d_mlp", "heads": "n_heads", "width": "d_model"}[what]
    return int(getattr(a.shape, size) > getattr(b.shape, size))


def _layers(a: CanonicalModel, b: CanonicalModel, match: LayerMatch) -> tuple[list[Fact], list[Evidence]]:
    """Layer facts; only layers without partner, or copies of another, can have been put in idle."""
    if not match.dropped and not match.inserted and not match.repeated(0) and not match.repeated(1) and match.monotone:
        return [Fact("layers-dropped", False, "every layer has one partner, in the same order")], []
    copies = (
        [j for i, j in match.matched if i in match.repeated(0)],
        [i for i, j in match.matched if j in match.repeated(1)],
    )
    idle = (
        tuple(i for i in sorted({*match.dropped, *copies[1]}) if is_idle(a, i)),
        tuple(j for j in sorted({*match.inserted, *copies[0]}) if is_idle(b, j)),
    )
    return tests.layers(match, idle)


def _tokens(
    a: CanonicalModel, b: CanonicalModel, tensors: Sequence[TensorDifference]
) -> tuple[list[Fact], list[Evidence]]:
    """More rows at the end of one vocabulary, over leading rows that correspond."""
    sizes = a.shape.n_vocab, b.shape.n_vocab
    table = next((t for t in tensors if t.pair.role == "embed"), None)
    if sizes[0] == sizes[1] or table is None or (table.cosine or 0.0) < MIN_MATCH:
        return [], []
    child = int(sizes[1] > sizes[0])
    why = f"{SIDES[child].upper()} has {abs(sizes[1] - sizes[0])} more token rows than the other's {min(sizes)}"
    evidence = Evidence("added tokens", SIDES[1 - child], why)
    alone = all(t.equal for t in tensors)
    numbers = {"n_added": abs(sizes[1] - sizes[0]), "rows_cosine": table.cosine or 0.0}
    return [Fact("tokens-added", alone, why + (", and nothing else changed" if alone else ""), numbers)], [evidence]


def _inside(
    a: CanonicalModel,
    b: CanonicalModel,
    match: LayerMatch,
    tensors: Sequence[TensorDifference],
    aligned: Sequence[LayerCosine] | None,
) -> list[Fact]:
    """Other coordinates inside heads and neurons, in one residual frame: operators agree far better than tensors."""
    if a.shape.n_experts:
        return []
    cosines = same_frame_cosines(a, b, match.matched) if aligned is None else tuple(aligned)
    raw = max((t.dd / (t.aa + t.bb) for t in tensors if t.pair.is_layer_matrix and t.aa + t.bb > 0), default=0.0)
    lost = 1 - min(value for *_, value in cosines)
    if raw < BEYOND_NOISE * max(lost, 0.0) or raw < 1 - COPY_COSINE:
        return []
    return [_operators(cosines, f"raw tensors differ by up to {raw:.2g} of their squared size")]


def _disguised(
    a: CanonicalModel, b: CanonicalModel, given: LayerMap | None, aligned: Sequence[LayerCosine] | None
) -> Relation:
    """No exact frame: only aligned numbers can name the relation, or operators in one and the same residual frame."""
    aligned = aligned or _same_residual(a, b, given)
    if not aligned:
        why = "raw tensors do not correspond, and no aligned operators were given"
        return _named([Fact("disguised copy", False, why)], [], given)
    fact = _operators(aligned, "raw tensors do not correspond")
    found, evidence = list[Fact](), list[Evidence]()
    if given is not None:
        scores = np.zeros((a.shape.n_layers, b.shape.n_layers))
        for i, j, value in aligned:
            scores[i, j] = value
        median = float(np.median([value for *_, value in aligned]))
        found, evidence = _layers(a, b, LayerMatch(given, scores, median))
    return _named([fact, *found], evidence, given)


def _same_residual(a: CanonicalModel, b: CanonicalModel, given: LayerMap | None) -> tuple[LayerCosine, ...]:
    """Operator cosines without alignment, where they show that only heads and neurons have other coordinates."""
    sizes = [(m.shape.d_model, m.shape.n_heads, m.shape.n_kv_heads, m.shape.d_mlp, m.shape.n_experts) for m in (a, b)]
    if sizes[0] != sizes[1] or a.shape.n_experts or a.shape.types != b.shape.types:
        return ()
    pairs = given or tuple((i, i) for i in range(min(a.shape.n_layers, b.shape.n_layers)))
    cosines = same_frame_cosines(a, b, [(i, j) for i, j in pairs if i is not None and j is not None])
    return cosines if cosines and float(np.median([value for *_, value in cosines])) >= MIN_MATCH else ()


def _operators(cosines: Sequence[LayerCosine], raw: str) -> Fact:
    values = [value for *_, value in cosines]
    copy = min(values) >= COPY_COSINE
    numbers: dict[str, float | int | str] = {
        "smallest_cosine": min(values), "median_cosine": float(np.median(values)), "n_layers": len(values)
    }  # fmt: skip
    lowest = np.floor(min(values) * 1e4) / 1e4
    why = f"{raw}, while the operators of {len(values)} layers agree with cosine {lowest:.4f} or more"
    return Fact("disguised copy" if copy else "derived, disguised", True, why, numbers)


def _named(facts: Sequence[Fact], evidence: Sequence[Evidence], layer_map: LayerMap | None) -> Relation:
    ordered = tuple(sorted(facts, key=lambda f: ORDER.index(f.relation)))
    name = next((f.relation for f in ordered if f.holds), "undecided")
    direction = decide(evidence)
    if name in {"re-laid-out", "identical"}:
        direction = replace(direction, why="direction undecided: the same values in both")
    return Relation(name, ordered, direction, layer_map)
