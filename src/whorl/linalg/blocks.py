"""Matrices as a stream of row blocks, so that a large weight or a difference of two weights need not be in memory.

Everything in this folder that takes a matrix takes either a 2-D array or any object with `shape` and `blocks()`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from whorl.errors import NotComparable, UsageError
from whorl.source import Floats, TensorSource

ROWS_PER_BLOCK = 512  # 8 MB at width 4096: the second product of a step finds the block still in the cache

Doubles = NDArray[np.float64]


@runtime_checkable
class RowBlocks(Protocol):
    """A matrix that hands out its rows block by block, as often as it is asked."""

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""

    def blocks(self) -> Iterator[Floats]:
        """Consecutive row blocks, float32 or float64, each (rows of the block, columns); together the whole matrix."""


@dataclass(frozen=True, eq=False)
class ArrayRows:
    """Row blocks of an array in memory; the blocks are views.

    Args:
        array: Shape (m, n), float16 (widened to float32 block by block), float32 or float64.
        rows: Rows per block.
    """

    array: Floats
    rows: int = ROWS_PER_BLOCK

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return int(self.array.shape[0]), int(self.array.shape[1])

    def blocks(self) -> Iterator[Floats]:
        """The rows in order."""
        for start in range(0, self.array.shape[0], self.rows):
            yield _widened(self.array[start : start + self.rows])


@dataclass(frozen=True, eq=False)
class SourceRows:
    """Row blocks of one 2-D tensor of a `TensorSource`, decoded anew in every pass.

    Args:
        source: The model.
        name: The tensor's name in it.
        rows: Rows per block.
    """

    source: TensorSource
    name: str
    rows: int = ROWS_PER_BLOCK

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        m, n = self.source.tensors[self.name].shape
        return m, n

    def blocks(self) -> Iterator[Floats]:
        """The rows in order."""
        m = self.shape[0]
        for start in range(0, m, self.rows):
            yield self.source.rows(self.name, start, min(start + self.rows, m))


@dataclass(frozen=True, eq=False)
class Difference:
    """`new - old`, one row block at a time; the whole difference is never stored.

    Args:
        new: Minuend, shape (m, n).
        old: Subtrahend, shape (m, n), cut into blocks of the same height.

    Raises:
        NotComparable: the shapes differ.
    """

    new: RowBlocks
    old: RowBlocks

    def __post_init__(self) -> None:
        if self.new.shape != self.old.shape:
            raise NotComparable(f"a difference needs equal shapes; found {self.new.shape} and {self.old.shape}")

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.new.shape

    def blocks(self) -> Iterator[Floats]:
        """The rows in order."""
        for new, old in zip(self.new.blocks(), self.old.blocks(), strict=True):
            if new.shape != old.shape:
                raise UsageError(f"both sides need equal blocks; found {new.shape} and {old.shape}")
            yield np.subtract(new, old)


@dataclass(frozen=True, eq=False)
class Scaled:
    """The matrix times 2**exponent: exact, and it keeps squares of extreme weights inside the float range."""

    rows: RowBlocks
    exponent: int

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.rows.shape

    def blocks(self) -> Iterator[Floats]:
        """The rows in order."""
        for block in self.rows.blocks():
            yield np.ldexp(block, self.exponent)


@dataclass(frozen=True)
class Checked:
    """A matrix that was read once and found finite, not all zero, and of a size whose squares do not overflow.

    Args:
        rows: The matrix, scaled by 2**exponent where its entries are extreme.
        exponent: 0 for ordinary weights; divide singular values by 2**exponent.
        dtype: float32, or float64 if any block is.
    """

    rows: RowBlocks
    exponent: int
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.rows.shape

    def unscaled(self, values: Doubles) -> Doubles:
        """Singular values of the matrix as it was given."""
        return np.ldexp(values, -self.exponent)


def as_rows(w: Floats | RowBlocks) -> RowBlocks:
    """A 2-D floating-point array or a row stream as `RowBlocks`.

    Raises:
        UsageError: neither, or not two-dimensional, or not floating point.
    """
    if isinstance(w, np.ndarray):
        if w.ndim != 2 or w.dtype not in (np.float16, np.float32, np.float64):
            raise UsageError(
                f"expected a 2-D array of float16, float32 or float64; found shape {w.shape}, type {w.dtype}"
            )
        return ArrayRows(w)
    if not isinstance(w, RowBlocks):
        raise UsageError(f"expected a 2-D array or an object with `shape` and `blocks()`; found {type(w).__name__}")
    return w


def checked(w: Floats | RowBlocks) -> Checked:
    """Read the matrix once; refuse what has no spectrum.

    Args:
        w: Shape (m, n), an array or a row stream.

    Raises:
        NotComparable: a value is NaN or infinite, every value is zero, or there is no value.
        UsageError: not a 2-D matrix of floats.
    """
    rows = as_rows(w)
    largest, dtype = 0.0, np.dtype(np.float32)
    for block in rows.blocks():
        if not block.size:
            continue
        largest = max(largest, _largest(block))
        dtype = np.promote_types(dtype, block.dtype)
    if largest == 0.0:
        raise NotComparable(f"degenerate: every value of the {rows.shape[0]} x {rows.shape[1]} matrix is zero")
    exponent = _exponent(largest, dtype)
    return Checked(Scaled(rows, exponent) if exponent else rows, exponent, dtype)


def grouped(rows: RowBlocks, height: int, dtype: np.dtype[Any]) -> Iterator[Floats]:
    """The same rows in blocks of at least `height` rows (the last one may be lower), as `dtype`."""
    kept: list[Floats] = []
    for block in rows.blocks():
        kept.append(block.astype(dtype, copy=False))
        if sum(len(part) for part in kept) >= height:
            yield kept[0] if len(kept) == 1 else np.concatenate(kept)
            kept = []
    if kept:
        yield np.concatenate(kept)


def gathered(rows: RowBlocks, dtype: np.dtype[Any]) -> Floats:
    """The whole matrix in memory, a fresh array of `dtype`."""
    out: Floats = np.empty(rows.shape, dtype)
    start = 0
    for block in rows.blocks():
        out[start : start + len(block)] = block
        start += len(block)
    return out


def _widened(block: Floats) -> Floats:
    return block if block.dtype.itemsize >= 4 else block.astype(np.float32)


def _largest(block: Floats) -> float:
    """Largest magnitude; min and max carry a NaN or an infinity through, so one sweep checks everything."""
    top = max(float(block.max()), -float(block.min()))
    if np.isfinite(top):
        return top
    bad = block.size - int(np.isfinite(block).sum())
    raise NotComparable(f"not finite: {bad} of {block.size} values of a row block are NaN or infinite")


def _exponent(largest: float, dtype: np.dtype[Any]) -> int:
    """0 while fourth powers of the entries stay in range, else the power of two that brings the largest near 1."""
    half_range = 1e8 if dtype == np.float32 else 1e70
    return 0 if 1 / half_range <= largest <= half_range else -int(np.frexp(largest)[1])
