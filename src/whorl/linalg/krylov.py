"""Block Krylov iteration for the largest singular values, with a residual for each of them.

One pass over W per step: P_{j+1} R_{j+1} is the part of W^T W P_j that is orthogonal to all earlier blocks. All values
come from a float64 Rayleigh-Ritz step on Y = W [P_1 .. P_j]. Classical block Lanczos with full re-orthogonalisation
(Golub and Underwood 1977; Musco and Musco, arXiv 1504.05477, for the random start); the rounding term of the bound, the
guard and the schedule of the checks are ours.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whorl.linalg.blocks import Doubles, RowBlocks
from whorl.source import Floats

GUARD_COLUMNS = 4
GUARD_STEPS = 3
MOVED = 1e-6  # largest relative change of the k-th value in the last step


@dataclass(frozen=True)
class KrylovRun:
    """What one run found.

    Args:
        values: The k largest Ritz values, descending, shape (k,).
        bounds: rho_i / theta_i with rounding, shape (k,); see `Space.ritz`.
        steps: Passes over the matrix, those of the guard included.
        settled: Both stopping rules held and the guard found nothing.
    """

    values: Doubles
    bounds: Doubles
    steps: int
    settled: bool


@dataclass(frozen=True)
class Ritz:
    """Ritz values of one check: values and relative residuals (k,), the rounding share of the latter (k,)."""

    values: Doubles
    residuals: Doubles
    rounding: Doubles

    @property
    def bounds(self) -> Doubles:
        """Residual plus rounding, relative to the value."""
        return self.residuals + self.rounding


def unit_roundoff(dtype: np.dtype[Any]) -> float:
    """Half the distance from 1 to the next number: 6e-8 for float32, 1.1e-16 for float64."""
    return float(np.finfo(dtype).eps) / 2


class Space:
    """An orthonormal basis that grows block by block, with its images.

    Args:
        rows: The matrix W, shape (m, n).
        dtype: Type of the products, float32 or float64.
        seed: Start block, refills and guard all come from this one generator.
    """

    def __init__(self, rows: RowBlocks, dtype: np.dtype[Any], seed: int) -> None:
        self._rows, self._dtype, self._random = rows, dtype, np.random.default_rng(seed)
        m, n = rows.shape
        self.size, self.steps, self._tail = 0, 0, 0
        self._basis: Floats = np.empty((0, n), dtype)  # rows are the basis vectors
        self._images: Doubles = np.empty((0, m))  # rows are W times them
        self._products: Doubles = np.empty((0, 0))  # images @ images.T

    def random(self, width: int) -> Floats:
        """`width` random orthonormal rows, orthogonal to the basis, shape (width, n)."""
        start = self._random.standard_normal((width, self._rows.shape[1])).astype(self._dtype)
        return self.orthonormal(start)[0]

    def extend(self, block: Floats) -> Floats:
        """Append orthonormal rows (b, n) to the basis; return their images under W^T W, shape (b, n)."""
        image, back = self._apply(block)
        low, high = self.size, self.size + len(block)
        self._reserve(high)
        self._basis[low:high], self._images[low:high] = block, image
        new = self._images[:high] @ self._images[low:high].T
        self._products[:high, low:high], self._products[low:high, :high] = new, new.T
        self.size, self._tail = high, len(block)
        self.steps += 1
        return back

    def orthonormal(self, block: Floats) -> tuple[Floats, Doubles]:
        """Split a block (b, n) as L Q plus a part inside the basis: (Q (b, n) orthonormal rows, L (b, b)).

        Directions that vanish in rounding (an invariant subspace was reached) are replaced by random ones with a zero
        column in L, so the basis goes on growing and the residuals stay right.
        """
        floor = 16 * unit_roundoff(self._dtype) * float(np.sqrt(np.einsum("ij,ij->i", block, block).max()))
        factor = np.eye(len(block))
        for attempt in range(4):  # two rounds are enough unless a direction was refilled
            part, block, refilled = self._cholesky(self._projected(block), floor if attempt == 0 else 0.5)
            factor = factor @ part
            if attempt > 0 and not refilled:
                break
        return block, factor

    def ritz(self, k: int, factor: Doubles) -> Ritz:
        """The k largest Ritz values, descending, and their residuals.

        rho_i = ||L^T s_i[last block]|| / theta_i is the norm of W^T W v_i - theta_i^2 v_i over theta_i: some singular
        value lies within rho_i of theta_i. Rounding of the products adds about u sigma_1^2 / theta_i (u the unit
        roundoff) that the recurrence cannot see, and the eigenvalue solver its own share; the constants are ours,
        checked on spectra built to be hard.
        """
        squares, vectors = np.linalg.eigh(self._products[: self.size, : self.size])
        squares, vectors = np.maximum(squares[: -k - 1 : -1], 0.0), vectors[:, : -k - 1 : -1]
        last = vectors[self.size - self._tail : self.size]
        roundoff = unit_roundoff(self._dtype)
        divisors = np.maximum(squares, roundoff**2 * squares[0])
        residuals = np.sqrt(np.square(factor.T @ last).sum(axis=0)) / divisors
        solver = 4 * unit_roundoff(np.dtype(np.float64)) * np.sqrt(self.size)
        return Ritz(np.sqrt(squares), residuals, 8 * roundoff + (roundoff + solver) * squares[0] / divisors)

    def before_last(self, k: int) -> float:
        """The k-th Ritz value without the last block (0 if the basis was too small)."""
        size = self.size - self._tail
        if size < k:
            return 0.0
        return float(np.sqrt(max(np.linalg.eigvalsh(self._products[:size, :size])[-k], 0.0)))

    def guard(self, level: float) -> Floats | None:
        """Look outside the basis for something longer than `level`; None, or the block to go on with.

        A few block steps from a fresh random start orthogonal to the basis: their Ritz values never exceed the norm
        of W there, so one above `level` proves a missed singular value (a value repeated more often than the block is
        wide is the usual reason).
        """
        first, block = self.size, self.random(GUARD_COLUMNS)
        for _ in range(GUARD_STEPS):
            block, _ = self.orthonormal(self.extend(block))
        seen = self._products[first : self.size, first : self.size]
        return block if np.sqrt(np.linalg.eigvalsh(seen)[-1]) > level else None

    def _apply(self, block: Floats) -> tuple[Doubles, Floats]:
        """(P W^T in float64 storage (b, m), P W^T W (b, n)) for the rows P, in one pass over W."""
        image: Doubles = np.empty((len(block), self._rows.shape[0]))
        back: Floats = np.zeros((len(block), self._rows.shape[1]), self._dtype)
        start = 0
        for rows in self._rows.blocks():
            w = rows.astype(self._dtype, copy=False)
            part = w @ block.T
            back += part.T @ w
            image[:, start : start + len(w)] = part.T
            start += len(w)
        return image, back

    def _projected(self, block: Floats) -> Floats:
        basis = self._basis[: self.size]
        return block - (block @ basis.T) @ basis

    def _cholesky(self, block: Floats, floor: float) -> tuple[Doubles, Floats, bool]:
        """One round of Cholesky orthonormalisation: (L, Q, whether a direction shorter than `floor` was refilled)."""
        wide = block.astype(np.float64)
        gram = wide @ wide.T
        squares, vectors = np.linalg.eigh(gram)
        kept = squares > max(floor**2, 1e-12 * squares[-1])
        if not kept.all():
            factor, filled = self._refilled(wide, np.sqrt(squares[kept]), vectors[:, kept])
            return factor, filled, True
        factor = np.linalg.cholesky(gram).astype(np.float64, copy=False)
        return factor, (np.linalg.inv(factor) @ wide).astype(self._dtype), False

    def _refilled(self, wide: Doubles, lengths: Doubles, vectors: Doubles) -> tuple[Doubles, Floats]:
        b, n = wide.shape
        factor = np.zeros((b, b))
        factor[:, : len(lengths)] = vectors * lengths
        fresh = self._random.standard_normal((b - len(lengths), n)) / np.sqrt(n)
        return factor, np.vstack([(vectors / lengths).T @ wide, fresh]).astype(self._dtype)

    def _reserve(self, needed: int) -> None:
        if needed <= len(self._basis):
            return
        rows = max(needed, 2 * len(self._basis), 128)
        self._basis = _grown(self._basis, (rows, self._basis.shape[1]))
        self._images = _grown(self._images, (rows, self._images.shape[1]))
        self._products = _grown(self._products, (rows, rows))


@dataclass(frozen=True)
class Plan:
    """When a run stops.

    Args:
        k: Number of singular values wanted.
        tol: Largest accepted bound.
        block: Columns of a step.
        max_steps: Most steps before the run gives up.
        floor: Values at or below floor * sigma_1 need not meet `tol` (0: all must).
    """

    k: int
    tol: float
    block: int
    max_steps: int
    floor: float = 0.0


def block_krylov(rows: RowBlocks, plan: Plan, dtype: np.dtype[Any], seed: int) -> KrylovRun:
    """The k largest singular values of `rows` by block Krylov iteration.

    Args:
        rows: W, shape (m, n), finite, not all zero.
        plan: Stopping rule.
        dtype: Type of the products, float32 or float64.
        seed: Seed of the random start.

    Returns:
        The run; `settled` is False at the step limit and when rounding in `dtype` alone exceeds the tolerance.
    """
    space = Space(rows, dtype, seed)
    schedule = _Schedule(first=-(-2 * plan.k // plan.block), tol=plan.tol)
    vectors, step = space.random(plan.block), 0
    while True:
        step += 1
        vectors, factor = space.orthonormal(space.extend(vectors))
        if space.size < plan.k or not (schedule.due(step) or step >= plan.max_steps):
            continue
        ritz = space.ritz(plan.k, factor)
        missed = None
        if _met(space, ritz, plan):
            missed = space.guard(max(ritz.values[-1], plan.floor * ritz.values[0]) * (1 + plan.tol))
            if missed is None:
                return KrylovRun(ritz.values, ritz.bounds, space.steps, settled=True)
            vectors, _ = space.orthonormal(np.vstack([vectors, missed]))
        if step >= plan.max_steps or (missed is None and _hopeless(ritz, plan)):
            return KrylovRun(ritz.values, ritz.bounds, space.steps, settled=False)
        schedule.saw(step, float(ritz.residuals[_wanted(ritz, plan)].max()))


def _wanted(ritz: Ritz, plan: Plan) -> NDArray[np.bool_]:
    return ritz.values > plan.floor * ritz.values[0]


def _met(space: Space, ritz: Ritz, plan: Plan) -> bool:
    wanted = _wanted(ritz, plan)
    if ritz.bounds[wanted].max() > plan.tol:
        return False
    last = int(wanted.sum())
    return float(ritz.values[last - 1]) - space.before_last(last) <= MOVED * float(ritz.values[last - 1])


def _hopeless(ritz: Ritz, plan: Plan) -> bool:
    """Rounding stands in the way: far too large already (values still grow, not twofold), or all that is left."""
    wanted = _wanted(ritz, plan)
    rounding = float(ritz.rounding[wanted].max())
    alone = float(ritz.residuals[wanted].max()) <= plan.tol / 2 and float(ritz.bounds[wanted].max()) > plan.tol
    return rounding > 4 * plan.tol or alone


def _grown(array: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    out = np.zeros(shape, array.dtype)
    out[: array.shape[0], : array.shape[1]] = array
    return out


class _Schedule:
    """When to solve the small eigenproblem: its cost is of the order of a step, so residuals are extrapolated."""

    def __init__(self, first: int, tol: float) -> None:
        self._next, self._tol = first, tol
        self._last: tuple[int, float] | None = None

    def due(self, step: int) -> bool:
        return step >= self._next

    def saw(self, step: int, residual: float) -> None:
        wait = 2
        if self._last is not None and 0 < residual < self._last[1]:
            rate = np.log(self._last[1] / residual) / (step - self._last[0])
            wait = int(np.clip(np.ceil(0.8 * np.log(residual / self._tol) / rate), 1, max(4, step // 5)))
        self._last, self._next = (step, residual), step + wait
