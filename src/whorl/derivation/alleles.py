"""Allele similarity of two models (PhyloLM, arXiv 2404.04671): how alike their first four characters are distributed.

A prompt is a gene, the first four characters of a draw are its allele, and with p and q the frequencies of two models

    S = sum p q / sqrt( sum p^2 * sum q^2 ),      distance = -log S        sums over genes and alleles

The paper puts frequencies into sum p^2, which makes it too large by (1 - p)/N and S too small for few draws; here it is
n(n - 1) / (N(N - 1)), without bias. So S of two equal models scatters around 1 and may exceed it a little. An empty answer
is no allele (ours), as in `agreement`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from whorl.derivation.agreement import first_characters
from whorl.errors import NotComparable, safe_name

MIN_DRAWS = 2

Draws = Sequence[Sequence[str]]
"""draws[prompt][draw]: what a model said."""


@dataclass(frozen=True)
class Homologous:
    """Frequencies of several models in the same genes.

    Args:
        shared: Sum of p q for the reference and each model by gene, shape (J, M).
        own: Sum of p^2 of the reference, unbiased, over all genes.
        others: The same of each model, shape (M,).
    """

    shared: NDArray[np.float64]
    own: float
    others: NDArray[np.float64]


def homologous(reference: Draws, others: Sequence[Draws]) -> Homologous:
    """Shared and own allele frequencies.

    Args:
        reference: J genes, N draws each.
        others: M models, the same genes, N draws each.

    Raises:
        NotComparable: fewer than two draws a prompt.
    """
    models = [reference, *others]
    n_draws = len(reference[0])
    if n_draws < MIN_DRAWS:
        raise NotComparable(f"{n_draws} draw a prompt; allele frequencies need at least {MIN_DRAWS}")
    counts, genes = _counts(models)
    start = np.arange(len(reference))

    def by_gene(values: NDArray[np.float64]) -> NDArray[np.float64]:
        found = np.zeros((start.size, values.shape[1]))
        np.add.at(found, genes, values)
        return found

    shared = by_gene(counts[:, :1] * counts[:, 1:]) / n_draws**2
    own = (counts * (counts - 1)).sum(axis=0) / (n_draws * (n_draws - 1))  # (1 + M,)
    return Homologous(shared, float(own[0]), own[1:])


def _counts(models: Sequence[Draws]) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """How often each model draws each allele of each gene, shape (alleles, models), and the gene of each row."""
    rows: dict[tuple[int, str], int] = {}
    places, columns = [], []
    for column, model in enumerate(models):
        for gene, texts in enumerate(model):
            for text in texts:
                if allele := first_characters(text):
                    places.append(rows.setdefault((gene, allele), len(rows)))
                    columns.append(column)
    counts = np.zeros((len(rows), len(models)))
    np.add.at(counts, (places, columns), 1.0)
    return counts, np.array([gene for gene, _ in rows], dtype=np.intp)


def by_prompt(found: Homologous, labels: Sequence[str] = ("reference", "other")) -> NDArray[np.float64]:
    """What each gene adds to S, shape (J, M): the mean over genes is S, so that genes can be compared one by one.

    Args:
        found: Frequencies.
        labels: Names of the reference and the models, for the message.

    Raises:
        NotComparable: a model never draws an allele twice, so its sum of p^2 is 0 and S is undefined; names it.
    """
    for label, own in zip(labels, (found.own, *found.others), strict=True):
        if own <= 0:
            why = "never began two answers to a prompt alike, so S is undefined; take more draws"
            raise NotComparable(f"'{safe_name(label)}' {why}")
    norm = np.sqrt(found.own * found.others)
    return found.shared * (found.shared.shape[0] / norm)


def allele_similarity(a: Draws, b: Draws) -> float | None:
    """S of two models, 0 or above, around 1 for equal ones; None when it is undefined.

    Args:
        a: a[prompt][draw].
        b: The same prompts, as many draws.
    """
    try:
        return float(by_prompt(homologous(a, [b])).mean())
    except NotComparable:
        return None


def allele_distance(similarity: float | None) -> float | None:
    """-log S; a little below 0 where S exceeds 1; None where S is undefined or 0 (no allele shared at all)."""
    return None if similarity is None or similarity <= 0.0 else -math.log(similarity)
