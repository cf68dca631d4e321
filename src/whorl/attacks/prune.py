"""Magnitude pruning: the smallest weights of each matrix become zero, nothing is retrained.

Unstructured pruning zeroes a share of each matrix (Han et al., arXiv:1506.02626); 2:4 zeroes two of every four
neighbours along the input axis, the pattern that sparse tensor cores accelerate (arXiv:2104.08378).
"""

from typing import Any

import numpy as np

from whorl.attacks._model_files import Array, Tensors, edited, matrix_names
from whorl.errors import UsageError


def prune_magnitude(tensors: Tensors, share: float, *, include: str | None = None) -> dict[str, Array]:
    """Zero the smallest-magnitude share of each matrix.

    Args:
        tensors: Model tensors by name, matrices (out, in).
        share: Share of each matrix that is zero afterwards, in [0, 1); rounded to whole weights. Of equal
            magnitudes the earlier ones go first.
        include: Shell pattern of the matrices to prune; default all but the tables.

    Raises:
        UsageError: share outside [0, 1), or no matrix matches.
    """
    if not 0.0 <= share < 1.0:
        raise UsageError(f"The pruned share is {share}; expected a number from 0 up to, not including, 1.")
    changed = {name: _without_smallest(tensors[name], share) for name in matrix_names(tensors, include)}
    return edited(tensors, changed)


def _without_smallest(array: Array, share: float) -> Array:
    n_zero = round(share * array.size)
    result = array.copy()
    if n_zero == 0:
        return result
    size = np.abs(array).ravel()
    limit = np.partition(size, n_zero - 1)[n_zero - 1]
    smaller, equal = np.flatnonzero(size < limit), np.flatnonzero(size == limit)
    flat = result.ravel()
    flat[smaller] = 0
    flat[equal[: n_zero - smaller.size]] = 0
    return flat.reshape(array.shape)


def prune_two_four(tensors: Tensors, *, include: str | None = None) -> dict[str, Array]:
    """Zero the two smaller magnitudes in every four neighbours of a row.

    Args:
        tensors: Model tensors by name, matrices (out, in) with in divisible by 4.
        include: Shell pattern of the matrices to prune; default all but the tables.

    Raises:
        UsageError: an input width is not divisible by 4, or no matrix matches.
    """
    names = matrix_names(tensors, include)
    for name in names:
        if tensors[name].shape[1] % 4:
            raise UsageError(f"'{name}' has {tensors[name].shape[1]} inputs; 2:4 pruning needs a multiple of 4.")
    return edited(tensors, {name: _two_of_four(tensors[name]) for name in names})


def _two_of_four(array: Array) -> Array:
    fours: Any = array.reshape(-1, 4).copy()
    order = np.argsort(np.abs(fours), axis=1, kind="stable")
    np.put_along_axis(fours, order[:, :2], 0, axis=1)
    result: Array = fours.reshape(array.shape)
    return result
