"""Round trip through N-bit integers: round to nearest on a grid per row or per group, then back to floats.

This is the plain round-to-nearest baseline of the quantisation literature (for example arXiv:2210.17323, section 4):
no calibration data, tables and norms are left alone.
"""

import numpy as np
from numpy.typing import NDArray

from whorl.attacks._job import Job
from whorl.attacks._model_files import Array, Tensors, edited, matrix_names
from whorl.errors import UsageError


def run(
    job: Job, *, bits: int = 4, group: int | None = None, asymmetric: bool = False, include: str | None = None
) -> None:
    """Quantise a model; the rounded values are stored in the types that its tensors have. Options as for `quantise`."""
    tensors, config = job.read()
    rounded = quantise(tensors, bits, group=group, symmetric=not asymmetric, include=include)
    job.write(job.record("quantised"), rounded, config)


def quantise(
    tensors: Tensors,
    bits: int,
    *,
    group: int | None = None,
    symmetric: bool = True,
    include: str | None = None,
) -> dict[str, Array]:
    """Replace matrices by their N-bit round trip.

    Args:
        tensors: Model tensors by name, matrices (out, in).
        bits: Width of the integers, 2 to 8.
        group: Neighbours along the input axis that share a scale; None is a whole row.
        symmetric: Grid of 2^bits - 1 values around zero; otherwise 2^bits values from minimum to maximum.
        include: Shell pattern of the matrices to quantise; default all but the tables.

    Raises:
        UsageError: bits or group out of range, or no matrix matches.
    """
    names = matrix_names(tensors, include)
    return edited(tensors, {n: round_trip(tensors[n], bits, group=group, symmetric=symmetric) for n in names})


def round_trip(matrix: Array, bits: int, *, group: int | None = None, symmetric: bool = True) -> NDArray[np.float32]:
    """The nearest values on the grid, shape (out, in), float32; arguments as for `quantise`.

    Largest error of a value: half a step, max|w| / (2^bits - 2) of its group when symmetric. A group of zeros stays.
    """
    if not 2 <= bits <= 8:
        raise UsageError(f"{bits} bits per weight; expected 2 to 8.")
    if group is not None and group < 1:
        raise UsageError(f"Groups of {group} weights; expected 1 or more, or None for whole rows.")
    n_rows, n_inputs = matrix.shape
    width = n_inputs if group is None else min(group, n_inputs)
    # A last, shorter group is filled up with its own last value, which changes no minimum or maximum.
    padded = np.pad(matrix.astype(np.float32), ((0, 0), (0, -n_inputs % width)), mode="edge")
    groups = padded.reshape(n_rows, -1, width)
    rounded = _symmetric(groups, bits) if symmetric else _asymmetric(groups, bits)
    return rounded.reshape(n_rows, -1)[:, :n_inputs]


def _symmetric(groups: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    top = np.float32(2 ** (bits - 1) - 1)
    scale = np.abs(groups).max(axis=2, keepdims=True) / top
    safe = np.where(scale > 0, scale, np.float32(1))
    return np.clip(np.rint(groups / safe), -top, top) * scale


def _asymmetric(groups: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    # Zero is always on the grid, as in the integer formats that store a zero point.
    low = np.minimum(groups.min(axis=2, keepdims=True), np.float32(0))
    high = np.maximum(groups.max(axis=2, keepdims=True), np.float32(0))
    top = np.float32(2**bits - 1)
    scale = (high - low) / top
    safe = np.where(scale > 0, scale, np.float32(1))
    zero = np.rint(-low / safe)
    return (np.clip(np.rint(groups / safe) + zero, 0, top) - zero) * scale
