"""Rung 1: orthogonal Procrustes on the embedding rows of tokens with equal strings (MDIR, arXiv 2508.06309, does the
same; the choice of rows and the check on tokens that were not fitted are ours).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from whorl.errors import NotComparable
from whorl.linalg.blocks import Doubles
from whorl.pairs.operators import WIDE, ModelOperators, polar
from whorl.source import Floats

Ids = NDArray[np.intp]
Tokens = Sequence[str | None]

BAR = 0.5
"""Least cosine on tokens that were not fitted. Measured with 512 tokens and 64 dimensions: fine-tuned copies 0.95 or more,
copies trained longer than their parent 0.65 or more, twins of one recipe 0.65 to 0.8, all strings shuffled 0 +- 0.03. With
half of the strings shuffled relatives reach 0.26 to 0.47 and their frame is poor: lower rungs, which use no string, serve
them better."""

MAX_TOKENS = 32768  # pairs that are fitted in wide models: four per dimension up to width 8192
OUTLIER = 8.0  # median absolute deviations of ln norm: a row that no text ever touched


@dataclass(frozen=True)
class TokenFrame:
    """A frame from token rows.

    Args:
        r: (d_a, d_b).
        n_tokens: Pairs it was fitted on.
        held_out: Cosine of mapped rows on the half that a first fit left out.
    """

    r: Doubles
    n_tokens: int
    held_out: float


def shared_token_frame(
    a: ModelOperators, b: ModelOperators, tokens: tuple[Tokens | None, Tokens | None], seed: int
) -> TokenFrame:
    """The frame of equal strings.

    Raises:
        NotComparable: no strings, too few of them, or strings that do not mean the same in both models.
    """
    if tokens[0] is None or tokens[1] is None:
        raise NotComparable("token strings of " + ("the first" if tokens[0] is None else "the second") + " are unknown")
    ids = _trained(a, b, *shared_ids(tokens[0], tokens[1]))
    if max(a.width, b.width) > WIDE:
        ids = _thinned(ids)
    return fit_rows(a, b, ids, seed)


def shared_ids(a: Tokens, b: Tokens) -> tuple[Ids, Ids]:
    """Ids of the strings that occur exactly once in both."""
    counts = [Counter(t for t in tokens if t is not None) for tokens in (a, b)]
    place = {text: i for i, text in enumerate(b) if text is not None and counts[1][text] == 1}
    pairs = [(i, place[t]) for i, t in enumerate(a) if t is not None and counts[0][t] == 1 and t in place]
    found = np.array(pairs, dtype=np.intp).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def fit_rows(a: ModelOperators, b: ModelOperators, ids: tuple[Ids, Ids], seed: int) -> TokenFrame:
    """Procrustes on matched rows: unit length, mean removed; fitted on a seeded half, checked on the other, refitted.

    The wider model's rows are held as float32; the narrower one's pass by in blocks.

    Raises:
        NotComparable: fewer matched rows than dimensions, or rows of a half that the fit on the other does not predict.
    """
    narrow, wide, turned = (a, b, False) if a.width <= b.width else (b, a, True)
    if len(ids[0]) < narrow.width:
        raise NotComparable(f"{len(ids[0])} shared token rows do not span the residual width {narrow.width}")
    near, far = ids[::-1] if turned else ids
    halves = np.random.default_rng(seed).permutation(len(near)) % 2
    sums = _accumulate(narrow, wide, near, far, halves)
    held_out = _cosine(polar(sums[0].cross), sums[1])
    if held_out < BAR:
        raise NotComparable(
            f"{len(near)} equal token strings do not mean the same (held-out cosine {held_out:.2f} < {BAR})"
        )
    r = polar(sums[0].cross + sums[1].cross)
    return TokenFrame(r.T if turned else r, len(near), held_out)


@dataclass(frozen=True, eq=False)
class _Sums:
    """Sums over one half of the pairs, means of all pairs removed: sum x y^T, sum |x|^2, sum |y|^2."""

    cross: Doubles
    x: float
    y: float


def _accumulate(narrow: ModelOperators, wide: ModelOperators, near: Ids, far: Ids, halves: Ids) -> tuple[_Sums, _Sums]:
    theirs = _rows_of(wide, far)
    n, size = np.bincount(halves, minlength=2), (2, narrow.width)
    cross, sum_x, sum_y = np.zeros((*size, wide.width)), np.zeros(size), np.zeros((2, wide.width))
    order = np.argsort(near, kind="stable")
    start = 0
    for block in narrow.unit_rows():
        mine = order[slice(*np.searchsorted(near[order], (start, start + len(block))))]
        for half in (0, 1):
            chosen = mine[halves[mine] == half]
            x, y = block[near[chosen] - start], theirs[chosen]
            cross[half] += x.T @ y
            sum_x[half] += x.sum(axis=0, dtype=np.float64)
            sum_y[half] += y.sum(axis=0, dtype=np.float64)
        start += len(block)
    mean_x, mean_y = sum_x.sum(axis=0) / n.sum(), sum_y.sum(axis=0) / n.sum()
    first, second = (_centred(cross[h], sum_x[h], sum_y[h], mean_x, mean_y, int(n[h])) for h in (0, 1))
    return first, second


def _centred(cross: Doubles, sum_x: Doubles, sum_y: Doubles, mean_x: Doubles, mean_y: Doubles, n: int) -> _Sums:
    """Sums of (x - mean_x)(y - mean_y)^T and of squared lengths, rows being unit vectors."""
    found = cross - np.outer(sum_x, mean_y) - np.outer(mean_x, sum_y) + n * np.outer(mean_x, mean_y)
    x, y = (n - 2 * float(s @ m) + n * float(m @ m) for s, m in ((sum_x, mean_x), (sum_y, mean_y)))
    return _Sums(found, x, y)


def _cosine(r: Doubles, sums: _Sums) -> float:
    """Sum <x r, y> over the product of root sums of squares; r has orthonormal rows, so |x r| = |x|."""
    if sums.x <= 0 or sums.y <= 0:
        raise NotComparable("degenerate: all shared token rows are the same")
    return float(np.einsum("ij,ij->", r, sums.cross)) / float(np.sqrt(sums.x * sums.y))


def _rows_of(model: ModelOperators, ids: Ids) -> Floats:
    """Unit rows of the given tokens, (n, d)."""
    found: Floats = np.empty((len(ids), model.width), np.float32)
    start = 0
    for block in model.unit_rows():
        inside = np.flatnonzero((ids >= start) & (ids < start + len(block)))
        found[inside] = block[ids[inside] - start]
        start += len(block)
    return found


def _thinned(ids: tuple[Ids, Ids]) -> tuple[Ids, Ids]:
    """At most `MAX_TOKENS` of the pairs, evenly spread."""
    n = len(ids[0])
    if n <= MAX_TOKENS:
        return ids
    chosen = np.linspace(0, n - 1, MAX_TOKENS).astype(np.intp)
    return ids[0][chosen], ids[1][chosen]


def _trained(a: ModelOperators, b: ModelOperators, ids_a: Ids, ids_b: Ids) -> tuple[Ids, Ids]:
    """Without ids beyond the tables and rows that were never trained in one of the models."""
    norms = [model.lengths() for model in (a, b)]
    inside = (ids_a < len(norms[0])) & (ids_b < len(norms[1]))
    ids_a, ids_b = ids_a[inside], ids_b[inside]
    kept = usual(norms[0])[ids_a] & usual(norms[1])[ids_b]
    return ids_a[kept], ids_b[kept]


def usual(norms: Doubles) -> NDArray[np.bool_]:
    """Rows whose length is no outlier; zero rows are."""
    logs = np.log(np.where(norms > 0, norms, np.nan))
    if np.isnan(logs).all():
        return np.zeros(len(norms), dtype=bool)
    middle = np.nanmedian(logs)
    spread = max(float(np.nanmedian(np.abs(logs - middle))), 0.01)
    return np.abs(logs - middle) <= OUTLIER * spread  # NaN compares as False
