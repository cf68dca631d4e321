"""L2 logistic regression on many more n-grams than texts, exact and fast.

Notable:
- The objective is scikit-learn's: C * sum of log losses + |w|^2 / 2, free intercepts (no penalty), natural logs.
- The best weights are combinations of the training rows (the representer theorem), so the search runs over an (n, K) matrix
  of coefficients with the Gram matrix of the rows as inner product, whatever the number of n-grams. Each step is the same
  L-BFGS step as in the space of weights (the same iterates up to rounding) and costs one product with the Gram matrix.
- Rows are centred, which changes the intercepts only, but takes the one huge eigenvalue of non-negative rows away.
- Along a search direction the scores are a straight line: line searches need no product at all.
- One Gram matrix serves every C, the validation fits inside a training part and the scores of its test rows.
- Where the Gram matrix would be larger than the rows (few features) or than `MAX_GRAM_ROWS` allows, products go through the
  rows themselves; nothing else changes.
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

CS = (0.01, 0.1, 1.0, 10.0)
TOLERANCE = 1e-4
"""Largest norm of the gradient, relative to its norm at weights of zero."""
MAX_STEPS = 1_000
MEMORY = 10
MAX_GRAM_ROWS = 8_192
"""Half a gigabyte."""
DENSE_SHARE = 0.06
"""Columns that more than this share of the rows have are multiplied as a dense matrix: there BLAS is faster."""
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
        return log_probabilities(np.asarray(x @ self.weights.T) + self.bias, self.kind)


def log_probabilities(scores: Floats, kind: Kind) -> NDArray[np.float32]:
    """Scores to natural logs of probabilities, shape (n, K); both kinds sum to 1."""
    wide = scores.astype(np.float64)
    logs = wide if kind == "multinomial" else -np.logaddexp(0.0, -wide)
    return (logs - _log_sum(logs)).astype(np.float32)


def _log_sum(logs: Floats) -> Floats:
    top = logs.max(axis=1, keepdims=True)
    return top + np.log(np.exp(logs - top).sum(axis=1, keepdims=True))


class Rows:
    """Feature rows and their inner products, shared by all fits on them.

    Args:
        x: csr float32, shape (n, F).
        gram: Whether to hold the Gram matrix, n * n float64; default: where that is the cheaper product.

    Products are in float64: coefficients are large where the rows are nearly dependent, and float32 then stops short of the
    solution.
    """

    def __init__(self, x: Sparse, gram: bool | None = None) -> None:
        self.x = x.astype(np.float64)
        n = x.shape[0]
        if gram is None:
            gram = n <= MAX_GRAM_ROWS and 8 * x.nnz > n * n  # a sparse element costs about as much as 4 dense ones
        self.gram = _gram(x).astype(np.float64) if gram else None

    def part(self, rows: NDArray[Any]) -> "Rows":
        """Some of the rows."""
        chosen = object.__new__(Rows)
        chosen.x = self.x[rows]
        chosen.gram = None if self.gram is None else self.gram[np.ix_(rows, rows)]
        return chosen

    def product(self, coefficients: Floats) -> Floats:
        """Gram matrix times coefficients, (n, n) @ (n, K)."""
        return self.gram @ coefficients if self.gram is not None else self.x @ (self.x.T @ coefficients)


def _gram(x: Sparse) -> NDArray[np.float32]:
    """Inner products of all rows, (n, n): frequent columns by BLAS, the long tail of rare ones by a sparse product."""
    by_column = x.tocsc()
    frequent = np.diff(by_column.indptr) > DENSE_SHARE * x.shape[0]
    rare = by_column[:, ~frequent].tocsr()
    gram = np.asarray((rare @ rare.T).todense(), dtype=np.float32)
    columns = np.flatnonzero(frequent)
    for start in range(0, len(columns), 2_048):  # bounds the dense copy
        block = by_column[:, columns[start : start + 2_048]].toarray()
        gram += block @ block.T
    return gram


@dataclass(frozen=True, eq=False)
class Solution:
    """Weights as a combination of training rows: X.T @ coefficients.

    Args:
        coefficients: Shape (n, K), float64; every column sums to zero, as centred rows demand.
        bias: Shape (K,), float64; for uncentred rows.
        scores: Shape (n, K): scores of the training rows.
        n_steps: Gram products that were needed.
    """

    coefficients: NDArray[np.float64]
    bias: NDArray[np.float64]
    scores: NDArray[np.float64]
    n_steps: int


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
        x: Training rows, csr float32, shape (n, F).
        labels: Class of each row, 0 to n_classes - 1.
        n_classes: K, at least 2.
        c: Weight of the losses against the penalty, above 0.
        kind: One softmax, or K separate two-class problems.
        tolerance: See `TOLERANCE`.

    Raises:
        NotComparable: a feature is NaN or infinite.
        NotEnoughEvidence: fewer than two classes have rows.
    """
    found = solve(Rows(x), labels, n_classes, c, kind, tolerance=tolerance)
    weights = np.asarray(x.T @ found.coefficients).T
    return Linear(np.ascontiguousarray(weights, dtype=np.float32), found.bias.astype(np.float32), kind)


def choose_c(
    rows: Rows,
    labels: NDArray[Any],
    groups: Sequence[str],
    n_classes: int,
    cs: Sequence[float] = CS,
    kind: Kind = "multinomial",
) -> float:
    """C with the least log loss on about a fifth of the groups, held out of a training part by their hash.

    Log loss, not accuracy, because it wavers less on few texts (ours). Where the hash leaves one side without rows of two
    classes, the smallest C is the careful answer.

    Args:
        rows: The training part.
        labels: Class of each row.
        groups: Group of each row.
        n_classes: K.
        cs: Candidates; each fit starts from the one before.
        kind: See `fit`.
    """
    if len(cs) == 1:
        return cs[0]
    held_out = {group: bucket(group, "choose-c") < VALIDATION_BUCKETS for group in set(groups)}
    held = np.array([held_out[group] for group in groups])
    inner, outer = np.flatnonzero(~held), np.flatnonzero(held)
    if len(np.unique(labels[inner])) < 2 or not len(outer):
        return min(cs)
    part, start, losses = rows.part(inner), None, {}
    for c in sorted(cs):
        start = solve(part, labels[inner], n_classes, c, kind, start=start)
        logs = log_probabilities(scores_of(rows, start, inner, outer), kind)
        losses[c] = -float(logs[np.arange(len(outer)), labels[outer]].mean())
    return min(losses, key=lambda c: (losses[c], c))


def scores_of(rows: Rows, solution: Solution, trained: NDArray[Any], scored: NDArray[Any]) -> Floats:
    """Scores of some rows under a solution trained on others, shape (scored, K)."""
    if rows.gram is not None:
        return rows.gram[np.ix_(scored, trained)] @ solution.coefficients + solution.bias
    return rows.x[scored] @ (rows.x[trained].T @ solution.coefficients) + solution.bias


class _Problem:
    """Losses and their derivatives; scores F are (n, K), Y is one-hot."""

    def __init__(self, labels: NDArray[Any], n_classes: int, c: float, kind: Kind) -> None:
        self.c, self.kind, self.labels = c, kind, labels
        self.one_hot = np.eye(n_classes)[labels]

    def residual(self, scores: Floats) -> tuple[Floats, Floats]:
        """C * (probabilities - one-hot), and the probabilities."""
        if self.kind == "multinomial":
            logs = scores - scores.max(axis=1, keepdims=True)
            p = np.exp(logs)
            p /= p.sum(axis=1, keepdims=True)
        else:
            p = 0.5 * (1 + np.tanh(0.5 * scores))
        return self.c * (p - self.one_hot), p

    def slope(self, scores: Floats, along: Floats) -> tuple[float, float]:
        """First and second derivative of the losses along a change of the scores."""
        residual, p = self.residual(scores)
        squares = p * along * along
        if self.kind == "multinomial":
            second = squares.sum() - ((p * along).sum(axis=1) ** 2).sum()
        else:
            second = (squares * (1 - p)).sum()
        return float((residual * along).sum()), self.c * float(second)


@dataclass(frozen=True, eq=False)
class _Point:
    """A vector of the search space with its image: coefficients a (n, K), K a (n, K), scaled intercepts b (K,)."""

    a: NDArray[np.float64]
    image: NDArray[np.float64]
    b: NDArray[np.float64]

    def dot(self, other: "_Point") -> float:
        return float(np.vdot(self.image, other.a) + self.b @ other.b)

    def plus(self, other: "_Point", times: float) -> "_Point":
        return _Point(self.a + times * other.a, self.image + times * other.image, self.b + times * other.b)

    def times(self, factor: float) -> "_Point":
        return _Point(factor * self.a, factor * self.image, factor * self.b)


def solve(
    rows: Rows,
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
        rows: Training rows.
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
    if not np.isfinite(rows.x.data).all():
        raise NotComparable("A feature is NaN or infinite.")
    if len(np.unique(labels)) < 2:
        raise NotEnoughEvidence("A classifier needs training texts of at least two classes.")
    problem, n = _Problem(labels, n_classes, c, kind), len(labels)
    curvature = 1 / n_classes if kind == "multinomial" else (n_classes - 1) / n_classes**2
    unit = 1 / np.sqrt(c * n * curvature)  # intercepts in this unit have about the curvature of the weights
    at, n_steps = _start(rows, labels, n_classes, unit, start), 0
    past: list[tuple[_Point, _Point]] = []
    gradient = _gradient(rows, problem, at, unit)
    zero = _gradient(rows, problem, at.times(0), unit)
    enough = tolerance * np.sqrt(zero.dot(zero))
    while np.sqrt(max(gradient.dot(gradient), 0)) > enough and n_steps < MAX_STEPS:
        direction = _direction(gradient, past)
        step = _line_search(problem, at, direction, unit)
        at = at.plus(direction, step)
        last, gradient, n_steps = gradient, _gradient(rows, problem, at, unit), n_steps + 1
        moved, change = direction.times(step), gradient.plus(last, -1)
        if moved.dot(change) <= 0:  # impossible for a convex function: the products' rounding has taken over
            break
        past = [*past[-MEMORY + 1 :], (moved, change)]
    bias = at.b * unit
    means = _uncentred(rows, at.a)
    return Solution(at.a, bias - means, at.image + bias, n_steps)


def _start(rows: Rows, labels: NDArray[Any], n_classes: int, unit: float, start: Solution | None) -> _Point:
    if start is None:
        shape = (len(labels), n_classes)
        return _Point(np.zeros(shape), np.zeros(shape), np.zeros(n_classes))
    bias = start.bias + _uncentred(rows, start.coefficients)
    return _Point(start.coefficients, start.scores - bias, bias / unit)


def _uncentred(rows: Rows, a: Floats) -> Floats:
    """Mean of the uncentred scores, (K,): what the intercepts of centred rows hold in excess."""
    return rows.product(a).mean(axis=0)


def _gradient(rows: Rows, problem: _Problem, at: _Point, unit: float) -> _Point:
    residual, _ = problem.residual(at.image + at.b * unit)
    centred = residual - residual.mean(axis=0)
    image = rows.product(centred)
    image -= image.mean(axis=0)
    return _Point(at.a + centred, at.image + image, unit * residual.sum(axis=0))


def _direction(gradient: _Point, past: Sequence[tuple[_Point, _Point]]) -> _Point:
    """Two-loop recursion of L-BFGS (Nocedal and Wright, algorithm 7.4)."""
    q, kept = gradient, []
    for s, y in reversed(past):
        factor = s.dot(q) / s.dot(y)
        q = q.plus(y, -factor)
        kept.append(factor)
    if past:
        s, y = past[-1]
        q = q.times(s.dot(y) / y.dot(y))
    for (s, y), factor in zip(past, reversed(kept), strict=True):
        q = q.plus(s, factor - y.dot(q) / s.dot(y))
    return q.times(-1)


def _line_search(problem: _Problem, at: _Point, direction: _Point, unit: float) -> float:
    """Step to where the slope is a tenth of the first one, by Newton's method within a bracket (the slope rises)."""
    scores, along = at.image + at.b * unit, direction.image + direction.b * unit
    first, bend = float(np.vdot(at.image, direction.a)), float(np.vdot(direction.image, direction.a))

    def slopes(step: float) -> tuple[float, float]:
        slope, second = problem.slope(scores + step * along, along)
        return slope + first + step * bend, second + bend

    low, high, step = 0.0, np.inf, 1.0
    target = 0.1 * abs(slopes(0.0)[0])
    for _ in range(50):
        slope, second = slopes(step)
        if abs(slope) <= target:
            break
        low, high = (step, high) if slope < 0 else (low, step)
        newton = step - slope / second
        step = newton if low < newton < high else 2 * step if high == np.inf else (low + high) / 2
    return step
