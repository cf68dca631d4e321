"""How much like an enrolled model texts look, whichever it is: the score by which strangers are kept out (ours).

A probability cannot tell: it is shared out among the enrolled models however foreign the text. One-vs-rest margins can all be
low at once, but what is low differs by class, so each is measured by the class's own validation texts:

    acceptance(x_1..x_m) = max_k (mean_j margin_k(x_j) - mean_k) / sd_k

Higher is more alike. Its scale means nothing by itself; thresholds come from models that were left out (`strangers`).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_SPREAD = 1e-6  # margins of one value: any other value is far away

Doubles = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Typical:
    """Margins that a class's own texts have for it.

    Args:
        mean: Shape (classes,).
        spread: Standard deviation, shape (classes,), at least `MIN_SPREAD`.
    """

    mean: Doubles
    spread: Doubles

    def by_class(self, margins: Doubles) -> Doubles:
        """Scores of pools of texts, shape (pools, m, classes) to (pools, classes)."""
        return (margins.mean(axis=1) - self.mean) / self.spread

    def acceptance(self, margins: Doubles) -> Doubles:
        """The largest of `by_class`, shape (pools,)."""
        return self.by_class(margins).max(axis=1)


def typical(margins: Doubles, labels: Labels) -> Typical:
    """From validation texts of every class.

    Args:
        margins: Shape (n, classes).
        labels: Right class of each; every class has at least two texts.
    """
    own = [margins[labels == k, k] for k in range(margins.shape[1])]
    spread = np.array([found.std(ddof=1) for found in own])
    return Typical(np.array([found.mean() for found in own]), np.maximum(spread, MIN_SPREAD))
