"""Calibration: how unrelated models of one architecture class score, with the list of its members (ours).

A calibration holds, for each method, the similarities of all pairs among K independently trained models of one class.
The unit is the lineage, not the pair: for one reference only K - 1 controls are exchangeable, so the rank p-value of a
pair is

    p = (1 + number of controls whose closest unrelated model is at least as close) / K

and never below 1/K. No threshold is offered when 1/K exceeds alpha, and none is moved to another class.
"""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whorl.canonical.roles import ModelShape

CLASS_FIELDS = ("family", "n_layers", "d_model", "n_heads", "n_kv_heads", "d_head", "d_mlp", "gated", "norm_kind")


@dataclass(frozen=True)
class Calibration:
    """Scores of unrelated pairs of one architecture class.

    Args:
        id: Name with a digest of the member list.
        shape_class: `CLASS_FIELDS` by name.
        members: One name for each independent lineage.
        scores: Canonical method name -> (K, K) symmetric similarities or distances; the diagonal is not used.
    """

    id: str
    shape_class: dict[str, Any]
    members: tuple[str, ...]
    scores: dict[str, NDArray[np.float64]]

    def covers(self, shape: ModelShape) -> bool:
        """Whether a model of this shape belongs to the calibrated class."""
        return all(getattr(shape, key) == value for key, value in self.shape_class.items())

    def place(self, method: str, value: float, *, larger_is_closer: bool) -> "Place | None":
        """Where a value lies among the unrelated pairs; None when the method was not calibrated."""
        table = self.scores.get(method)
        if table is None:
            return None
        closeness, mine = (table, value) if larger_is_closer else (-table, -value)
        k = len(self.members)
        pairs = closeness[np.triu_indices(k, 1)]
        nearest = np.where(np.eye(k, dtype=bool), -np.inf, closeness).max(axis=1)
        exceeding = min(int((nearest >= mine).sum()), k - 1)
        return Place(
            calibration=self.id,
            lineages=k,
            pairs=pairs.size,
            pairs_at_least_as_close=int((pairs >= mine).sum()),
            p_value=(1 + exceeding) / k,
        )


@dataclass(frozen=True)
class Place:
    """Where a value lies among unrelated pairs.

    Args:
        calibration: Id of the calibration.
        lineages: Independent lineages K in it.
        pairs: Unrelated pairs, K (K - 1) / 2.
        pairs_at_least_as_close: Unrelated pairs that score as close or closer.
        p_value: Rank p-value, at least 1/K.
    """

    calibration: str
    lineages: int
    pairs: int
    pairs_at_least_as_close: int
    p_value: float

    @property
    def percentile(self) -> float:
        """Share of unrelated pairs that are less close, in percent."""
        return 100.0 * (1.0 - self.pairs_at_least_as_close / self.pairs)


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
    scores = {name: np.array(rows, dtype=np.float64) for name, rows in data["scores"].items()}
    return Calibration(data["id"], dict(data["shape_class"]), tuple(data["members"]), scores)


def to_dict(calibration: Calibration) -> dict[str, Any]:
    """The JSON form, keys in fixed order."""
    return {
        "schema": 1,
        "id": calibration.id,
        "shape_class": calibration.shape_class,
        "members": list(calibration.members),
        "scores": {name: rows.tolist() for name, rows in sorted(calibration.scores.items())},
    }
