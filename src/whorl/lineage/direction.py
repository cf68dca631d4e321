"""Which of two related models came first: a short list of decisive evidence, strongest first (ours).

    grid             quantised weights are leaves: 99.41 % of documented cases (Model Atlas, arXiv:2503.10633)
    zeros            pruned weights do not grow back
    missing parts    layers, neurons, heads or width that only one model has
    repeated layers  a deeper model that uses layers of the other twice, or idle layers put in
    added tokens     rows at the end of the vocabulary
    lossy cast       the coarser file cannot give back the digits of the finer one

Two pieces of decisive evidence that disagree mean that neither model is the parent: undecided. A low-rank difference is
the same seen from both sides, and weak priors (excess kurtosis as in MoTHer, distance to an initialisation) change with
every edit of gains: neither is looked at.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Side = Literal["a", "b"]

STRENGTH = ("grid", "zeros", "missing parts", "repeated layers", "added tokens", "lossy cast")


@dataclass(frozen=True)
class Evidence:
    """One sign of direction.

    Args:
        name: One of `STRENGTH`.
        parent: The side that it makes the parent.
        why: One sentence.
    """

    name: str
    parent: Side
    why: str


@dataclass(frozen=True)
class Direction:
    """Which model is the parent, if one of the two is.

    Args:
        parent: "a", "b", or None for "direction undecided".
        evidence: Name of the strongest evidence, "" if none.
        why: One sentence.
    """

    parent: Side | None
    evidence: str
    why: str


def decide(evidence: Sequence[Evidence]) -> Direction:
    """The strongest evidence, unless other evidence contradicts it."""
    if not evidence:
        return Direction(None, "", "direction undecided: nothing in the pair tells which model came first")
    ordered = sorted(evidence, key=lambda e: STRENGTH.index(e.name))
    first = ordered[0]
    against = next((e for e in ordered if e.parent != first.parent), None)
    if against is not None:
        why = f"direction undecided: {first.why}, but {against.why}; both may come from a third model"
        return Direction(None, "", why)
    return Direction(first.parent, first.name, first.why)
