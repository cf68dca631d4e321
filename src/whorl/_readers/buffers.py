"""Memory that is used again (ours): the first touch of fresh pages costs more than reading a file from the page cache."""

import sys
import threading
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

MIN_BYTES = 1 << 20  # smaller arrays come from the allocator's own lists
MAX_KEPT = 32  # blocks; the oldest free ones are let go first
_ONLY_OURS = 3  # references to a free block as `sys.getrefcount` counts: the list, the loop variable, the argument


class Buffers:
    """Arrays over blocks that are handed out again as soon as no array looks at them any more.

    numpy arrays keep the owner of their memory alive, so a block whose only reference is the list's is free.
    """

    def __init__(self) -> None:
        self._blocks: list[NDArray[np.uint8]] = []
        self._lock = threading.Lock()

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An array with undefined values, as `numpy.empty`."""
        kind = np.dtype(dtype)
        n_bytes = int(np.prod(shape, dtype=object)) * kind.itemsize
        if n_bytes < MIN_BYTES:
            return np.empty(shape, kind)
        with self._lock:
            block = self._free(n_bytes)
            return block[:n_bytes].view(kind).reshape(shape)

    def _free(self, n_bytes: int) -> NDArray[np.uint8]:
        for block in self._blocks:
            if sys.getrefcount(block) == _ONLY_OURS and n_bytes <= block.size <= 2 * n_bytes:
                return block
        if len(self._blocks) >= MAX_KEPT:
            self._blocks = [block for block in self._blocks if sys.getrefcount(block) > _ONLY_OURS]
        self._blocks.append(np.empty(n_bytes, np.uint8))
        return self._blocks[-1]
