"""`std-vector`: the Standard-Deviation Vector (arXiv 2509.19122; the paper's V_std).

One number per matrix type (q, k, v, o, gate, up, down): the standard deviation of all weights of that type over all
layers. What the paper's summaries leave open and we chose: population standard deviation about the mean with float64
sums, weights only (no biases, no router, experts pooled), grouped keys and values at their stored size, the vector
divided by its L2 norm, cosine as the measure. Cosines of seven positive numbers are near 1 by default, so the value
means nothing without its place among unrelated models of the same shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from whorl.canonical.roles import ModelShape
from whorl.errors import NotComparable
from whorl.method import Outcome, choose, finite, require_same_types
from whorl.weights.method import WeightMethod
from whorl.weights.moments import FORMS, pooled_std
from whorl.weights.part_statistics import PartStatistics
from whorl.weights.values import Observation, Values, unlike

MEASURES = ("cosine", "pearson-log")
NORMALISATIONS = ("l2", "sum")


@dataclass(frozen=True)
class StdVector(WeightMethod):
    """Standard deviation per matrix type over all layers.

    Args:
        form: "raw" as published, or "gauge": after folding and balancing scalar rescalings (ours).
        measure: "cosine" of the vectors, or "pearson-log": Pearson correlation of ln sigma.
        normalise: "l2" (sigma / L2 norm) or "sum" (sigma / sum) for the stored vector; the cosine is the same.
    """

    form: str = "raw"
    measure: str = "cosine"
    normalise: str = "l2"

    name: ClassVar[str] = "std-vector"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "arXiv 2509.19122"

    def __post_init__(self) -> None:
        choose(self, "form", FORMS)
        choose(self, "measure", MEASURES)
        choose(self, "normalise", NORMALISATIONS)

    def observe(self, part: PartStatistics) -> Values:
        """(n, sum, sum of squares) of each matrix type, raw and gauge: arrays of shape (3,)."""
        return dict(part.moments)

    def assemble(self, shape: ModelShape, observations: Sequence[Observation]) -> Values:
        """`sigma.raw`, `sigma.gauge` and their normalised `vector.*`, each (n_types,), in the order of `types`."""
        values: dict[str, NDArray[np.float64]] = {}
        for form in FORMS:
            sigma = np.array([pooled_std(observations, form, t) for t in shape.types])
            scale = np.linalg.norm(sigma) if self.normalise == "l2" else sigma.sum()
            values[f"sigma.{form}"] = sigma
            values[f"vector.{form}"] = sigma / scale if scale > 0 else sigma
        return values

    def fault(self, values: Values, shape: ModelShape) -> str:
        """See `WeightMethod.fault`."""
        return unlike(values, {f"{kind}.{form}": (len(shape.types),) for kind in ("sigma", "vector") for form in FORMS})

    def compare(self, a: Values, b: Values, shapes: tuple[ModelShape, ModelShape]) -> Outcome:
        """Cosine (or Pearson of logs) of the two vectors, in [-1, 1]; 1 = equal up to one scale."""
        types = require_same_types(shapes)
        variants = {
            f"{form}.{measure}": _similarity(a[f"sigma.{form}"], b[f"sigma.{form}"], measure)
            for form in FORMS
            for measure in MEASURES
        }
        value = variants[f"{self.form}.{self.measure}"]
        if value is None:
            raise NotComparable("degenerate: a type has no spread, or all types have the same spread")
        why = f"{self.measure} of {len(types)} standard deviations ({self.form}); near 1 by default"
        return Outcome(value=value, variants=variants, why=why)


def _similarity(a: NDArray[np.float64], b: NDArray[np.float64], measure: str) -> float | None:
    finite(a, "a standard deviation")
    finite(b, "a standard deviation")
    if min(a.min(), b.min()) <= 0:
        return None
    x, y = (a, b) if measure == "cosine" else (np.log(a) - np.log(a).mean(), np.log(b) - np.log(b).mean())
    norm = float(np.linalg.norm(x) * np.linalg.norm(y))
    return None if norm == 0 else float(np.clip(x @ y / norm, -1.0, 1.0))
