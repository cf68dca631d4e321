"""Does a matrix lie on the grid of an integer quantiser? An exact-lattice test on sampled groups (ours).

Round-to-nearest and GPTQ write w = (q - z) s with integers q, z and one step s per group of neighbours, so every value
of a group is an integer multiple of s, and the largest magnitude is K s with an integer K <= 255. For each K:

    s = max|w| / K,   r_i = distance of w_i / s from an integer,   t_i = 2 u |w_i| / s

where u = 2^-(mantissa bits + 1) is the rounding of the stored type: both w_i and max|w| carry it. The group is on the
grid when r_i <= t_i for all i. A value from a continuous distribution passes with probability min(1, 2 t_i), so

    log p = log 255 + sum_i log min(1, 2 t_i)        (zeros and one largest value say nothing and are left out)

bounds the chance that it happens without a grid, the search over K included. Where values are stored with a minimum
(w = q s + m, as Q4_1 and Q4_K do) the same test runs on w - min with K <= 63.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from whorl.lineage.exact import MANTISSA_BITS, rounded
from whorl.source import Floats

Group = int | Literal["tensor", "row", "column"]
Doubles = NDArray[np.float64]

GROUPS: tuple[Group, ...] = ("tensor", "row", "column", 256, 128, 64, 32)  # coarse first: finer ones hold as well
MAX_LEVEL = 255  # 8 bits
MAX_LEVEL_OFFSET = 63
MAX_LOG_P = float(np.log(1e-9))  # of all sampled groups together; a report tests some 1e3 matrices, 7 groupings each
MIN_GROUP_LOG_P = float(np.log(1e-3))  # each group alone, where groups have different K
SHARE_ON_GRID = 0.95
SAME_STEP = 0.9  # a coarser grouping has the same median step as a finer one, if it is the true one
MIN_INFORMATIVE = 4  # non-zero values of a group besides its largest
N_GROUPS, N_VALUES = 24, 48  # groups of the test, values taken of each
N_SCOUTS, N_SCOUT_VALUES = 4, 24  # of a first look that only refuses
_SLACK = 1.05  # float32 arithmetic of the quantiser itself


@dataclass(frozen=True, eq=False)
class Grid:
    """The grid of one matrix.

    Args:
        bits: Width of the integers; a lower bound where groups span the whole sample ("tensor", "column").
        symmetric: Whether the levels reach equally far on both sides in every group.
        group: Neighbours that share a step.
        offset: Whether groups have a minimum that is no multiple of the step.
        log_p: Natural log of the bound on the chance of this without a grid.
        steps: Step of each sampled group.
        error: Root mean square of (other - this) / step over the same values of the other model, if given.
        inside: Share of these values that lie within half a step.
    """

    bits: int
    symmetric: bool
    group: Group
    offset: bool
    log_p: float
    steps: Doubles
    error: float | None
    inside: float | None

    @property
    def format(self) -> str:
        """In words, as "4-bit symmetric, groups of 32"."""
        if isinstance(self.group, int):
            where = f"groups of {self.group}"
        else:
            where = {"tensor": "one scale per tensor", "row": "one scale per row", "column": "one scale per column"}[
                self.group
            ]
        kind = "with offset" if self.offset else "symmetric" if self.symmetric else "asymmetric"
        return f"{self.bits}-bit {kind}, {where}"


def find_grid(sample: Floats, largest: float, bits: int, other: Floats | None = None) -> Grid | None:
    """The grid of a sample, the coarsest grouping that explains it with the same step as finer ones; or None.

    Args:
        sample: Some whole rows of the matrix, shape (n, columns).
        largest: Largest magnitude of the whole matrix, for a step shared by all of it.
        bits: Mantissa bits of the stored type; lowered when the values use fewer (a file stored wider than it is).
        other: The same rows of the other model, for the error in steps.
    """
    values = sample.astype(np.float64)
    bits = effective_bits(sample, bits)
    found: list[Grid] = []
    for group in GROUPS:
        cut = _cut(values, group)
        if cut is None:
            continue
        twin = None if other is None else _cut(other.astype(np.float64), group)
        grid = _fit(cut, twin, group, largest, bits)
        found += [grid] if grid is not None else []
    # Few levels in small groups also lie, within the rounding, on a finer lattice over large ones: the step decides.
    steps = [float(np.median(grid.steps)) for grid in found]
    return next((grid for grid, step in zip(found, steps, strict=True) if step >= SAME_STEP * max(steps)), None)


def effective_bits(values: Floats, bits: int) -> int:
    """Mantissa bits that the values really use, among those of float32, float16 and bfloat16, at most `bits`."""
    for fewer in sorted(set(MANTISSA_BITS.values())):
        if fewer < bits and np.array_equal(rounded(values, fewer), values):
            return fewer
    return bits


def expected_error(bits: int, group: int) -> float:
    """Relative RMS error of symmetric round-to-nearest on Gaussian weights.

    step / sqrt(12) with step = 2 E[max|w|] / (2^bits - 2) over `group` values of unit variance (Blom's approximation).
    """
    from scipy.special import ndtri

    top = float(ndtri(1 - 0.5 * (1 - (group - 0.375) / (group + 0.25))))
    return 2 * top / (2**bits - 2) / float(np.sqrt(12))


def _cut(values: Doubles, group: Group) -> Doubles | None:
    """Sample -> (groups, values of each)."""
    if group == "tensor":
        return values.reshape(1, -1)
    if group == "row":
        return values
    if group == "column":
        return values.T
    if values.shape[1] <= group or values.shape[1] % group:
        return None
    return values.reshape(-1, group)


def _fit(cut: Doubles, other: Doubles | None, group: Group, largest: float, bits: int) -> Grid | None:
    chosen = _spread(len(cut), N_GROUPS)
    cut, other = cut[chosen], None if other is None else other[chosen]
    tops = np.full(len(cut), largest) if group == "tensor" else np.abs(cut).max(axis=1)
    columns = _spread(cut.shape[1], 8 * N_VALUES if group == "tensor" else N_VALUES)
    thin = cut[:, columns]
    unit = 2.0 ** -(bits + 1)
    for offset in (False, True):
        if offset and not isinstance(group, int):
            continue
        low = cut.min(axis=1) if offset else None
        if not _possible(thin, tops, low, unit, cut):
            continue
        found = _levels(thin, tops, low, unit, cut)
        if found is not None:
            return _grid(found, cut, other, low, group, unit)
    return None


def _possible(thin: Doubles, tops: Doubles, low: Doubles | None, unit: float, cut: Doubles) -> bool:
    """A cheap look at a few values of a few groups: is there any K that holds each of them?"""
    few = slice(0, N_SCOUTS)
    span = tops[few] if low is None else (cut.max(axis=1) - low)[few]
    alive = span > 0
    if not alive.any():
        return True
    table = _evidence(thin[few, :N_SCOUT_VALUES][alive], span[alive], None if low is None else low[few][alive], unit)
    return bool(np.isfinite(table).any(axis=0).all())


@dataclass(frozen=True, eq=False)
class _Found:
    levels: NDArray[np.int64]  # K of each group, 0 where the group is not on the grid or has too few values
    steps: Doubles
    log_p: float


def _levels(thin: Doubles, tops: Doubles, low: Doubles | None, unit: float, cut: Doubles) -> _Found | None:
    """K of every group: one K for all if that holds, else the best of each. `low` where groups have a minimum."""
    span = tops if low is None else cut.max(axis=1) - low
    off_anchor = thin != (0 if low is None else low[:, None])
    usable = (span > 0) & (off_anchor.sum(axis=1) > MIN_INFORMATIVE)
    if not usable.any():
        return None
    table = _evidence(thin[usable], span[usable], None if low is None else low[usable], unit)
    search = float(np.log(table.shape[0]))
    each = table.min(axis=0) + search
    on = each <= MIN_GROUP_LOG_P
    levels = np.zeros(len(thin), np.int64)
    common = table.sum(axis=1)
    best = int(np.argmin(common))
    # Groups of 3, 4 and 5 levels all lie on 60: one K for all must be the better explanation.
    if common[best] + search <= min(MAX_LOG_P, float(each[on].sum())):
        levels[usable], log_p = best + 1, float(common[best]) + search
    elif on.mean() >= SHARE_ON_GRID and each[on].sum() <= MAX_LOG_P:
        levels[np.flatnonzero(usable)[on]] = table.argmin(axis=0)[on] + 1
        log_p = float(each[on].sum())
    else:
        return None
    return _Found(levels, np.divide(span, levels, out=np.zeros(len(span)), where=levels > 0), log_p)


def _evidence(thin: Doubles, span: Doubles, low: Doubles | None, unit: float) -> Doubles:
    """Logarithm of p for each K (axis 0) and group (axis 1); +inf where a value is off the grid."""
    max_level = MAX_LEVEL if low is None else MAX_LEVEL_OFFSET
    size = np.abs(thin if low is None else thin - low[:, None])  # (groups, values)
    noise = 2 * unit * size
    if low is not None:  # the minimum, the largest value and the value itself are all rounded
        ends = np.abs(low) + np.abs(low + span)
        noise = unit * (np.abs(thin) + np.abs(low)[:, None] + size / span[:, None] * ends[:, None])
    counts = size > 0
    table = np.full((max_level, len(thin)), np.inf)
    for level in range(1, max_level + 1):
        step = (span / level)[:, None]
        q = size / step
        window = _SLACK * noise / step
        inside = (np.abs(q - np.rint(q)) <= window).all(axis=1)
        if not inside.any():
            continue
        log_p = np.where(counts, np.log(np.clip(2 * window, 1e-12, 1.0)), 0.0).sum(axis=1)
        log_p -= np.log(np.minimum(1.0, 4 * _SLACK * unit * level))  # the largest value itself is no evidence
        table[level - 1] = np.where(inside, log_p, np.inf)
    return table


def _grid(found: _Found, cut: Doubles, other: Doubles | None, low: Doubles | None, group: Group, unit: float) -> Grid:
    offset = low is not None
    on = found.levels > 0
    steps, values = found.steps[on], cut[on]
    q = np.rint((values if low is None else values - low[on][:, None]) / steps[:, None])
    reach = np.array([q.min(axis=1), q.max(axis=1)])
    n_levels = int((np.maximum(reach[1], 0) - np.minimum(reach[0], 0)).max()) + 1
    top = int(np.median(found.levels[on]))
    symmetric = not offset and top + 1 == 1 << top.bit_length() and float(np.mean(found.levels[on] == top)) >= 0.9
    bits = top.bit_length() + 1 if symmetric else max(2, (n_levels - 1).bit_length())
    error = inside = None
    if other is not None:
        cast = 2 * unit * np.abs(values) / steps[:, None]  # what storing moved the level itself
        error, inside = _error((other[on] - values) / steps[:, None], cast)
    return Grid(bits, symmetric, group, offset, found.log_p, steps, error, inside)


def _error(in_steps: Doubles, cast: Doubles) -> tuple[float, float]:
    return float(np.sqrt(np.mean(in_steps**2))), float(np.mean(np.abs(in_steps) <= 0.5 * _SLACK + cast))


def _spread(n: int, wanted: int) -> NDArray[np.intp]:
    """Up to `wanted` indices, spread evenly over range(n)."""
    return np.unique(np.linspace(0, n - 1, min(n, wanted)).astype(np.intp))


def name_of(formats: Sequence[str]) -> str:
    """The most frequent format, with its share when there are others."""
    names, counts = np.unique(np.asarray(formats), return_counts=True)
    best = int(np.argmax(counts))
    others = "" if counts[best] == len(formats) else f" (in {counts[best]} of {len(formats)} matrices)"
    return f"{names[best]}{others}"
