"""`Evidence`: what one method says about one pair of models, with its p-values and its place in a calibration."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from whorl.calibration import Calibration, Condition, Place
from whorl.method import Method, Outcome, PValue

Measured = Mapping[str, "Outcome | str"]
"""Canonical method name -> its outcome, or why it is not comparable."""


@dataclass(frozen=True)
class Evidence:
    """What one method says about one pair.

    Args:
        method: Canonical name.
        comparable: False when a number would be meaningless; then `why` is the reason and all values are None.
        why: One sentence.
        similarity: Value of a similarity method, None for distances.
        distance: Value of a distance method, None for similarities.
        threshold: What the value must pass for a verdict "related" in its calibrated class, else None.
        p_value: The p that may decide: exact or a bound where the method has one, otherwise the rank in a calibrated
            class; in (0, 1], None when there is none.
        p_kind: "exact", "bound", "rank" or None.
        verdict: "related", "unrelated" or "undecided", of this method alone.
        place: Where the value lies among unrelated pairs and known derivatives.
        tests: p-values of the method's own nulls, which are narrower than the question.
        variants: Other readings of the same evidence.
        warnings: What to know before believing the value.
    """

    method: str
    comparable: bool
    why: str
    similarity: float | None = None
    distance: float | None = None
    threshold: float | None = None
    p_value: float | None = None
    p_kind: str | None = None
    verdict: str = "undecided"
    place: Place | None = None
    tests: tuple[PValue, ...] = ()
    variants: Mapping[str, float | None] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name without version and parameters."""
        return self.method.partition("@")[0]

    @property
    def effect(self) -> float | None:
        """Size of what the deciding p speaks of; the value, unless the method names another quantity."""
        named = [t.effect for t in self.tests if t.kind == self.p_kind and t.effect is not None]
        return named[0] if named else self.value

    @property
    def value(self) -> float | None:
        """The similarity or the distance, whichever the method has."""
        return self.similarity if self.similarity is not None else self.distance

    def to_dict(self) -> dict[str, Any]:
        """JSON types; `place` with its percentile, `p_related` and the kinds it finds."""
        data = asdict(self)
        data["warnings"], data["tests"] = list(self.warnings), [asdict(t) for t in self.tests]
        if self.place is not None:
            data["place"] |= {
                "percentile": self.place.percentile,
                "p_related": self.place.p_related,
                "powered": list(self.place.powered),
            }
        return data


def gather(
    method: Method, found: "Outcome | str", covering: tuple[Calibration, Condition] | None, level: float
) -> Evidence:
    """Evidence from an outcome: its place among unrelated pairs, and the p that may decide.

    Args:
        method: The method.
        found: Its outcome, or why it is not comparable.
        covering: Calibration and condition of the pair, None outside all calibrated classes.
        level: Largest rank p at which the method may say "related".

    Raises:
        RuntimeError: a method returned a value that is not finite.
    """
    name = method.canonical_name
    if isinstance(found, str):
        return Evidence(method=name, comparable=False, why=found)
    if not math.isfinite(found.value):
        raise RuntimeError(f"{name} returned {found.value}: a method must raise NotComparable instead")
    place = None if covering is None else covering[0].place(covering[1], method, found.value, level)
    p_value, p_kind = _deciding(found, place)
    closer = method.direction == "similarity"
    return Evidence(
        method=name,
        comparable=True,
        why=found.why if place is None else f"{found.why}; {_placed(place)}",
        similarity=found.value if closer else None,
        distance=None if closer else found.value,
        threshold=None if place is None else place.threshold,
        p_value=p_value,
        p_kind=p_kind,
        place=place,
        tests=found.tests,
        variants=found.variants,
        warnings=found.warnings,
    )


def _deciding(found: Outcome, place: Place | None) -> tuple[float | None, str | None]:
    """An exact p answers the question itself; a bound has a narrower null, so in a calibrated class the rank goes first."""
    by_kind = {test.kind: test.p_value for test in found.tests}
    if "exact" in by_kind:
        return by_kind["exact"], "exact"
    if place is not None:
        return place.p_value, "rank"
    return (by_kind["bound"], "bound") if "bound" in by_kind else (None, None)


def _placed(place: Place) -> str:
    less = place.pairs - place.pairs_at_least_as_close
    return f"closer than {less} of {place.pairs} unrelated pairs of the class '{place.condition}'"
