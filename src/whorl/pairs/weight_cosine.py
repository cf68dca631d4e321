"""`weight-cosine`: cosines of matrices with equal names and equal shapes, as stored.

The simplest baseline: the parameter cosine that HuRef (arXiv 2312.04828) compares itself with, and the angle behind the
distances of MoTHer (arXiv 2405.18432). No frame, no layer matching: tensor against tensor of one name. Any change of
basis, order or scale that leaves the function alone moves it; that is what it is here to show.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from whorl.canonical.model import CanonicalModel
from whorl.errors import NotComparable
from whorl.linalg.blocks import Doubles
from whorl.method import Outcome, finite
from whorl.pairs.layer import MatchedLayer
from whorl.pairs.method import LayerObservation, PairMethod
from whorl.pairs.pair import Pair
from whorl.weights.values import Values

_VALUES_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class WeightCosine(PairMethod):
    """Mean cosine over the matrices inside the layers."""

    name: ClassVar[str] = "weight-cosine"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "arXiv 2312.04828"

    def check(self, pair: Pair) -> None:
        """See `PairMethod.check`."""
        if not _common_matrices(pair):
            raise NotComparable("no matrix inside the layers has one name and one shape in both models")

    def observe(self, layer: MatchedLayer) -> Values:
        """Nothing: layers are not matched here."""
        del layer
        return {}

    def conclude(self, pair: Pair, observed: Sequence[LayerObservation]) -> Outcome:
        """Mean cosine in [-1, 1]; variants: `pooled`, all common tensors as one vector, and `embedding`.

        The tensors are read a second time, in blocks of rows, both models side by side.
        """
        del observed
        inside, both = _common_matrices(pair), _common(pair)
        moments = {name: _moments(pair, name) for name in both}
        found = {name: _cosine(moments[name]) for name in both}
        usable = [value for name in inside if (value := found[name]) is not None]
        if not usable:
            raise NotComparable("degenerate: every common matrix is zero in one of the models")
        embedding = _embedding_name(pair.a)
        variants = {
            "pooled": _cosine(np.sum([moments[name] for name in both], axis=0)),
            "embedding": found.get(embedding) if embedding == _embedding_name(pair.b) else None,
        }
        lost = len(inside) - len(usable)
        warnings = (f"{lost} matrices are zero in one model and left out",) if lost else ()
        why = f"mean cosine of {len(usable)} matrices with one name and shape, as stored"
        return Outcome(value=float(np.mean(usable)), variants=variants, warnings=warnings, why=why)


def _common(pair: Pair) -> tuple[str, ...]:
    """Names of used tensors with one shape in both models."""
    one, other = pair.a, pair.b
    shared = set(one.inventory.used) & set(other.inventory.used)
    return tuple(sorted(n for n in shared if one.source.tensors[n].shape == other.source.tensors[n].shape))


def _common_matrices(pair: Pair) -> tuple[str, ...]:
    """Those inside the layers and with two axes or more."""
    inside = {stored.name for plan in pair.a.layout.parts for stored in plan.stored}
    return tuple(n for n in _common(pair) if n in inside and len(pair.a.source.tensors[n].shape) > 1)


def _embedding_name(model: CanonicalModel) -> str:
    return model.layout.outer["embed"].name


def _moments(pair: Pair, name: str) -> Doubles:
    """x.y, x.x and y.y of one tensor of both models, shape (3,), in float64, block by block."""
    shape = pair.a.source.tensors[name].shape
    n_rows = shape[0] if shape else 1
    step = max(1, _VALUES_AT_ONCE // max(1, int(np.prod(shape[1:]))))
    total: Doubles = np.zeros(3)
    for start in range(0, n_rows, step):
        stop = min(start + step, n_rows) if shape else None
        x, y = (model.source.rows(name, start, stop).astype(np.float64).reshape(-1) for model in (pair.a, pair.b))
        total += (x @ y, x @ x, y @ y)
    finite(total, f"tensor '{name[:80]}'")
    return total


def _cosine(moments: Doubles) -> float | None:
    product, own, other = (float(m) for m in moments)
    if not (own > 0.0 and other > 0.0):
        return None
    return float(np.clip(product / (np.sqrt(own) * np.sqrt(other)), -1.0, 1.0))
