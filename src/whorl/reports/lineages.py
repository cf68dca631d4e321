"""How a method's values of kin and of strangers lie, when the lineage of each model is known (ours).

A description of the models at hand, never an error rate: pairs share models, one laboratory made them all, and a method
may have been looked at before. The closest strangers and the most distant kin are named, since they are what a
threshold would get wrong.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whorl.errors import UsageError, safe_name

Matrix = Sequence[Sequence[float | None]]


@dataclass(frozen=True)
class Lineage:
    """What is known of one model.

    Args:
        group: Models of one group share an origin, models of different groups do not.
        kind: What was done to it ("pretrained", "fine-tuned", ...), empty when unknown.
    """

    group: str
    kind: str = ""


@dataclass(frozen=True)
class Extreme:
    """A pair worth naming: positions of its models, and its value."""

    a: int
    b: int
    value: float


@dataclass(frozen=True)
class Values:
    """Values of one sort of pairs: all of them, and their mean, smallest and largest."""

    all: tuple[float, ...]
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Separation:
    """Kin against strangers for one method.

    Args:
        kin: Comparable pairs of one lineage.
        strangers: Comparable pairs of different lineages.
        auc: Share of (kin pair, stranger pair) combinations in which the kin are closer; ties count half.
        strangers_inside: Pairs of strangers at least as close as the least close kin.
        kin_inside: Pairs of kin not closer than the closest strangers.
        closest_strangers: The pair a threshold would first get wrong.
        farthest_kin: The pair a threshold would first miss.
    """

    kin: Values
    strangers: Values
    auc: float
    strangers_inside: int
    kin_inside: int
    closest_strangers: Extreme
    farthest_kin: Extreme

    @property
    def overlap(self) -> bool:
        """Whether no threshold separates kin from strangers in this set."""
        return self.strangers_inside > 0


def read_truth(truth: Mapping[str, Any], names: Sequence[str]) -> dict[str, Lineage]:
    """Lineages by model name, from a mapping of names to a group, or to a mapping with `group` and `kind`.

    Raises:
        UsageError: an entry is neither, or none of the names is known.
    """
    found = {name: _lineage(name, truth[name]) for name in names if name in truth}
    if not found:
        raise UsageError("The lineages given name none of the models.")
    return found


def _lineage(name: str, value: Any) -> Lineage:
    if isinstance(value, str):
        return Lineage(value)
    if isinstance(value, Mapping) and isinstance(value.get("group"), str) and isinstance(value.get("kind", ""), str):
        return Lineage(value["group"], value.get("kind", ""))
    raise UsageError(f"The lineage of '{safe_name(name)}' is a group, or a mapping with 'group' and 'kind'.")


def letters(lineages: Mapping[str, Lineage]) -> dict[str, str]:
    """A letter for each group, in order of first appearance: A to Z, then AA, AB, ..."""
    groups = dict.fromkeys(lineage.group for lineage in lineages.values())
    return {group: _letter(i) for i, group in enumerate(groups)}


def _letter(i: int) -> str:
    return chr(65 + i) if i < 26 else _letter(i // 26 - 1) + _letter(i % 26)


def separation(
    values: Matrix, names: Sequence[str], lineages: Mapping[str, Lineage], *, larger_is_closer: bool
) -> Separation | None:
    """Kin against strangers; None when there are no comparable pairs of one of the two sorts."""
    known = [i for i, name in enumerate(names) if name in lineages]
    kin: list[Extreme] = []
    strangers: list[Extreme] = []
    for i, j in combinations(known, 2):
        value = values[i][j]
        if value is not None:
            same = lineages[names[i]].group == lineages[names[j]].group
            (kin if same else strangers).append(Extreme(i, j, value))
    if not kin or not strangers:
        return None
    sign = 1.0 if larger_is_closer else -1.0
    close, far = (sign * np.array([e.value for e in pairs]) for pairs in (kin, strangers))
    return Separation(
        kin=_values(kin),
        strangers=_values(strangers),
        auc=_auc(close, far),
        strangers_inside=int((far >= close.min()).sum()),
        kin_inside=int((close <= far.max()).sum()),
        closest_strangers=strangers[int(far.argmax())],
        farthest_kin=kin[int(close.argmin())],
    )


def _values(pairs: Sequence[Extreme]) -> Values:
    found = np.array([e.value for e in pairs])
    return Values(tuple(found.tolist()), float(found.mean()), float(found.min()), float(found.max()))


def _auc(close: NDArray[np.float64], far: NDArray[np.float64]) -> float:
    """Mann-Whitney: P(close > far) + P(close = far) / 2."""
    below = np.searchsorted(np.sort(far), close, side="left")
    up_to = np.searchsorted(np.sort(far), close, side="right")
    return float((below + up_to).sum() / (2.0 * close.size * far.size))
