"""How often models that are not enrolled are taken for one that is: leave each out, fit again, look (specification 4.2).

Every enrolled model in turn, then every lineage, plays the stranger: n-grams, weights, temperature and typical margins are
fitted without it, and its texts (from prompts that were not trained on) are scored. The threshold of a match is set so that
at most 5 % of such texts are accepted, every left-out model counting alike. What that promises for a model nobody has seen is
measured by crossing: each left-out model is judged by the threshold of the others, and the interval is over models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whorl._threads import cores
from whorl.attribution.corpus import TEMPERATURE, TEST, TRAIN, Corpus
from whorl.attribution.pooling import SIZES, draw_pools
from whorl.attribution.typicality import typical
from whorl.outputs.classifier import TOLERANCE, fit
from whorl.outputs.features import Counts, weighted
from whorl.progress import Progress, silent

RATE = 0.05
STRICT_RATE = 0.01
RECALL = 0.95
ROUGH = 10 * TOLERANCE  # accuracy moves by tenths of a point; a third of the time is saved
MAX_LEFT_OUT = 20
"""Models (and lineages) that play the stranger; of more, so many are drawn. Each costs one fit of all the others."""

Doubles = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Threshold:
    """Least acceptance scores for pools of one size; None where no left-out model had enough texts.

    Args:
        size: Texts in a pool.
        match: For naming a model: 5 % of texts of left-out models lie above.
        match_strict: The same with 1 %, for texts that are short or altered.
        lineage: For naming a lineage, from left-out lineages: 5 %.
        lineage_strict: 1 %.
    """

    size: int
    match: float | None
    match_strict: float | None
    lineage: float | None
    lineage_strict: float | None


UNMEASURED = Threshold(1, None, None, None, None)


@dataclass(frozen=True, eq=False)
class LeftOut:
    """What happened when some classes were left out.

    Args:
        classes: Who played the stranger.
        strangers: Size of pool -> acceptance scores of their pools.
        members: Size of pool -> acceptance scores of pools of test texts of the others.
        nearest: Most probable enrolled class of each text of the strangers.
    """

    classes: tuple[int, ...]
    strangers: Mapping[int, Doubles]
    members: Mapping[int, Doubles]
    nearest: Indices


def leave_out(corpus: Corpus, counts: Sequence[Counts], out: Sequence[int], c: float, seed: int) -> LeftOut:
    """Fit without some classes, and score their texts.

    Args:
        corpus: Texts of all classes.
        counts: n-grams of `corpus.texts`.
        out: Classes to leave out; at least two others must remain.
        c: Of the classifier.
        seed: Of the pools.
    """
    n_classes = int(corpus.labels.max()) + 1
    kept = np.array([k for k in range(n_classes) if k not in out])
    place = np.full(n_classes, -1)
    place[kept] = np.arange(len(kept))
    train, validation = (corpus.rows(part, kept.tolist()) for part in (TRAIN, TEMPERATURE))
    members = corpus.rows(TEST, kept.tolist())
    foreign = np.flatnonzero((corpus.parts != TRAIN) & np.isin(corpus.labels, out))
    x = weighted(counts, train)
    linear = fit(x[train], place[corpus.labels[train]], len(kept), c, "one-vs-rest", tolerance=ROUGH)
    margins = np.full((len(corpus.texts), len(kept)), np.nan)
    scored = np.concatenate([validation, members, foreign])
    margins[scored] = x[scored] @ linear.weights.T + linear.bias
    usual = typical(margins[validation], place[corpus.labels[validation]])
    rng = np.random.default_rng([seed, *out])

    def pooled(rows: Indices) -> dict[int, Doubles]:
        found = {}
        for size in SIZES:
            pools, classes = draw_pools(corpus.labels[rows], size, rng)
            if len(classes):
                found[size] = usual.acceptance(margins[rows[pools]])
        return found

    nearest = kept[margins[foreign].argmax(axis=1)]
    return LeftOut(tuple(out), pooled(corpus.distinct(foreign)), pooled(corpus.distinct(members)), nearest)


def threshold(samples: Sequence[Doubles], rate: float) -> float | None:
    """The least score that at most `rate` of the strangers lie above, every sample (left-out model) counting alike."""
    if not samples:
        return None
    values = np.concatenate(samples)
    weights = np.concatenate([np.full(len(found), 1.0 / (len(found) * len(samples))) for found in samples])
    order = np.argsort(-values, kind="stable")
    above = np.cumsum(weights[order])  # share at this value or above
    return float(values[order][min(int(np.searchsorted(above, rate + 1e-12, side="right")), len(order) - 1)])


def accepted(scores: Doubles, least: float | None) -> float:
    """Share of scores above a threshold; none without one."""
    return 0.0 if least is None else float((scores > least).mean())


def interval(rates: Sequence[float]) -> tuple[float, float] | None:
    """95 % t interval of the mean over left-out models, cut to [0, 1]; None for fewer than three, or if all are equal."""
    from scipy.stats import t

    values = np.asarray(rates, float)
    if len(values) < 3 or np.ptp(values) == 0:
        return None
    half = float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return max(0.0, float(values.mean()) - half), min(1.0, float(values.mean()) + half)


def summary(rates: Sequence[float]) -> dict[str, Any]:
    """Mean, interval over models, lowest and highest of them, and how many."""
    found = interval(rates)
    return {
        "mean": float(np.mean(rates)),
        "interval": None if found is None else list(found),
        "lowest": float(np.min(rates)),
        "highest": float(np.max(rates)),
        "n_models": len(rates),
    }


def auroc(members: Doubles, strangers: Doubles) -> float:
    """Probability that a member scores above a stranger, ties half."""
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([members, strangers]))
    n, m = len(members), len(strangers)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def false_acceptance(members: Doubles, strangers: Doubles, recall: float = RECALL) -> float:
    """Share of strangers at or above the score that `recall` of the members reach."""
    least = np.sort(members)[int(np.floor((1 - recall) * len(members)))]
    return float((strangers >= least).mean())


def table(found: Sequence[LeftOut], size: int, rate: float = RATE) -> dict[str, Any] | None:
    """Rates for pools of one size; None where no left-out model has enough texts for them."""
    runs = [run for run in found if size in run.strangers and size in run.members]
    if not runs:
        return None
    crossed = [
        accepted(run.strangers[size], threshold([r.strangers[size] for r in runs if r is not run], rate))
        for run in runs
    ]  # fmt: skip
    least = threshold([run.strangers[size] for run in runs], rate)
    return {
        "n_texts": size,
        "threshold": least,
        "recall": float(np.mean([accepted(run.members[size], least) for run in runs])),
        "accepted_by_crossing": summary(crossed) if len(runs) > 1 else None,
        "false_acceptance_at_95_recall": summary([false_acceptance(r.members[size], r.strangers[size]) for r in runs]),
        "auroc": summary([auroc(r.members[size], r.strangers[size]) for r in runs]),
    }


@dataclass(frozen=True, eq=False)
class Strangers:
    """Everything that leaving out showed.

    Args:
        models: One run for each left-out model.
        lineages: One for each left-out lineage; the same runs where every model is a lineage of its own.
        thresholds: By size of pool.
    """

    models: tuple[LeftOut, ...]
    lineages: tuple[LeftOut, ...]
    thresholds: tuple[Threshold, ...]

    def to_dict(self, names: Sequence[str], lineages: Sequence[str]) -> dict[str, Any]:
        """Tables for pools of every size, rates of each model, and how often kin are found."""
        return {
            "by_model": [row for size in SIZES if (row := table(self.models, size)) is not None],
            "by_lineage": [row for size in SIZES if (row := table(self.lineages, size)) is not None],
            "single_texts": [_one(run, names, self.thresholds[0].match) for run in self.models],
            "siblings": [row for run in self.models if (row := _kin(run, names, lineages)) is not None],
        }


def _one(run: LeftOut, names: Sequence[str], least: float | None) -> dict[str, Any]:
    members, strangers = run.members[1], run.strangers[1]
    return {
        "model": names[run.classes[0]],
        "n_texts": len(strangers),
        "accepted": accepted(strangers, least),
        "false_acceptance_at_95_recall": false_acceptance(members, strangers),
        "auroc": auroc(members, strangers),
    }


def _kin(run: LeftOut, names: Sequence[str], lineages: Sequence[str]) -> dict[str, Any] | None:
    """Is the family found when the member is not enrolled? None for a model without enrolled kin."""
    own = run.classes[0]
    kin = [k for k, lineage in enumerate(lineages) if lineage == lineages[own] and k != own]
    if not kin:
        return None
    return {
        "model": names[own],
        "lineage": lineages[own],
        "n_texts": len(run.nearest),
        "nearest_is_kin": float(np.isin(run.nearest, kin).mean()),
        "chance": len(kin) / (len(names) - 1),
    }


def measure(
    corpus: Corpus,
    counts: Sequence[Counts],
    c: float,
    lineages: Sequence[str],
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> Strangers:
    """Leave every model out, then every lineage, and set the thresholds.

    Args:
        corpus: Texts of all classes.
        counts: n-grams of `corpus.texts`.
        c: Of the classifier.
        lineages: Of each class.
        seed: Of the pools and, above `MAX_LEFT_OUT`, of the choice.
        progress: Called for each one left out.
    """
    single = [(k,) for k in range(len(lineages))]
    families = [tuple(k for k, own in enumerate(lineages) if own == name) for name in dict.fromkeys(lineages)]
    wanted = [
        out for out in dict.fromkeys([*_some(single, seed), *_some(families, seed)]) if len(lineages) - len(out) > 1
    ]
    runs = {}
    progress("leaving models out", 0, len(wanted))
    with cores() as parallel:
        for out, run in zip(wanted, parallel(lambda out: leave_out(corpus, counts, out, c, seed), wanted), strict=True):
            runs[out] = run
            progress("leaving models out", len(runs), len(wanted))
    models = tuple(run for out, run in runs.items() if out in single)
    whole = tuple(run for out, run in runs.items() if out in families)
    return Strangers(models, whole, tuple(_thresholds(models, whole, size) for size in SIZES))


def _some(units: Sequence[tuple[int, ...]], seed: int) -> list[tuple[int, ...]]:
    if len(units) <= MAX_LEFT_OUT:
        return list(units)
    chosen = np.random.default_rng(seed).choice(len(units), MAX_LEFT_OUT, replace=False)
    return [units[i] for i in np.sort(chosen)]


def _thresholds(models: Sequence[LeftOut], lineages: Sequence[LeftOut], size: int) -> Threshold:
    single, whole = ([run.strangers[size] for run in runs if size in run.strangers] for runs in (models, lineages))
    # A match names a model: neither a stranger nor an unenrolled sibling may pass for it.
    match, strict = (_larger(threshold(single, rate), threshold(whole, rate)) for rate in (RATE, STRICT_RATE))
    return Threshold(size, match, strict, threshold(whole, RATE), threshold(whole, STRICT_RATE))


def _larger(a: float | None, b: float | None) -> float | None:
    return a if b is None else b if a is None else max(a, b)
