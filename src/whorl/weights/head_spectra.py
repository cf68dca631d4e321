"""`head-spectra`: singular values of each head's QK and OV operators (ours; relatives GhostSpec arXiv 2511.06390 and
SELF arXiv 2512.03620).

A_h = Q_h^T K_g(h) and B_h = O_h V_g(h) do not change under any rescaling inside attention, and their singular values do
not change under any rotation of the residual stream. Logarithms of the values, minus their mean, are scale-free shapes;
heads are matched inside KV groups, layers by monotone alignment with gaps, and the similarity is

    1 - (mean matched distance) / (median distance over layers more than one apart)

so that 1 is equality and 0 means that matched layers are no closer than mismatched ones. Layers without a live head
(identity blocks) take no part. Models of one recipe look closer than they should: spectra carry no directions. Calibrate
against same-recipe models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from whorl.canonical.roles import ModelShape
from whorl.errors import NotComparable
from whorl.linalg.layers import align_layers
from whorl.linalg.matching import match_heads
from whorl.method import Outcome, finite
from whorl.weights.method import WeightMethod
from whorl.weights.part_statistics import PartStatistics
from whorl.weights.values import Observation, Values, unlike

KEPT = 1e-3  # values below this share of the largest are rounding, not shape
MIN_VALUES = 3
MIN_LAYERS = 4
EQUAL = 1e-6  # layers closer than this differ by rounding: no scale to measure a distance with


@dataclass(frozen=True)
class HeadSpectra(WeightMethod):
    """Matched shapes of per-head operator spectra; no parameters."""

    name: ClassVar[str] = "head-spectra"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "ours"

    def observe(self, part: PartStatistics) -> Values:
        """`qk`, `ov`: singular values of one layer's operators, (H, d_head)."""
        return dict(part.operator_spectra)

    def assemble(self, shape: ModelShape, observations: Sequence[Observation]) -> Values:
        """`qk` and `ov`: (n_layers, H, d_head), descending along the last axis."""
        seen = [o.arrays for o in observations if "qk" in o.arrays]
        return {kind: np.array([arrays[kind] for arrays in seen]) for kind in ("qk", "ov")}

    def fault(self, values: Values, shape: ModelShape) -> str:
        """See `WeightMethod.fault`."""
        return unlike(values, dict.fromkeys(("qk", "ov"), (shape.n_layers, shape.n_heads, None)))

    def compare(self, a: Values, b: Values, shapes: tuple[ModelShape, ModelShape]) -> Outcome:
        """Similarity at most 1; 1 = equal spectra, about 0 = no better than mismatched layers."""
        for values in (a, b):
            finite(values["qk"], "a QK singular value")
            finite(values["ov"], "an OV singular value")
        if min(s.n_layers for s in shapes) < MIN_LAYERS:
            raise NotComparable(f"fewer than {MIN_LAYERS} layers: no mismatched layers to compare with")
        left, right = (live_layers(v) for v in (a, b))
        if min(len(left.depth), len(right.depth)) < MIN_LAYERS:
            raise NotComparable(f"degenerate: fewer than {MIN_LAYERS} layers have a live head in one of the models")
        distance = layer_distances(left, right, shapes)
        mismatched = _mismatched(distance, left, right)
        if mismatched <= EQUAL:
            raise NotComparable("degenerate: all layers have the same spectra")
        path = align_layers(-distance, gap=-mismatched)
        matched = [distance[i, j] for i, j in path.pairs if i is not None and j is not None]
        if not matched:
            raise NotComparable("no layer of one model is near any layer of the other")
        value = 1.0 - float(np.mean(matched)) / mismatched
        why = f"{len(matched)} aligned layers; matched distance {np.mean(matched):.3g}, mismatched {mismatched:.3g}"
        variants = {"matched_distance": float(np.mean(matched)), "mismatched_distance": mismatched}
        return Outcome(value=value, variants=variants, why=why, warnings=_left_out(left, right))


@dataclass(frozen=True)
class _Layers:
    """The layers of one model that have a live head.

    Args:
        spectra: Logarithms (L, H, 2, r), NaN where a value is below `KEPT`.
        alive: Which heads have enough values, (L, H); at least one in each layer.
        depth: Index of each in the model, (L,).
        n_layers: Layers of the model, dead ones among them.
    """

    spectra: NDArray[np.float64]
    alive: NDArray[np.bool_]
    depth: NDArray[np.intp]
    n_layers: int


def live_layers(values: Values) -> _Layers:
    """The layers with a live head, from singular values `qk` and `ov`, (L, H, r)."""
    r = min(values["qk"].shape[-1], values["ov"].shape[-1])
    both = np.stack([values["qk"][..., :r], values["ov"][..., :r]], axis=2)
    kept = both > KEPT * both[..., :1]
    alive = (kept.sum(axis=-1) >= MIN_VALUES).all(axis=-1)
    spectra = np.where(kept, np.log(np.where(kept, both, 1.0)), np.nan)
    depth = np.flatnonzero(alive.any(axis=1))
    return _Layers(spectra[depth], alive[depth], depth, len(alive))


def _left_out(a: _Layers, b: _Layers) -> tuple[str, ...]:
    layers = sum(m.n_layers - len(m.depth) for m in (a, b))
    heads = sum(int((~m.alive).sum()) for m in (a, b))
    return tuple(f"{n} dead {what} left out" for n, what in ((layers, "layers"), (heads, "heads")) if n)


_DEAD = 1e6  # distance of a dead head: matched last, then left out of the mean


def layer_distances(a: _Layers, b: _Layers, shapes: tuple[ModelShape, ModelShape]) -> NDArray[np.float64]:
    """Mean matched head distance of every pair of live layers, (L, L')."""
    groups = [[h * s.n_kv_heads // s.n_heads for h in range(s.n_heads)] for s in shapes]
    found = np.empty((len(a.depth), len(b.depth)))
    for i, j in np.ndindex(found.shape):
        d = _head_distances((a.spectra[i], a.alive[i]), (b.spectra[j], b.alive[j]))
        matched = np.array([d[h, g] for h, g in match_heads(d, *groups)])
        usable = matched[matched < _DEAD]
        found[i, j] = usable.mean() if usable.size else np.inf
    if not np.all(np.isfinite(found)):
        raise NotComparable("degenerate: two layers have no pair of live heads that can be matched")
    return found


def _head_distances(
    a: tuple[NDArray[np.float64], NDArray[np.bool_]], b: tuple[NDArray[np.float64], NDArray[np.bool_]]
) -> NDArray[np.float64]:
    """RMS difference of centred log spectra over QK and OV, (H, H')."""
    r = min(a[0].shape[-1], b[0].shape[-1])
    difference = a[0][:, None, :, :r] - b[0][None, :, :, :r]  # (H, H', 2, r), NaN where not kept in both
    kept = np.isfinite(difference)
    n = np.maximum(kept.sum(axis=-1), 1)
    filled = np.where(kept, difference, 0.0)
    mean = filled.sum(axis=-1) / n
    spread = (filled**2).sum(axis=-1) / n - mean**2
    usable = a[1][:, None] & b[1][None, :]
    return np.where(usable, np.sqrt(np.maximum(spread, 0.0).mean(axis=-1)), _DEAD)


def _mismatched(distance: NDArray[np.float64], a: _Layers, b: _Layers) -> float:
    """Median distance of layers more than one apart, in layers of the deeper model."""
    deepest = max(a.n_layers, b.n_layers) - 1
    i, j = (m.depth * (deepest / (m.n_layers - 1)) for m in (a, b))
    return float(np.median(distance[np.abs(i[:, None] - j[None, :]) > 1 + 1e-9]))  # 1e-9: i and j are rounded
