"""Whether texts could be of a model at all: conformal p-values, and the verdict they lead to.

For class k and a text x the nonconformity is s = -log p_k(x), and with n_k calibration texts of k

    p_k(x) = (1 + number of calibration texts with score >= s) / (n_k + 1)

which is at least 1/(n_k + 1) and, for a text of k, at most alpha with probability alpha or less. For m texts of one source
the same question is a one-sided permutation test of their mean score among the n_k + m scores; m = 1 gives the line above.

Calibration texts are one per group of prompts: several answers to one prompt are not exchangeable with an answer to another.
Equal answers to different prompts all count, on both sides: a model's own texts would otherwise hold its easy stock answers
once where its calibration holds them often, and be rejected too often.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Verdict = Literal["match", "none of these", "undecided"]
MATCH: Verdict = "match"
NONE: Verdict = "none of these"
UNDECIDED: Verdict = "undecided"

DRAWS = 9_999
_BLOCK = 2_000_000  # random numbers at a time
_ROUNDING = 1e-9

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Rule:
    """When a source is named.

    Args:
        alpha: A class stays possible while its p-value is above this: at most this share of a model's own texts is lost.
        match: Least acceptance score of a match: 5 % of texts of left-out models lie above (1 %: strict). None where that was
            not measured; then nothing is matched.
        lineage: Least acceptance score for naming a lineage, from left-out lineages; None as above.
        size: Texts in the pools that gave the two scores.
    """

    alpha: float
    match: float | None
    lineage: float | None
    size: int = 1


def p_values(scores: Doubles, calibration: Sequence[Doubles]) -> Doubles:
    """Conformal p-value of each text for each class.

    Args:
        scores: Nonconformity, shape (n, classes).
        calibration: Sorted scores of each class's own calibration texts.

    Returns:
        Shape (n, classes), in (0, 1].
    """
    found = np.empty(scores.shape)
    for k, own in enumerate(calibration):
        at_least = len(own) - np.searchsorted(own, scores[:, k], side="left")
        found[:, k] = (1 + at_least) / (len(own) + 1)
    return found


def pooled_p_value(scores: Doubles, own: Doubles, rng: np.random.Generator, draws: int = DRAWS) -> float:
    """p-value of "these m texts are exchangeable with the calibration texts", against higher scores.

    Args:
        scores: Nonconformity of the m texts for one class, shape (m,), m at least 1.
        own: Scores of the class's calibration texts, shape (n,).
        rng: Of the permutations.
        draws: Permutations for m > 1.

    Returns:
        (1 + number of permutations with a sum at least as large) / (draws + 1); for m = 1 the exact value.
    """
    m = len(scores)
    if m == 1:
        return float(p_values(scores[None], [np.sort(own)])[0, 0])
    together = np.concatenate([scores, own])
    observed = scores.sum() - _ROUNDING * max(1.0, float(np.abs(together).sum()))
    at_least, block = 0, max(1, _BLOCK // len(together))
    for start in range(0, draws, block):
        keys = rng.random((min(block, draws - start), len(together)))
        chosen = np.argpartition(keys, m - 1, axis=1)[:, :m]
        at_least += int((together[chosen].sum(axis=1) >= observed).sum())
    return (1 + at_least) / (draws + 1)


def verdict(p: Doubles, acceptance: Doubles, rule: Rule) -> tuple[Verdict, tuple[int, ...]]:
    """The verdict on one text or pool, and the classes that remain possible, the likeliest first.

    No class possible is "none of these". One possible class is a match only when strangers are rarely accepted like this;
    everything else is undecided.

    Args:
        p: p-value of each class.
        acceptance: How much like each enrolled model the text is; higher is more.
        rule: The thresholds.
    """
    possible = tuple(int(k) for k in np.argsort(-p, kind="stable") if p[k] > rule.alpha)
    if not possible:
        return NONE, ()
    accepted = rule.match is not None and acceptance[possible[0]] > rule.match
    return (MATCH if len(possible) == 1 and accepted else UNDECIDED), possible
