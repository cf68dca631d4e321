"""The relation between two related models, and its direction (weights.md section 7)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from whorl.canonical.model import CanonicalModel


@dataclass(frozen=True)
class Fact:
    """One test of section 7."""

    relation: str
    holds: bool
    why: str
    numbers: Mapping[str, float | int | str]


@dataclass(frozen=True)
class Direction:
    """Which model came first; `parent` None is "direction undecided"."""

    parent: Literal["a", "b"] | None
    evidence: str
    why: str


@dataclass(frozen=True)
class Relation:
    """First relation that holds, and all that were tested."""

    name: str
    facts: tuple[Fact, ...]
    direction: Direction
    layer_map: tuple[tuple[int | None, int | None], ...] | None


def find_relation(
    a: CanonicalModel,
    b: CanonicalModel,
    alignment_path: Sequence[tuple[int | None, int | None]] | None = None,
    aligned: Sequence[tuple[int, int, float]] | None = None,
) -> Relation:
    """The relation of two related models."""
    return Relation("undecided", (), Direction(None, "", "being written"), None)
