"""Round trip through few bits: round to nearest on a grid, then back to floats.

This is the plain round-to-nearest baseline of the quantisation literature (for example arXiv:2210.17323, section 4):
no calibration data, tables and norms are left alone. Beside integer grids per row or per group there are the formats that
models are served in:

    int8   8 bits, one scale a row (output channel)
    int4   4 bits, one scale for 64 neighbours of a row
    fp8    e4m3 (arXiv:2209.05433), one scale a row, which puts the row's largest magnitude on 448
    nf4    NormalFloat (QLoRA, arXiv:2305.14314): 16 levels times the largest magnitude of 64 values in storage order;
           the scales themselves are not quantised again
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whorl.attacks._job import Job
from whorl.attacks._model_files import Array, Tensors, edited, matrix_names
from whorl.errors import UsageError, safe_name

DEFAULT_BITS = 4
E4M3_TOP = 448.0  # the largest e4m3 number
_E4M3_MANTISSA, _E4M3_LEAST = 3, -6  # stored bits, exponent of the smallest normal number
NF4_BLOCK = 64
NF4_LEVELS = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
"""The published table (QLoRA, appendix E)."""


def run(
    job: Job,
    *,
    format: str | None = None,  # noqa: A002 - the word users know
    bits: int | None = None,
    group: int | None = None,
    asymmetric: bool = False,
    include: str | None = None,
) -> None:
    """Quantise a model; the rounded values are stored in the types that its tensors have.

    Args:
        job: One model.
        format: One of `FORMATS`, which fixes the grid; None takes it from the other options.
        bits: As for `quantise`, default `DEFAULT_BITS`.
        group: As for `quantise`.
        asymmetric: From minimum to maximum instead of around zero.
        include: As for `quantise`.

    Raises:
        UsageError: an unknown format, one beside options that it fixes, or as for `quantise`.
    """
    tensors, config = job.read()
    if format is None:
        bits = DEFAULT_BITS if bits is None else bits
        rounded = quantise(tensors, bits, group=group, symmetric=not asymmetric, include=include)
        job.write(job.record("quantised", {"bits": bits}), rounded, config)
        return
    if bits is not None or group is not None or asymmetric:
        raise UsageError(f"The format {safe_name(format)} fixes the grid; it takes no --bits, --group or --asymmetric.")
    job.write(job.record("quantised"), quantise_to(tensors, format, include=include), config)


def quantise_to(tensors: Tensors, name: str, *, include: str | None = None) -> dict[str, Array]:
    """Replace matrices by their round trip through a format.

    Args:
        tensors: Model tensors by name, matrices (out, in).
        name: One of `FORMATS`.
        include: As for `quantise`.

    Raises:
        UsageError: an unknown format, or no matrix matches.
    """
    if name not in FORMATS:
        raise UsageError(f"Unknown format '{safe_name(name)}'; expected one of {', '.join(FORMATS)}.")
    return edited(tensors, {n: FORMATS[name](tensors[n]) for n in matrix_names(tensors, include)})


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


def round_to_fp8(matrix: Array) -> NDArray[np.float32]:
    """The nearest e4m3 numbers, ties to even, at one scale a row; shape (out, in), float32."""
    values = matrix.astype(np.float32)
    scale = np.abs(values).max(axis=1, keepdims=True) / np.float32(E4M3_TOP)
    return e4m3((values / np.where(scale > 0, scale, 1)).astype(np.float32)) * scale


def e4m3(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The nearest e4m3 number of each value, ties to even; beyond 448 the largest one."""
    _, exponent = np.frexp(values)  # value = m 2^exponent, m in [0.5, 1)
    step = np.ldexp(np.float32(1), np.maximum(exponent - 1, _E4M3_LEAST) - _E4M3_MANTISSA)
    rounded: NDArray[np.float32] = np.clip(np.rint(values / step) * step, -E4M3_TOP, E4M3_TOP).astype(np.float32)
    return rounded


def round_to_nf4(matrix: Array) -> NDArray[np.float32]:
    """The nearest NormalFloat values; shape (out, in), float32. A last, shorter block has a scale of its own."""
    flat = matrix.astype(np.float32).ravel()
    blocks = np.pad(flat, (0, -flat.size % NF4_BLOCK)).reshape(-1, NF4_BLOCK)
    scale = np.abs(blocks).max(axis=1, keepdims=True)
    middles = (NF4_LEVELS[:-1] + NF4_LEVELS[1:]) / 2
    found = NF4_LEVELS[np.searchsorted(middles, blocks / np.where(scale > 0, scale, np.float32(1)))] * scale
    return found.ravel()[: flat.size].reshape(matrix.shape)


FORMATS: Mapping[str, Callable[[Array], NDArray[Any]]] = {
    "int8": lambda matrix: round_trip(matrix, 8),
    "int4": lambda matrix: round_trip(matrix, 4, group=64),
    "fp8": round_to_fp8,
    "nf4": round_to_nf4,
}
"""Format -> its round trip of one matrix."""
