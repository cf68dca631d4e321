"""How often keys would hit if the model knew nothing of them, and the p-values that follow (spec 4.4, statistics.md 5).

    decoy      keys and decoys are exchangeable draws of one committed pool: given all hits, the hits among the keys are
               hypergeometric. Exact, whatever the model says.
    design     the answer of a key is drawn from a prefix-free list of r by a hash that the model cannot know: each key hits
               with probability at most 1/r, so the tail of Binomial(k, 1/r) is a bound.
    measured   clean models were asked the same: each key's rate is its one-sided 95 % upper bound, and the hits are
               Poisson-binomial. As good as the clean models are like the suspect.

    ranks      the same exchangeability, for a number a key instead of a hit (`whorl.triggers.soft`). Exact.

A rate of 0 is never used: 0 hits of n only show a rate below about 3/n.
"""

import sys
from collections.abc import Sequence

import numpy as np

from whorl.errors import UsageError
from whorl.linalg.blocks import Doubles

LEVEL = 0.95
LEAST_P = sys.float_info.min  # a p-value that underflows is printed as this, never as 0


def decoy_p(key_hits: int, n_keys: int, decoy_hits: int, n_decoys: int) -> float:
    """Exact p: at least so many of all hits among the keys, keys and decoys being exchangeable.

    Args:
        key_hits: Keys whose own answer came.
        n_keys: Keys asked, at least 1.
        decoy_hits: Decoys whose own answer came.
        n_decoys: Decoys that answered; with none p is 1.

    Returns:
        In (0, 1].

    Raises:
        UsageError: no keys, or more hits than keys or decoys.
    """
    from scipy.stats import hypergeom

    _check(key_hits, n_keys, "keys")
    _check(decoy_hits, n_decoys, "decoys", least=0)
    return _p(hypergeom.sf(key_hits - 1, n_keys + n_decoys, key_hits + decoy_hits, n_keys))


def rank_p(keys: Sequence[float] | Doubles, decoys: Sequence[float] | Doubles) -> float:
    """Exact p of the rank sum: values of keys at least so large among those of decoys, keys and decoys being exchangeable.

    Ties are broken against the keys, which only makes p larger.

    Args:
        keys: One value a key.
        decoys: One value a decoy.

    Returns:
        In (0, 1].

    Raises:
        UsageError: no keys or no decoys, or a value that is not a number.
    """
    from scipy.stats import mannwhitneyu

    values = np.asarray([*keys, *decoys], dtype=np.float64)
    n = len(keys)
    if not 0 < n < values.size or np.isnan(values).any():
        raise UsageError("A rank test needs a number for at least one key and one decoy.")
    is_decoy = np.arange(values.size) >= n
    ranks = np.empty(values.size)
    ranks[np.lexsort((is_decoy, values))] = np.arange(values.size)  # of equal values the decoy is the larger one
    return _p(float(mannwhitneyu(ranks[:n], ranks[n:], alternative="greater", method="exact").pvalue))


def design_p(hits: int, n: int, r: int, samples: int = 1) -> float:
    """Bound on p by design: P(Binomial(n, min(1, samples / r)) >= hits).

    Args:
        hits: Keys that hit.
        n: Keys asked, at least 1.
        r: Length of the answer list, prefix-free.
        samples: Draws of each key when any hit counts.

    Raises:
        UsageError: a count out of range.
    """
    from scipy.stats import binom

    _check(hits, n, "keys")
    if r < 1 or samples < 1:
        raise UsageError(f"{r} answers and {samples} samples: expected at least 1 of each.")
    return _p(binom.sf(hits - 1, n, min(1.0, samples / r)))


def upper_rates(hits: Sequence[int], trials: Sequence[int], *, pooled: bool = True, level: float = LEVEL) -> Doubles:
    """One-sided upper bound on each key's hit rate among clean models, shape (keys,), in (0, 1).

    Args:
        hits: Hits of each key over clean answers.
        trials: Clean answers to each key; 0 gives the bound of the prior alone.
        pooled: Keys of one generator share one rate: all hits of all answers. Keys of different kinds are never pooled.
        level: Of the bound: this quantile of Beta(1/2 + hits, 1/2 + trials - hits).

    Raises:
        UsageError: no keys, lists of different lengths, or more hits than answers.
    """
    from scipy.stats import beta

    found, asked = np.asarray(hits, dtype=np.float64), np.asarray(trials, dtype=np.float64)
    if found.shape != asked.shape or not found.size or np.any(found < 0) or np.any(found > asked):
        raise UsageError("Upper rates need as many trials as hits, at least one key, and no more hits than trials.")
    if pooled:
        found, asked = np.full_like(found, found.sum()), np.full_like(asked, asked.sum())
    return np.asarray(beta.ppf(level, 0.5 + found, 0.5 + asked - found), dtype=np.float64)


def poisson_binomial_tail(rates: Sequence[float] | Doubles, hits: int) -> float:
    """P(S >= hits) of a sum of independent hits with these rates, by the exact recursion f <- f (1 - p) + shift(f) p.

    Raises:
        UsageError: no rates, one outside [0, 1], or more hits than keys.
    """
    p = np.asarray(rates, dtype=np.float64)
    _check(hits, p.size, "keys")
    if not np.all((p >= 0.0) & (p <= 1.0)):  # NaN fails too
        raise UsageError("Rates of keys lie in [0, 1].")
    f = np.zeros(p.size + 1)
    f[0] = 1.0
    for rate in p:
        f[1:] = f[1:] * (1.0 - rate) + f[:-1] * rate
        f[0] *= 1.0 - rate
    return _p(f[hits:].sum())


def hits_needed(rate: float, n: int, alpha: float) -> int | None:
    """Fewest hits of n keys with P(Binomial(n, rate) >= hits) <= alpha; None when even n are not enough."""
    from scipy.stats import binom

    tails = binom.sf(np.arange(-1, n), n, rate)  # (n + 1,): P(S >= h) for h = 0..n
    enough = np.flatnonzero(tails <= alpha)
    return int(enough[0]) if enough.size else None


def interval(hits: int, n: int) -> tuple[float, float]:
    """Exact two-sided 95 % interval of a share (Clopper and Pearson 1934), in [0, 1].

    Raises:
        UsageError: nothing was asked, or more hits than that.
    """
    from scipy.stats import binomtest

    _check(hits, n, "questions")
    low, high = binomtest(hits, n).proportion_ci(LEVEL, method="exact")
    return float(low), float(high)


def _check(hits: int, n: int, what: str, least: int = 1) -> None:
    if n < least or not 0 <= hits <= n:
        raise UsageError(f"{hits} hits of {n} {what}: expected at least {least} and no more hits than {what}.")


def _p(value: float) -> float:
    return float(min(1.0, max(value, LEAST_P)))
