"""Stored number types and how their bytes become float32 or float64.

bfloat16 is the upper half of a float32, so decoding is a 16-bit left shift; float16 and the five float8 types use
tables of all their values. Float8 formats: arXiv:2209.05433 (E4M3, E5M2: no infinities in E4M3), arXiv:2206.02915
(FNUZ: no negative zero, its pattern is the one NaN), OCP MX specification 1.0 (E8M0: powers of two, no sign).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whorl.source import Floats

Fill = Callable[[NDArray[Any], Floats], None]

DTYPE_BITS: Mapping[str, int] = MappingProxyType(
    {
        "F64": 64,
        "F32": 32,
        "F16": 16,
        "BF16": 16,
        "F8_E4M3": 8,
        "F8_E5M2": 8,
        "F8_E4M3FNUZ": 8,
        "F8_E5M2FNUZ": 8,
        "F8_E8M0": 8,
        "F6_E2M3": 6,
        "F6_E3M2": 6,
        "F4": 4,
        "C64": 64,
        "I64": 64,
        "I32": 32,
        "I16": 16,
        "I8": 8,
        "U64": 64,
        "U32": 32,
        "U16": 16,
        "U8": 8,
        "BOOL": 8,
    }
)
"""Bits of one value, for every type of safetensors 0.8."""

INTEGER_TYPES: Mapping[str, np.dtype[Any]] = MappingProxyType(
    {
        "I64": np.dtype("<i8"),
        "I32": np.dtype("<i4"),
        "I16": np.dtype("<i2"),
        "I8": np.dtype("i1"),
        "U64": np.dtype("<u8"),
        "U32": np.dtype("<u4"),
        "U16": np.dtype("<u2"),
        "U8": np.dtype("u1"),
    }
)


@dataclass(frozen=True)
class FloatCodec:
    """One stored float type.

    Args:
        stored: Little-endian NumPy type of the stored values; bit patterns where NumPy has no such float.
        decoded: float32 or float64.
        fill: Writes the values of a 1-D stored block into a 1-D block of `decoded` of the same length.
    """

    stored: np.dtype[Any]
    decoded: np.dtype[Any]
    fill: Fill


def copy_values(block: NDArray[Any], out: NDArray[Any]) -> None:
    """The `fill` of types that need no decoding."""
    out[...] = block


def _shift_bfloat16(block: NDArray[Any], out: Floats) -> None:
    bits = out.view(np.uint32)
    bits[...] = block
    np.left_shift(bits, 16, out=bits)


def _look_up(table: Callable[[], NDArray[np.float32]]) -> Fill:
    def fill(block: NDArray[Any], out: Floats) -> None:
        # "clip" never clips here (the table has an entry for every pattern); it avoids NumPy's output buffer.
        np.take(table(), block, out=out, mode="clip")

    return fill


@cache
def float16_table() -> NDArray[np.float32]:
    """All 65536 float16 values by bit pattern; three times as fast as NumPy's own conversion."""
    return np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)


def _float8_values(n_mantissa: int, bias: int) -> NDArray[np.float32]:
    """Values of all 256 patterns as if none were special: sign, 7 - n_mantissa exponent bits, mantissa."""
    patterns = np.arange(256)
    mantissa = (patterns & ((1 << n_mantissa) - 1)) / (1 << n_mantissa)
    exponent = (patterns & 0x7F) >> n_mantissa
    magnitude = np.where(exponent == 0, mantissa * 2.0 ** (1 - bias), (1 + mantissa) * 2.0 ** (exponent - bias))
    return np.where(patterns < 128, magnitude, -magnitude).astype(np.float32)


@cache
def float8_e4m3_table() -> NDArray[np.float32]:
    """E4M3, bias 7; S.1111.111 is NaN, there is no infinity."""
    values = _float8_values(3, 7)
    values[[0x7F, 0xFF]] = np.nan
    return values


@cache
def float8_e5m2_table() -> NDArray[np.float32]:
    """E5M2, bias 15; exponent 31 is infinity and NaN as in IEEE 754."""
    values = _float8_values(2, 15)
    values[[0x7C, 0xFC]] = np.inf, -np.inf
    values[[0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF]] = np.nan
    return values


@cache
def float8_e4m3fnuz_table() -> NDArray[np.float32]:
    """E4M3FNUZ, bias 8; only 0x80 is special: NaN."""
    values = _float8_values(3, 8)
    values[0x80] = np.nan
    return values


@cache
def float8_e5m2fnuz_table() -> NDArray[np.float32]:
    """E5M2FNUZ, bias 16; only 0x80 is special: NaN."""
    values = _float8_values(2, 16)
    values[0x80] = np.nan
    return values


@cache
def float8_e8m0_table() -> NDArray[np.float32]:
    """E8M0: 2^(pattern - 127), 0xFF is NaN; a scale type, always positive."""
    values = (2.0 ** (np.arange(256) - 127.0)).astype(np.float64)
    values[0xFF] = np.nan
    return values.astype(np.float32)


_F32 = np.dtype(np.float32)

FLOAT_CODECS: Mapping[str, FloatCodec] = MappingProxyType(
    {
        "F64": FloatCodec(np.dtype("<f8"), np.dtype(np.float64), copy_values),
        "F32": FloatCodec(np.dtype("<f4"), _F32, copy_values),
        "F16": FloatCodec(np.dtype("<u2"), _F32, _look_up(float16_table)),
        "BF16": FloatCodec(np.dtype("<u2"), _F32, _shift_bfloat16),
        "F8_E4M3": FloatCodec(np.dtype("u1"), _F32, _look_up(float8_e4m3_table)),
        "F8_E5M2": FloatCodec(np.dtype("u1"), _F32, _look_up(float8_e5m2_table)),
        "F8_E4M3FNUZ": FloatCodec(np.dtype("u1"), _F32, _look_up(float8_e4m3fnuz_table)),
        "F8_E5M2FNUZ": FloatCodec(np.dtype("u1"), _F32, _look_up(float8_e5m2fnuz_table)),
        "F8_E8M0": FloatCodec(np.dtype("u1"), _F32, _look_up(float8_e8m0_table)),
        "BOOL": FloatCodec(np.dtype("u1"), _F32, copy_values),
    }
)
"""Types that `rows` decodes; all other known types are read only as stored."""


def to_bfloat16(values: Floats) -> NDArray[np.uint16]:
    """Bit patterns of the nearest bfloat16 values (ties to even), NaN kept NaN; same shape as `values`."""
    single = np.ascontiguousarray(values, np.float32)
    bits = single.view(np.uint32)
    rounded = (bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(single), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def count_nonfinite(array: Floats) -> int:
    """How many values are NaN or infinite. No temporary larger than 64 kB when `array` is contiguous."""
    flat = array.reshape(-1)
    step = 1 << 16
    return sum(
        block.size - int(np.count_nonzero(np.isfinite(block)))
        for block in (flat[start : start + step] for start in range(0, flat.size, step))
    )
