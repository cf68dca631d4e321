"""Singular values of large matrices: the largest k with an error bound each, or all of them.

`top_singular_values` takes the cheapest way that can keep its promise and climbs when rounding or slow convergence
stands in the way: float32 Krylov, float64 Krylov, Gram matrix, dense SVD. It never returns values without bounds.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from whorl.errors import UsageError
from whorl.linalg.blocks import Checked, Doubles, RowBlocks, checked
from whorl.linalg.gram import dense_values, gram_squares, solver_type
from whorl.linalg.krylov import Plan, block_krylov, unit_roundoff
from whorl.source import Floats

Path = Literal["krylov", "gram", "dense"]

SMALL_SIDE = 1024  # up to here the Gram matrix costs less than a Krylov run
GRAM_SIDE = 8192  # largest Gram matrix formed as a fallback: 512 MB in float64
DENSE_VALUES = 1 << 22  # largest matrix given to a dense SVD: 2048 x 2048, about 2 s
BLOCK_IN_MEMORY = 16  # fewer columns in all: measured 20 % faster than 32 at 4096 x 4096
BLOCK_STREAMED = 32  # fewer passes, each of which decodes the file again
MAX_STEPS = {BLOCK_IN_MEMORY: 80, BLOCK_STREAMED: 48}
FLAGGED = {np.dtype(np.float32): 3e-4, np.dtype(np.float64): 1e-8}  # sqrt of the roundoff: no digit is left below

_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)


@dataclass(frozen=True, eq=False)
class TopSpectrum:
    """The k largest singular values.

    Args:
        values: Descending, float64, shape (k,).
        bounds: rho_i / theta_i with rounding, shape (k,): a singular value lies within bounds * values of each value.
            True errors are usually far smaller (quadratic in the bound over the relative gap).
        flagged: Values too small, against sigma_1, for any relative accuracy; shape (k,).
        steps: Passes over the matrix of the iteration that gave the values (1 for "gram" and "dense").
        converged: Every value that is not flagged has a bound of at most the tolerance.
        path: How the values were obtained.
    """

    values: Doubles
    bounds: Doubles
    flagged: NDArray[np.bool_]
    steps: int
    converged: bool
    path: Path


@dataclass(frozen=True, eq=False)
class FullSpectrum:
    """All min(m, n) singular values, descending, float64; `flagged` marks those without any correct digit."""

    values: Doubles
    flagged: NDArray[np.bool_]


def top_singular_values(
    w: Floats | RowBlocks,
    k: int,
    *,
    tol: float = 1e-3,
    block: int | None = None,
    max_steps: int | None = None,
    seed: int = 0,
) -> TopSpectrum:
    """The k largest singular values of a matrix, each with a bound (Krylov: see `whorl.linalg.krylov`).

    Args:
        w: Shape (m, n), an array of floats or a row stream; float64 stays float64, the rest is float32.
        k: 1 .. min(m, n).
        tol: Largest accepted bound, 1e-10 .. 1. At 1e-3 true errors are near 1e-7.
        block: Columns of a Krylov step; default 16 in memory, 32 for streams (ours, measured).
        max_steps: Most Krylov steps before falling back; default 80 or 48.
        seed: Same seed, same result on the same machine.

    Returns:
        Values with bounds; `converged` is False when the tolerance was out of reach.

    Raises:
        UsageError: k, tol, block or max_steps out of range, or `w` is not a matrix of floats.
        NotComparable: a value is NaN or infinite, or all are zero.
    """
    width = block or (BLOCK_IN_MEMORY if isinstance(w, np.ndarray) else BLOCK_STREAMED)
    steps = max_steps or MAX_STEPS.get(width, 48)
    if not (1e-10 <= tol <= 1 and width >= 1 and steps >= 1):
        raise UsageError(f"need 1e-10 <= tol <= 1, block >= 1, max_steps >= 1; found {tol}, {block}, {max_steps}")
    matrix = checked(w)
    side = min(matrix.shape)
    if not 1 <= k <= side:
        raise UsageError(f"k must lie in 1 .. {side} for a {matrix.shape[0]} x {matrix.shape[1]} matrix; found {k}")
    if side <= SMALL_SIDE or 8 * k >= side:
        return _exact(matrix, k, tol)
    plan = Plan(k, tol, width, min(steps, side // (2 * width)))
    return _iterated(matrix, plan, seed)


def full_spectrum(w: Floats | RowBlocks, *, precise: bool = False) -> FullSpectrum:
    """All singular values from the smaller Gram matrix.

    Squaring costs half of the digits: in float32 values are within 2e-5 sigma_1, and those under 3e-4 sigma_1 are
    flagged; in float64 (`precise`, or float64 input) those under 1e-8 sigma_1.

    Args:
        w: Shape (m, n), an array of floats or a row stream. With fewer rows than columns, a stream is read in groups
            of 2**26 values, once per group.
        precise: Compute in float64.

    Raises:
        UsageError: `w` is not a matrix of floats.
        NotComparable: a value is NaN or infinite, or all are zero.
    """
    matrix = checked(w)
    dtype = _FLOAT64 if precise else matrix.dtype
    values = np.sqrt(gram_squares(matrix.rows, dtype))
    return FullSpectrum(matrix.unscaled(values), values < FLAGGED[dtype] * values[0])


def _iterated(matrix: Checked, plan: Plan, seed: int) -> TopSpectrum:
    types: list[np.dtype[Any]] = [_FLOAT64] if matrix.dtype == _FLOAT64 else [_FLOAT32, _FLOAT64]
    for dtype in types:
        floor = _floor(matrix, plan.tol) if dtype == _FLOAT64 else 0.0
        run = block_krylov(matrix.rows, Plan(plan.k, plan.tol, plan.block, plan.max_steps, floor), dtype, seed)
        if run.settled:
            return _top(matrix, run.values, run.bounds, floor, run.steps, "krylov", settled=True)
        if run.bounds.max() > plan.tol and run.steps >= plan.max_steps:
            break  # convergence is slow, not rounding: a finer type would be slow as well
    if min(matrix.shape) <= GRAM_SIDE:
        return _exact(matrix, plan.k, plan.tol)
    return _top(matrix, run.values, run.bounds, floor, run.steps, "krylov", settled=False)


def _exact(matrix: Checked, k: int, tol: float) -> TopSpectrum:
    """Gram matrix in the matrix's own type, then in float64, then a dense SVD if the matrix is small enough."""
    types: list[np.dtype[Any]] = [_FLOAT64] if matrix.dtype == _FLOAT64 else [_FLOAT32, _FLOAT64]
    dense = matrix.shape[0] * matrix.shape[1] <= DENSE_VALUES
    for dtype in types:
        squares = gram_squares(matrix.rows, dtype)[:k]
        bounds = _gram_bounds(squares, dtype, min(matrix.shape))
        floor = 0.0 if dense or dtype == _FLOAT32 else _floor(matrix, tol)
        values = np.sqrt(squares)
        if bounds[values > floor * values[0]].max() <= tol:
            return _top(matrix, values, bounds, floor, 1, "gram", settled=True)
    if not dense:
        return _top(matrix, values, bounds, floor, 1, "gram", settled=False)
    values = dense_values(matrix.rows)[:k]
    noise = 8 * np.sqrt(min(matrix.shape)) * unit_roundoff(_FLOAT64)
    bounds = noise * values[0] / np.maximum(values, noise * values[0])
    return _top(matrix, values, bounds, noise / tol, 1, "dense", settled=True)


def _top(
    matrix: Checked, values: Doubles, bounds: Doubles, floor: float, steps: int, path: Path, *, settled: bool
) -> TopSpectrum:
    flagged = values <= floor * values[0]
    return TopSpectrum(matrix.unscaled(values), bounds, flagged, steps, settled, path)


def _floor(matrix: Checked, tol: float) -> float:
    """The fraction of sigma_1 below which rounding in float64 keeps every bound above `tol`."""
    return float(np.sqrt(_gram_noise(min(matrix.shape), _FLOAT64) / tol))


def _gram_bounds(squares: Doubles, dtype: np.dtype[Any], side: int) -> Doubles:
    """|theta^2 - sigma^2| <= noise sigma_1^2, over theta^2."""
    return _gram_noise(side, dtype) * squares[0] / np.maximum(squares, unit_roundoff(dtype) ** 2 * squares[0])


def _gram_noise(side: int, dtype: np.dtype[Any]) -> float:
    """Error of a squared value over sigma_1^2: 8 roundoffs from the products, 4 sqrt(side) from the solver (ours)."""
    solver = unit_roundoff(solver_type(side, dtype))
    return 8 * unit_roundoff(dtype) + (8 + 4 * float(np.sqrt(side))) * solver
