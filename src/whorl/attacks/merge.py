"""Merges of models of one shape.

    linear  model soups (arXiv:2203.05482); with a base as one parent, task arithmetic (arXiv:2212.04089)
    ties    TIES (arXiv:2306.01708): only the largest changes, only those of the elected sign
    dare    DARE (arXiv:2311.03099): a random part of the changes, scaled up
    slerp   two models along the arc between them, tensor by tensor

TIES and DARE work on changes from a base. Sizes are ranked per tensor, as merge tools do; the TIES paper ranks over the
whole model.
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

METHODS = ("linear", "ties", "dare", "slerp")
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
        base: Folder of the common base, for "ties" and "dare".
        density: Share of the changes that is kept, default `DEFAULT_DENSITY`, for "ties" and "dare".

    Raises:
        UsageError: an unknown method, or an option that it lacks or does not take.
        NotComparable: names or shapes differ.
    """
    if method not in METHODS:
        raise UsageError(f"Unknown merge method '{safe_name(method)}'; expected one of {', '.join(METHODS)}.")
    needs_base = method in {"ties", "dare"}
    if needs_base != (base is not None) or (density is not None and not needs_base):
        raise UsageError("The methods ties and dare need --base and may take --density; linear and slerp take neither.")
    models = [read_model(path) for path in job.models]
    parents = [tensors for tensors, _ in models]
    facts: dict[str, Any] = {"coefficients": shares_of(len(parents), coefficients)}
    if base is None:
        merged = (merge_linear if method == "linear" else merge_slerp)(parents, coefficients)
    else:
        facts |= {"base": Path(base).name, "density": DEFAULT_DENSITY if density is None else density}
        start, rng = read_model(base)[0], np.random.default_rng(job.seed)
        merged = merge_changes(start, parents, coefficients, method=method, density=facts["density"], rng=rng)
    job.write(job.record("merged", facts, random=method == "dare"), merged, models[0][1])


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
    """Base plus the combined changes of its derivatives, by TIES or DARE.

    Args:
        base: The common base.
        parents: Two or more derivatives.
        coefficients: Weight of each, default equal shares.
        method: "ties" or "dare".
        density: Share of each tensor's changes that is kept, in (0, 1].
        rng: Draws what DARE keeps.

    Raises:
        UsageError: density out of range, coefficients as for `merge_linear`.
        NotComparable: names or shapes differ.
    """
    if not 0.0 < density <= 1.0:
        raise UsageError(f"The density is {density}; expected a number above 0 and up to 1.")
    shares = shares_of(len(parents), coefficients)
    if method == "ties" and min(shares) <= 0:
        raise UsageError(f"Coefficients {shares}; the sign election of TIES needs positive ones.")

    def combined(arrays: Sequence[_Vector]) -> _Vector:
        changes = np.stack([array - arrays[0] for array in arrays[1:]])
        if method == "ties":
            return arrays[0] + _elected(changes, np.array(shares), density)
        kept = rng.random(changes.shape) < density
        return arrays[0] + np.tensordot(shares, np.where(kept, changes / density, 0.0), axes=1)

    return _each_tensor([base, *parents], combined)


def _elected(changes: _Vector, shares: _Vector, density: float) -> _Vector:
    """TIES: per value, the weighted mean of the trimmed changes that have the sign of their weighted sum."""
    n = changes.shape[0]
    flat = changes.reshape(n, -1)
    size = np.abs(flat)
    n_kept = max(1, math.ceil(density * flat.shape[1]))
    limit = -np.partition(-size, n_kept - 1, axis=1)[:, n_kept - 1 : n_kept]
    trimmed = np.where(size >= limit, flat, 0.0)
    weights = np.broadcast_to(shares[:, None], flat.shape)
    sign = np.sign((weights * trimmed).sum(axis=0))
    agree = np.where((np.sign(trimmed) == sign) & (sign != 0), weights, 0.0)
    total = agree.sum(axis=0)
    mean = (agree * trimmed).sum(axis=0) / np.where(total != 0, total, 1.0)
    return mean.reshape(changes.shape[1:])


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
    total = np.zeros(arrays[0].shape, dtype=np.float64)
    for array, share in zip(arrays, shares, strict=True):
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
