"""Unbiased centred kernel alignment of two linear kernels over the same samples.

With kernels K and L over n samples, diagonals set to zero (Song et al. 2012, JMLR 13, eq. 5):

    HSIC(K, L) = [ tr(K L) + (1'K1)(1'L1) / ((n-1)(n-2)) - 2 / (n-2) 1'K L 1 ] / (n (n-3))
    uCKA       = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))

The biased form is large for any two positive semidefinite kernels; this one has mean zero for independent ones.
"""

import numpy as np

from whorl.errors import UsageError
from whorl.linalg.blocks import Doubles
from whorl.source import Floats

MIN_SAMPLES = 4
DEGENERATE = 1e-10  # of ||K||^2 / (n (n-3)): a smaller HSIC(K, K) is rounding left by the three terms (ours)
_ROWS_AT_ONCE = 4096


def zero_diagonal_gram(x: Floats) -> Doubles:
    """x^T x with a zero diagonal: products in the type of `x` (float16: float32), sums of blocks in float64.

    Args:
        x: Shape (features, n): one column for each sample.

    Returns:
        Shape (n, n).
    """
    wide = x if x.dtype.itemsize >= 4 else x.astype(np.float32)
    gram: Doubles = np.zeros((x.shape[1], x.shape[1]))
    for start in range(0, len(wide), _ROWS_AT_ONCE):
        block = wide[start : start + _ROWS_AT_ONCE]
        gram += block.T @ block
    np.fill_diagonal(gram, 0.0)
    return gram


def unbiased_hsic(k: Doubles, other: Doubles) -> float:
    """HSIC of two kernels with zero diagonals, shape (n, n) each; may be negative.

    Raises:
        UsageError: other shapes, or fewer than 4 samples.
    """
    n = len(k)
    if k.shape != other.shape or k.shape != (n, n) or n < MIN_SAMPLES:
        raise UsageError(f"two kernels over the same 4 or more samples are needed; found {k.shape} and {other.shape}")
    sums, sums_other = k.sum(axis=0), other.sum(axis=0)
    trace = float(np.vdot(k, other))
    means = float(sums.sum() * sums_other.sum()) / ((n - 1) * (n - 2))
    return (trace + means - 2.0 / (n - 2) * float(sums @ sums_other)) / (n * (n - 3))


def unbiased_cka(x: Floats, y: Floats) -> float | None:
    """Unbiased CKA of the kernels x^T x and y^T y, at most about 1.

    None where HSIC of a kernel with itself is not positive: no features, or samples that are all alike.

    Args:
        x: Shape (features, n).
        y: Shape (other features, n).
    """
    k, other = zero_diagonal_gram(x), zero_diagonal_gram(y)
    own = _own_hsic(k), _own_hsic(other)
    if own[0] is None or own[1] is None:
        return None
    return unbiased_hsic(k, other) / float(np.sqrt(own[0]) * np.sqrt(own[1]))


def _own_hsic(k: Doubles) -> float | None:
    n, own = len(k), unbiased_hsic(k, k)
    return own if own > DEGENERATE * float(np.vdot(k, k)) / (n * (n - 3)) else None  # None for NaN too
