"""`head-spectra`: singular values of each head's QK and OV operators (ours; relatives GhostSpec arXiv 2511.06390 and
SELF arXiv 2512.03620).

A_h = Q_h^T K_g(h) and B_h = O_h V_g(h) do not change under any rescaling inside attention, and their singular values do
not change under any rotation of the residual stream. Logarithms of the values, minus their mean, are scale-free shapes;
heads are matched inside KV groups, layers by monotone alignment with gaps, and the similarity is

    1 - (mean matched distance) / (median distance over layers more than one apart)

so that 1 is equality and 0 means that matched layers are no closer than mismatched ones. Models of one recipe look
closer than they should: spectra carry no directions. Calibrate against same-recipe models.
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
from whorl.weights.method import Outcome, WeightMethod, finite
from whorl.weights.part_statistics import PartStatistics
from whorl.weights.values import Observation, Values, unlike

KEPT = 1e-3  # values below this share of the largest are rounding, not shape
MIN_VALUES = 3
MIN_LAYERS = 4


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
        distance, dropped = layer_distances(a, b, shapes)
        mismatched = _mismatched(distance)
        if mismatched <= 0:
            raise NotComparable("degenerate: all layers have the same spectra")
        path = align_layers(-distance, gap=-mismatched)
        matched = [distance[i, j] for i, j in path.pairs if i is not None and j is not None]
        if not matched:
            raise NotComparable("no layer of one model is near any layer of the other")
        value = 1.0 - float(np.mean(matched)) / mismatched
        warnings = (f"{dropped} dead heads left out",) if dropped else ()
        why = f"{len(matched)} aligned layers; matched distance {np.mean(matched):.3g}, mismatched {mismatched:.3g}"
        variants = {"matched_distance": float(np.mean(matched)), "mismatched_distance": mismatched}
        return Outcome(value=value, variants=variants, why=why, warnings=warnings)


def layer_distances(a: Values, b: Values, shapes: tuple[ModelShape, ModelShape]) -> tuple[NDArray[np.float64], int]:
    """Mean matched head distance of every layer pair, (L, L'), and the number of dead heads left out."""
    left, right = (_shapes(v) for v in (a, b))
    dead = sum(int((~alive).sum()) for _, alive in (left, right))
    n, m = len(left[0]), len(right[0])
    groups = [[h * s.n_kv_heads // s.n_heads for h in range(s.n_heads)] for s in shapes]
    found = np.empty((n, m))
    for i in range(n):
        for j in range(m):
            d = _head_distances((left[0][i], left[1][i]), (right[0][j], right[1][j]))
            pairs = match_heads(d, *groups)
            matched = np.array([d[h, g] for h, g in pairs])
            usable = matched[np.isfinite(matched) & (matched < _DEAD)]
            found[i, j] = usable.mean() if usable.size else np.inf
    if not np.all(np.isfinite(found)):
        raise NotComparable("degenerate: a layer has no head alive in both models")
    return found, dead


_DEAD = 1e6  # distance of a dead head: matched last, then left out of the mean


def _shapes(values: Values) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Log spectra (L, H, 2, r) with NaN where a value is below `KEPT`, and which heads are alive (L, H)."""
    r = min(values["qk"].shape[-1], values["ov"].shape[-1])
    both = np.stack([values["qk"][..., :r], values["ov"][..., :r]], axis=2)
    kept = both > KEPT * both[..., :1]
    alive = (kept.sum(axis=-1) >= MIN_VALUES).all(axis=-1)
    return np.where(kept, np.log(np.where(kept, both, 1.0)), np.nan), alive


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


def _mismatched(distance: NDArray[np.float64]) -> float:
    i, j = np.indices(distance.shape)
    scaled = i * (distance.shape[1] - 1) / max(distance.shape[0] - 1, 1)  # depth of i on the other model's scale
    return float(np.median(distance[np.abs(scaled - j) > 1]))
