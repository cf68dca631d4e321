"""`TensorSource`: the narrow seam between files and everything that computes on weights.

Folders, Hub repositories, adapters on a base and GGUF files are tensor sources; so is `whorl.testing.MemorySource`.
A source lists its tensors without reading them and hands out one tensor, or one block of rows, at a time.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


class Digest(Protocol):
    """What `hashlib.sha256()` returns, as far as sources use it."""

    def update(self, data: Any, /) -> None: ...


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as the file describes it.

    Args:
        name: Name in the Hugging Face layout of its family.
        dtype: Stored type, safetensors spelling ("F32", "BF16", ...) or the GGUF type ("Q4_K").
        shape: Logical shape, outermost axis first.
        n_bytes: Stored size in bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    n_bytes: int

    @property
    def n_values(self) -> int:
        """Number of values (1 for a scalar)."""
        return int(np.prod(self.shape, dtype=object)) if self.shape else 1


@runtime_checkable
class TensorSource(Protocol):
    """Names, shapes, and one array at a time."""

    @property
    def label(self) -> str:
        """How messages call this source (path or repository id)."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors by name, in sorted name order. Costs no data read."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The parsed `config.json` (or its GGUF equivalent in Hugging Face terms)."""

    def rows(self, name: str, start: int = 0, stop: int | None = None, digest: Digest | None = None) -> Floats:
        """Values of rows [start, stop) along the first axis, a fresh writable array.

        Float64 tensors come as float64, everything else (bfloat16, float16, float8, quantised) as float32.
        A scalar comes as shape (). `digest`, when given, is updated with the stored bytes of these rows.

        Raises:
            InputRefused: the data cannot be read or decoded.
            KeyError: never; an unknown `name` is a bug of the caller and raises `LookupError`.
        """

    def close(self) -> None:
        """Close files. Further reads are an error."""
