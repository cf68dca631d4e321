"""Linear merge of several models of one shape (model soups, arXiv:2203.05482; task arithmetic, arXiv:2212.04089)."""

import math
from collections.abc import Sequence

import numpy as np

from whorl.attacks._model_files import Array, Tensors, cast
from whorl.errors import NotComparable, UsageError


def merge_linear(parents: Sequence[Tensors], coefficients: Sequence[float] | None = None) -> dict[str, Array]:
    """The weighted sum of every tensor, summed in float64, in the first parent's dtypes.

    Args:
        parents: Two or more models with equal names and shapes.
        coefficients: One finite number per parent, default equal shares. They need not sum to 1: with a base as one
            parent, base + sum c_i (w_i - base) is the merge with coefficients (1 - sum c_i, c_1, c_2, ...).

    Raises:
        UsageError: fewer than two parents, a wrong number of coefficients, or one that is not finite.
        NotComparable: names or shapes differ.
    """
    if len(parents) < 2:
        raise UsageError(f"A merge of {len(parents)} model; expected two or more.")
    shares = [1.0 / len(parents)] * len(parents) if coefficients is None else list(coefficients)
    if len(shares) != len(parents) or not all(math.isfinite(share) for share in shares):
        raise UsageError(f"Coefficients {shares} for {len(parents)} models; expected one finite number each.")
    _check_same_shapes(parents)
    return {name: _weighted_sum(name, [p[name] for p in parents], shares) for name in parents[0]}


def _weighted_sum(name: str, arrays: Sequence[Array], shares: Sequence[float]) -> Array:
    total = np.zeros(arrays[0].shape, dtype=np.float64)
    for array, share in zip(arrays, shares, strict=True):
        total += share * array.astype(np.float64)
    return cast(name, total, arrays[0].dtype)


def _check_same_shapes(parents: Sequence[Tensors]) -> None:
    first = {name: array.shape for name, array in parents[0].items()}
    for parent in parents[1:]:
        other = {name: array.shape for name, array in parent.items()}
        odd = sorted(set(first.items()) ^ set(other.items()))
        if odd:
            name, shape = odd[0]
            raise NotComparable(f"models to merge differ at '{name}' {shape}: equal names and shapes are needed")
