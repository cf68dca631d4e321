"""Spectra from the smaller Gram matrix (all values at once) and, for small matrices, from a dense SVD."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from whorl.linalg.blocks import Doubles, RowBlocks, gathered, grouped
from whorl.source import Floats

INNER = 4096  # longest sum left to the products' own type; longer ones are added in float64
EXACT_SIDE = 1024  # largest Gram matrix whose eigenvalues are always found in float64
GROUP_VALUES = 1 << 26  # values held at once when the short side are the rows


def gram_squares(rows: RowBlocks, dtype: np.dtype[Any]) -> Doubles:
    """Squared singular values, descending, never negative: eigenvalues of W^T W or W W^T, whichever is smaller.

    Args:
        rows: W, shape (m, n).
        dtype: Type of the products and of the eigenvalue solver; sums over blocks are float64.
    """
    from scipy.linalg import eigvalsh

    gram = smaller_gram(rows, dtype)
    solver = gram.astype(solver_type(gram.shape[0], dtype), copy=False)
    # "ev" with the upper triangle is the fastest of LAPACK's symmetric drivers without vectors (4096: 3.0 to 3.8 s)
    squares = eigvalsh(solver.T, driver="ev", lower=False, check_finite=False, overwrite_a=True)
    return np.maximum(squares[::-1].astype(np.float64), 0.0)


def solver_type(side: int, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Type of the eigenvalue solver: float64 where it costs little."""
    return np.dtype(np.float64) if side <= EXACT_SIDE else dtype


def dense_values(rows: RowBlocks) -> Doubles:
    """All singular values, descending, by a float64 SVD of the matrix in memory."""
    from scipy.linalg import svdvals

    values: Doubles = svdvals(gathered(rows, np.dtype(np.float64)), check_finite=False, overwrite_a=True)
    return values


def smaller_gram(rows: RowBlocks, dtype: np.dtype[Any]) -> Doubles:
    """W^T W (n x n) if m >= n, else W W^T (m x m): products in `dtype`, sums of blocks in float64."""
    m, n = rows.shape
    if m >= n:
        gram: Doubles = np.zeros((n, n))
        for block in grouped(rows, INNER, dtype):
            for start in range(0, len(block), INNER):
                part = block[start : start + INNER]
                gram += part.T @ part
        return gram
    return _row_gram(rows, dtype)


def _row_gram(rows: RowBlocks, dtype: np.dtype[Any]) -> Doubles:
    """W W^T; one pass when a group of rows holds the matrix, else one pass per group."""
    m, n = rows.shape
    height = max(1, GROUP_VALUES // n)
    gram: Doubles = np.zeros((m, m))
    for low, left in _placed(grouped(rows, height, dtype)):
        for start, right in _placed(iter([left]) if len(left) == m else grouped(rows, height, dtype)):
            if start < low:
                continue
            part = _long_product(left, right)
            gram[low : low + len(left), start : start + len(right)] = part
            gram[start : start + len(right), low : low + len(left)] = part.T
    return gram


def _placed(blocks: Iterator[Floats]) -> Iterator[tuple[int, Floats]]:
    start = 0
    for block in blocks:
        yield start, block
        start += len(block)


def _long_product(left: Floats, right: Floats) -> Doubles:
    """The product left right^T with inner sums of at most `INNER` terms in the products' own type."""
    out: Doubles = np.zeros((len(left), len(right)))
    for start in range(0, left.shape[1], INNER):
        out += left[:, start : start + INNER] @ right[:, start : start + INNER].T
    return out
