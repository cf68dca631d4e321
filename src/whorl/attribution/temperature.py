"""Probabilities that mean what they say: one temperature, fitted on validation texts, and how well it did.

One-vs-rest margins are turned into probabilities by softmax(margin / T) with one T > 0 for all classes (temperature
scaling, arXiv 1706.04599). T moves no text to another class. Quality is always measured on other texts than T was fitted on.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

N_BINS = 15
BOUNDS = (0.01, 100.0)  # separable classes would send T to 0; beyond these ends probabilities change no digit shown

Doubles = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Bin:
    """Texts whose largest probability lies in (low, high]: how many, its mean, and the share that was right."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Quality:
    """How good probabilities are on n texts.

    Args:
        n: Texts.
        accuracy: Share whose most probable class is the right one.
        log_loss: Mean of -log p(right class), nats; the logarithm is of at least the smallest float.
        brier: Mean squared distance to the truth, summed over classes, in [0, 2].
        calibration_error: Expected calibration error of the largest probability over 15 equal bins, in [0, 1].
        bins: The reliability plot; empty bins left out.
    """

    n: int
    accuracy: float
    log_loss: float
    brier: float
    calibration_error: float
    bins: tuple[Bin, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "bins": [asdict(one) for one in self.bins]}


def log_probabilities(margins: Doubles, temperature: float) -> Doubles:
    """Natural logs of softmax(margins / T) by row, shape as given."""
    from scipy.special import log_softmax

    return np.asarray(log_softmax(margins / temperature, axis=1))


def log_loss(log_p: Doubles, labels: Labels) -> float:
    """Mean of -log p of the right class, nats."""
    return float(-log_p[np.arange(len(labels)), labels].mean())


def fit_temperature(margins: Doubles, labels: Labels) -> float:
    """The temperature with the least log loss, within `BOUNDS`.

    Args:
        margins: Shape (n, classes), of texts that the classifier was not fitted on.
        labels: Right class of each, shape (n,).
    """
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda log_t: log_loss(log_probabilities(margins, float(np.exp(log_t))), labels),
        bounds=tuple(np.log(BOUNDS)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))


def quality(log_p: Doubles, labels: Labels) -> Quality:
    """Accuracy, log loss, Brier score, calibration error and reliability of probabilities.

    Args:
        log_p: Natural logs, shape (n, classes), n at least 1.
        labels: Right class of each, shape (n,).
    """
    p = np.exp(log_p)
    right = p.argmax(axis=1) == labels
    truth = np.zeros_like(p)
    truth[np.arange(len(labels)), labels] = 1.0
    bins = _bins(p.max(axis=1), right)
    return Quality(
        n=len(labels),
        accuracy=float(right.mean()),
        log_loss=log_loss(np.maximum(log_p, np.log(np.finfo(np.float64).tiny)), labels),
        brier=float(((p - truth) ** 2).sum(axis=1).mean()),
        calibration_error=sum(b.n * abs(b.confidence - b.accuracy) for b in bins) / len(labels),
        bins=bins,
    )


def _bins(confidence: Doubles, right: NDArray[np.bool_]) -> tuple[Bin, ...]:
    at = np.clip(np.ceil(confidence * N_BINS).astype(int) - 1, 0, N_BINS - 1)
    found = []
    for i in np.unique(at):
        inside = at == i
        mean, share = float(confidence[inside].mean()), float(right[inside].mean())
        found.append(Bin(float(i) / N_BINS, (float(i) + 1) / N_BINS, int(inside.sum()), mean, share))
    return tuple(found)
