"""From comparisons of pairs and open models to what a tree is made from: verdicts, distances, frames, directions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from whorl.canonical.model import CanonicalModel
from whorl.canonical.roles import MATRIX_ROLES
from whorl.lineage.distances import Distances, layer_distances, same_layers
from whorl.lineage.exact import ExactFinding
from whorl.lineage.merged import Merge, find_merges
from whorl.lineage.relation import Relation
from whorl.lineage.siblings import layer_weights
from whorl.lineage.tree import DRAWS, Evidence, Frame, Measured
from whorl.multiple import benjamini_yekutieli
from whorl.pairs.run import PairResult
from whorl.progress import Progress, silent

Doubles = NDArray[np.float64]
Pair = tuple[int, int]
LayerMap = Sequence[tuple[int | None, int | None]]

COPIES = ("identical", "re-laid-out")
FRAME_COSINE = 0.2  # same-size matrices of independent models have cosines below 0.05 at any size worth comparing
LONGER = 0.005


class Compared(Protocol):
    """What a tree needs of `whorl.comparison.Comparison`."""

    @property
    def verdict(self) -> str: ...
    @property
    def relation(self) -> str: ...
    @property
    def why(self) -> str: ...
    @property
    def p_value(self) -> float | None: ...
    @property
    def exact(self) -> ExactFinding: ...
    @property
    def relation_found(self) -> Relation | None: ...
    @property
    def pair(self) -> PairResult | None: ...


@dataclass(frozen=True)
class PairFound:
    """One pair of a tree.

    Args:
        a: Position of one model.
        b: Position of the other, larger.
        verdict: Of the pair alone.
        related: After correction over all pairs: True, False, or None for undecided.
        relation: Its name, "undecided" where none was found.
        p_value: Of the pair alone; None for exact relations, and where nothing could be tested.
        p_adjusted: After Benjamini and Yekutieli over all pairs.
        distance: Root of 2 - 2 cos over the layers; None where the pair is unrelated or has no common frame.
        measured: "stored", "matched layers" or "aligned operators"; None without a distance.
        why: One sentence on the verdict.
    """

    a: int
    b: int
    verdict: str
    related: bool | None
    relation: str
    p_value: float | None
    p_adjusted: float | None
    distance: float | None
    measured: str | None
    why: str

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return asdict(self)


def gather(
    names: tuple[str, ...],
    models: Sequence[CanonicalModel | None],
    compared: Mapping[Pair, Compared],
    fdr: float,
    seed: int = 0,
    progress: Progress = silent,
) -> tuple[Measured, tuple[PairFound, ...]]:
    """Everything that `whorl.lineage.tree.infer` needs, and the pairs as results show them.

    Args:
        names: Of the models.
        models: Open, or None where only a fingerprint is at hand.
        compared: A comparison for every pair (i, j), i < j.
        fdr: False-discovery rate over all pairs.
        seed: Of the bootstrap behind merges.
        progress: Called once per layer.
    """
    related, adjusted = _judged(compared, fdr)
    groups = list(_groups(models, related))
    apart: dict[Pair, Doubles] = {}
    how: dict[Pair, str] = {}
    frames: list[Frame] = []
    evidence, merges = _tested(compared), list[Merge]()
    for members in groups:
        found = layer_distances([m for i in members if (m := models[i]) is not None], progress)
        for places in _frames(found, members, related):
            kept = tuple(members[k] for k in places)
            frame = Frame(kept, found.squared[:, places][:, :, places])
            frames.append(frame)
            merges += find_merges(frame.squared, kept, layer_weights(len(found.squared), DRAWS, seed))
            for one, other in combinations(places, 2):
                pair = (members[one], members[other])
                apart[pair], how[pair] = found.apart[:, one, other], "stored"
                evidence += _longer(found, (one, other), pair, compared[pair])
    for pair in (p for p, yes in related.items() if yes and p not in apart):
        if (other_way := _elsewhere(models, pair, compared[pair])) is not None:
            how[pair], apart[pair] = other_way
    whys = {p: _why(c, related[p], adjusted[p], fdr) for p, c in compared.items()}
    relations = {p: c.relation for p, c in compared.items() if c.relation not in {"undecided", "unrelated"}}
    same = tuple(p for p, c in compared.items() if c.exact.relation in COPIES)
    merged = {m.child for m in merges}
    evidence = [e for e in evidence if e.tested or not merged & {e.parent, e.child}]
    measured = Measured(names, related, apart, same, frames, evidence, merges, relations, whys)
    pairs = tuple(
        PairFound(
            i, j, c.verdict, related[i, j], c.relation, c.p_value, adjusted[i, j],
            float(np.sqrt(apart[i, j].mean())) if (i, j) in apart else None, how.get((i, j)), whys[i, j],
        )
        for (i, j), c in sorted(compared.items())
    )  # fmt: skip
    return measured, pairs


def _judged(compared: Mapping[Pair, Compared], fdr: float) -> tuple[dict[Pair, bool | None], dict[Pair, float | None]]:
    """Verdicts after correction: exact relations stand, the others share one false-discovery rate."""
    tested = [p for p, c in compared.items() if c.exact.relation is None]
    with_p = [(p, x) for p in tested if (x := compared[p].p_value) is not None]
    corrected = benjamini_yekutieli([x for _, x in with_p], max(len(tested), 1)).tolist()
    adjusted: dict[Pair, float | None] = dict.fromkeys(compared)
    adjusted |= {p: float(x) for (p, _), x in zip(with_p, corrected, strict=True)}
    related: dict[Pair, bool | None] = {}
    for p, c in compared.items():
        value = adjusted[p]
        if c.verdict == "related":
            related[p] = True if c.exact.relation is not None or (value is not None and value <= fdr) else None
        else:
            related[p] = False if c.verdict == "unrelated" else None
    return related, adjusted


def _why(c: Compared, related: bool | None, adjusted: float | None, fdr: float) -> str:
    if c.verdict == "related" and related is None:
        shown = "none" if adjusted is None else f"{adjusted:.2g}"
        return f"related on its own, but not after correction over all pairs (adjusted p {shown}, needs {fdr:g})"
    return c.why


def _groups(models: Sequence[CanonicalModel | None], related: Mapping[Pair, bool | None]) -> Iterator[list[int]]:
    """Models with a relative in the set, grouped by equal layer shapes; only groups of two and more."""
    kin = {i for pair, yes in related.items() if yes for i in pair}
    groups: list[list[int]] = []
    for i in sorted(kin):
        model = models[i]
        if model is None:
            continue
        for group in groups:
            first = models[group[0]]
            if first is not None and same_layers(first.shape, model.shape):
                group.append(i)
                break
        else:
            groups.append([i])
    yield from (group for group in groups if len(group) > 1)


def _frames(found: Distances, members: Sequence[int], related: Mapping[Pair, bool | None]) -> list[list[int]]:
    """Places of models whose stored weights lie together: related, and their layers have a clear cosine."""
    mean = found.apart.mean(axis=0)
    parts = [{k} for k in range(len(members))]
    for one, other in combinations(range(len(members)), 2):
        if related.get((members[one], members[other])) and mean[one, other] < 2 - 2 * FRAME_COSINE:
            joined = [part for part in parts if part & {one, other}]
            parts = [part for part in parts if part not in joined] + [set[int]().union(*joined)]
    return [sorted(part) for part in parts if len(part) > 1]


def _tested(compared: Mapping[Pair, Compared]) -> list[Evidence]:
    found = []
    for (i, j), c in compared.items():
        direction = None if c.relation_found is None else c.relation_found.direction
        if direction is not None and direction.parent is not None:
            parent, child = (i, j) if direction.parent == "a" else (j, i)
            found.append(Evidence(parent, child, True, direction.why))
    return found


def _longer(found: Distances, places: Pair, pair: Pair, c: Compared) -> list[Evidence]:
    """Weak prior: an update at a right angle to the weights makes them longer; weight decay does the opposite."""
    if c.relation_found is not None and c.relation_found.direction.parent is not None:
        return []
    size = np.sqrt(found.norms.mean(axis=0))[list(places)]
    if abs(float(size[1] / size[0]) - 1) <= LONGER:
        return []
    short, long = (0, 1) if size[0] < size[1] else (1, 0)
    why = (
        f"weak prior: its weights are {float(size[long] / size[short]) - 1:.1%} longer, as training usually makes them"
    )
    return [Evidence(pair[short], pair[long], False, why)]


def _elsewhere(models: Sequence[CanonicalModel | None], pair: Pair, c: Compared) -> tuple[str, Doubles] | None:
    """Distances of a pair that does not lie in one frame as stored, layer for layer."""
    a, b = models[pair[0]], models[pair[1]]
    layer_map = None if c.relation_found is None else c.relation_found.layer_map
    if a is not None and b is not None and layer_map is not None:
        raw = _over_matched_layers(a, b, layer_map)
        if raw is not None and raw.mean() < 2 - 2 * FRAME_COSINE:
            return "matched layers", raw
    cosines = [] if c.pair is None else [value for _, _, value in c.pair.layers]
    if not cosines:
        return None
    return "aligned operators", np.clip(2 - 2 * np.array(cosines, dtype=np.float64), 0.0, 4.0)


def _over_matched_layers(a: CanonicalModel, b: CanonicalModel, layer_map: LayerMap) -> Doubles | None:
    """2 - 2 cos of matched layers as stored, where the models differ in depth only."""
    if not same_layers(replace(a.shape, n_layers=b.shape.n_layers), b.shape):
        return None
    matched = [(i, j) for i, j in layer_map if i is not None and j is not None]
    return np.array([_apart(a, i, b, j) for i, j in matched]) if matched else None


def _apart(a: CanonicalModel, i: int, b: CanonicalModel, j: int) -> float:
    inner, sizes = 0.0, np.zeros(2)
    for one, other in zip(a.layer_parts(i), b.layer_parts(j), strict=True):
        for role in (r for r in MATRIX_ROLES if r in one.raw and r in other.raw):
            x, y = (np.asarray(part.raw[role], dtype=np.float64).ravel() for part in (one, other))
            scale = float(np.linalg.norm(x) * np.linalg.norm(y)) or 1.0  # all matrices count alike
            inner += float(x @ y) / scale
            sizes += [float(x @ x) / scale, float(y @ y) / scale]
    product = float(np.sqrt(sizes[0] * sizes[1]))
    return 2.0 if product == 0.0 else float(np.clip(2 - 2 * inner / product, 0.0, 4.0))
