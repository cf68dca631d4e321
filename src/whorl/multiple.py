"""Many p-values at once: family-wise and false-discovery control that hold under any dependence (statistics.md 6)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def benjamini_yekutieli(p_values: Sequence[float], n_tests: int) -> NDArray[np.float64]:
    """Adjusted p-values of Benjamini and Yekutieli (Annals of Statistics 29, 2001, theorem 1.3), any dependence.

    The p-values left out of `n_tests` count as 1: whoever selected the others by looking at the data made p no smaller,
    so the false-discovery rate over all of them is still kept.

    Args:
        p_values: In (0, 1].
        n_tests: How many hypotheses there are, those without a p-value among them.

    Returns:
        One for each p-value, in (0, 1]; rejecting those at most q keeps the false-discovery rate at q.

    Raises:
        ValueError: a p-value outside (0, 1], or more of them than tests.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.size > n_tests or not np.all((p > 0.0) & (p <= 1.0)):  # NaN fails too
        raise ValueError("p-values lie in (0, 1], and there are at most as many as tests")
    order = np.argsort(p, kind="stable")
    scaled = p[order] * n_tests * harmonic(n_tests) / np.arange(1, p.size + 1)
    adjusted = np.empty(p.size)
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return adjusted


def harmonic(n: int) -> float:
    """1 + 1/2 + ... + 1/n: what independence of the dependence costs."""
    return float(np.sum(1.0 / np.arange(1, n + 1)))


def first_threshold(n_tests: int, q: float) -> float:
    """The largest p that a single discovery among `n_tests` may have: q / (n (1 + 1/2 + ... + 1/n))."""
    return q / (n_tests * harmonic(n_tests))


def holm(p_values: Sequence[float], n_tests: int) -> list[float]:
    """Holm's step-down p-values (Scandinavian Journal of Statistics 6, 1979), any dependence.

    Args:
        p_values: In (0, 1].
        n_tests: How many hypotheses there are; those without a p-value count as 1.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    steps = p[order] * (n_tests - np.arange(p.size))
    found = np.empty(p.size)
    found[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(x) for x in found]
