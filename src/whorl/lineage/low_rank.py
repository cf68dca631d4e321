"""Is W_B - W_A of low rank, as a merged LoRA adapter is? Singular values against the rounding noise of the file (ours).

Rounding of the stored type adds independent errors, uniform within half a unit in the last place. For weights of one
size their standard deviation is

    s = 0.00166 rms(W) 2^-(mantissa bits - 7)     0.00166 rms(W) in bfloat16, 0.000207 in float16 (Gaussian weights)

and the largest singular value of the noise is near s (sqrt m + sqrt n) (Marchenko and Pastur 1967). Trained matrices
have rows of different size, which puts it up to 1.3 times higher (measured), so the noise is also drawn once, value by
value, and its largest singular value taken:

    edge = 1.2 max(s (sqrt m + sqrt n), sigma_1(drawn noise)),  and at least 1e-6 |D|_2, the accuracy of float32 products

The rank of one matrix is the number of singular values of D above the edge, and the matrix is explained when what
remains is no larger than the noise. A merge whose directions sink below the edge has a rank that cannot be counted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from whorl.linalg.blocks import Difference, Doubles, RowBlocks
from whorl.linalg.spectrum import SMALL_SIDE, full_spectrum, top_singular_values
from whorl.lineage.differences import TensorDifference
from whorl.lineage.exact import MANTISSA_BITS
from whorl.source import Floats

NOISE_BFLOAT16 = 0.00166
EDGE = 1.2
FLOOR = 1e-6
REST = 1.5  # how much larger than the expected noise the remainder may be: weights are heavier-tailed than a Gaussian
COMMON = 0.8  # share of touched matrices that must show one and the same rank; fewer is "not determined"
LEAST_EXPONENT = {MANTISSA_BITS["F16"]: -14, MANTISSA_BITS["F64"]: -1022}  # below it the unit stays; else that of F32
FIRST_VALUES, MAX_VALUES = 32, 288
SCOUTS = 6  # matrices looked at before the rest: a full fine-tune is refused after these


@dataclass(frozen=True, eq=False)
class MatrixRank:
    """The spectrum of one difference.

    Args:
        name: The matrix.
        rank: Singular values above the edge.
        side: min(m, n).
        edge: The noise edge that was used.
        values: The singular values above it, descending.
        explained: Whether the remainder is at the noise level, and the rank less than full.
    """

    name: str
    rank: int
    side: int
    edge: float
    values: Doubles
    explained: bool


@dataclass(frozen=True, eq=False)
class LowRank:
    """All touched matrices together.

    Args:
        holds: Every touched matrix is explained by a low rank.
        rank: The common rank, None when it cannot be determined.
        ranks: Rank of each matrix looked at.
        n_touched: Layer matrices that differ at all.
        why: One sentence with the numbers.
    """

    holds: bool
    rank: int | None
    ranks: tuple[MatrixRank, ...]
    n_touched: int
    why: str


def noise_of(t: TensorDifference, bits: int) -> float:
    """Standard deviation of the rounding errors of a matrix stored with `bits` of mantissa."""
    rms = float(np.sqrt(max(t.aa, t.bb) / t.n))
    return NOISE_BFLOAT16 * 2.0 ** -(bits - 7) * rms


@dataclass(frozen=True, eq=False)
class RoundingNoise:
    """One draw of the rounding errors of a matrix, as `RowBlocks`: uniform within half a unit in the last place.

    Args:
        weights: The matrix.
        bits: Mantissa bits of the stored type.
        seed: Same seed, same draw in every pass.
    """

    weights: RowBlocks
    bits: int
    seed: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.weights.shape

    def blocks(self) -> Iterator[Floats]:
        """The rows in order."""
        rng = np.random.default_rng(self.seed)
        for block in self.weights.blocks():
            exponent = np.frexp(np.abs(block).astype(np.float64))[1] - 1
            unit = np.ldexp(1.0, np.maximum(exponent, LEAST_EXPONENT.get(self.bits, -126)) - self.bits)
            yield (unit * (rng.random(block.shape) - 0.5)).astype(np.float64)


def find_low_rank(tensors: Sequence[TensorDifference]) -> LowRank:
    """The rank of the difference, from every layer matrix that is not equal.

    Args:
        tensors: All measured pairs; only layer matrices count here.
    """
    touched = [t for t in tensors if t.pair.is_layer_matrix and not t.equal]
    if not touched:
        return LowRank(False, None, (), 0, "no layer matrix differs")
    order = _scouts_first(touched)
    ranks: list[MatrixRank] = []
    for i, t in enumerate(order):
        ranks.append(matrix_rank(t))
        if i + 1 == min(SCOUTS, len(order)) and not any(r.explained for r in ranks):
            break
    return _judged(ranks, len(touched))


def matrix_rank(t: TensorDifference) -> MatrixRank:
    """Rank of one difference: against the finer stored type first, against the coarser where that explains nothing.

    A merge written in float32 over a bfloat16 base has only float32 noise; one written in bfloat16 has the coarse one.
    """
    fine, coarse = max(t.pair.a.bits, t.pair.b.bits), t.pair.bits
    found = _against(t, fine)
    return found if found.explained or fine == coarse else _against(t, coarse)


def _against(t: TensorDifference, bits: int) -> MatrixRank:
    m, n = t.pair.a.shape
    side, s = min(m, n), noise_of(t, bits)
    drawn = top_singular_values(RoundingNoise(t.pair.b, bits), 1, tol=1e-2).values[0]
    edge = EDGE * max(s * (np.sqrt(m) + np.sqrt(n)), float(drawn))
    values, everything = _values(t, edge)
    edge = max(edge, FLOOR * float(values[0]))
    above = values[values > edge]
    if everything:
        rest = float(np.sqrt((values[values <= edge] ** 2).sum()))
    else:
        rest = float(np.sqrt(max(t.dd - (above**2).sum(), 0.0)))
    allowed = REST * max(s * np.sqrt(m * n), FLOOR * float(values[0]) * np.sqrt(side))
    allowed += 1e-6 * np.sqrt(t.dd)  # of the subtraction above
    return MatrixRank(t.pair.name, len(above), side, float(edge), above, len(above) < side and rest <= allowed)


def _values(t: TensorDifference, edge: float) -> tuple[Doubles, bool]:
    """Singular values of the difference, and whether they are all; as many as it takes to sink below the edge."""
    rows = Difference(t.pair.b, t.pair.a)
    side = min(rows.shape)
    if side <= SMALL_SIDE:
        return full_spectrum(rows, precise=True).values, True
    k = FIRST_VALUES
    while True:
        values = top_singular_values(rows, min(k, side)).values
        if values[-1] <= max(edge, FLOOR * values[0]) or k >= min(MAX_VALUES, side // 4):
            return values, False
        k *= 3


def _scouts_first(touched: Sequence[TensorDifference]) -> list[TensorDifference]:
    """The largest matrices of the first, middle and last layers first: small sides are easily full."""
    by_side = sorted(touched, key=lambda t: -min(t.pair.a.shape))
    widest = [t for t in by_side if min(t.pair.a.shape) == min(by_side[0].pair.a.shape)]
    chosen = [widest[i] for i in np.unique(np.linspace(0, len(widest) - 1, SCOUTS).astype(int))]
    return chosen + [t for t in touched if not any(t is c for c in chosen)]


def _judged(ranks: Sequence[MatrixRank], n_touched: int) -> LowRank:
    counts = [r.rank for r in ranks if r.explained]
    if not counts:
        first = ranks[0]
        why = f"the difference has full rank: {first.rank} of {first.side} singular values of {first.name} lie above "
        return LowRank(False, None, tuple(ranks), n_touched, why + f"the noise edge {first.edge:.2g}")
    # A matrix whose smaller side does not exceed the rank (narrow key and value projections) is full for any adapter.
    top = max(counts)
    full = [r for r in ranks if not r.explained and r.side > top]
    if full:
        why = f"{len(full)} of {n_touched} changed matrices differ by more than a low rank (such as {full[0].name})"
        return LowRank(False, None, tuple(ranks), n_touched, why)
    narrow = len(ranks) - len(counts)
    also = f"; {narrow} are too narrow to tell" if narrow else ""
    share = float(np.mean([count == top for count in counts]))
    if top and share >= COMMON:
        why = f"{sum(c == top for c in counts)} of {n_touched} changed matrices differ by exactly rank {top}{also}"
        return LowRank(True, top, tuple(ranks), n_touched, why)
    return _not_determined(ranks, counts, n_touched, also)


def _not_determined(ranks: Sequence[MatrixRank], counts: Sequence[int], n_touched: int, also: str) -> LowRank:
    """Low ranks that differ between matrices: a merge partly below the noise, when each rank is small."""
    low = all(r.rank <= r.side // 4 for r in ranks if r.explained)
    if not low:
        why = f"between {min(counts)} and {max(counts)} singular values lie above the noise: no common low rank"
        return LowRank(False, None, tuple(ranks), n_touched, why)
    why = (
        f"rank not determined: between {min(counts)} and {max(counts)} directions of the {n_touched} changed matrices "
        f"stand out of the rounding noise{also}"
    )
    return LowRank(True, None, tuple(ranks), n_touched, why)
