"""Permutation p-values, labels exchanged only within a prompt (statistics.md 2).

All statistics of a test see the same relabellings, so their largest standardised value has a p of its own (max-T). The
observed labelling is row 0 and counts: p = (1 + #{T_perm >= T_obs}) / (b + 1), never 0, and a tie counts against us.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from whorl.errors import NotComparable
from whorl.identity.classifier import Classifier
from whorl.identity.draws import PromptDraws
from whorl.identity.mmd import centred, squared_mmd
from whorl.linalg.blocks import Doubles

B = 9_999
MAX_T = "max-t"
_TIE = 1e-6  # of the largest value: rounding is not evidence
_BLOCK_BYTES = 32 << 20


@runtime_checkable
class KernelStatistic(Protocol):
    """A statistic that is an MMD: one kernel matrix a prompt."""

    @property
    def name(self) -> str:
        """How results call it."""
        ...

    def kernel(self, prompt: PromptDraws) -> Doubles:
        """Kernel of all draws of a prompt, shape (draws, draws), blind to who is the suspect."""
        ...


Statistic = KernelStatistic | Classifier


@dataclass(frozen=True)
class Permuted:
    """Every statistic under every relabelling.

    Args:
        names: Of the statistics that could be computed, in order.
        weights: Of the prompts, shape (prompts,), sum 1, fixed by the numbers of draws.
        observed: Value of each statistic on each prompt, shape (statistics, prompts).
        totals: Weighted means over prompts, shape (statistics, b + 1); column 0 is the observed labelling.
        missing: Name -> why a statistic could not be computed.
    """

    names: tuple[str, ...]
    weights: Doubles
    observed: Doubles
    totals: Doubles
    missing: dict[str, str]

    def row(self, name: str) -> Doubles:
        """A statistic under all relabellings, shape (b + 1,)."""
        return self.totals[self.names.index(name)]

    def value(self, name: str) -> float:
        """The observed value."""
        return float(self.row(name)[0])

    def p_value(self, name: str) -> float:
        """The p of one statistic, or of `max-t` over those in `names`."""
        return p_value(self.row(name))

    def max_t(self, names: Sequence[str]) -> Doubles:
        """Largest standardised value among some statistics under all relabellings, shape (b + 1,)."""
        rows = np.stack([self.row(name) for name in names])
        return ((rows - rows.mean(axis=1, keepdims=True)) / rows.std(axis=1, keepdims=True)).max(axis=0)


def p_value(values: Doubles) -> float:
    """(1 + #{permuted >= observed}) / (b + 1).

    Args:
        values: Shape (b + 1,), the observed one first.

    Raises:
        NotComparable: a value is not finite (NaN >= x is false, and would read as the smallest p).
    """
    if not np.isfinite(values).all():
        raise NotComparable("degenerate: a statistic is not a finite number")
    tie = _TIE * float(np.abs(values).max())
    return float((1 + np.count_nonzero(values[1:] >= values[0] - tie)) / values.size)


def monte_carlo_sd(p: float, b: int) -> float:
    """Standard deviation of a permutation p from b relabellings."""
    return math.sqrt(p * (1.0 - p) / b)


def permute(prompts: Sequence[PromptDraws], statistics: Sequence[Statistic], b: int = B, seed: int = 0) -> Permuted:
    """All statistics under the observed labels and b relabellings.

    Args:
        prompts: With at least 2 draws a side each.
        statistics: Their names are distinct.
        b: Relabellings.
        seed: Of the relabellings; every prompt has its own stream.
    """
    weights = prompt_weights(prompts)
    kernels = [s for s in statistics if isinstance(s, KernelStatistic)]
    classifiers = [s for s in statistics if isinstance(s, Classifier)]
    totals = {s.name: np.zeros(b + 1) for s in kernels}
    observed = {s.name: np.zeros(len(prompts)) for s in kernels}
    varies = dict.fromkeys(totals, False)
    kept: list[NDArray[np.int8]] = []
    for at, prompt in enumerate(prompts):
        labels = relabellings(prompt.n_reference, prompt.n_suspect, b, (seed, at))
        for s in kernels:
            matrix = centred(s.kernel(prompt))
            varies[s.name] |= bool(matrix.any())
            values = _blockwise(matrix, labels, prompt.n_reference)
            observed[s.name][at] = values[0]
            totals[s.name] += weights[at] * values
        if classifiers:
            kept.append(labels)
    missing = {name: "it does not vary between answers" for name, found in varies.items() if not found}
    for c in classifiers:
        try:
            accuracies = c.accuracies(prompts, kept)
        except NotComparable as reason:
            missing[c.name] = str(reason)
        else:
            observed[c.name], totals[c.name] = accuracies[0], accuracies @ weights
    same = [name for name, row in totals.items() if np.ptp(row) <= _TIE * np.abs(row).max()]
    missing = dict.fromkeys(same, "it is the same under every relabelling") | missing
    names = tuple(s.name for s in statistics if s.name not in missing)
    rows = [np.array([found[name] for name in names]) for found in (observed, totals)]
    return Permuted(names, weights, rows[0], rows[1], missing)


def prompt_weights(prompts: Sequence[PromptDraws]) -> Doubles:
    """Weights n m / (n + m), which are those of least variance where prompts are alike; sum 1."""
    sizes = np.array([p.n_reference * p.n_suspect / len(p.records) for p in prompts])
    return sizes / sizes.sum()


def relabellings(n_reference: int, n_suspect: int, b: int, seed: tuple[int, ...]) -> NDArray[np.int8]:
    """The observed labels, then b uniform relabellings: shape (b + 1, draws), 1 for reference."""
    keys = np.random.default_rng(seed).random((b, n_reference + n_suspect))
    last = np.partition(keys, n_reference - 1, axis=1)[:, n_reference - 1 : n_reference]
    observed = np.arange(n_reference + n_suspect) < n_reference
    return np.concatenate([observed[None, :], keys <= last]).astype(np.int8)  # many times faster than shuffling rows


def _blockwise(kernel: Doubles, labels: NDArray[np.int8], n_reference: int) -> Doubles:
    step = max(1, _BLOCK_BYTES // (16 * len(kernel)))
    parts = [squared_mmd(kernel, labels[at : at + step], n_reference) for at in range(0, len(labels), step)]
    return np.concatenate(parts)
