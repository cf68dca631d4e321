"""Calibration: how unrelated models of one class compare, and how known derivatives do (ours).

The unit is the lineage. 2n lineages were trained independently by one recipe and paired off once, so that the n values
s_1 ... s_n of a method on these disjoint pairs are independent draws of "two unrelated models of this class". For a new
pair with value s, whose models are no members,

    p = (1 + number of s_i at least as close as s) / (n + 1)

is exact when the new pair is exchangeable with them, and never below 1/(n + 1). A value that does not exist (not
comparable) counts as infinitely far: that is part of the procedure on both sides.

A small p alone decides nothing: the value must also look like that of some kind of known derivative,

    p_k = (1 + number of derivatives of kind k at most as close as s) / (n_k + 1)

one derivative of a kind from each lineage. `Place.p_related` is the largest p_k over kinds that this method finds with
power 0.9. Nothing is moved to another class: a class is a shape, the way in which one of the two models may differ from
it, and whether the vocabularies share their strings.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whorl.canonical.roles import ModelShape
from whorl.method import Method

SCHEMA = 2
CLASS_FIELDS = (
    "family",
    "n_layers",
    "d_model",
    "n_heads",
    "n_kv_heads",
    "d_head",
    "d_mlp",
    "gated",
    "norm_kind",
    "n_experts",
)
POWER = 0.9
MIN_DERIVED = 19  # below it no p_k reaches 0.05

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Derived:
    """Values of one kind of derivative against its own origin.

    Args:
        lineages: Members they were made from, one derivative each.
        values: Value of each; None where the method could not compare.
    """

    lineages: tuple[str, ...]
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Scores:
    """Values of one method in one condition.

    Args:
        unrelated: One for each disjoint pair of lineages; None where the method could not compare.
        derived: By kind.
    """

    unrelated: tuple[float | None, ...]
    derived: Mapping[str, Derived] = field(default_factory=dict)


@dataclass(frozen=True)
class Condition:
    """What may differ between the two models.

    Args:
        name: In words.
        vocabulary: Whether the common frame was found by token strings (rung 1).
        differs: Shape fields in which one model differs from the calibration's shape -> smallest and largest value.
        scores: By canonical method name.
    """

    name: str
    vocabulary: bool
    differs: Mapping[str, tuple[int, int]]
    scores: Mapping[str, Scores]

    def covers(self, base: ModelShape, a: ModelShape, b: ModelShape) -> bool:
        """Whether one of the models has the shape `base` and the other differs from it as this condition says."""
        return any(
            not _differing(base, x) and set(_differing(base, y)) == set(self.differs) and self._in_range(y)
            for x, y in ((a, b), (b, a))
        )

    def _in_range(self, shape: ModelShape) -> bool:
        return all(low <= getattr(shape, name) <= high for name, (low, high) in self.differs.items())


def _differing(base: ModelShape, shape: ModelShape) -> tuple[str, ...]:
    return tuple(name for name in CLASS_FIELDS if getattr(base, name) != getattr(shape, name))


@dataclass(frozen=True)
class KindPlace:
    """A value among the known derivatives of one kind.

    Args:
        n: Lineages with such a derivative.
        found: How many of them lie where a verdict "related" is given.
        p_value: Rank p of "is a derivative of this kind": small when the value is below almost all of them.
    """

    n: int
    found: int
    p_value: float

    @property
    def powered(self) -> bool:
        """Whether a derivative of this kind would have been found, with enough of them to say so."""
        return self.n >= MIN_DERIVED and self.found >= POWER * self.n


@dataclass(frozen=True)
class Place:
    """Where a value lies among unrelated models and known derivatives.

    Args:
        calibration: Id of the calibration.
        condition: What the class allows to differ, in words.
        lineages: Independent lineages behind the unrelated pairs.
        pairs: Unrelated pairs n, disjoint.
        pairs_at_least_as_close: Unrelated pairs that are as close or closer.
        p_value: Rank p-value, at least 1 / (n + 1).
        threshold: What a value must exceed for p to be at most the level, None when n is too small for it.
        kinds: Known derivatives by kind.
        excess: How far the value lies beyond the threshold: 0 on it, 1 at the median derivative of the kinds that are
            found; None without them.
    """

    calibration: str
    condition: str
    lineages: int
    pairs: int
    pairs_at_least_as_close: int
    p_value: float
    threshold: float | None
    kinds: Mapping[str, KindPlace] = field(default_factory=dict)
    excess: float | None = None

    @property
    def percentile(self) -> float:
        """Share of unrelated pairs that are less close, in percent."""
        return 100.0 * (1.0 - self.pairs_at_least_as_close / self.pairs)

    @property
    def powered(self) -> tuple[str, ...]:
        """Kinds of derivative that this method finds in this class."""
        return tuple(kind for kind, place in self.kinds.items() if place.powered)

    @property
    def upper_rate(self) -> float:
        """Upper end of the exact 95 % interval (Clopper and Pearson) of how often unrelated pairs are as close."""
        from scipy.stats import binomtest

        return float(binomtest(self.pairs_at_least_as_close, self.pairs).proportion_ci(method="exact").high)

    @property
    def p_related(self) -> float | None:
        """Largest rank p among kinds that are found with power; None when there is none."""
        return max((self.kinds[kind].p_value for kind in self.powered), default=None)


@dataclass(frozen=True)
class Calibration:
    """Unrelated models and known derivatives of one class of models.

    Args:
        id: Name with a digest of the member list.
        shape: Shape facts of the members.
        members: Name -> digest of the weights of each lineage's root.
        recipe: How the members were trained, JSON values.
        conditions: The most alike first.
        environment: Versions the values depend on.
    """

    id: str
    shape: ModelShape
    members: Mapping[str, str]
    recipe: Mapping[str, Any]
    conditions: tuple[Condition, ...]
    environment: Mapping[str, str] = field(default_factory=dict)

    def condition(self, a: ModelShape, b: ModelShape, *, vocabulary: bool) -> Condition | None:
        """The condition that covers a pair, None when the pair is outside the class."""
        found = (c for c in self.conditions if c.vocabulary == vocabulary and c.covers(self.shape, a, b))
        return next(found, None)

    def place(self, condition: Condition, method: Method, value: float, level: float) -> Place | None:
        """Where a value of a pair lies; None when the method was not calibrated, or could compare no unrelated pair.

        Args:
            condition: One of this calibration that covers the pair.
            method: The method that gave the value.
            value: Finite.
            level: Largest p at which the method may say "related"; fixes threshold and power.
        """
        scores = condition.scores.get(method.canonical_name)
        if scores is None or all(v is None for v in scores.unrelated):
            return None
        sign = 1.0 if method.direction == "similarity" else -1.0
        unrelated, mine = _closeness(scores.unrelated, sign), sign * value
        exceeding, n = int((unrelated >= mine).sum()), unrelated.size
        bar = _bar(unrelated, level)
        kinds = {} if bar is None else {k: _kind(d, sign, mine, bar) for k, d in scores.derived.items()}
        threshold = None if bar is None or not np.isfinite(bar) else float(sign * bar)
        excess = None if threshold is None else _excess(scores, kinds, sign, mine, sign * threshold)
        return Place(self.id, condition.name, 2 * n, n, exceeding, (1 + exceeding) / (n + 1), threshold, kinds, excess)


def _closeness(values: tuple[float | None, ...], sign: float) -> Doubles:
    """Larger is closer; what is not comparable is infinitely far."""
    return np.array([-np.inf if v is None else sign * v for v in values])


def _bar(unrelated: Doubles, level: float) -> float | None:
    """The largest closeness that is not yet significant: p <= level exactly above it. None when p cannot be so small."""
    allowed = int(np.floor(level * (unrelated.size + 1))) - 1  # exceeding pairs that still give p <= level
    if allowed < 0:
        return None
    return float(np.sort(unrelated)[::-1][allowed]) if allowed < unrelated.size else -np.inf


def _kind(derived: Derived, sign: float, mine: float, bar: float) -> KindPlace:
    values = _closeness(derived.values, sign)
    return KindPlace(values.size, int((values > bar).sum()), (1 + int((values <= mine).sum())) / (values.size + 1))


def _excess(scores: Scores, kinds: Mapping[str, KindPlace], sign: float, mine: float, bar: float) -> float | None:
    found = [_closeness(scores.derived[kind].values, sign) for kind, place in kinds.items() if place.powered]
    typical = float(np.median(np.concatenate(found))) if found else -np.inf
    return float((mine - bar) / (typical - bar)) if typical > bar else None


@cache
def shipped() -> tuple[Calibration, ...]:
    """The calibrations in the package."""
    folder = files("whorl").joinpath("calibrations")
    entries = sorted((e for e in folder.iterdir() if e.name.endswith(".json")), key=lambda e: e.name)
    return tuple(from_dict(json.loads(entry.read_text(encoding="utf-8"))) for entry in entries)


def find(
    a: ModelShape, b: ModelShape, *, vocabulary: bool, among: tuple[Calibration, ...] | None = None
) -> tuple[Calibration, Condition] | None:
    """The calibration and condition that cover a pair, if there are any.

    Args:
        a: Shape of one model.
        b: Shape of the other.
        vocabulary: Whether the common frame was found by token strings (rung 1).
        among: Calibrations to look through; None for those in the package.
    """
    for calibration in shipped() if among is None else among:
        condition = calibration.condition(a, b, vocabulary=vocabulary)
        if condition is not None:
            return calibration, condition
    return None


def from_dict(data: dict[str, Any]) -> Calibration:
    """A calibration from its JSON form (files of the package only: not a reader of foreign files)."""
    conditions = tuple(
        Condition(
            c["name"],
            c["vocabulary"],
            {k: (low, high) for k, (low, high) in c["differs"].items()},
            {name: _scores(s) for name, s in c["scores"].items()},
        )
        for c in data["conditions"]
    )
    shape = ModelShape(**data["shape"])
    return Calibration(data["id"], shape, data["members"], data["recipe"], conditions, data["environment"])


def _scores(data: dict[str, Any]) -> Scores:
    derived = {k: Derived(tuple(d["lineages"]), tuple(d["values"])) for k, d in data["derived"].items()}
    return Scores(tuple(data["unrelated"]), derived)


def to_dict(calibration: Calibration) -> dict[str, Any]:
    """The JSON form; `from_dict` is the inverse."""
    return {"schema": SCHEMA, **asdict(calibration)}
