"""Which models are merges of others: non-negative least squares on differences (weights.md section 7; ours).

With a base W_0 and differences tau_i = W_i - W_0, a linear merge (model soup, task arithmetic) is
tau_M = sum_i c_i tau_i. Only inner products <tau_i, tau_j> and <tau_i, tau_M> are needed, and these follow from squared
distances; coefficients c_i >= 0 minimise |tau_M - sum c_i tau_i|^2.

Every other model is tried as W_0: with the true base the coefficients are those of the recipe, and without a base in
the set one parent takes its place, whose own share is 1 - sum c_i. The mean of the parents as a stand-in for the base
is not used: an even merge lies exactly there and would have no coefficients. A merge is told from its parents by the
signs: it lies between them, while a parent written by the merge and the other parents needs negative coefficients.

A model counts as a merge when at least two parents each explain something nobody else does (without one of them the
unexplained part at least doubles), when at least 75 % of its squared distance to the nearest single model is explained,
and, where the base is in the set, when every coefficient's bootstrap interval lies above what unrelated siblings of
that base have on the same parent. The middle of a star of k children is (k - 1)/k explained by dropping none of them,
so it never passes. Merges that drop most differences (DARE, TIES at high sparsity) leave a larger residual and are not
recognised.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from whorl.lineage.siblings import MIN_LAYERS

Doubles = NDArray[np.float64]

MIN_SHARE = 0.05
MIN_EXPLAINED = 0.75
MAX_RATIO = 0.5
MAX_CANDIDATES = 10
SIBLING_COSINE = 0.5
TIE = 0.005


@dataclass(frozen=True)
class Merge:
    """One model as a sum of others.

    Args:
        child: Position of the merge.
        origin: Position of the model that stood in for W_0.
        parents: Positions of the parents, larger share first.
        coefficients: Of the parents, above 0; they need not sum to 1.
        intervals: 95 % layer bootstrap intervals of the coefficients; None with fewer than 8 layers.
        siblings: Largest coefficient that a sibling of the same base, as far from it as the merge, would have on each
            parent; None without a base.
        r_squared: Share of |tau_M|^2 explained, in [0, 1].
        explained: Share of the squared distance to the nearest single model explained, in [0, 1].
    """

    child: int
    origin: int
    parents: tuple[int, ...]
    coefficients: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...] | None
    siblings: tuple[float, ...] | None
    r_squared: float
    explained: float

    @property
    def has_base(self) -> bool:
        """Whether the origin is a base, that is no parent itself."""
        return self.origin not in self.parents


@dataclass(frozen=True)
class _Fit:
    origin: int
    members: tuple[int, ...]  # with the origin where its own share counts
    shares: tuple[float, ...]
    residual: float


def find_merges(squared: Doubles, members: Sequence[int], weights: Doubles) -> tuple[Merge, ...]:
    """All merges among several models in one frame.

    Args:
        squared: Shape (L, m, m): squared distances layer by layer, one scale for all pairs of a layer.
        members: m positions that the results are named by.
        weights: Shape (1 + draws, L), see `whorl.lineage.siblings.layer_weights`.
    """
    total = np.tensordot(weights[0], squared, axes=1)
    found = (_merge(total, squared, child, weights) for child in range(len(members)))
    return tuple(_named(m, members) for m in found if m is not None)


def _named(m: Merge, members: Sequence[int]) -> Merge:
    parents = tuple(members[p] for p in m.parents)
    return Merge(
        members[m.child], members[m.origin], parents, m.coefficients, m.intervals, m.siblings, m.r_squared, m.explained
    )


def _merge(total: Doubles, squared: Doubles, child: int, weights: Doubles) -> Merge | None:
    order = [int(i) for i in np.argsort(total[child], kind="stable") if i != child and total[child, i] > 0]
    others = order[:MAX_CANDIDATES]
    if len(others) < 2:
        return None
    nearest = float(total[child, others[0]])
    fits = [fit for o in others if (fit := _reduced(total, child, o, others)) is not None]
    fits = [fit for fit in fits if 1 - fit.residual / nearest >= MIN_EXPLAINED]
    if not fits:
        return None
    best = min(fit.residual for fit in fits) / nearest
    alike = [fit for fit in fits if fit.residual / nearest <= best + TIE]
    chosen = min(alike, key=lambda fit: (len(fit.members), fit.origin in fit.members, _bent(total, fit), fit.residual))
    return _checked(total, squared, child, chosen, weights, nearest)


def _bent(total: Doubles, fit: _Fit) -> float:
    """Largest |cosine| of two parents at the origin: shares that sum to 1 fit any origin, the base sees right angles."""
    parents = [i for i in fit.members if i != fit.origin]
    gram = _gram(total, fit.origin, parents, parents)
    size = np.sqrt(np.diag(gram))
    cosines = np.abs(gram / np.maximum(size[:, None] * size, 1e-300))
    np.fill_diagonal(cosines, 0.0)
    return float(cosines.max())


def _gram(total: Doubles, origin: int, one: Sequence[int], other: Sequence[int]) -> Doubles:
    """<W_i - W_o, W_j - W_o> from squared distances."""
    return (total[origin, one][:, None] + total[origin, other][None, :] - total[np.ix_(one, other)]) / 2


def _fit(total: Doubles, child: int, origin: int, candidates: Sequence[int]) -> tuple[Doubles, float]:
    """Coefficients >= 0 of the candidates, and the squared distance that stays unexplained."""
    from scipy.optimize import nnls

    gram = _gram(total, origin, candidates, candidates)
    target = _gram(total, origin, candidates, [child])[:, 0]
    size, vectors = np.linalg.eigh(gram)
    kept = size > max(float(size.max(initial=0.0)), 0.0) * 1e-10
    if not kept.any():
        return np.zeros(len(candidates)), float(total[origin, child])
    root = np.sqrt(size[kept])
    c, _ = nnls(root[:, None] * vectors[:, kept].T, (vectors[:, kept].T @ target) / root)
    return c, max(float(total[origin, child] - 2 * c @ target + c @ gram @ c), 0.0)


def _affine(total: Doubles, child: int, origin: int, candidates: Sequence[int]) -> _Fit:
    """Shares of the candidates and, where something is left for it, of the origin."""
    c, residual = _fit(total, child, origin, candidates)
    shares = {i: float(x) for i, x in zip(candidates, c, strict=True) if x > MIN_SHARE}
    own = 1.0 - float(c.sum())
    if own > MIN_SHARE:
        shares[origin] = own
    return _Fit(origin, tuple(shares), tuple(shares.values()), residual)


def _reduced(total: Doubles, child: int, origin: int, others: Sequence[int]) -> _Fit | None:
    """Drop parents that explain nothing of their own, the least useful first; None when fewer than two remain."""
    kept = [i for i in others if i != origin]
    while kept:
        fit = _affine(total, child, origin, kept)
        if len(fit.members) < 2:
            return None
        ratios = {i: fit.residual / max(_without(total, child, fit, i), 1e-300) for i in fit.members}
        worst = max(ratios, key=lambda i: (ratios[i], i))
        if ratios[worst] <= MAX_RATIO:
            return fit
        if worst == origin:
            return None  # without its origin this is another fit, which is tried with another origin
        kept = [i for i in fit.members if i not in {origin, worst}]
    return None


def _without(total: Doubles, child: int, fit: _Fit, left_out: int) -> float:
    """What stays unexplained without one of the parents."""
    rest = [i for i in fit.members if i != left_out]
    if left_out != fit.origin:
        found = [i for i in rest if i != fit.origin]
        return _fit(total, child, fit.origin, found)[1] if found else float(total[fit.origin, child])
    tries = [(o, [i for i in rest if i != o]) for o in rest]
    return min(_fit(total, child, o, found)[1] if found else float(total[o, child]) for o, found in tries)


def _checked(total: Doubles, squared: Doubles, child: int, fit: _Fit, weights: Doubles, nearest: float) -> Merge | None:
    order = sorted(range(len(fit.members)), key=lambda k: (-fit.shares[k], fit.members[k]))
    parents = tuple(fit.members[k] for k in order)
    shares = tuple(fit.shares[k] for k in order)
    if len(squared) < MIN_LAYERS or len(weights) < 2:
        intervals = None
    else:
        intervals = _intervals(squared, child, fit.origin, parents, weights)
    siblings = None if fit.origin in parents else _siblings(total, child, fit.origin, parents)
    low = shares if intervals is None else tuple(i[0] for i in intervals)
    if siblings is not None and any(x <= s for x, s in zip(low, siblings, strict=True)):
        return None
    r_squared = 1.0 - fit.residual / float(total[fit.origin, child])
    return Merge(child, fit.origin, parents, shares, intervals, siblings, r_squared, 1.0 - fit.residual / nearest)


def _intervals(
    squared: Doubles, child: int, origin: int, parents: Sequence[int], weights: Doubles
) -> tuple[tuple[float, float], ...]:
    candidates = [p for p in parents if p != origin]
    drawn = []
    for row in weights[1:]:
        c, _ = _fit(np.tensordot(row, squared, axes=1), child, origin, candidates)
        by_model = dict(zip(candidates, c, strict=True)) | {origin: 1.0 - float(c.sum())}
        drawn.append([by_model[p] for p in parents])
    low, high = np.quantile(np.array(drawn), (0.025, 0.975), axis=0)
    return tuple((float(x), float(y)) for x, y in zip(low, high, strict=True))


def _siblings(total: Doubles, child: int, origin: int, parents: Sequence[int]) -> tuple[float, ...]:
    """Largest coefficient on each parent that another child of the base would have, were it as far out as the merge.

    Descendants of the parent do not count: their angle with it at the base is below 60 degrees.
    """
    found = []
    for p in parents:
        others = [s for s in range(len(total)) if s not in {child, origin, p} and total[origin, s] > 0]
        inner = _gram(total, origin, others, [p])[:, 0]
        cosines = inner / np.sqrt(total[origin, others] * total[origin, p])
        size = np.sqrt(total[origin, child] / total[origin, p])
        found.append(float(size * max(cosines[cosines < SIBLING_COSINE], default=0.0)))
    return tuple(found)
