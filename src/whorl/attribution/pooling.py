"""Several texts of one source: how their evidence adds up.

    log score_k = log prior_k + gamma * sum_j (log p_k(x_j) - log trainprior_k),    0 < gamma <= 1

Texts of one source share decoding and often topic, so the plain product (gamma = 1) is overconfident; gamma is fitted on
pools of validation texts. A text that occurs twice counts once here, but not in the p-value: the calibration texts of a class
repeat its stock answers as often as it gives them. For one text, gamma = 1: its probability is calibrated as is.
"""

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from whorl.attribution.temperature import log_loss

SIZES = (1, 2, 4, 8, 16, 32, 64)
POOLS = 200  # of each size, over all classes; enough for a rate of about +-3.5 points at worst
MIN_GAMMA = 0.01

Doubles = NDArray[np.float64]
Indices = NDArray[np.int64]


def distinct(values: Sequence[Hashable]) -> Indices:
    """Positions of the first occurrence of every value."""
    first: dict[Hashable, int] = {}
    for at, value in enumerate(values):
        first.setdefault(value, at)
    return np.array(list(first.values()), np.int64)


def independent(groups: Sequence[Hashable | None]) -> Indices:
    """Positions that count for the p-value, as in the calibration: one of each prompt group, whatever the texts say.

    Args:
        groups: Prompt group of each text; None where unknown, which is a group of its own.
    """
    return distinct([(at, None) if group is None else (None, group) for at, group in enumerate(groups)])


def pool(log_p: Doubles, prior: Doubles, train_prior: Doubles, gamma: float) -> Doubles:
    """Log probabilities of one source from those of its texts.

    Args:
        log_p: Shape (m, classes), m distinct texts.
        prior: Probability of each class before any text, positive, sum 1.
        train_prior: Share of each class among the training texts, positive, sum 1.
        gamma: Weight of a text in a pool; not used for m = 1.

    Returns:
        Natural logs, shape (classes,).
    """
    return pools(log_p[None], prior, train_prior, gamma)[0]


def pools(log_p: Doubles, prior: Doubles, train_prior: Doubles, gamma: float) -> Doubles:
    """`pool` for many pools of one size: shape (pools, m, classes) to (pools, classes)."""
    from scipy.special import log_softmax

    weight = 1.0 if log_p.shape[1] == 1 else gamma
    scores = np.log(prior) + weight * (log_p - np.log(train_prior)).sum(axis=1)
    return np.asarray(log_softmax(scores, axis=1))


def draw_pools(labels: Indices, size: int, rng: np.random.Generator, n_pools: int = POOLS) -> tuple[Indices, Indices]:
    """Random pools of `size` different texts of one class; classes with fewer than 2 * size texts give none.

    Two disjoint pools must be possible: pools of nearly all texts are one pool many times.

    Args:
        labels: Class of each text, shape (n,); the texts of a class are distinct.
        size: Texts in a pool.
        rng: Of the draws.
        n_pools: In all, dealt out evenly over the classes.

    Returns:
        Positions, shape (pools, size), and the class of each pool.
    """
    enough = [k for k in np.unique(labels) if (labels == k).sum() >= (2 * size if size > 1 else 1)]
    each = -(-n_pools // max(1, len(enough)))
    members, classes = [np.empty((0, size), np.int64)], [np.empty(0, np.int64)]
    for k in enough:
        own = np.flatnonzero(labels == k)
        if size == 1:
            found = own[:, None]
        else:
            keys = rng.random((each, len(own)))
            found = own[np.argpartition(keys, size - 1, axis=1)[:, :size]]
        members.append(found)
        classes.append(np.full(len(found), k, np.int64))
    return np.concatenate(members), np.concatenate(classes)


def fit_gamma(log_p: Doubles, labels: Indices, rng: np.random.Generator) -> float:
    """The weight of a text in a pool with the least log loss, every size of pool counting alike.

    Args:
        log_p: Calibrated log probabilities of validation texts, shape (n, classes).
        labels: Right class of each.
        rng: Of the pools.

    Returns:
        In [0.01, 1]; 1 when there are too few texts for pools of two.
    """
    from scipy.optimize import minimize_scalar

    even = np.full(log_p.shape[1], 1.0 / log_p.shape[1])
    drawn = [draw_pools(labels, size, rng) for size in SIZES[1:]]
    found = [(log_p[members], classes) for members, classes in drawn if len(classes)]
    if not found:
        return 1.0

    def loss(gamma: float) -> float:
        return float(np.mean([log_loss(pools(each, even, even, gamma), classes) for each, classes in found]))

    best = minimize_scalar(loss, bounds=(MIN_GAMMA, 1.0), method="bounded", options={"xatol": 1e-5})
    return 1.0 if loss(1.0) <= best.fun else float(best.x)
