"""Which layer of one model corresponds to which of the other: monotone alignment by dynamic programming with gaps.

Global sequence alignment (Needleman and Wunsch 1970) on a matrix of layer similarities; the gap value is ours.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from whorl.errors import NotComparable, UsageError
from whorl.linalg.blocks import Doubles
from whorl.source import Floats

_BOTH, _SKIP_A, _SKIP_B = 0, 1, 2

Pair = tuple[int | None, int | None]
Moves = NDArray[np.int8]


@dataclass(frozen=True)
class LayerPath:
    """A monotone path through the layers of two models.

    Args:
        pairs: (layer of A, layer of B) in order; None on one side where a layer has no partner.
        total: Sum of the matched scores plus the gap value per unmatched layer.
        gap: The gap value that was used.
    """

    pairs: tuple[Pair, ...]
    total: float
    gap: float

    @property
    def matched(self) -> tuple[tuple[int, int], ...]:
        """The pairs without gaps."""
        return tuple((i, j) for i, j in self.pairs if i is not None and j is not None)


def align_layers(score: Floats, gap: float | None = None) -> LayerPath:
    """The monotone alignment with the largest total score.

    Args:
        score: Similarity of layer i of A and j of B, shape (L, L'), higher is closer, finite.
        gap: Value of leaving one layer unmatched. Default: half of the median off-diagonal score, so that a match
            (which takes the place of two gaps) pays exactly when it beats that median.

    Raises:
        NotComparable: a score is NaN or infinite, or a model has no layer.
        UsageError: `score` is not two-dimensional, or `gap` is not finite.
    """
    finite = _checked(score)
    value = _default_gap(finite) if gap is None else float(gap)
    if not np.isfinite(value):
        raise UsageError(f"the gap value must be finite; found {gap}")
    total, moves = _fill(finite, value)
    return LayerPath(_trace(moves), total, value)


def _default_gap(score: Doubles) -> float:
    """Half the median of S[i, j] off the diagonal (the straight line from corner to corner when depths differ)."""
    rows, columns = score.shape
    line = np.rint(np.arange(rows) * (columns - 1) / max(rows - 1, 1)).astype(int)
    off = np.ones(score.shape, dtype=bool)
    off[np.arange(rows), line] = False
    return float(np.median(score[off])) / 2 if off.any() else 0.0


def _fill(score: Doubles, gap: float) -> tuple[float, Moves]:
    """Best total and the move that reached each cell, one row at a time.

    Inside a row, best[j] = max(entered[j], best[j-1] + gap) is a running maximum once j * gap is taken off.
    """
    rows, columns = score.shape
    ramp = np.arange(columns + 1) * gap
    moves: Moves = np.full((rows + 1, columns + 1), _SKIP_B, dtype=np.int8)
    above = ramp
    for i, line in enumerate(score):
        skipped = above + gap
        entered = skipped.copy()
        entered[1:] = np.maximum(above[:-1] + line, skipped[1:])
        level = np.maximum.accumulate(entered - ramp)
        moves[i + 1] = np.where(level > entered - ramp, _SKIP_B, _SKIP_A)
        moves[i + 1, 1:][(moves[i + 1, 1:] == _SKIP_A) & (above[:-1] + line >= skipped[1:])] = _BOTH
        above = level + ramp
    return float(above[-1]), moves


def _trace(moves: Moves) -> tuple[Pair, ...]:
    i, j = moves.shape[0] - 1, moves.shape[1] - 1
    pairs: list[Pair] = []
    while i or j:
        move = moves[i, j]
        i, j = i - int(move != _SKIP_B), j - int(move != _SKIP_A)
        pairs.append((None if move == _SKIP_B else i, None if move == _SKIP_A else j))
    return tuple(reversed(pairs))


def _checked(score: Floats) -> Doubles:
    if score.ndim != 2:
        raise UsageError(f"a score matrix has two axes; found shape {score.shape}")
    if not score.size:
        raise NotComparable(f"a model without layers has no alignment; found scores of shape {score.shape}")
    finite = score.astype(np.float64)
    bad = finite.size - int(np.isfinite(finite).sum())
    if bad:
        raise NotComparable(f"not finite: {bad} of {finite.size} layer scores are NaN or infinite")
    return finite


def align_with_restarts(score: Floats, gap: float | None = None, restart: float | None = None) -> LayerPath:
    """The best path on which B may use layers of A again: depth up-scaling, or layers in another order (ours).

    B's layers are taken in order. Each is matched with a layer of A or left unmatched; after layer i of A the next
    match is i + 1, or a later layer (the skipped ones count `gap` each), or, at the cost `restart`, layer i again or an
    earlier one. Layers of A that are never used stand in the path as (i, None), before the first match of a later one.

    Args:
        score: Similarity of layer i of A and j of B, shape (L, L'), higher is closer, finite.
        gap: Value of leaving one layer unmatched; default as in `align_layers`.
        restart: Cost of going back, at least 0. Default: half of what a match is worth over the gaps it replaces,
            median_j max_i S - 2 gap, so that even one layer used twice pays when it is a clear match.

    Raises:
        NotComparable: a score is NaN or infinite, or a model has no layer.
        UsageError: `score` is not two-dimensional, or `gap` or `restart` is out of range.
    """
    finite = _checked(score)
    value = _default_gap(finite) if gap is None else float(gap)
    worth = float(np.median(finite.max(axis=0))) - 2 * value
    cost = max(0.0, worth / 2) if restart is None else float(restart)
    if not (np.isfinite(value) and np.isfinite(cost) and cost >= 0):
        raise UsageError(f"gap must be finite and restart at least 0; found {gap} and {restart}")
    total, used = _walk(finite, value, cost)
    return LayerPath(_with_unused(used, finite.shape[0]), total, value)


def _walk(score: Doubles, gap: float, restart: float) -> tuple[float, list[int | None]]:
    """Best total and the layer of A for each layer of B. State: the last used layer of A, shifted by one; 0 = none."""
    rows, columns = score.shape
    place = np.arange(rows + 1)
    ahead = place[None, :] - place[:, None]  # (from, to)
    move = np.where(ahead >= 1, (ahead - 1) * gap, -restart)
    move[:, 0] = -np.inf
    best = np.full(rows + 1, -np.inf)
    best[0] = 0.0
    came = np.zeros((columns, rows + 1), dtype=np.intp)
    stayed = np.zeros((columns, rows + 1), dtype=bool)
    for j in range(columns):
        entered = best[:, None] + move
        came[j] = entered.argmax(axis=0)
        matched = entered.max(axis=0) + np.concatenate([[-np.inf], score[:, j]])
        stayed[j] = best + gap > matched
        best = np.where(stayed[j], best + gap, matched)
    best = best + (rows - place) * gap  # what follows the last used layer is skipped as well
    state = int(best.argmax())
    total, used = float(best[state]), list[int | None]()
    for j in reversed(range(columns)):
        used.append(None if stayed[j, state] else state - 1)
        state = state if stayed[j, state] else int(came[j, state])
    return total, used[::-1]


def _with_unused(used: list[int | None], n_layers: int) -> tuple[Pair, ...]:
    waiting = [i for i in range(n_layers) if i not in set(used)]
    pairs: list[Pair] = []
    for j, i in enumerate(used):
        while i is not None and waiting and waiting[0] < i:
            pairs.append((waiting.pop(0), None))
        pairs.append((i, j))
    return (*pairs, *((i, None) for i in waiting))
