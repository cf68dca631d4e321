"""Sums, standard deviations and depth curves of matrix types, shared by `std-vector` and `std-curves` (ours).

Moments of a set of weights are the three numbers (n, sum, sum of squares) in float64; they add over layers and experts.
Raw and gauge moments of a matrix come from one pass over its values in cache-size blocks: folding a norm multiplies
columns (readers) or rows (writers), balancing multiplies the other side, so sums per row or per column are enough and no
folded copy of the matrix is made.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from whorl.canonical.form import gain
from whorl.canonical.roles import MATRIX_ROLES, Part
from whorl.source import Floats
from whorl.weights.gauge import WRITERS, scales
from whorl.weights.values import Observation

FORMS = ("raw", "gauge")
Doubles = NDArray[np.float64]

_BLOCK_VALUES = 131_072  # float64 scratch of 1 MiB; measured: smaller blocks spend more on calls than they save


@dataclass(frozen=True)
class Sums:
    """Sums of one matrix.

    Args:
        raw: (n, sum, sum of squares) of the stored values.
        linear: Sums of the folded matrix per row (readers) or per column (writers).
        squares: Sums of squares likewise.
    """

    raw: Doubles
    linear: Doubles
    squares: Doubles


def part_moments(part: Part, embed_rms: float) -> dict[str, Doubles]:
    """`raw.<type>` and `gauge.<type>` of one sublayer: (n, sum, sum of squares), shape (3,) each."""
    sums = {role: _sums(part, role) for role in MATRIX_ROLES if role in part.raw}
    factors = scales({role: s.squares for role, s in sums.items()}, part.shape, embed_rms)
    found = {f"raw.{role}": s.raw for role, s in sums.items()}
    for role, s in sums.items():
        f = factors[role]
        found[f"gauge.{role}"] = np.array([s.raw[0], f @ s.linear, (f * f) @ s.squares])
    return found


def _sums(part: Part, role: str) -> Sums:
    shape, raw = part.shape, part.raw
    folded = shape.norm_style != "post"
    centred = folded and shape.norm_kind == "layer"
    if role in WRITERS:
        after = gain(raw, "post_attn_norm" if role == "o" else "post_mlp_norm", shape) if folded else None
        return writer_sums(raw[role], after, centred=centred)
    g = gain(raw, "norm_attn" if role in {"q", "k", "v"} else "norm_mlp", shape) if folded else None
    found = reader_sums(raw[role], g, centred=centred)
    return _with_row_gain(found, gain(raw, f"{role}_norm", shape)) if role in {"q", "k"} else found


def reader_sums(w: Floats, g: Floats | None, *, centred: bool) -> Sums:
    """Sums per row of W diag(g), each row minus its mean when `centred`; `w` (rows, d), `g` (d,) or None for ones."""
    rows, d = w.shape
    g1 = np.ones(d) if g is None else g.astype(np.float64)
    g2 = g1 * g1
    linear, squares = np.empty(rows), np.empty(rows)
    raw = np.array([w.size, 0.0, 0.0])
    height = max(1, _BLOCK_VALUES // d)
    scratch, ones = np.empty((height, d)), np.ones(d)
    for start in range(0, rows, height):
        stop = min(start + height, rows)
        block = scratch[: stop - start]
        block[...] = w[start:stop]
        raw[1] += (block @ ones).sum()  # half the time of block.sum()
        np.dot(block, g1, out=linear[start:stop])
        np.multiply(block, block, out=block)
        raw[2] += (block @ ones).sum()
        np.dot(block, g2, out=squares[start:stop])
    return Sums(raw, *_centred(linear, squares, d)) if centred else Sums(raw, linear, squares)


def writer_sums(w: Floats, g: Floats | None, *, centred: bool) -> Sums:
    """Sums per column of diag(g) W, each column minus its mean when `centred`; `w` (d, columns), `g` (d,) or None."""
    d, columns = w.shape
    g1 = np.ones(d) if g is None else g.astype(np.float64)
    linear, squares = np.zeros(columns), np.zeros(columns)
    raw = np.array([w.size, 0.0, 0.0])
    height = max(1, _BLOCK_VALUES // columns)
    scratch, ones = np.empty((height, columns)), np.ones(columns)
    for start in range(0, d, height):
        stop = min(start + height, d)
        block, weights = scratch[: stop - start], g1[start:stop]
        block[...] = w[start:stop]
        linear += weights @ block
        if g is not None:
            raw[1] += (block @ ones).sum()
        np.multiply(block, block, out=block)
        squares += (weights * weights) @ block
        if g is not None:
            raw[2] += (block @ ones).sum()
    if g is None:
        raw[1:] = linear.sum(), squares.sum()
    return Sums(raw, *_centred(linear, squares, d)) if centred else Sums(raw, linear, squares)


def _centred(linear: Doubles, squares: Doubles, n: int) -> tuple[Doubles, Doubles]:
    """Sums after each line of n values has lost its mean."""
    return np.zeros_like(linear), np.maximum(squares - linear * linear / n, 0.0)


def _with_row_gain(sums: Sums, g: Floats | None) -> Sums:
    """Rows times the gain of a query or key norm, which repeats over the heads when it has the length of one."""
    if g is None:
        return sums
    rows = np.tile(g.astype(np.float64), sums.linear.size // g.size)
    return Sums(sums.raw, sums.linear * rows, sums.squares * rows * rows)


def std_of(summed: Doubles) -> float:
    """Population standard deviation about the mean from (n, sum, sum of squares)."""
    n, total, squares = summed
    mean = total / n
    return float(np.sqrt(max(squares / n - mean * mean, 0.0)))


def pooled_std(observations: Sequence[Observation], form: str, kind: str) -> float:
    """Standard deviation of all weights of one matrix type over the given sublayers.

    Args:
        observations: Sublayers that hold `{form}.{kind}` moments; others are passed over.
        form: "raw" or "gauge".
        kind: Matrix type.
    """
    key = f"{form}.{kind}"
    return std_of(np.sum([o.arrays[key] for o in observations if key in o.arrays], axis=0))


def depth_curve(observations: Sequence[Observation], form: str, kind: str) -> Doubles:
    """`pooled_std` of each layer in depth order; shape (n_layers,)."""
    layers = sorted({o.layer for o in observations if f"{form}.{kind}" in o.arrays})
    by_layer = ([o for o in observations if o.layer == layer] for layer in layers)
    return np.array([pooled_std(group, form, kind) for group in by_layer])
