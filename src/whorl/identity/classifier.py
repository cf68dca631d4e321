"""Classifier two-sample test: can a classifier that never saw the prompt tell the sides apart? (arXiv 1610.06545, ours)

Features are hashed character 1-4-grams, centred within each prompt, which removes the topic. All answers to a prompt are
cut to the shortest of both sides, since counts of n-grams would tell lengths apart. The classifier is least
squares with a ridge, cross-fitted over folds of prompts, so the scores of a fold are linear in the labels of the others:

    s = B y        B[fold, rest] = G[fold, rest] (G[rest, rest] + lambda I)^-1,    G = centred feature products

and "train again for every permutation", which exactness demands, is one matrix product for all permutations.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from whorl.errors import NotComparable
from whorl.identity.draws import PromptDraws
from whorl.identity.kernel import N_CHARACTERS
from whorl.linalg.blocks import Doubles

N_FOLDS = 5
MAX_TEXTS = 3_000  # all pairs are held at once
N_GRAM = 4
FEATURE_BITS = 13
N_FEATURES = 1 << FEATURE_BITS
_HASH = np.array([0x9E3779B1, 0x85EBCA6B], dtype=np.uint32)  # odd multipliers of xxHash
_TIE = 1e-9
_ROWS = 2_048


@dataclass(frozen=True)
class Classifier:
    """Balanced accuracy on prompts the classifier was not trained on; chance is 0.5.

    Args:
        n_characters: Longer answers are cut here.
    """

    n_characters: int = N_CHARACTERS
    name: str = "classifier"

    def accuracies(self, prompts: Sequence[PromptDraws], labels: Sequence[NDArray[np.int8]]) -> Doubles:
        """Accuracy of every prompt under every labelling.

        Args:
            prompts: At least two groups of prompts.
            labels: Of each prompt, shape (b, draws), 1 for reference.

        Returns:
            Shape (b, prompts), in [0, 1].

        Raises:
            NotComparable: too many texts, a single group of prompts, or all texts of each prompt alike.
        """
        of = np.repeat(np.arange(len(prompts)), [len(p.records) for p in prompts])
        if len(of) > MAX_TEXTS:
            raise NotComparable(f"{len(of)} answers; the classifier is trained on at most {MAX_TEXTS}")
        fit = _fit_matrix(
            _products([t for p in prompts for t in p.equal_spans(self.n_characters)], of), _folds(prompts)[of]
        )
        starts = np.flatnonzero(np.r_[True, np.diff(of) > 0])
        shares = np.array([p.n_reference / len(p.records) for p in prompts])
        z = np.concatenate(labels, axis=1)
        blocks = [z[at : at + _ROWS] for at in range(0, len(z), _ROWS)]
        return np.concatenate([_accuracy(block, fit, starts, shares[of], prompts) for block in blocks])


def _accuracy(
    z: NDArray[np.int8],
    fit: NDArray[np.float32],
    starts: NDArray[np.intp],
    shares: Doubles,
    prompts: Sequence[PromptDraws],
) -> Doubles:
    """Mean of both recalls, a tie counting half: 1/2 + (mean sign over reference - mean sign over suspect) / 4."""
    scores = (z - shares).astype(np.float32) @ fit.T  # labels centred within the prompt
    signs = np.sign(np.where(np.abs(scores) > _TIE * np.abs(scores).max(), scores, 0.0))
    n = np.array([p.n_reference for p in prompts])
    m = np.array([p.n_suspect for p in prompts])
    of_reference = np.add.reduceat(signs * z, starts, axis=1)
    of_suspect = np.add.reduceat(signs * (1 - z), starts, axis=1)
    return 0.5 + (of_reference / n - of_suspect / m) / 4.0


def _products(texts: Sequence[str], of: NDArray[np.intp]) -> Doubles:
    """Products of the features of all texts, centred within each prompt; mean diagonal 1."""
    x = np.stack([ngram_features(text) for text in texts])
    starts = np.flatnonzero(np.r_[True, np.diff(of) > 0])
    x -= (np.add.reduceat(x, starts, axis=0) / np.bincount(of)[:, None].astype(np.float32))[of]
    products = (x @ x.T).astype(np.float64)
    scale = float(np.trace(products)) / len(of)
    if scale < _TIE:
        raise NotComparable("all answers to each prompt are alike")
    return products / scale


def ngram_features(text: str) -> NDArray[np.float32]:
    """Log counts of hashed character 1-4-grams, Euclidean length 1 (0 for an empty text), shape (N_FEATURES,).

    A hash of its own, of whole arrays: scikit-learn's vectoriser loops over n-grams in Python, fifty times slower.
    """
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    grams = np.zeros(len(codes), dtype=np.uint32)
    found = []
    for n in range(min(N_GRAM, len(codes))):
        grams = grams[: len(codes) - n] * _HASH[0] + codes[n:] + np.uint32(n + 1)  # wraps around, as meant
        found.append((grams * _HASH[1]) >> np.uint32(32 - FEATURE_BITS))
    counts = np.bincount(np.concatenate(found), minlength=N_FEATURES) if found else np.zeros(N_FEATURES)
    features = np.log1p(counts)
    return (features / max(float(np.linalg.norm(features)), 1.0)).astype(np.float32)


def _folds(prompts: Sequence[PromptDraws]) -> NDArray[np.intp]:
    """Fold of each prompt: whole groups, dealt out in order of their names."""
    groups = sorted({p.group for p in prompts})
    if len(groups) < 2:
        raise NotComparable("all prompts are of one group; the classifier needs prompts it was not trained on")
    place = {group: at % min(N_FOLDS, len(groups)) for at, group in enumerate(groups)}
    return np.array([place[p.group] for p in prompts])


def _fit_matrix(products: Doubles, folds: NDArray[np.intp]) -> NDArray[np.float32]:
    """B above, shape (texts, texts); lambda = 1, the mean squared length of a centred feature vector (ours)."""
    from scipy.linalg import solve

    fit = np.zeros(products.shape, dtype=np.float32)
    for fold in np.unique(folds):
        test, train = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        ridge = products[np.ix_(train, train)] + np.eye(len(train))
        fit[np.ix_(test, train)] = solve(ridge, products[np.ix_(train, test)], assume_a="pos").T
    return fit
