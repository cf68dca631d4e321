"""Squared maximum mean discrepancy, without bias (Gretton et al. 2012, lemma 6), for many labellings at once.

With z in {0, 1}^N the labels (1 = reference, n of them; m = N - n suspects) and K without its diagonal,

    MMD^2(z) = z'Kz / (n (n-1)) + (1-z)'K(1-z) / (m (m-1)) - 2 z'K(1-z) / (n m)

Every term is z'Kz, z'K1 or 1'K1, so one product K z per labelling gives all three.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from whorl.linalg.blocks import Doubles

_CONSTANT = 1e-12
_LARGE = 256  # draws from which the product is taken in float32: its rounding is far below the noise of so many pairs


def centred(kernel: Doubles) -> Doubles:
    """The kernel without its diagonal and its mean, neither of which changes MMD^2; all 0 if it does not vary."""
    n = len(kernel)
    off = ~np.eye(n, dtype=bool)
    mean = float(kernel[off].mean())
    out = np.where(off, kernel - mean, 0.0)
    return out if np.abs(out).max() > _CONSTANT * (1.0 + abs(mean)) else np.zeros_like(out)


def squared_mmd(kernel: Doubles, labels: NDArray[np.int8], n_reference: int) -> Doubles:
    """MMD^2 of each labelling.

    Args:
        kernel: Shape (N, N), symmetric, zero diagonal (see `centred`).
        labels: Shape (b, N), 1 for reference and 0 for suspect, `n_reference` ones in each row.
        n_reference: n >= 2, with N - n >= 2.

    Returns:
        Shape (b,), in units of the kernel; may be negative, since it has no bias.
    """
    n, m = n_reference, len(kernel) - n_reference
    kind: type[np.floating[Any]] = np.float64 if len(kernel) < _LARGE else np.float32
    z = labels.astype(kind)
    within = ((z @ kernel.astype(kind)) * z).sum(axis=1, dtype=np.float64)  # z'Kz
    from_reference = z @ kernel.sum(axis=1)  # z'K1
    across = from_reference - within
    within_suspect = kernel.sum() - within - 2.0 * across
    return within / (n * (n - 1)) + within_suspect / (m * (m - 1)) - 2.0 * across / (n * m)
