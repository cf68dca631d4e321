"""What methods exchange: named arrays, and what was kept of one sublayer."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = Mapping[str, NDArray[np.float64]]


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
