"""Calibration: how unrelated models of one shape compare, with the list of its members (ours).

A calibration holds the fingerprints' values of K independently trained models of one shape, and so the values of all
their pairs. The unit is the lineage, not the pair. Is B closer to A than strangers are? The members are the strangers:

    p = (1 + number of members at least as close to A as B is) / (K + 1)

exact when B is exchangeable with the members given A, as an unrelated model of their recipe is; both directions are
taken and the larger p counts. It is never below 1/(K + 1).

A small p alone decides nothing: "related" also needs the value to look like that of known derivatives,

    p_rel = (1 + number of derivatives at most as close) / (n + 1) > alpha

and a calibration without derivatives can therefore decide nothing. None is moved to models of another shape.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whorl.canonical.roles import ModelShape
from whorl.errors import NotComparable
from whorl.fingerprints import Fingerprint
from whorl.weights.method import WeightMethod
from whorl.weights.values import Values

SCHEMA = 1
CLASS_FIELDS = ("family", "n_layers", "d_model", "n_heads", "n_kv_heads", "d_head", "d_mlp", "gated", "norm_kind")


@dataclass(frozen=True)
class Member:
    """One lineage of a calibration: its name, the digest of its weights, and its values by canonical method name."""

    name: str
    weights_digest: str
    methods: Mapping[str, Values]


@dataclass(frozen=True)
class Place:
    """Where a value lies among unrelated models.

    Args:
        calibration: Id of the calibration.
        lineages: Independent lineages K in it.
        pairs: Unrelated pairs, K (K - 1) / 2.
        pairs_at_least_as_close: Unrelated pairs that are as close or closer.
        p_value: Rank p-value, at least 1 / (K + 1).
        p_related: Rank among known derivatives, None when the calibration holds none.
    """

    calibration: str
    lineages: int
    pairs: int
    pairs_at_least_as_close: int
    p_value: float
    p_related: float | None = None

    @property
    def percentile(self) -> float:
        """Share of unrelated pairs that are less close, in percent."""
        return 100.0 * (1.0 - self.pairs_at_least_as_close / self.pairs)


@dataclass(frozen=True)
class Calibration:
    """Unrelated models of one shape, and, where known, derivatives.

    Args:
        id: Name with a digest of the member list.
        shape: Shape facts of the members.
        members: One for each independent lineage.
        derived: Canonical method name -> values of known (base, derivative) pairs of this shape.
        environment: Versions the values depend on.
    """

    id: str
    shape: ModelShape
    members: tuple[Member, ...]
    derived: Mapping[str, Sequence[float]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    _known: dict[tuple[str, str], NDArray[np.float64]] = field(default_factory=dict, compare=False, repr=False)

    def covers(self, shape: ModelShape) -> bool:
        """Whether a model has the shape of the members."""
        return all(getattr(shape, key) == getattr(self.shape, key) for key in CLASS_FIELDS)

    def place(self, method: WeightMethod, a: Fingerprint, b: Fingerprint, value: float) -> Place | None:
        """Where the value of a pair lies; None when the method was not calibrated."""
        if any(method.canonical_name not in member.methods for member in self.members):
            return None
        sign = 1.0 if method.direction == "similarity" else -1.0
        pairs, mine = sign * self.pairs(method), sign * value
        k = len(self.members)
        exceeding = max(int((sign * self._controls(method, side) >= mine).sum()) for side in (a, b))
        derived = sign * np.array(self.derived.get(method.canonical_name, ()))
        return Place(
            calibration=self.id,
            lineages=k,
            pairs=pairs.size,
            pairs_at_least_as_close=int((pairs >= mine).sum()),
            p_value=(1 + exceeding) / (k + 1),
            p_related=(1 + int((derived <= mine).sum())) / (derived.size + 1) if derived.size else None,
        )

    def pairs(self, method: WeightMethod) -> NDArray[np.float64]:
        """Values of all pairs of members, (K (K - 1) / 2,)."""
        key = (method.canonical_name, "")
        if key not in self._known:
            name = method.canonical_name
            found = [
                _compared(method, x.methods[name], y.methods[name], self) for x, y in combinations(self.members, 2)
            ]
            self._known[key] = np.array(found)
        return self._known[key]

    def _controls(self, method: WeightMethod, model: Fingerprint) -> NDArray[np.float64]:
        """Values of one model against the members, itself left out if it is one; not comparable members never exceed."""
        key = (method.canonical_name, model.weights_digest)
        if key not in self._known:
            name = method.canonical_name
            others = [m for m in self.members if m.weights_digest != model.weights_digest]
            found = [_compared(method, model.methods[name], m.methods[name], self) for m in others]
            self._known[key] = np.array(found)
        return self._known[key]


def _compared(method: WeightMethod, a: Values, b: Values, calibration: Calibration) -> float:
    try:
        return method.compare(a, b, (calibration.shape, calibration.shape)).value
    except NotComparable:
        return float("nan")  # compares as False on both sides of >=


@cache
def shipped() -> tuple[Calibration, ...]:
    """The calibrations in the package."""
    folder = files("whorl").joinpath("calibrations")
    entries = sorted((e for e in folder.iterdir() if e.name.endswith(".json")), key=lambda e: e.name)
    return tuple(from_dict(json.loads(entry.read_text(encoding="utf-8"))) for entry in entries)


def find(a: ModelShape, b: ModelShape) -> Calibration | None:
    """The shipped calibration that covers both shapes, if there is one."""
    return next((c for c in shipped() if c.covers(a) and c.covers(b)), None)


def from_dict(data: dict[str, Any]) -> Calibration:
    """A calibration from its JSON form (files of the package only: not a reader of foreign files)."""
    members = tuple(Member(m["name"], m["weights_digest"], _values(m["methods"])) for m in data["members"])
    return Calibration(data["id"], ModelShape(**data["shape"]), members, data["derived"], data["environment"])


def _values(methods: Mapping[str, Any]) -> dict[str, Values]:
    return {
        name: {key: np.array(a["values"], dtype=np.float64).reshape(a["shape"]) for key, a in arrays.items()}
        for name, arrays in methods.items()
    }


def to_dict(name: str, prints: Mapping[str, Fingerprint]) -> dict[str, Any]:
    """The JSON form of a calibration from fingerprints of independent lineages of one shape, by member name.

    The id is `name` with a digest of the members' weights.
    """
    import hashlib

    digest = hashlib.sha256("".join(f.weights_digest for f in prints.values()).encode()).hexdigest()[:12]
    saved = {key: f.to_dict() for key, f in prints.items()}
    first = next(iter(saved.values()))
    return {
        "schema": SCHEMA,
        "id": f"{name}-{digest}",
        "shape": first["shape"],
        "members": [
            {"name": key, "weights_digest": f["weights_digest"], "methods": f["methods"]} for key, f in saved.items()
        ],
        "derived": {},
        "environment": first["environment"],
    }
