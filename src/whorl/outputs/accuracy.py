"""How well a classifier tells models apart from their texts, cross-validated over prompt groups.

Notable:
- All texts of one prompt group are in one fold. N-grams, document frequencies and C come from the training part alone.
- The unit of the interval is the prompt group, not the text: answers to one prompt are not independent.
- Folds are dealt out by the rank of a group's hash, so they are of equal size and do not depend on the order of prompts.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whorl.errors import NotEnoughEvidence, UsageError
from whorl.outputs.classifier import CS, Kind, choose_c, fit
from whorl.outputs.features import Counts, Ngrams, count, weighted
from whorl.outputs.transforms import transform
from whorl.progress import Progress, silent
from whorl.transcripts.answers import Answers

N_RESAMPLES = 2_000
POOL_SIZES = (1, 2, 4, 8, 16, 32, 64)
POOL_ROUNDS = 20
FIRST_SIZE = 128


@dataclass(frozen=True, eq=False)
class Scores:
    """What a classifier says of texts that it was not trained on.

    Args:
        models: The classes, K labels.
        groups: Group of each prompt.
        log_probabilities: Natural logs, float32, shape (models, prompts, draws, K).
        cs: C of each fold; empty for a classifier without one.
    """

    models: tuple[str, ...]
    groups: tuple[str, ...]
    log_probabilities: NDArray[np.float32]
    cs: tuple[float, ...] = ()

    @property
    def chance(self) -> float:
        """1 / K."""
        return 1 / len(self.models)

    @property
    def n_texts(self) -> int:
        """Texts that were scored."""
        return int(np.prod(self.log_probabilities.shape[:3]))

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether the most probable class is the right one, shape (models, prompts, draws)."""
        return self.log_probabilities.argmax(axis=3) == np.arange(len(self.models))[:, None, None]

    @property
    def accuracy(self) -> float:
        """Share of the texts, in [0, 1]."""
        return float(self.correct.mean())

    @property
    def lift(self) -> float:
        """(accuracy - 1/K) / (1 - 1/K): 0 at chance and 1 at best, whatever K."""
        return (self.accuracy - self.chance) / (1 - self.chance)

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Texts of model i that are taken for model j, shape (K, K)."""
        k = len(self.models)
        said = self.log_probabilities.argmax(axis=3).reshape(k, -1)
        return np.stack([np.bincount(row, minlength=k) for row in said])

    def interval(self, n_resamples: int = N_RESAMPLES, seed: int = 0) -> tuple[float, float]:
        """95 % percentile bootstrap of the accuracy over whole prompt groups.

        Raises:
            NotEnoughEvidence: fewer than two groups.
        """
        _, group = np.unique(self.groups, return_inverse=True)
        right = np.bincount(group, self.correct.sum(axis=(0, 2)))
        texts = np.bincount(group) * (self.n_texts / len(self.groups))
        if len(right) < 2:
            raise NotEnoughEvidence("The answers to one prompt group have no interval; more prompts would help.")
        rng, accuracies = np.random.default_rng(seed), []
        for start in range(0, n_resamples, 256):  # bounds the table of weights
            drawn = rng.multinomial(len(right), np.full(len(right), 1 / len(right)), min(256, n_resamples - start))
            accuracies.append(drawn @ right / (drawn @ texts))
        low, high = np.percentile(np.concatenate(accuracies), [2.5, 97.5])
        return float(low), float(high)

    def pooled(self, sizes: Sequence[int] = POOL_SIZES, seed: int = 0) -> dict[int, float]:
        """Accuracy when so many texts of one model, to different prompts, are judged together by the sum of their logs.

        Args:
            sizes: Texts pooled; sizes beyond the number of prompts are left out.
            seed: Prompts are dealt into disjoint sets at random, `POOL_ROUNDS` times.
        """
        rng, n_prompts = np.random.default_rng(seed), self.log_probabilities.shape[1]
        orders = [rng.permutation(n_prompts) for _ in range(POOL_ROUNDS)]
        return {
            size: float(np.mean([self._pooled(size, order) for order in orders])) for size in sizes if size <= n_prompts
        }

    def _pooled(self, size: int, order: NDArray[np.int64]) -> float:
        k, _, n_draws, _ = self.log_probabilities.shape
        n_sets = len(order) // size
        dealt = self.log_probabilities[:, order[: n_sets * size]].astype(np.float64)
        sums = dealt.reshape(k, n_sets, size, n_draws, k).sum(axis=2)
        return float((sums.argmax(axis=3) == np.arange(k)[:, None, None]).mean())


def cross_validated(
    answers: Answers,
    features: Sequence[Ngrams],
    *,
    n_folds: int = 5,
    cs: Sequence[float] = CS,
    kind: Kind = "multinomial",
    tokenizer: Any = None,
    seed: int = 0,
    permute_labels: bool = False,
    transform_train: str | None = None,
    transform_test: str | None = None,
    progress: Progress = silent,
) -> Scores:
    """Score every text by a classifier that saw none of the answers to its prompt group.

    Args:
        answers: At least two models.
        features: Blocks of n-grams.
        n_folds: Folds over prompt groups.
        cs: Values of C to choose from, inside each training part.
        kind: See `classifier.fit`.
        tokenizer: For "subword".
        seed: Deals groups into folds and permutes labels.
        permute_labels: Permute labels among the models, prompt by prompt, in training and in scoring: a control that
            must give chance.
        transform_train: Name of a change (`transforms.TRANSFORMS`) of the texts that are trained on; None = as they are.
        transform_test: The same, of the texts that are scored.
        progress: Called with "folds", folds done and folds in all.

    Raises:
        UsageError: fewer than two models or folds, or no such transform.
        NotEnoughEvidence: fewer prompt groups than folds.
    """
    table = _Table(answers, features, tokenizer, transform_train, transform_test)
    labels = table.permuted(seed) if permute_labels else table.labels
    fold = folds(answers.groups, n_folds, seed)
    scores = np.zeros((*table.shape, len(answers.models)), np.float32)
    chosen = []
    for i in range(n_folds):
        progress("folds", i, n_folds)
        scores[:, fold == i], c = table.score(fold != i, fold == i, labels, cs, kind)
        chosen.append(c)
    progress("folds", n_folds, n_folds)
    # A text counts for the class it was labelled with: the true classes would share what the permuted ones taught.
    np.put_along_axis(scores, np.broadcast_to(labels[..., None], scores.shape), scores.copy(), axis=0)
    return Scores(answers.models, answers.groups, scores, tuple(chosen))


def learning_curve(
    answers: Answers,
    features: Sequence[Ngrams],
    sizes: Sequence[int] | None = None,
    *,
    n_folds: int = 5,
    cs: Sequence[float] = CS,
    kind: Kind = "multinomial",
    tokenizer: Any = None,
    seed: int = 0,
) -> dict[int, Scores]:
    """Scores of one fixed fold by classifiers trained on more and more of the other prompts.

    Args:
        answers: At least two models.
        features: Blocks of n-grams.
        sizes: Numbers of training prompts; default: doubling from 128, and all. Sizes beyond all are left out.
        n_folds: One of so many folds is scored.
        cs: See `cross_validated`.
        kind: See `classifier.fit`.
        tokenizer: For "subword".
        seed: Deals groups into folds; smaller training parts are contained in larger ones.

    Raises:
        UsageError: fewer than two models or folds.
        NotEnoughEvidence: fewer prompt groups than folds.
    """
    table, fold = _Table(answers, features, tokenizer), folds(answers.groups, n_folds, seed)
    order = sorted(np.flatnonzero(fold > 0).tolist(), key=lambda i: _rank(answers.groups[i], seed))
    if sizes is None:
        doubling = (FIRST_SIZE << i for i in range(32))
        sizes = [*(n for n in doubling if n < len(order)), len(order)]
    groups = tuple(group for group, i in zip(answers.groups, fold, strict=True) if i == 0)
    curve = {}
    for size in (n for n in sizes if n <= len(order)):
        train = np.isin(np.arange(len(fold)), order[:size])
        scores, c = table.score(train, fold == 0, table.labels, cs, kind)
        curve[size] = Scores(answers.models, groups, scores, (c,))
    return curve


def replicate_interval(accuracies: Sequence[float]) -> tuple[float, float, float] | None:
    """Mean and 95 % t interval over training replicates; None with fewer than two."""
    from scipy.stats import t

    n = len(accuracies)
    if n < 2:
        return None
    mean, half = float(np.mean(accuracies)), float(t.ppf(0.975, n - 1) * np.std(accuracies, ddof=1) / n**0.5)
    return mean, mean - half, mean + half


def folds(groups: Sequence[str], n_folds: int, seed: int = 0) -> NDArray[np.int64]:
    """Fold of each prompt: its group's rank by SHA-256 of seed and group, modulo the number of folds.

    Raises:
        UsageError: fewer than two folds.
        NotEnoughEvidence: fewer groups than folds.
    """
    distinct = sorted(set(groups), key=lambda group: _rank(group, seed))
    if n_folds < 2:
        raise UsageError(f"{n_folds} folds are none; pass at least 2.")
    if len(distinct) < n_folds:
        raise NotEnoughEvidence(
            f"{len(distinct)} prompt groups are too few for {n_folds} folds; more prompts would help."
        )
    fold = {group: i % n_folds for i, group in enumerate(distinct)}
    return np.array([fold[group] for group in groups])


def _rank(group: str, seed: int) -> str:
    return hashlib.sha256(f"fold {seed}\0{group}".encode()).hexdigest()


class _Table:
    """The n-grams of all texts; rows are the texts in the order (model, prompt, draw), scored ones after trained ones."""

    def __init__(
        self,
        answers: Answers,
        features: Sequence[Ngrams],
        tokenizer: Any = None,
        transform_train: str | None = None,
        transform_test: str | None = None,
    ) -> None:
        if len(answers.models) < 2:
            raise UsageError("A classifier needs at least two models to tell apart.")
        self.answers, self.shape = answers, (len(answers.models), len(answers.prompts), answers.n_draws)
        trained, scored = _texts(answers, transform_train), []
        if transform_train != transform_test:
            scored = _texts(answers, transform_test)
        self.counts: tuple[Counts, ...] = count(features, [*trained, *scored], tokenizer)
        self.place = np.arange(len(trained)).reshape(self.shape)
        self.scored_from = len(trained) if scored else 0
        self.labels = np.broadcast_to(np.arange(self.shape[0])[:, None, None], self.shape)

    def permuted(self, seed: int) -> NDArray[np.int64]:
        """Labels permuted among the answers to each prompt."""
        return np.random.default_rng(seed).permuted(self.labels, axis=0)

    def score(
        self, train: NDArray[np.bool_], test: NDArray[np.bool_], labels: NDArray[Any], cs: Sequence[float], kind: Kind
    ) -> tuple[NDArray[np.float32], float]:
        """Log-probabilities of the texts of some prompts, (models, prompts, draws, K), and the C that was chosen."""
        rows, k = self.place[:, train].ravel(), self.shape[0]
        x, known = weighted(self.counts, rows), labels[:, train].ravel()
        prompts = np.broadcast_to(np.flatnonzero(train)[None, :, None], self.place[:, train].shape).ravel()
        c = choose_c(x[rows], known, [self.answers.groups[i] for i in prompts.tolist()], k, cs, kind)
        scored = x[self.scored_from + self.place[:, test].ravel()]
        logs = fit(x[rows], known, k, c, kind).log_probabilities(scored)
        return logs.reshape(k, -1, self.shape[2], k), c


def _texts(answers: Answers, change: str | None) -> list[str]:
    """All texts in the order (model, prompt, draw); the three are the key of a transform."""
    return [
        text if change is None else transform(change, text, f"{model}\0{prompt.id}\0{draw}")
        for model, by_prompt in zip(answers.models, answers.texts, strict=True)
        for prompt, texts in zip(answers.prompts, by_prompt, strict=True)
        for draw, text in enumerate(texts)
    ]
