"""Score the lineage benchmark: per method, per kind of derivative, and the combined verdict, with exact intervals."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from whorl.lab._jobs import Row
from whorl.lab.lineage_bench import APART, RELATED, UNRELATED, Item
from whorl.registry import method

MAX_FPR = 0.05


@dataclass(frozen=True)
class Rate:
    """A count with its exact 95 % interval (Clopper and Pearson)."""

    count: int
    of: int

    @property
    def interval(self) -> tuple[float, float]:
        """Bounds of the rate; (0, 1) without any trial."""
        from scipy.stats import binomtest

        if not self.of:
            return 0.0, 1.0
        found = binomtest(self.count, self.of).proportion_ci(method="exact")
        return float(found.low), float(found.high)

    @property
    def share(self) -> float | None:
        """The rate itself, None without any trial."""
        return self.count / self.of if self.of else None


@dataclass(frozen=True)
class Separation:
    """How one method separates related from unrelated pairs.

    Args:
        method: Canonical name.
        related: Comparable related pairs, of all.
        unrelated: Comparable unrelated pairs, of all.
        auc: Area under the ROC curve over comparable pairs, None without both kinds.
        pauc: The same for false-positive rates up to 5 %, standardised (0.5 is chance; McClish 1989).
        tpr: Share of comparable related pairs found at a false-positive rate of 1 %.
        lowest_related: Closest to unrelated among the related.
        highest_unrelated: Closest to related among the unrelated.
    """

    method: str
    related: Rate
    unrelated: Rate
    auc: float | None
    pauc: float | None
    tpr: float | None
    lowest_related: float | None
    highest_unrelated: float | None


def separation(name: str, items: Sequence[Item], rows: Mapping[str, Row]) -> Separation:
    """AUC, pAUC and TPR at 1 % false positives of one method over all pairs that it could compare."""
    from sklearn.metrics import roc_auc_score, roc_curve

    sign = 1.0 if method(name).direction == "similarity" else -1.0
    values = {truth: [rows[i.key]["methods"][name]["value"] for i in items if i.truth == truth] for truth in
              (RELATED, UNRELATED)}  # fmt: skip
    kin, far = (np.array([sign * v for v in values[t] if v is not None]) for t in (RELATED, UNRELATED))
    counts = Rate(kin.size, len(values[RELATED])), Rate(far.size, len(values[UNRELATED]))
    if not kin.size or not far.size:
        return Separation(name, *counts, None, None, None, None, None)
    truth, score = np.r_[np.ones(kin.size), np.zeros(far.size)], np.r_[kin, far]
    fpr, tpr, _ = roc_curve(truth, score)
    return Separation(
        name,
        *counts,
        float(roc_auc_score(truth, score)),
        float(roc_auc_score(truth, score, max_fpr=MAX_FPR)),
        float(tpr[fpr <= 0.01].max()),
        float(sign * kin.min()),
        float(sign * far.max()),
    )


@dataclass(frozen=True)
class Verdicts:
    """Verdicts on the pairs of one kind.

    Args:
        truth: "related", "unrelated" or "apart".
        kind: Kind of the second model.
        counts: Verdict -> pairs.
        low: Lowest value of the primary method, None when it was not comparable.
        high: Highest.
        covered: Pairs inside a calibrated class.
    """

    truth: str
    kind: str
    counts: Mapping[str, int]
    low: float | None
    high: float | None
    covered: int

    @property
    def n(self) -> int:
        """Pairs."""
        return sum(self.counts.values())


def verdicts(items: Sequence[Item], rows: Mapping[str, Row], primary: str) -> list[Verdicts]:
    """Verdict counts for each truth and kind, in the order of the items."""
    found = []
    for truth, kind in dict.fromkeys((i.truth, i.kind) for i in items):
        mine = [rows[i.key] for i in items if (i.truth, i.kind) == (truth, kind)]
        values = [v for row in mine if (v := row["methods"][primary]["value"]) is not None]
        found.append(
            Verdicts(
                truth,
                kind,
                Counter(row["verdict"] for row in mine),
                min(values, default=None),
                max(values, default=None),
                sum(row["covered"] is not None for row in mine),
            )
        )
    return found


def false_positives(items: Sequence[Item], rows: Mapping[str, Row]) -> tuple[Rate, Rate]:
    """Unrelated pairs called related: over pairs, and over lineages (a lineage counts once)."""
    far = [i for i in items if i.truth == UNRELATED]
    wrong = [i for i in far if rows[i.key]["verdict"] == "related"]
    lineages = {name for i in far for name in i.lineages}
    return Rate(len(wrong), len(far)), Rate(len({name for i in wrong for name in i.lineages}), len(lineages))


def found(items: Sequence[Item], rows: Mapping[str, Row]) -> tuple[Rate, Rate]:
    """Related pairs called related, and those of them that an exact relation decided."""
    kin = [rows[i.key] for i in items if i.truth == RELATED]
    said = [row for row in kin if row["verdict"] == "related"]
    return Rate(len(said), len(kin)), Rate(sum(row["exact"] is not None for row in said), len(said))


def undecided(items: Sequence[Item], rows: Mapping[str, Row]) -> Rate:
    """Pairs of known truth without a decision."""
    known = [i for i in items if i.truth != APART]
    return Rate(sum(rows[i.key]["verdict"] == "undecided" for i in known), len(known))


def confusion(items: Sequence[Item], rows: Mapping[str, Row]) -> dict[str, dict[str, int]]:
    """Kind of derivative -> relation named -> pairs, over related pairs."""
    table: dict[str, Counter[str]] = {}
    for item in (i for i in items if i.truth == RELATED):
        table.setdefault(item.kind, Counter())[rows[item.key]["relation"]] += 1
    return {kind: dict(counts) for kind, counts in table.items()}


def directions(items: Sequence[Item], rows: Mapping[str, Row]) -> dict[str, dict[str, int]]:
    """Kind of derivative -> right, wrong, undecided; the first model of a related pair is always the parent."""
    table: dict[str, Counter[str]] = {}
    for item in (i for i in items if i.truth == RELATED):
        named: Any = rows[item.key]["parent"]
        said = "undecided" if named is None else "right" if named == "a" else "wrong"
        table.setdefault(item.kind, Counter())[said] += 1
    return {kind: dict(counts) for kind, counts in table.items()}
