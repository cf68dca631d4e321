"""What methods exchange: named arrays, and what was kept of one sublayer."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = Mapping[str, NDArray[np.float64]]
Sizes = Mapping[str, tuple[int | None, ...]]
"""Array name -> its shape; None for a length that follows from nothing else."""


@dataclass(frozen=True)
class Observation:
    """What one method kept of one sublayer.

    Args:
        layer: Layer index from 0.
        expert: Routed expert, None for attention and dense MLPs.
        arrays: Small arrays by name.
    """

    layer: int
    expert: int | None
    arrays: Values


def unlike(values: Values, needed: Sizes, optional: Sizes | None = None) -> str:
    """What makes arrays another thing than those described, "" when nothing does.

    Args:
        values: Arrays as read from a file.
        needed: Arrays that must be there.
        optional: Arrays that may be there.
    """
    allowed = {**(optional or {}), **needed}
    for name in (*needed, *values):
        if name not in allowed or name not in values:
            return f"{'an unknown' if name in values else 'no'} array '{name[:40]}'"
        found, sizes = values[name].shape, allowed[name]
        if len(found) != len(sizes) or any(n not in (None, m) for n, m in zip(sizes, found, strict=True)):
            return f"array '{name}' of shape {found}"
    return ""
