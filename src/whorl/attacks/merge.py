"""Merges of models of one shape.

    linear     model soups (arXiv:2203.05482)
    task       task arithmetic (arXiv:2212.04089): base + sum c_i (w_i - base)
    ties       TIES (arXiv:2306.01708): only the largest changes, only those of the elected sign, their weighted mean
    dare       DARE-linear (arXiv:2311.03099): task arithmetic with a random part of the changes, scaled up
    dare-ties  DARE-TIES (same paper): the random part of DARE instead of the largest changes, then the election of TIES
    slerp      two models along the arc between them, tensor by tensor

All with a base work on changes from it. Sizes are ranked per tensor, as merge tools do; the TIES paper ranks over the whole
model. The elected changes are averaged over the models that have the elected sign (merge tools call it normalised).
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whorl.attacks._job import Job
from whorl.attacks._model_files import Array, Tensors, cast, read_model
from whorl.errors import NotComparable, UsageError, safe_name

METHODS = ("linear", "task", "ties", "dare", "dare-ties", "slerp")
CHANGES = ("task", "ties", "dare", "dare-ties")
DEFAULT_DENSITY = 0.5
_Vector = NDArray[np.float64]


def run(
    job: Job,
    *,
    method: str = "linear",
    coefficients: Sequence[float] | None = None,
    base: str | None = None,
    density: float | None = None,
) -> None:
    """Merge two or more models; config and tokenizer are the first one's.

    Args:
        job: The models.
        method: One of `METHODS`.
        coefficients: One number per model, default equal shares.
        base: Folder of the common base, for the methods in `CHANGES`.
        density: Share of the changes that is kept, default `DEFAULT_DENSITY`, for "ties", "dare" and "dare-ties".

    Raises:
        UsageError: an unknown method, or an option that it lacks or does not take.
        NotComparable: names or shapes differ.
    """
    if method not in METHODS:
        raise UsageError(f"Unknown merge method '{safe_name(method)}'; expected one of {', '.join(METHODS)}.")
    needs_base = method in CHANGES
    if needs_base != (base is not None) or (density is not None and not (needs_base and method != "task")):
        raise UsageError(
            "The methods ties, dare and dare-ties need --base and may take --density, task needs --base alone; linear and "
            "slerp take neither."
        )
    models = [read_model(path) for path in job.models]
    parents = [tensors for tensors, _ in models]
    facts: dict[str, Any] = {"coefficients": shares_of(len(parents), coefficients)}
    if base is None:
        merged = (merge_linear if method == "linear" else merge_slerp)(parents, coefficients)
    else:
        kept = 1.0 if method == "task" else DEFAULT_DENSITY if density is None else density
        facts |= {"base": Path(base).name, "density": kept}
        start, rng = read_model(base)[0], np.random.default_rng(job.seed)
        merged = merge_changes(start, parents, coefficients, method=method, density=kept, rng=rng)
    job.write(job.record("merged", facts, random=method.startswith("dare")), merged, models[0][1])


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
    shares = shares_of(len(parents), coefficients)
    return _each_tensor(parents, lambda arrays: _weighted_sum(arrays, shares))


def merge_slerp(parents: Sequence[Tensors], coefficients: Sequence[float] | None = None) -> dict[str, Array]:
    """Spherical interpolation of every tensor, read as one vector; arguments and errors as for `merge_linear`.

    With coefficients (1 - t, t) and the angle a between the two: (sin((1 - t) a) w_0 + sin(t a) w_1) / sin(a), and the
    straight line where they are parallel or one is zero.

    Raises:
        UsageError: also when there are not two parents, or the coefficients do not sum to 1.
    """
    shares = shares_of(len(parents), coefficients)
    if len(parents) != 2 or not math.isclose(sum(shares), 1.0):
        raise UsageError(f"A slerp of {len(parents)} models with {shares}; expected two, with coefficients of sum 1.")
    return _each_tensor(parents, lambda arrays: _weighted_sum(arrays, _arc_shares(arrays, shares)))


def merge_changes(
    base: Tensors,
    parents: Sequence[Tensors],
    coefficients: Sequence[float] | None = None,
    *,
    method: str,
    density: float,
    rng: np.random.Generator,
) -> dict[str, Array]:
    """Base plus the combined changes of its derivatives.

    Args:
        base: The common base.
        parents: Two or more derivatives.
        coefficients: Weight of each, default equal shares.
        method: One of `CHANGES`.
        density: Share of each tensor's changes that is kept, in (0, 1]; task arithmetic keeps all.
        rng: Draws what DARE keeps.

    Raises:
        UsageError: density out of range, coefficients as for `merge_linear`.
        NotComparable: names or shapes differ.
    """
    if not 0.0 < density <= 1.0:
        raise UsageError(f"The density is {density}; expected a number above 0 and up to 1.")
    shares = shares_of(len(parents), coefficients)
    if method.endswith("ties") and min(shares) <= 0:
        raise UsageError(f"Coefficients {shares}; the sign election of TIES needs positive ones.")

    def combined(arrays: Sequence[_Vector]) -> _Vector:
        changes = np.stack([array - arrays[0] for array in arrays[1:]])
        if method.startswith("dare"):
            changes = np.where(rng.random(changes.shape) < density, changes / density, 0.0)
        elif method == "ties":
            changes = _largest(changes, density)
        elected = method.endswith("ties")
        change = _elected(changes, np.array(shares)) if elected else np.tensordot(shares, changes, axes=1)
        return np.where(change == 0, arrays[0], arrays[0] + change)  # -0 + 0 is 0: another value on disk

    return _each_tensor([base, *parents], combined)


def _largest(changes: _Vector, density: float) -> _Vector:
    """The changes of each model, shape (models, ...), with all but the largest share set to zero."""
    flat = changes.reshape(len(changes), -1)
    size = np.abs(flat)
    n_kept = max(1, math.ceil(density * flat.shape[1]))
    limit = -np.partition(-size, n_kept - 1, axis=1)[:, n_kept - 1 : n_kept]
    return np.where(size >= limit, flat, 0.0).reshape(changes.shape)


def _elected(changes: _Vector, shares: _Vector) -> _Vector:
    """TIES: per value, the weighted mean of the changes, shape (models, ...), that have the sign of their weighted sum."""
    weights = np.broadcast_to(shares.reshape(-1, *[1] * (changes.ndim - 1)), changes.shape)
    sign = np.sign((weights * changes).sum(axis=0))
    agree = np.where((np.sign(changes) == sign) & (sign != 0), weights, 0.0)
    total = agree.sum(axis=0)
    mean: _Vector = (agree * changes).sum(axis=0) / np.where(total != 0, total, 1.0)
    return mean


def _arc_shares(arrays: Sequence[_Vector], shares: Sequence[float]) -> list[float]:
    first, second = (array.ravel() for array in arrays)
    norms = float(np.linalg.norm(first) * np.linalg.norm(second))
    cosine = float(first @ second) / norms if norms else 1.0
    angle = math.acos(max(-1.0, min(1.0, cosine)))
    if math.sin(angle) < 1e-6:
        return list(shares)
    return [math.sin(share * angle) / math.sin(angle) for share in shares]


def shares_of(n_parents: int, coefficients: Sequence[float] | None) -> list[float]:
    """The coefficients, or equal shares.

    Raises:
        UsageError: fewer than two parents, a wrong number of coefficients, or one that is not finite.
    """
    if n_parents < 2:
        raise UsageError(f"A merge of {n_parents} model; expected two or more.")
    shares = [1.0 / n_parents] * n_parents if coefficients is None else list(coefficients)
    if len(shares) != n_parents or not all(math.isfinite(share) for share in shares):
        raise UsageError(f"Coefficients {shares} for {n_parents} models; expected one finite number each.")
    return shares


def _each_tensor(models: Sequence[Tensors], combine: Callable[[Sequence[_Vector]], _Vector]) -> dict[str, Array]:
    _check_same_shapes(models)
    return {
        name: cast(name, combine([np.asarray(m[name], np.float64) for m in models]), array.dtype)
        for name, array in models[0].items()
    }


def _weighted_sum(arrays: Sequence[_Vector], shares: Sequence[float]) -> _Vector:
    total = np.full(arrays[0].shape, -0.0)  # which, unlike 0, changes nothing that is added to it
    for array, share in zip(arrays, shares, strict=True):
        if share:
            total += share * array
    return total


def _check_same_shapes(parents: Sequence[Tensors]) -> None:
    first = {name: array.shape for name, array in parents[0].items()}
    for parent in parents[1:]:
        other = {name: array.shape for name, array in parent.items()}
        odd = sorted(set(first.items()) ^ set(other.items()))
        if odd:
            name, shape = odd[0]
            raise NotComparable(
                f"models to merge differ at '{safe_name(name)}' {shape}: equal names and shapes are needed"
            )
