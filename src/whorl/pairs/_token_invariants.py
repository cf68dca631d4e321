"""Rung 2: tokens matched by numbers of their rows that no rotation of the residual stream changes (ours).

For a unit row e and the head-summed flattened operators T_j of aligned layers,

    f = (ln |row|, e^T C e, and for every j: e^T T_j e, |T_j e|^2, |T_j^T e|^2)        C: second moment of all unit rows

Features are z-scored, tokens are matched to mutual nearest neighbours, Procrustes gives a first frame, and a few rounds
match the mapped rows again. The check is made on first matches that the frame under test never saw: those were found by
invariants alone, so a frame fitted to noise does not pass.

In wide models fewer layers and rounds are used, and a cheap look comes first: for a few of the longest rows, do the inner
products of matched rows correlate? No map changes these, so where they do not, no frame is sought.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from whorl.errors import NotComparable
from whorl.linalg.blocks import Doubles
from whorl.pairs._shared_tokens import TokenFrame, usual
from whorl.pairs.operators import WIDE, HeadOperators, ModelOperators, polar, unit
from whorl.source import Floats

Ids = NDArray[np.intp]

BAR = 0.5
"""Least cosine on matches that were not fitted. Fine-tuned, pruned and quantised copies give 0.9 or more, unrelated models
and copies trained far beyond (whose tokens are matched no better than by chance) 0.2 at most."""

MAX_TOKENS = 8192  # the longest rows of both models; more would only cost time
MAX_LAYERS = 8  # evenly spread over the aligned ones
ROUNDS = 8
LAYERS_OF_WIDE = 4
ROUNDS_OF_WIDE = 3
FIRST_TOKENS = 1024  # of the first look
FIRST_BAR = 0.05
"""Least correlation of inner products in the first look. With a share s of right matches it is about s^2 of that of all
rows; a held-out cosine of `BAR` takes s of about a half."""
_BLOCK = 1024


def token_invariant_frame(
    a: ModelOperators, b: ModelOperators, matched: Sequence[tuple[int, int]], seed: int
) -> TokenFrame:
    """The frame of tokens matched by invariants.

    Args:
        a: One model.
        b: The other.
        matched: Aligned layers, found without a frame.
        seed: Of the halves of the check.

    Raises:
        NotComparable: widths differ, or the matches do not hold on tokens that were not fitted.
    """
    if a.width != b.width:
        raise NotComparable(f"widths {a.width} and {b.width} differ: no invariants of tokens are comparable")
    wide = a.width > WIDE
    n_layers = LAYERS_OF_WIDE if wide else MAX_LAYERS
    chosen = [matched[i] for i in np.unique(np.linspace(0, len(matched) - 1, n_layers).round().astype(int))]
    if wide:
        _look_first(a, b, chosen)
    x, y, first = _first_matches(a, b, chosen, MAX_TOKENS)
    held_out = _held_out(x, y, first, seed)
    if held_out < BAR:
        raise NotComparable(
            f"{len(first)} tokens matched by invariants do not agree on a frame (held-out cosine {held_out:.2f} < {BAR})"
        )
    r, n = _refined(x, y, first, ROUNDS_OF_WIDE if wide else ROUNDS)
    if n < a.width:
        raise NotComparable(f"{n} tokens matched by invariants do not span the residual width {a.width}")
    return TokenFrame(r, n, held_out)


def _first_matches(
    a: ModelOperators, b: ModelOperators, layers: Sequence[tuple[int, int]], n: int
) -> tuple[Floats, Floats, Ids]:
    """Centred rows of the n longest tokens of both models, and the pairs matched by invariants."""
    rows, lengths = zip(*(_longest_rows(m, n) for m in (a, b)), strict=True)
    features = [
        _features(model, x, length, [pair[side] for pair in layers])
        for side, (model, x, length) in enumerate(zip((a, b), rows, lengths, strict=True))
    ]
    x, y = (r - r.mean(axis=0, dtype=np.float64).astype(r.dtype) for r in rows)
    return x, y, mutual_neighbours(*features)


def _look_first(a: ModelOperators, b: ModelOperators, layers: Sequence[tuple[int, int]]) -> None:
    """Raises `NotComparable` where inner products of rows matched by invariants do not correlate."""
    x, y, pairs = _first_matches(a, b, layers, FIRST_TOKENS)
    found = inner_product_correlation(x[pairs[:, 0]], y[pairs[:, 1]])
    if found < FIRST_BAR:
        raise NotComparable(
            f"{len(pairs)} of {len(x)} tokens matched by invariants are not those of one model "
            f"(their inner products correlate at {found:.2f} < {FIRST_BAR})"
        )


def inner_product_correlation(x: Floats, y: Floats) -> float:
    """Correlation of <x_i, x_j> and <y_i, y_j> over all i < j, in [-1, 1]; 0 for fewer than three rows.

    Args:
        x: Shape (n, d).
        y: Shape (n, d').
    """
    above = np.triu_indices(len(x), 1)
    one, other = ((m @ m.T)[above].astype(np.float64) for m in (x, y))
    if len(one) < 2:
        return 0.0
    one, other = one - one.mean(), other - other.mean()
    scale = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / scale if scale > 0 else 0.0


def mutual_neighbours(x: Floats, y: Floats) -> Ids:
    """Pairs of rows that are each other's nearest by distance: (n, 2), ascending."""
    to_y, best = np.empty(len(x), np.intp), np.full(len(y), np.inf)
    to_x = np.zeros(len(y), np.intp)
    squares = np.einsum("ij,ij->i", y, y)
    for start in range(0, len(x), _BLOCK):
        block = x[start : start + _BLOCK]
        distance = squares - 2 * (block @ y.T) + np.einsum("ij,ij->i", block, block)[:, None]
        to_y[start : start + _BLOCK] = distance.argmin(axis=1)
        near = distance.argmin(axis=0)
        value = distance[near, np.arange(len(y))]
        closer = value < best
        best[closer], to_x[closer] = value[closer], near[closer] + start
    mine = np.flatnonzero(to_x[to_y] == np.arange(len(x)))
    return np.stack([mine, to_y[mine]], axis=1)


def _held_out(x: Floats, y: Floats, pairs: Ids, seed: int) -> float:
    """Cosine of mapped rows on half of the pairs, the map fitted on the other half."""
    order = np.random.default_rng(seed).permutation(len(pairs))
    fit, test = pairs[order[::2]], pairs[order[1::2]]
    if not len(test):
        return 0.0
    mapped, target = x[test[:, 0]] @ _fit(x, y, fit), y[test[:, 1]]
    scale = np.linalg.norm(mapped) * np.linalg.norm(target)
    return float((mapped * target).sum() / scale) if scale > 0 else 0.0


def _refined(x: Floats, y: Floats, pairs: Ids, rounds: int) -> tuple[Doubles, int]:
    """Match mapped rows again and refit, until the matches stay; the map and the number of matches."""
    r = _fit(x, y, pairs)
    for _ in range(rounds):
        again = mutual_neighbours(unit(x @ r), unit(y))
        if np.array_equal(again, pairs) or not len(again):
            break
        pairs = again
        r = _fit(x, y, pairs)
    return r, len(pairs)


def _fit(x: Floats, y: Floats, pairs: Ids) -> Doubles:
    return polar((x[pairs[:, 0]].T @ y[pairs[:, 1]]).astype(np.float64))


def _longest_rows(model: ModelOperators, n: int) -> tuple[Floats, Doubles]:
    """Unit rows and lengths of the tokens with the longest rows, outliers left out; (n, d) float64 and (n,)."""
    lengths = model.lengths()
    candidates = np.flatnonzero(usual(lengths))
    ids = np.sort(candidates[np.argsort(-lengths[candidates], kind="stable")[:n]])
    if not len(ids):
        raise NotComparable(f"degenerate: no usual embedding row in {model.model.label}")
    found, start = [], 0
    for block in model.unit_rows():
        found.append(block[ids[(ids >= start) & (ids < start + len(block))] - start])
        start += len(block)
    return np.concatenate(found), lengths[ids]


def _features(model: ModelOperators, rows: Floats, lengths: Doubles, layers: Sequence[int]) -> Doubles:
    """Invariants of every row, z-scored: (n, 2 + 6 per layer)."""
    square = model.moments()[1].astype(rows.dtype)
    found = [np.log(lengths), np.einsum("ij,ij->i", rows @ square, rows)]
    for layer in layers:
        for heads in model.layer(layer):
            found += _quadratic(heads, rows)
    values = np.stack(found, axis=1).astype(np.float64)
    spread = values.std(axis=0)
    return np.divide(values - values.mean(axis=0), spread, out=np.zeros_like(values), where=spread > 0)


def _quadratic(heads: HeadOperators, rows: Floats) -> list[Floats]:
    """e^T T e, |T e|^2 and |T^T e|^2 for every row e."""
    forward, back = heads.times(rows.T), heads.transposed_times(rows.T)
    return [np.einsum("ji,ij->i", forward, rows), (forward**2).sum(axis=0), (back**2).sum(axis=0)]
