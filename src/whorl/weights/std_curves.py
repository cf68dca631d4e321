"""`std-curves`: depth curves of standard deviations ("Intrinsic Fingerprint of LLMs", arXiv 2507.03014, withdrawn v2).

c_t(l) = std(W_t, l) for t in q, k, v, o; each curve is z-scored over the layers, resampled linearly to a common length
when depths differ, and the similarity is the mean Pearson correlation over the four types. Short smooth curves
correlate by chance, so the value is read against unrelated models of one recipe, never against the t-test for r.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from whorl.canonical.roles import ModelShape
from whorl.errors import NotComparable
from whorl.weights.method import Outcome, WeightMethod, choose, require_same_types
from whorl.weights.moments import depth_curve
from whorl.weights.part_statistics import PartStatistics
from whorl.weights.values import Observation, Values, unlike

FORMS = ("raw", "gauge", "invariant")
TYPES = ("q", "k", "v", "o")
INVARIANTS = ("qk", "ov", "gate")
MIN_LAYERS = 6


@dataclass(frozen=True)
class StdCurves(WeightMethod):
    """Mean Pearson correlation of depth curves.

    Args:
        form: "raw" as published; "gauge": curves of balanced matrices (ours); "invariant": curves of ln ||A_h||_F,
            ln ||B_h||_F and ln gate-row norms averaged per layer, which no rescaling moves (ours).
    """

    form: str = "raw"

    name: ClassVar[str] = "std-curves"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "arXiv 2507.03014"

    def __post_init__(self) -> None:
        choose(self, "form", FORMS)

    def observe(self, part: PartStatistics) -> Values:
        """Moments of the matrices and the invariant scale of one sublayer."""
        scale = {f"invariant.{k}": np.array([v]) for k, v in part.invariant_scale.items()}
        return dict(part.moments) | scale

    def assemble(self, shape: ModelShape, observations: Sequence[Observation]) -> Values:
        """One curve (n_layers,) for each form and type: `raw.q`, ..., `gauge.o`, `invariant.qk`, ..."""
        curves = {f"{form}.{t}": depth_curve(observations, form, t) for form in ("raw", "gauge") for t in TYPES}
        for t in INVARIANTS:
            curve = _mean_by_layer(observations, f"invariant.{t}")
            if curve.size and np.isfinite(curve).all():  # ln 0 of an all-zero matrix has no place on a curve
                curves[f"invariant.{t}"] = curve
        return curves

    def fault(self, values: Values, shape: ModelShape) -> str:
        """See `WeightMethod.fault`."""
        curves = {f"{form}.{t}": (shape.n_layers,) for form in ("raw", "gauge") for t in TYPES}
        return unlike(values, curves, {f"invariant.{t}": (None,) for t in INVARIANTS})

    def compare(self, a: Values, b: Values, shapes: tuple[ModelShape, ModelShape]) -> Outcome:
        """Mean Pearson correlation in [-1, 1]; 1 = curves of the same shape."""
        require_same_types(shapes)
        shortest = min(s.n_layers for s in shapes)
        if shortest < MIN_LAYERS:
            raise NotComparable(f"a depth curve needs at least {MIN_LAYERS} layers; the shorter model has {shortest}")
        variants = {form: _mean_correlation(a, b, form) for form in FORMS}
        value = variants[self.form]
        if value is None:
            raise NotComparable("degenerate: a curve is constant over depth or not finite")
        return Outcome(value=value, variants=variants, why=f"mean correlation of {self.form} depth curves")


def _mean_by_layer(observations: Sequence[Observation], key: str) -> NDArray[np.float64]:
    layers = sorted({o.layer for o in observations if key in o.arrays})
    return np.array(
        [np.mean([o.arrays[key] for o in observations if o.layer == n and key in o.arrays]) for n in layers]
    )


def _mean_correlation(a: Values, b: Values, form: str) -> float | None:
    keys = [k for k in {**a, **b} if k.startswith(f"{form}.")]
    if not keys or any(k not in v or not np.all(np.isfinite(v[k])) for k in keys for v in (a, b)):
        return None
    found = [_correlation(a[k], b[k]) for k in keys]
    return None if any(r is None for r in found) else float(np.mean([r for r in found if r is not None]))


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    n = max(a.size, b.size)
    grid = np.linspace(0.0, 1.0, n)
    x, y = (np.interp(grid, np.linspace(0.0, 1.0, c.size), c) for c in (a, b))
    x, y = x - x.mean(), y - y.mean()
    norm = float(np.linalg.norm(x) * np.linalg.norm(y))
    if norm <= np.finfo(float).eps * n * float(abs(a).max() * abs(b).max()):
        return None
    return float(np.clip(x @ y / norm, -1.0, 1.0))
