"""What ships with every bundle: how often it is right, on which texts, with how many of them (specification 4.4).

Everything is measured on the test prompts, which nothing was fitted on. Intervals are over prompts: whole prompts are drawn
again, with the answers of all models to them.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whorl.attribution.attributor import Attributor, margins_of
from whorl.attribution.conformal import MATCH, NONE, UNDECIDED
from whorl.attribution.corpus import PARTS, TEST, TRAIN, Corpus, part_of_group, training_table
from whorl.attribution.pooling import SIZES, distinct, draw_pools, independent, pools
from whorl.attribution.temperature import log_probabilities, quality
from whorl.errors import NotEnoughEvidence, UsageError, safe_name
from whorl.outputs.classifier import fit
from whorl.outputs.features import Counts, weighted
from whorl.outputs.ngrams import Ngram, characteristic
from whorl.outputs.transforms import TRANSFORMS
from whorl.transcripts.answers import Answers
from whorl.transcripts.record import Transcript
from whorl.transcripts.splits import group_of

RESAMPLES = 2_000
AT_ONCE = 200
WORDS = (8, 16, 32, 64, 128, 256, 512)
TRAINING = (10, 30, 100, 300, 1_000, 3_000, 10_000)
N_NGRAMS = 20
JUDGED_POOLS = 60
JUDGED_DRAWS = 399  # enough to tell 0.05 from more; a real question gets 9,999

Doubles = NDArray[np.float64]
Indices = NDArray[np.int64]
Flags = NDArray[np.bool_]
_WORD_END = re.compile(r"\S+")


def accuracy_over_prompts(right: Flags, groups: Indices, seed: int) -> dict[str, Any]:
    """Accuracy with a 95 % bootstrap interval over prompt groups.

    Where all texts or none are right the bootstrap has no width: then the exact binomial bound for so many prompts is given.
    """
    _, at = np.unique(groups, return_inverse=True)
    total, hits = np.bincount(at), np.bincount(at, right)
    n, rate = len(total), float(right.mean())
    if rate in {0.0, 1.0}:
        bound = 0.025 ** (1 / n)
        low, high = (bound, 1.0) if rate else (0.0, 1 - bound)
    else:
        rng, rates = np.random.default_rng(seed), []
        for _ in range(0, RESAMPLES, AT_ONCE):  # bounds the table of weights
            times = rng.multinomial(n, np.full(n, 1 / n), AT_ONCE)
            rates.append((times @ hits) / (times @ total))
        low, high = (float(v) for v in np.quantile(np.concatenate(rates), (0.025, 0.975)))
    return {"accuracy": rate, "interval": [low, high], "n_texts": len(right), "n_prompts": n}


def closed_set(attributor: Attributor, margins: Doubles) -> dict[str, Any]:
    """Confusion, accuracy, macro-F1 and the quality of the probabilities on the test prompts.

    Args:
        attributor: Calibrated.
        margins: Of all texts of its corpus.
    """
    corpus = attributor.corpus
    rows = corpus.rows(TEST)
    labels, k = corpus.labels[rows], len(attributor.classes)
    log_p = log_probabilities(margins[rows], attributor.calibration.temperature)
    found = log_p.argmax(axis=1)
    confusion = np.zeros((k, k), int)
    np.add.at(confusion, (labels, found), 1)
    return {
        **accuracy_over_prompts(found == labels, corpus.groups[rows], attributor.settings.seed),
        "chance": 1 / k,
        "macro_f1": _macro_f1(confusion),
        "confusion": confusion.tolist(),
        "probabilities": quality(log_p, labels).to_dict(),
        "verdicts": _verdicts(attributor, margins[rows][:, None], labels),
    }


def _macro_f1(confusion: NDArray[np.int_]) -> float:
    hits = np.diag(confusion)
    both = confusion.sum(axis=0) + confusion.sum(axis=1)
    return float((2 * hits / np.maximum(both, 1)).mean())


def _verdicts(
    attributor: Attributor, margins: Doubles, labels: Indices, rows: Indices | None = None
) -> dict[str, float]:
    """Shares of verdicts on pools of margins, shape (pools, m, classes), of models that are enrolled.

    `rows` are the places of the texts in the corpus, shape (pools, m), which tell what counts, as in `predict`.
    """
    corpus = attributor.corpus
    counts = dict.fromkeys(("match, right", "match, wrong", NONE, UNDECIDED), 0)
    for i, label in enumerate(labels):
        counted = () if rows is None else (distinct(corpus.some(rows[i])), independent(corpus.groups[rows[i]].tolist()))
        said = attributor.judge(margins[i], *counted, draws=JUDGED_DRAWS)
        right = "right" if said.possible[:1] == (int(label),) else "wrong"
        counts[f"match, {right}" if said.verdict == MATCH else said.verdict] += 1
    return {word: n / len(labels) for word, n in counts.items()}


def by_number_of_texts(attributor: Attributor, margins: Doubles) -> list[dict[str, Any]]:
    """Accuracy when 1, 2, 4, ... 64 test texts of a model are put together.

    Pools overlap, so the interval is the exact binomial one for as many pools as could be disjoint. Accuracy is of pools of
    distinct texts; verdicts are of pools of any, as a source gives them.
    """
    corpus, calibration = attributor.corpus, attributor.calibration
    every = corpus.rows(TEST)
    rows = corpus.distinct(every)
    labels = corpus.labels[rows]
    log_p = log_probabilities(margins[rows], calibration.temperature)
    even = np.full(len(attributor.classes), 1 / len(attributor.classes))
    rng, tables = np.random.default_rng([attributor.settings.seed, 2]), []
    for size in SIZES:
        members, classes = draw_pools(labels, size, rng)
        if not len(classes):
            continue
        found = pools(log_p[members], even, attributor.train_prior, calibration.gamma)
        rate = float((found.argmax(axis=1) == classes).mean())
        n_disjoint = int(sum((labels == k).sum() // size for k in np.unique(classes)))
        drawn, of = draw_pools(corpus.labels[every], size, rng)
        some = rng.permutation(len(of))[:JUDGED_POOLS]
        judged_rows = every[drawn[some]]
        tables.append(
            {
                "n_texts": size,
                "n_pools": len(classes),
                "n_disjoint": n_disjoint,
                "n_classes": len(np.unique(classes)),
                "accuracy": rate,
                "interval": list(binomial_interval(rate, n_disjoint)),
                "n_judged": len(some),
                "verdicts": _verdicts(attributor, margins[judged_rows], of[some], judged_rows),
            }
        )
    return tables


def binomial_interval(rate: float, n: int) -> tuple[float, float]:
    """Exact 95 % interval of a rate over n trials (Clopper and Pearson); a share of a trial counts as such."""
    from scipy.stats import beta

    hits = rate * n
    low = 0.0 if hits <= 0 else float(beta.ppf(0.025, hits, n - hits + 1))
    high = 1.0 if hits >= n else float(beta.ppf(0.975, hits + 1, n - hits))
    return low, high


def cut_words(text: str, n: int) -> str:
    """The first n words with the white space between them."""
    for at, found in enumerate(_WORD_END.finditer(text), 1):
        if at == n:
            return text[: found.end()]
    return text


def judged(attributor: Attributor, texts: Sequence[str], labels: Indices, groups: Indices) -> dict[str, Any]:
    """Accuracy and verdicts on normalised texts of enrolled models."""
    margins = attributor.margins(texts)
    right = margins.argmax(axis=1) == labels
    return {
        **accuracy_over_prompts(right, groups, attributor.settings.seed),
        "verdicts": _verdicts(attributor, margins[:, None], labels),
    }


def changed(attributor: Attributor, change: Callable[[str, str], str]) -> dict[str, Any]:
    """`judged` of test texts after a change of each, given the text and its number; the classifier stays as it was."""
    corpus = attributor.corpus
    rows = corpus.rows(TEST)
    texts = [change(corpus.texts[i], str(i)) for i in rows.tolist()]
    return judged(attributor, texts, corpus.labels[rows], corpus.groups[rows])


def by_words(attributor: Attributor) -> list[dict[str, Any]]:
    """Accuracy on the first 8, 16, ... 512 words of test texts; lengths that half of the texts do not reach are left out."""
    texts = attributor.corpus.some(attributor.corpus.rows(TEST))
    median = float(np.median([len(text.split()) for text in texts]))
    sizes = [n for n in WORDS if n <= median]
    return [{"n_words": n, **changed(attributor, partial(_cut, n))} for n in sizes]


def _cut(n: int, text: str, _: str) -> str:
    return cut_words(text, n)


def by_training_texts(corpus: Corpus, counts: Sequence[Counts], c: float, seed: int) -> list[dict[str, Any]]:
    """Accuracy of classifiers fitted on 10, 30, ... of the training texts of each class, n-grams included."""
    rng = np.random.default_rng([seed, 3])
    train, test = corpus.rows(TRAIN), corpus.rows(TEST)
    n_classes = int(corpus.labels.max()) + 1
    order = train[np.argsort(rng.permutation(corpus.groups.max() + 1)[corpus.groups[train]], kind="stable")]
    rank = np.empty(
        len(order), int
    )  # place of a text among those of its class: all classes take the same prompts first
    for k in range(n_classes):
        rank[corpus.labels[order] == k] = np.arange((corpus.labels[train] == k).sum())
    most = int(np.bincount(corpus.labels[train]).min())
    tables = []
    for size in [n for n in TRAINING if n < most] + [most]:
        some = np.sort(order[rank < size])
        x = weighted(counts, some)
        linear = fit(x[some], corpus.labels[some], n_classes, c, "one-vs-rest")
        right = margins_of(linear, x[test]).argmax(axis=1) == corpus.labels[test]
        tables.append({"n_texts_a_class": size, **accuracy_over_prompts(right, corpus.groups[test], seed)})
    return tables


def contents(corpus: Corpus) -> dict[str, Any]:
    """How many texts and prompts are in each part."""
    rows = {name: corpus.rows(part) for part, name in enumerate(PARTS)}
    return {
        "texts": {name: len(found) for name, found in rows.items()},
        "prompts": {name: len(np.unique(corpus.groups[found])) for name, found in rows.items()},
        "repeated_in_test": corpus.n_repeated,
    }


def shifts(attributor: Attributor, conditions: Mapping[str, Iterable[Transcript]]) -> list[dict[str, Any]]:
    """Accuracy on test texts that were transformed, and on further transcripts of the same models.

    Args:
        attributor: Calibrated.
        conditions: Name -> transcripts. Answers to prompts of the training part are left out: they would be easier.

    Raises:
        UsageError: transcripts of a model that is not enrolled, or none to judge.
    """
    found = [{"name": name, "kind": "transform", **changed(attributor, change)} for name, change in TRANSFORMS.items()]
    return found + [
        {"name": name, "kind": "transcripts", **_shifted(attributor, name, r)} for name, r in conditions.items()
    ]


def _shifted(attributor: Attributor, name: str, records: Iterable[Transcript]) -> dict[str, Any]:
    settings, place = attributor.settings, {label: k for k, label in enumerate(attributor.names)}
    usable = []
    for record in (record for record in records if record.ok):
        group = group_of(record.prompt, record.sample_index // settings.n_draws)
        if part_of_group(group, settings.salt, settings.shares) != TRAIN:
            usable.append((record.response, place[_enrolled(record, place, name)], group))
    if not usable:
        raise UsageError(f"The transcripts of shift '{safe_name(name)}' answer no prompt outside the training part.")
    texts, labels, groups = (list(column) for column in zip(*usable, strict=True))
    return judged(attributor, attributor.normalised(texts), np.array(labels), np.unique(groups, return_inverse=True)[1])


def _enrolled(record: Transcript, place: Mapping[str, int], name: str) -> str:
    if record.model.ref not in place:
        raise UsageError(
            f"Shift '{safe_name(name)}' has answers of '{safe_name(record.model.ref)}', which is not enrolled."
        )
    return record.model.ref


def characteristic_ngrams(attributor: Attributor) -> dict[str, list[dict[str, Any]]]:
    """Words and pairs of words of each model in the training part that reappear when the prompts are drawn again."""
    table = training_table(attributor.corpus, attributor.names)
    return {
        name: [asdict(ngram) for ngram in _characteristic(table, name, attributor.settings.seed)]
        for name in table.models
    }


def _characteristic(table: Answers, name: str, seed: int) -> tuple[Ngram, ...]:
    try:
        return characteristic(table, name, n=N_NGRAMS, seed=seed)
    except NotEnoughEvidence:  # no n-gram is in five texts: none is characteristic
        return ()
