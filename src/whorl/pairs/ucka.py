"""`ucka`: unbiased CKA of the matrices that read the residual stream (AWM, arXiv 2510.06738, section 4).

For a reader W of the first model and W' of the second, both put into one residual frame, the samples are the residual
dimensions: K = W^T W and L = W'^T W' (d x d), compared by unbiased CKA (`whorl.linalg.cka`). The Gram forgets what
happens on the other side of W, so rotations of query or key coordinates, head order and neuron order do not matter;
the frame of the residual stream does.

    align=procrustes  the pair's frame, a dense orthogonal map (ours)
    align=lap         signed matching of residual dimensions by their embedding columns (as published)
    align=none        no alignment
    fold=False        matrices and embedding as stored (as published); True: norms folded in first

`ucka(align=lap,fold=False)` is the published method. One step differs (ours): layers are those of the pair's monotone
path, where AWM assigns layers freely, which can only raise the value, for kin and strangers alike. The paper's
z-score rests on 90 pairs of its own and is not used.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from whorl.errors import NotComparable
from whorl.linalg.cka import MIN_SAMPLES, unbiased_cka
from whorl.method import Outcome, choose
from whorl.pairs.extras import MatchedColumns
from whorl.pairs.layer import MatchedLayer
from whorl.pairs.method import LayerObservation, PairMethod
from whorl.pairs.pair import Pair
from whorl.source import Floats
from whorl.weights.values import Values

ALIGNMENTS = ("procrustes", "lap", "none")
TYPES = ("q", "k")
VARIANTS = ("v", "gate", "up")

Readers = tuple[Floats, Floats]
"""One reader of both models, shapes (out, d_a) and (out', d_b)."""


@dataclass(frozen=True)
class Ucka(PairMethod):
    """Mean unbiased CKA of query and key matrices over matched layers.

    Args:
        align: "procrustes", "lap" or "none", see the module.
        fold: Whether norms are folded into the matrices.
    """

    align: str = "procrustes"
    fold: bool = True

    name: ClassVar[str] = "ucka"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "arXiv 2510.06738"

    def __post_init__(self) -> None:
        choose(self, "align", ALIGNMENTS)

    def check(self, pair: Pair) -> None:
        """See `PairMethod.check`."""
        widths = pair.a.shape.d_model, pair.b.shape.d_model
        if min(widths) < MIN_SAMPLES:
            raise NotComparable(f"{min(widths)} residual dimensions are too few for an unbiased estimate")
        if self.align == "none" and widths[0] != widths[1]:
            raise NotComparable(f"residual widths {widths[0]} and {widths[1]} differ, and align=none maps nothing")
        if self.align == "procrustes":
            _ = pair.frame
        if self.align == "lap":
            pair.extras.columns(folded=self.fold)

    def observe(self, layer: MatchedLayer) -> Values:
        """One value a matrix type that this layer of both models has; none where a matrix is degenerate."""
        if layer.fitted and self.align == "procrustes":
            return {}
        move = self._mover(layer)
        readers = _canonical(layer) if self.fold else _stored(layer)
        found = {role: unbiased_cka(*move(both)) for role, both in readers}
        return {role: np.array([value]) for role, value in found.items() if value is not None}

    def conclude(self, pair: Pair, observed: Sequence[LayerObservation]) -> Outcome:
        """Mean over layers and over q and k, in about [0, 1]: 1 = the same up to the invariances above."""
        scored = [o for o in observed if o.arrays]
        means = {role: _mean(scored, role) for role in (*TYPES, *VARIANTS)}
        used = [value for role in TYPES if (value := means[role]) is not None]
        if not used:
            raise NotComparable("no matched layer has query and key matrices that could be compared")
        lost = sum(role not in o.arrays for o in scored for role in TYPES)
        warnings = (f"{lost} query or key matrices are degenerate and left out",) if lost else ()
        return Outcome(
            value=float(np.mean(used)),
            variants=means,
            warnings=warnings,
            why=f"{self._why(pair)}, {len(scored)} layers",
        )

    def _mover(self, layer: MatchedLayer) -> Callable[[Readers], Readers]:
        """What puts a reader of both models into one frame."""
        if self.align == "procrustes":
            return lambda both: (both[0], layer.reader_in_a(both[1]))
        if self.align == "none":
            return lambda both: both
        columns = layer.of_pair().columns(folded=self.fold)
        return lambda both: _matched(both, columns)

    def _why(self, pair: Pair) -> str:
        form = "norms folded" if self.fold else "matrices as stored"
        if self.align != "lap":
            return f"unbiased CKA of readers, {form}, align={self.align}"
        columns = pair.extras.columns(folded=self.fold)
        return (
            f"unbiased CKA of readers, {form}, dimensions matched on {columns.n_tokens} shared tokens at mean |cosine| "
            f"{columns.cosine:.3f}"
        )


def _matched(both: Readers, columns: MatchedColumns) -> Readers:
    one, other = both
    return one[:, columns.a], other[:, columns.b] * columns.sign.astype(other.dtype)


def _canonical(layer: MatchedLayer) -> Iterator[tuple[str, Readers]]:
    """Readers with norms folded in; a bias column is left out, since it is no residual dimension."""
    one, other = layer.attention
    widths = layer.r.shape
    for role in ("q", "k", "v"):
        yield role, (_flat(getattr(one, role), widths[0]), _flat(getattr(other, role), widths[1]))
    for role in ("gate", "up") if layer.mlp is not None else ():
        first, second = (getattr(mlp, role) for mlp in layer.mlp or ())
        if first is not None and second is not None:
            yield role, (_flat(first, widths[0]), _flat(second, widths[1]))


def _stored(layer: MatchedLayer) -> Iterator[tuple[str, Readers]]:
    for one, other in layer.of_pair().raw(layer.a, layer.b):
        for role in (*TYPES, *VARIANTS):
            if role in one and role in other:
                yield role, (one[role], other[role])


def _flat(matrix: Floats, width: int) -> Floats:
    """(..., d) or (..., d + 1) -> (rows, d)."""
    return matrix.reshape(-1, matrix.shape[-1])[:, :width]


def _mean(observed: Sequence[LayerObservation], role: str) -> float | None:
    found = [_value(o.arrays, role) for o in observed if role in o.arrays]
    return float(np.mean(found)) if found else None


def _value(arrays: Mapping[str, Floats], role: str) -> float:
    return float(arrays[role][0])
