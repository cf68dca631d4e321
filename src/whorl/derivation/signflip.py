"""Paired tests over prompts: does the suspect agree with the reference more than a control does (statistics.md 4)?

All models answer the same prompts, so the differences d_j = s_j(A, B) - s_j(A, C) are the data. Prompts of one template or
document form a cluster; the sign of a whole cluster is flipped. Under "B and C are alike to A" every flip is as likely as
the data, so with d_j - delta for "the difference is at most delta"

    T = sum over clusters of e_g * sum over j in g of (d_j - delta),    p = (1 + #{T_flipped >= T}) / (b + 1)

which is exact for delta = 0, except for alleles: their scores are divided by each model's own norm over all prompts. There,
and for delta > 0, the differences are not symmetric and it holds for many clusters only (ours;
`tests/test_derivation_null.py` has the rates). Up to 13 clusters all flips are made.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

B = 9_999
MAX_EXACT = 13  # 2^13 = 8,192 flips are no more than the default b
BLOCK = 4_000_000  # numbers in memory at a time
ROUNDING = 1e-12

Doubles = NDArray[np.float64]


def sign_flip_p(
    suspects: Doubles, controls: Doubles, groups: Sequence[str], *, delta: float = 0.0, b: int = B, seed: int = 0
) -> Doubles:
    """The p of "suspect s exceeds control c by at most delta", for every s and c, by the same flips.

    Args:
        suspects: Scores by prompt, shape (J, S), finite.
        controls: The same prompts, shape (J, C), finite.
        groups: Cluster of each prompt, J of them.
        delta: Smallest difference of interest, in units of the scores.
        b: Random flips; with at most 13 clusters every flip is made instead.
        seed: Of the flips.

    Returns:
        Shape (S, C), in (0, 1].

    Raises:
        ValueError: a score is not finite.
    """
    if not (np.isfinite(suspects).all() and np.isfinite(controls).all()):
        raise ValueError("scores must be finite")
    (_, cluster), n = np.unique(np.asarray(groups), return_inverse=True), len(set(groups))
    mine, theirs = _sums(suspects - delta, cluster, n), _sums(controls, cluster, n)
    seen = mine.sum(axis=0)[:, None] - theirs.sum(axis=0)  # (S, C)
    least = seen - ROUNDING * (np.abs(mine).sum() + np.abs(theirs).sum())  # ties count as >=
    exceeding = np.zeros(seen.shape)
    for signs in _flips(n, b, seed, max(n, seen.size)):
        flipped, against = signs @ mine, signs @ theirs
        exceeding += ((flipped[:, :, None] - against[:, None, :]) >= least).sum(axis=0)
    return exceeding / 2**n if n <= MAX_EXACT else (1 + exceeding) / (b + 1)


def is_exact(groups: Sequence[str]) -> bool:
    """Whether so few clusters are there that every flip is made."""
    return len(set(groups)) <= MAX_EXACT


def _sums(scores: Doubles, cluster: NDArray[np.intp], n: int) -> Doubles:
    found = np.zeros((n, scores.shape[1]))
    np.add.at(found, cluster, scores)
    return found


def _flips(n: int, b: int, seed: int, width: int) -> Iterator[Doubles]:
    """Blocks of rows of signs, shape (at most BLOCK / width, n); all 2^n with the unflipped one, or b random ones."""
    rng = np.random.default_rng(seed)
    total, rows = (2**n if n <= MAX_EXACT else b), max(1, BLOCK // width)
    for start in range(0, total, rows):
        size = min(rows, total - start)
        if n <= MAX_EXACT:
            bits = (np.arange(start, start + size)[:, None] >> np.arange(n)) & 1
        else:
            bits = rng.integers(0, 2, (size, n), dtype=np.int8)
        yield np.where(bits, -1.0, 1.0)


def mcnemar_p(only_suspect: int, only_control: int) -> float:
    """Exact McNemar p: P(Bin(b + c, 1/2) >= b), one-sided; 1 when no prompt tells the two apart.

    Args:
        only_suspect: b, prompts where only the suspect agrees with the reference.
        only_control: c, prompts where only the control does.
    """
    from scipy.special import bdtrc

    return float(bdtrc(only_suspect - 1, only_suspect + only_control, 0.5)) if only_suspect else 1.0
