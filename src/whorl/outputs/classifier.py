"""L2 logistic regression on many more n-grams than texts, exact and fast.

Notable:
- The objective is scikit-learn's: C * sum of log losses + |w|^2 / 2, free intercepts (no penalty), natural logs.
- The best weights are combinations of the training rows (the representer theorem), so the search runs over an (n, K) matrix
  of coefficients with the Gram matrix X X^T as inner product: the steps of L-BFGS are the same as over (F, K) weights, but
  its memory and vector arithmetic do not grow with the number of n-grams. The Gram matrix is never formed: for n-grams a
  product with X^T and one with X are cheaper than one with an (n, n) matrix.
- Rows are centred, which changes the intercepts only, but takes the one huge eigenvalue of non-negative rows away.
- Along a search direction the scores are a straight line: line searches need no product at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from whorl.errors import NotComparable, NotEnoughEvidence
from whorl.outputs.features import Sparse
from whorl.transcripts.splits import bucket

Kind = Literal["multinomial", "one-vs-rest"]
Floats = NDArray[np.floating[Any]]

CS = (0.01, 0.1, 1.0, 10.0, 100.0)
"""outputs.md 2.2, and 100: rows of TF-IDF have norm 1, so the best C for long texts and clear signals is beyond 10."""
TOLERANCE = 1e-4
"""Largest norm of the gradient, relative to its norm at weights of zero."""
MAX_STEPS = 1_000
MEMORY = 10
VALIDATION_BUCKETS = 200


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear classifier.

    Args:
        weights: Shape (K, F), float32.
        bias: Shape (K,), float32.
        kind: How scores become probabilities: a softmax, or sigmoids divided by their sum.
    """

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    kind: Kind = "multinomial"

    def log_probabilities(self, x: Sparse) -> NDArray[np.float32]:
        """Natural logs of the class probabilities, shape (n, K)."""
        scores = np.stack([x @ row for row in self.weights], axis=1) + self.bias.astype(np.float64)
        logs = scores if self.kind == "multinomial" else -np.logaddexp(0.0, -scores)
        top = logs.max(axis=1, keepdims=True)
        return (logs - top - np.log(np.exp(logs - top).sum(axis=1, keepdims=True))).astype(np.float32)


def fit(
    x: Sparse,
    labels: NDArray[Any],
    n_classes: int,
    c: float,
    kind: Kind = "multinomial",
    *,
    tolerance: float = TOLERANCE,
) -> Linear:
    """L2 logistic regression.

    Args:
        x: Training rows, csr, shape (n, F).
        labels: Class of each row, 0 to n_classes - 1.
        n_classes: K, at least 2.
        c: Weight of the losses against the penalty, above 0.
        kind: One softmax, or K separate two-class problems.
        tolerance: See `TOLERANCE`.

    Raises:
        NotComparable: a feature is NaN or infinite.
        NotEnoughEvidence: fewer than two classes have rows.
    """
    rows = x.astype(np.float64)
    return solve(rows, labels, n_classes, c, kind, tolerance=tolerance).linear(rows)


def choose_c(
    x: Sparse,
    labels: NDArray[Any],
    groups: Sequence[str],
    n_classes: int,
    cs: Sequence[float] = CS,
    kind: Kind = "multinomial",
) -> float:
    """C with the least log loss, at its best temperature, on about a fifth of the groups, held out by their hash.

    Log loss, because accuracy wavers more on few texts; at its best temperature, because a large C on few texts makes a
    classifier too sure before it makes it worse. C rises until the loss has risen twice, because the fits that overfit most
    also take longest (all ours). Where the hash leaves one side without texts, or without two classes to train on, the
    smallest C is the careful answer.

    Args:
        x: The training part, csr, shape (n, F).
        labels: Class of each row.
        groups: Group of each row.
        n_classes: K.
        cs: Candidates.
        kind: See `fit`.
    """
    held_out = {group: bucket(group, "choose-c") < VALIDATION_BUCKETS for group in set(groups)}
    held = np.array([held_out[group] for group in groups], dtype=bool)
    best, least = min(cs), np.inf
    if len(cs) == 1 or not held.any() or len(np.unique(labels[~held])) < 2:
        return best
    inner, outer, found, risen = x[~held].astype(np.float64), x[held], None, 0
    for c in sorted(cs):
        found = solve(inner, labels[~held], n_classes, c, kind, tolerance=10 * TOLERANCE, start=found)
        loss = _tempered_loss(found.linear(inner).log_probabilities(outer), labels[held])
        best, least, risen = (c, loss, 0) if loss < least else (best, least, risen + 1)
        if risen == 2:
            break
    return best


def _tempered_loss(logs: NDArray[np.float32], labels: NDArray[Any]) -> float:
    """Mean log loss when the logs are multiplied by the best factor between 0.001 and 10,000."""
    from scipy.optimize import minimize_scalar

    def loss(log_factor: float) -> float:
        scaled = np.exp(log_factor) * logs.astype(np.float64)
        top = scaled.max(axis=1)
        sums = top + np.log(np.exp(scaled - top[:, None]).sum(axis=1))
        return float((sums - scaled[np.arange(len(labels)), labels]).mean())

    return float(minimize_scalar(loss, bounds=np.log([1e-3, 1e4]), method="bounded", options={"xatol": 0.01}).fun)


@dataclass(frozen=True, eq=False)
class Solution:
    """Weights as a combination of training rows: X.T @ coefficients.

    Args:
        coefficients: Shape (n, K), float64; every column sums to zero, as centred rows demand.
        bias: Shape (K,), float64; for uncentred rows.
        scores: Shape (n, K): scores of the training rows.
        kind: See `Linear`.
        n_steps: Steps that were needed.
    """

    coefficients: Floats
    bias: Floats
    scores: Floats
    kind: Kind
    n_steps: int

    def linear(self, rows: Sparse) -> Linear:
        """The classifier, from the training rows."""
        weights = np.stack([rows.T @ column for column in self.coefficients.T.copy()])
        return Linear(weights.astype(np.float32), self.bias.astype(np.float32), self.kind)


class _Losses:
    """C * sum of log losses, its derivatives; scores are (n, K)."""

    def __init__(self, labels: NDArray[Any], n_classes: int, c: float, kind: Kind) -> None:
        self.c, self.kind, self.one_hot = c, kind, np.eye(n_classes)[labels]

    def probabilities(self, scores: Floats) -> Floats:
        if self.kind == "one-vs-rest":
            return 0.5 * (1 + np.tanh(0.5 * scores))
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        return p / p.sum(axis=1, keepdims=True)

    def gradient(self, scores: Floats) -> Floats:
        """By the scores, shape (n, K)."""
        return self.c * (self.probabilities(scores) - self.one_hot)

    def along(self, scores: Floats, change: Floats) -> tuple[float, float]:
        """First and second derivative along a change of the scores."""
        p = self.probabilities(scores)
        weighted = p * change
        second = np.vdot(weighted, change)
        second -= (weighted.sum(axis=1) ** 2).sum() if self.kind == "multinomial" else np.vdot(weighted, weighted)
        return self.c * float(np.vdot(p - self.one_hot, change)), self.c * float(second)


@dataclass(frozen=True, eq=False)
class _Point:
    """A vector of the search space with its image: coefficients a (n, K), Gram matrix * a (n, K), scaled intercepts (K,)."""

    a: Floats
    image: Floats
    b: Floats

    def dot(self, other: "_Point") -> float:
        return float(np.vdot(self.image, other.a) + self.b @ other.b)

    def plus(self, other: "_Point", times: float) -> "_Point":
        return _Point(self.a + times * other.a, self.image + times * other.image, self.b + times * other.b)

    def times(self, factor: float) -> "_Point":
        return _Point(factor * self.a, factor * self.image, factor * self.b)


def solve(
    rows: Sparse,
    labels: NDArray[Any],
    n_classes: int,
    c: float,
    kind: Kind = "multinomial",
    *,
    tolerance: float = TOLERANCE,
    start: Solution | None = None,
) -> Solution:
    """`fit` in the span of the rows.

    Args:
        rows: Training rows, csr float64, shape (n, F). In float32 the products would end short of the solution where rows
            are nearly dependent and coefficients therefore large.
        labels: Class of each row, 0 to n_classes - 1.
        n_classes: K.
        c: See `fit`.
        kind: See `fit`.
        tolerance: See `TOLERANCE`.
        start: A solution for the same rows and another C.

    Raises:
        NotComparable: a feature is NaN or infinite.
        NotEnoughEvidence: fewer than two classes have rows.
    """
    if not np.isfinite(rows.data).all():
        raise NotComparable("A feature is NaN or infinite.")
    if len(np.unique(labels)) < 2:
        raise NotEnoughEvidence("A classifier needs training texts of at least two classes.")
    losses, shape = _Losses(labels, n_classes, c, kind), (len(labels), n_classes)
    curvature = 1 / n_classes if kind == "multinomial" else (n_classes - 1) / n_classes**2
    unit = 1 / np.sqrt(c * len(labels) * curvature)  # in this unit intercepts are about as curved as weights
    nowhere = _Point(np.zeros(shape), np.zeros(shape), np.zeros(n_classes))
    gradient = _gradient(rows, losses, nowhere, unit)
    enough, at, n_steps = tolerance * _norm(gradient), nowhere, 0
    if start is not None:
        bias = start.bias + _excess(rows, start.coefficients, kind)
        at = _Point(start.coefficients, start.scores - bias, bias / unit)
        gradient = _gradient(rows, losses, at, unit)
    past: list[tuple[_Point, _Point]] = []
    while _norm(gradient) > enough and n_steps < MAX_STEPS:
        direction = _direction(gradient, past)
        moved = direction.times(_step(losses, at, direction, unit))
        at, last, n_steps = at.plus(moved, 1), gradient, n_steps + 1
        gradient = _gradient(rows, losses, at, unit)
        change = gradient.plus(last, -1)
        if moved.dot(change) <= 0:  # impossible for a convex function: rounding has taken over
            break
        past = [*past[-MEMORY + 1 :], (moved, change)]
    bias = at.b * unit
    return Solution(at.a, bias - _excess(rows, at.a, kind), at.image + bias, kind, n_steps)


def _norm(point: _Point) -> float:
    return max(point.dot(point), 0.0) ** 0.5


def _product(rows: Sparse, a: Floats, kind: Kind) -> Floats:
    """Gram matrix of the rows times coefficients, (n, K); column by column, which scipy does several times faster."""
    free = a.shape[1] - (kind == "multinomial")  # those of a softmax sum to zero in every row
    images = [rows @ (rows.T @ column) for column in a.T[:free].copy()]
    return np.stack(images if kind == "one-vs-rest" else [*images, -np.sum(images, axis=0)], axis=1)


def _excess(rows: Sparse, a: Floats, kind: Kind) -> Floats:
    """Mean uncentred score, (K,): what the intercepts of centred rows hold in excess of those of the rows themselves."""
    return _product(rows, a, kind).mean(axis=0)


def _gradient(rows: Sparse, losses: _Losses, at: _Point, unit: float) -> _Point:
    residual = losses.gradient(at.image + at.b * unit)
    centred = residual - residual.mean(axis=0)
    image = _product(rows, centred, losses.kind)
    return _Point(at.a + centred, at.image + image - image.mean(axis=0), unit * residual.sum(axis=0))


def _direction(gradient: _Point, past: Sequence[tuple[_Point, _Point]]) -> _Point:
    """Two-loop recursion of L-BFGS (Nocedal and Wright, Numerical Optimization, algorithm 7.4)."""
    q, factors = gradient, []
    for s, y in reversed(past):
        factors.append(s.dot(q) / s.dot(y))
        q = q.plus(y, -factors[-1])
    if past:
        s, y = past[-1]
        q = q.times(s.dot(y) / y.dot(y))
    for (s, y), factor in zip(past, reversed(factors), strict=True):
        q = q.plus(s, factor - y.dot(q) / s.dot(y))
    return q.times(-1)


def _step(losses: _Losses, at: _Point, direction: _Point, unit: float) -> float:
    """Step to where the slope is at most half of the first one, by Newton's method within a bracket: the slope only rises."""
    scores, change = at.image + at.b * unit, direction.image + direction.b * unit
    first, bend = float(np.vdot(at.image, direction.a)), float(np.vdot(direction.image, direction.a))

    def slopes(step: float) -> tuple[float, float]:
        slope, second = losses.along(scores + step * change, change)
        return slope + first + step * bend, second + bend

    low, high, step = 0.0, np.inf, 1.0
    target = 0.5 * abs(slopes(0.0)[0])
    for _ in range(50):
        slope, second = slopes(step)
        if abs(slope) <= target:
            break
        low, high = (step, high) if slope < 0 else (low, step)
        newton = step - slope / second
        step = newton if low < newton < high else 2 * step if high == np.inf else (low + high) / 2
    return step
