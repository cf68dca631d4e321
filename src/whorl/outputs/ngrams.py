"""Which n-grams characterise a model, and which speak for it in one text.

Notable:
- Log-odds with an informative Dirichlet prior ("Fightin' Words", Monroe, Colaresi and Quinn 2008, equations 15, 16, 20 and
  22): rare n-grams are drawn towards the frequency they have in all texts, and ranks go by z, the log-odds over their
  standard error.
- The prior holds one pseudo-count for every distinct n-gram, shared out as all texts use them (ours).
- An n-gram is shown only if it is again among the first n in 80 % of bootstraps over prompt groups: texts are counted once
  and a bootstrap is a row of weights in a matrix product.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whorl.errors import NotEnoughEvidence, UsageError, safe_name
from whorl.outputs import features
from whorl.outputs.classifier import Linear
from whorl.outputs.features import Analyzer, FeatureSpace, Sparse
from whorl.transcripts.answers import Answers

LONGEST: Mapping[Analyzer, int] = MappingProxyType({"char": 4, "word": 2, "subword": 1})
MIN_TEXTS = 5
"""Texts that must have an n-gram."""
REAPPEARS = 0.8
_AT_ONCE = 10

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Ngram:
    """One characteristic n-gram of a model.

    Args:
        text: The n-gram; foreign text, to be escaped wherever it is shown.
        log_odds: Log-odds against the other models, natural logs; positive = more frequent here.
        z: Log-odds over their standard error, which takes occurrences as independent: a rank, not a test.
        inside: Texts of the model that have it, per 1,000.
        outside: Texts of the other models that have it, per 1,000.
        reappears: Share of the bootstraps in which it is again among the first n.
    """

    text: str
    log_odds: float
    z: float
    inside: float
    outside: float
    reappears: float


@dataclass(frozen=True)
class Contribution:
    """What one n-gram of a text adds to the score of a class: weight * value; negative speaks against it."""

    text: str
    value: float


def characteristic(
    answers: Answers,
    model: str,
    *,
    analyzer: Analyzer = "word",
    n: int = 20,
    n_bootstraps: int = 50,
    seed: int = 0,
    tokenizer: Any = None,
) -> tuple[Ngram, ...]:
    """The n-grams that a model uses more than the others, most characteristic first; at most n.

    Args:
        answers: At least two models.
        model: One of them.
        analyzer: Units of the n-grams; words 1-2, characters 1-4, sub-words 1.
        n: Length of the list before the bootstrap thins it out.
        n_bootstraps: Resamples of the prompt groups.
        seed: Of the resamples.
        tokenizer: For "subword".

    Raises:
        UsageError: no such model, or no other one.
        NotEnoughEvidence: fewer than two prompt groups, or no n-gram in `MIN_TEXTS` texts.
    """
    if model not in answers.models or len(answers.models) < 2:
        raise UsageError(f"'{safe_name(model)}' must be one of at least two models.")
    setting = features.Ngrams(analyzer, 1, LONGEST[analyzer], min_df=MIN_TEXTS)
    texts = [text for by_prompt in answers.texts for drawn in by_prompt for text in drawn]
    (counted,) = features.count([setting], texts, tokenizer)
    kept, _ = counted.columns(np.arange(len(texts)))
    if not len(kept):
        raise NotEnoughEvidence(f"No n-gram is in {MIN_TEXTS} texts; more texts would help.")
    table = counted.table.tocsc()[:, kept].tocsr()
    inside = np.repeat(np.array(answers.models) == model, len(texts) // len(answers.models))
    return _stable(
        table, inside, _groups(answers), counted.vocabulary.only(kept).names(analyzer), n, n_bootstraps, seed
    )


def _groups(answers: Answers) -> NDArray[np.int64]:
    """Number of the prompt group of each text, in the order (model, prompt, draw)."""
    distinct, group = np.unique(answers.groups, return_inverse=True)
    if len(distinct) < 2:
        raise NotEnoughEvidence("One prompt group cannot show what reappears; more prompts would help.")
    return np.tile(np.repeat(group, answers.n_draws), len(answers.models))


def _stable(
    table: Sparse,
    inside: NDArray[np.bool_],
    groups: NDArray[np.int64],
    names: Sequence[str],
    n: int,
    n_bootstraps: int,
    seed: int,
) -> tuple[Ngram, ...]:
    here, there = (_by_group(table, groups, side) for side in (inside, ~inside))
    n_groups = here.shape[0]
    whole = np.ones((1, n_groups))
    totals = np.asarray(table.sum(axis=0), dtype=np.float64).ravel()
    prior = totals * (len(totals) / max(totals.sum(), 1.0))
    odds, z = (rows[0] for rows in _log_odds(whole @ here, whole @ there, prior))
    top = _first(z[None], n)
    again, rng = np.zeros(len(names)), np.random.default_rng(seed)
    for start in range(0, n_bootstraps, _AT_ONCE):  # bounds the dense tables
        times = min(_AT_ONCE, n_bootstraps - start)
        weights = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), times).astype(np.float64)
        again += _first(_log_odds(weights @ here, weights @ there, prior)[1], n).sum(axis=0)
    kept = np.flatnonzero(top[0] & (again >= REAPPEARS * n_bootstraps))
    rates = [1_000 * np.diff(table[side][:, kept].tocsc().indptr) / side.sum() for side in (inside, ~inside)]
    return tuple(
        Ngram(names[j], *(float(value) for value in (odds[j], z[j], rates[0][i], rates[1][i], again[j] / n_bootstraps)))
        for i, j in sorted(enumerate(kept.tolist()), key=lambda place: -z[place[1]])
    )


def _by_group(table: Sparse, groups: NDArray[np.int64], side: NDArray[np.bool_]) -> Sparse:
    """Counts of each prompt group on one side, csr float64, shape (groups, n-grams)."""
    from scipy.sparse import csr_matrix

    rows = np.flatnonzero(side)
    member = csr_matrix((np.ones(len(rows)), (groups[rows], rows)), shape=(int(groups.max()) + 1, len(groups)))
    return member @ table.astype(np.float64)


def _log_odds(here: Doubles, there: Doubles, prior: Doubles) -> tuple[Doubles, Doubles]:
    """Log-odds and z of every n-gram, shape (bootstraps, n-grams), from counts of that shape."""

    def logit(counts: Doubles) -> Doubles:
        smooth = counts + prior
        return np.log(smooth) - np.log(smooth.sum(axis=1, keepdims=True) - smooth)

    odds = logit(here) - logit(there)
    return odds, odds / np.sqrt(1 / (here + prior) + 1 / (there + prior))


def _first(z: Doubles, n: int) -> NDArray[np.bool_]:
    """Whether an n-gram is among the first n of its row, and used more here than there."""
    least = np.partition(z, -n, axis=1)[:, [-n]] if n < z.shape[1] else -np.inf
    return (z >= least) & (z > 0)


def contributions(space: FeatureSpace, linear: Linear, text: str, k: int, n: int = 20) -> tuple[Contribution, ...]:
    """The n-grams of a text that count most for or against class k, from the strongest support down.

    Args:
        space: Features of the classifier.
        linear: The classifier.
        text: Any text.
        k: Class.
        n: Contributions at most, the largest by absolute value; the intercept is not among them.
    """
    row = space.transform([text])
    values = row.data * linear.weights[k, row.indices]
    strongest = np.argsort(-np.abs(values), kind="stable")[:n]
    order = strongest[np.argsort(-values[strongest], kind="stable")]
    names = space.names(row.indices[order].tolist())
    return tuple(Contribution(name, float(value)) for name, value in zip(names, values[order], strict=True) if value)
