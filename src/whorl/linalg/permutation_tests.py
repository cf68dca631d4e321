"""Exact and guaranteed p-values for independent uniform permutations, one for each layer.

Two statistics of permutations pi_1 .. pi_L of n_1 .. n_L things, uniform and independent under the null:

    fixed points    sum over l of #{i : pi_l(i) = i}            exact distribution
    Spearman        sum over l of Spearman(pi_l, identity)      Chernoff bound

Where a permutation is right in some places and random in all others, the fixed points are by far the stronger: k of n
right places are seen from a handful (p about 1/k!), by Spearman only from several times sqrt(n).
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from whorl.errors import NotComparable
from whorl.linalg.blocks import Doubles

SMALLEST_P = 1e-290  # smaller p-values are given as this one, which is larger, so they stay valid
_LONGEST = 170  # 1/171! leaves the range of float64


def p_from_log(log_p: float) -> float:
    """exp(log_p), held between `SMALLEST_P` and 1.

    Raises:
        NotComparable: `log_p` is NaN.
    """
    if np.isnan(log_p):
        raise NotComparable("degenerate: the logarithm of a p-value is not a number")
    return float(np.exp(np.clip(log_p, np.log(SMALLEST_P), 0.0)))


def spearman(left: Sequence[float] | NDArray[np.generic], right: Sequence[float] | NDArray[np.generic]) -> float:
    """Spearman's rank correlation of two sequences without ties, in [-1, 1].

    Args:
        left: Length n >= 2, distinct values.
        right: Length n, distinct values.
    """
    ranks = [np.argsort(np.argsort(np.asarray(x))) for x in (left, right)]
    n = len(ranks[0])
    squares = float(np.square(ranks[0] - ranks[1], dtype=np.float64).sum())
    return 1.0 - 6.0 * squares / (n * (n * n - 1.0))


def fixed_points_p(n_fixed: int, sizes: Sequence[int]) -> float:
    """P(at least `n_fixed` fixed points in all), exact under the null.

    One permutation of n things has k fixed points with probability (1/k!) sum_{j <= n-k} (-1)^j / j! (de Montmort 1713);
    the numbers of independent permutations are added by convolution of positive terms, which keeps small tails accurate.

    Args:
        n_fixed: Fixed points found, summed over the permutations.
        sizes: How many things each permutes, each >= 1.

    Returns:
        p in [SMALLEST_P, 1].
    """
    if n_fixed <= 0:
        return 1.0
    total = np.ones(1)
    for size in sizes:
        total = np.convolve(total, _fixed_points(size))
        total = total[: int(np.flatnonzero(total > SMALLEST_P**1.05)[-1]) + 1]
    return float(np.clip(total[n_fixed:].sum(), SMALLEST_P, 1.0))


def _fixed_points(size: int) -> Doubles:
    """P(k fixed points) for k = 0 .. min(size, 170)."""
    longest = min(size, _LONGEST)
    inverse: Doubles = 1.0 / np.cumprod(np.concatenate([[1.0], np.arange(1.0, longest + 1)]))
    none_fixed = np.cumsum(np.where(np.arange(longest + 1) % 2, -inverse, inverse))  # P(no fixed point) of 0 .. longest
    left = np.minimum(size - np.arange(longest + 1), longest)
    return np.asarray(inverse * none_fixed[left])


def spearman_log_p(rhos: Sequence[float], sizes: Sequence[int]) -> float:
    """Ln of a guaranteed upper bound on P(sum of Spearman correlations >= the observed one) (ours).

    With centred ranks c_1 < .. < c_n, rho = (12 / (n (n^2 - 1))) sum_i c_i c_pi(i). Two steps bound its moments:

        1. The sum splits into c_i > 0 and c_i < 0; by Cauchy and Schwarz E exp(X + Y) <= (E exp 2X  E exp 2Y)^(1/2).
        2. The values of a random permutation are negatively associated (Joag-Dev and Proschan 1983), and in either half
           every factor exp(2 t c_i c_pi(i)) is monotone in the same sense, so E prod <= prod E.

    Hence ln E exp(t sum_i c_i c_pi(i)) <= (1/2) sum_i ln( sinh(n t c_i) / (n sinh(t c_i)) ), the sum over layers follows
    from independence, and Chernoff's bound takes the best t. It is exp(-rho^2 (n-1) / 4) for small rho, where the
    normal tail has 2 in place of 4: valid at every n, at the price of an exponent half as large.

    Args:
        rhos: Spearman(pi_l, identity) of each layer.
        sizes: n_l >= 2 of each layer.
    """
    from scipy.optimize import minimize_scalar

    total = float(np.sum(rhos))
    if total <= 0.0:
        return 0.0
    kinds = Counter(sizes)  # layers of one model mostly have one width
    start = np.log(total / sum(2.0 * count / (n - 1.0) for n, count in kinds.items()))

    def exponent(log_t: float) -> float:
        t = float(np.exp(log_t))
        return sum(count * _log_moment(12.0 * t / (n * (n * n - 1.0)), n) for n, count in kinds.items()) - t * total

    found = minimize_scalar(exponent, bounds=(start - 2.0, start + 10.0), method="bounded")
    return min(0.0, float(found.fun))  # every t gives a valid bound, so the search need not be exact


def _log_moment(t: float, size: int) -> float:
    """The bound on ln E exp(t sum_i c_i c_pi(i)) above."""
    c: Doubles = t * (np.arange(size, dtype=np.float64) - (size - 1) / 2)
    return 0.5 * float(np.subtract(_log_sinhc(size * c), _log_sinhc(c)).sum())


def _log_sinhc(x: Doubles) -> Doubles:
    """ln(sinh(x) / x), without overflow and without cancellation near 0."""
    x = np.abs(x)
    safe = np.maximum(x, 1e-3)
    return np.where(x < 1e-3, x * x / 6.0, safe + np.log(-np.expm1(-2.0 * safe)) - np.log(2.0 * safe))


def spearman_nominal_log_p(rhos: Sequence[float], sizes: Sequence[int]) -> float:
    """Ln p by normal tails of sd 1 / sqrt(n - 1) for each layer and Fisher's method over layers; an approximation."""
    from scipy.stats import chi2, norm

    logs = norm.logsf(np.asarray(rhos) * np.sqrt(np.asarray(sizes) - 1.0))
    return float(chi2.logsf(-2.0 * logs.sum(), 2 * len(logs)))
