"""Sums, standard deviations and depth curves of matrix types, shared by `std-vector` and `std-curves` (ours).

Moments of a set of weights are the three numbers (n, sum, sum of squares) in float64; they add over layers and experts.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from whorl.source import Floats
from whorl.weights.values import Observation

FORMS = ("raw", "gauge")

_BLOCK_VALUES = 32_768  # float64 scratch of 256 KiB: stays in the second-level cache


def moments(w: Floats) -> NDArray[np.float64]:
    """(n, sum, sum of squares) of all values of `w`, accumulated in float64; shape (3,)."""
    flat = w.reshape(-1)
    scratch = np.empty(min(_BLOCK_VALUES, flat.size))
    total = squares = 0.0
    for start in range(0, flat.size, _BLOCK_VALUES):
        block = scratch[: min(_BLOCK_VALUES, flat.size - start)]
        block[:] = flat[start : start + block.size]
        total += float(block.sum())
        squares += float(block @ block)
    return np.array([flat.size, total, squares])


def std_of(summed: NDArray[np.float64]) -> float:
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


def depth_curve(observations: Sequence[Observation], form: str, kind: str) -> NDArray[np.float64]:
    """`pooled_std` of each layer in depth order; shape (n_layers,)."""
    layers = sorted({o.layer for o in observations if f"{form}.{kind}" in o.arrays})
    by_layer = ([o for o in observations if o.layer == layer] for layer in layers)
    return np.array([pooled_std(group, form, kind) for group in by_layer])
