"""Which layers of two models correspond, from raw weights: a small sketch of each layer, cosines, a path (ours).

The sketch of a layer is a few rows of each weight matrix. The cosine of two layers is the mean over roles of the cosine
of these rows; unrelated weights give 0 +- 1/sqrt(number of values). It is blind to disguise on purpose: where raw rows
do not correspond there is no exact frame, and the operators of `whorl.pairs` must align the layers instead.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from whorl.canonical.model import CanonicalModel
from whorl.canonical.roles import MATRIX_ROLES
from whorl.errors import NotComparable
from whorl.linalg.layers import align_layers, align_with_restarts
from whorl.lineage.differences import LayerMap, RoleRows
from whorl.lineage.pruning import Columns

SKETCH_ROWS = 32
READERS = ("q", "k", "v", "gate", "up")
MIN_MATCH = 0.2  # of a layer pair: the chance value has a spread below 0.02 from 2 500 values on (ours)


@dataclass(frozen=True, eq=False)
class LayerMatch:
    """The layers that correspond, and how well.

    Args:
        pairs: (layer of A, layer of B), None where a layer has no partner.
        scores: Cosine of every layer of A with every layer of B, shape (L, L').
        median: Median cosine of the matched pairs, 0.0 when none is matched.
    """

    pairs: LayerMap
    scores: NDArray[np.float64]
    median: float

    @property
    def matched(self) -> tuple[tuple[int, int], ...]:
        """The pairs without gaps."""
        return tuple((i, j) for i, j in self.pairs if i is not None and j is not None)

    @property
    def dropped(self) -> tuple[int, ...]:
        """Layers of A without a partner."""
        return tuple(i for i, j in self.pairs if j is None and i is not None)

    @property
    def inserted(self) -> tuple[int, ...]:
        """Layers of B without a partner."""
        return tuple(j for i, j in self.pairs if i is None and j is not None)

    def repeated(self, side: int) -> tuple[int, ...]:
        """Layers of A (0) or B (1) that have several partners, ascending."""
        used = [pair[side] for pair in self.matched]
        return tuple(sorted({i for i in used if used.count(i) > 1}))

    @property
    def monotone(self) -> bool:
        """Whether the order of the layers is the same in both."""
        steps = np.diff(np.array(self.matched).reshape(-1, 2), axis=0)
        return bool((steps >= 0).all())


def match_layers(a: CanonicalModel, b: CanonicalModel, columns: Columns | None = None) -> LayerMatch:
    """The path through the layers: monotone where that explains the models, else with layers used again or reordered.

    Args:
        a: One model.
        b: The other.
        columns: Residual coordinates that correspond, when the widths differ.

    Raises:
        NotComparable: no role has a shape in common.
    """
    scores = layer_scores(a, b, columns)
    pairs = _path(scores)
    values = [scores[i, j] for i, j in pairs if i is not None and j is not None]
    return LayerMatch(pairs, scores, float(np.median(values)) if values else 0.0)


def layer_scores(a: CanonicalModel, b: CanonicalModel, columns: Columns | None = None) -> NDArray[np.float64]:
    """Cosines of all layers, shape (L, L'), from the roles whose rows can be compared.

    Raises:
        NotComparable: no role can.
    """
    roles = _comparable(a, b, columns)
    if not roles:
        raise NotComparable(f"no layer matrix of {a.label} and {b.label} has the same shape")
    ours = [_sketch(a, layer, roles, columns, 0) for layer in range(a.shape.n_layers)]
    theirs = [_sketch(b, layer, roles, columns, 1) for layer in range(b.shape.n_layers)]
    scores = np.zeros((len(ours), len(theirs)))
    for role in roles:
        scores += np.stack([s[role] for s in ours]) @ np.stack([s[role] for s in theirs]).T
    return scores / len(roles)


def is_idle(model: CanonicalModel, layer: int) -> bool:
    """Whether a layer writes nothing into the residual stream: all of W_o and W_down is zero."""
    writers = [s for (role, at, _), s in model.layout.slots() if at == layer and role in ("o", "down")]
    blocks = (block for s in writers for block in RoleRows(model.source, s, s.roles[0]).blocks())
    return bool(writers) and not any(np.any(block) for block in blocks)


def _path(scores: NDArray[np.float64]) -> LayerMap:
    plain = align_layers(scores)
    tall = scores.shape[0] > scores.shape[1]
    free = align_with_restarts(scores.T if tall else scores)
    back = tuple((j, i) for i, j in free.pairs) if tall else free.pairs
    # The free path contains every monotone one; it is used only where going back pays for itself.
    pairs = back if free.total > plain.total + 1e-9 else plain.pairs
    return _without_chance(pairs, scores)


def _without_chance(pairs: LayerMap, scores: NDArray[np.float64]) -> LayerMap:
    """Pairs at chance level are split into two layers without partner."""
    result: list[tuple[int | None, int | None]] = []
    partners = [i for i, j in pairs if i is not None and j is not None and scores[i, j] >= MIN_MATCH]
    theirs = [j for i, j in pairs if i is not None and j is not None and scores[i, j] >= MIN_MATCH]
    for i, j in pairs:
        if i is None or j is None or scores[i, j] >= MIN_MATCH:
            result.append((i, j))
            continue
        if i not in partners:
            result.append((i, None))
        if j not in theirs:
            result.append((None, j))
    return tuple(dict.fromkeys(result))


def _comparable(a: CanonicalModel, b: CanonicalModel, columns: Columns | None) -> tuple[str, ...]:
    """Roles whose rows correspond: equal shapes, or readers with equally many rows once columns are matched."""
    shapes = [
        {
            role: RoleRows(m.source, s, role).shape
            for (role, layer, expert), s in m.layout.slots()
            if _wanted(role, layer, expert, 0)
        }
        for m in (a, b)
    ]
    common = [role for role in MATRIX_ROLES if role in shapes[0] and role in shapes[1]]
    if columns is None:
        return tuple(r for r in common if shapes[0][r] == shapes[1][r])
    return tuple(r for r in common if r in READERS and shapes[0][r][0] == shapes[1][r][0])


def _wanted(role: str, at: int | None, expert: int | None, layer: int) -> bool:
    """Whether a slot is a matrix of this layer; of routed experts only the first is looked at."""
    return at == layer and role in MATRIX_ROLES and expert in (None, 0)


def _sketch(
    model: CanonicalModel, layer: int, roles: tuple[str, ...], columns: Columns | None, side: int
) -> dict[str, NDArray[np.float64]]:
    """A few rows of each matrix of one layer as a unit vector, by role; zero where the matrix is zero or missing."""
    sketch: dict[str, NDArray[np.float64]] = {}
    for (role, at, expert), stored in model.layout.slots():
        if not _wanted(role, at, expert, layer) or role not in roles or role in sketch:
            continue
        sample = RoleRows(model.source, stored, role).sample(SKETCH_ROWS)
        flat = (sample if columns is None else columns.cut(sample, side)).astype(np.float64).ravel()
        norm = float(np.linalg.norm(flat))
        sketch[role] = flat / norm if norm > 0 else flat
    return sketch
