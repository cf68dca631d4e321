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
from whorl.method import Outcome, choose, require_same_types
from whorl.weights.method import WeightMethod
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
            ln ||B_h||_F and ln gate-row norms averaged per layer, which no rescaling moves (ours). Where a norm on
            queries and keys, or on the sublayer output, frees a scale, its curve is left out of both forms.
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
        """One curve (n_layers,) for each form and type: `raw.q`, ..., `gauge.o`, `invariant.qk`, ...

        An invariant curve is left out where its scale is free, or where a layer has no live head or neuron.
        """
        curves = {f"{form}.{t}": depth_curve(observations, form, t) for form in ("raw", "gauge") for t in TYPES}
        for t in _types("invariant", shape):
            curve = _mean_by_layer(observations, f"invariant.{t}")
            if len(curve) == shape.n_layers:
                curves[f"invariant.{t}"] = curve
        return curves

    def fault(self, values: Values, shape: ModelShape) -> str:
        """See `WeightMethod.fault`."""
        curves = {f"{form}.{t}": (shape.n_layers,) for form in ("raw", "gauge") for t in TYPES}
        return unlike(values, curves, {f"invariant.{t}": (shape.n_layers,) for t in INVARIANTS})

    def compare(self, a: Values, b: Values, shapes: tuple[ModelShape, ModelShape]) -> Outcome:
        """Mean Pearson correlation in [-1, 1]; 1 = curves of the same shape."""
        require_same_types(shapes)
        shortest = min(s.n_layers for s in shapes)
        if shortest < MIN_LAYERS:
            raise NotComparable(f"a depth curve needs at least {MIN_LAYERS} layers; the shorter model has {shortest}")
        found = {form: _mean_correlation(a, b, form, shapes) for form in FORMS}
        value = found[self.form]
        if isinstance(value, str):
            raise NotComparable(value)
        variants = {form: None if isinstance(r, str) else r for form, r in found.items()}
        return Outcome(value=value, variants=variants, why=f"mean correlation of {self.form} depth curves")


def _types(form: str, shape: ModelShape) -> tuple[str, ...]:
    """Types whose curves mean something: those with a scale that no norm of the model sets free."""
    if form == "raw":
        return TYPES
    free = {"q", "k", "qk"} if shape.qk_norm else set()
    free |= {"v", "o", "ov"} if shape.norm_style == "sandwich" else set()
    free |= set() if shape.gated else {"gate"}
    return tuple(t for t in (TYPES if form == "gauge" else INVARIANTS) if t not in free)


def _mean_by_layer(observations: Sequence[Observation], key: str) -> NDArray[np.float64]:
    layers = sorted({o.layer for o in observations if key in o.arrays})
    return np.array(
        [np.mean([o.arrays[key] for o in observations if o.layer == n and key in o.arrays]) for n in layers]
    )


def _mean_correlation(a: Values, b: Values, form: str, shapes: tuple[ModelShape, ModelShape]) -> float | str:
    """The mean over the types that both models have, or why there is none."""
    types = [t for t in _types(form, shapes[0]) if t in _types(form, shapes[1])]
    if not types:
        return f"no {form} curve: norms free the scale of every matrix"
    for t in types:
        if any(f"{form}.{t}" not in v for v in (a, b)):
            return f"degenerate: a layer has no live {'neuron' if t == 'gate' else 'head'}"
    found = [_correlation(a[f"{form}.{t}"], b[f"{form}.{t}"]) for t in types]
    usable = [r for r in found if r is not None]
    if len(usable) < len(found):
        return "degenerate: a curve is constant over depth or not finite"
    return float(np.mean(usable))


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    if not (np.all(np.isfinite(a)) and np.all(np.isfinite(b))):
        return None
    n = max(a.size, b.size)
    grid = np.linspace(0.0, 1.0, n)
    x, y = (np.interp(grid, np.linspace(0.0, 1.0, c.size), c) for c in (a, b))
    x, y = x - x.mean(), y - y.mean()
    norm = float(np.linalg.norm(x) * np.linalg.norm(y))
    if norm <= np.finfo(float).eps * n * float(abs(a).max() * abs(b).max()):
        return None
    return float(np.clip(x @ y / norm, -1.0, 1.0))
