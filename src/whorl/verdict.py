"""The verdict on a pair: one primary method against its calibration, and exact tests beside it (statistics.md 1, 3, 8).

Inside a calibrated class the primary method decides: `aligned-operators`, or `head-spectra` where no frame was found or
no weights are at hand. An exact test (phi-u) stands beside it. The error rate alpha is shared out before the data are
read, 98 % to the primary method and 2 % to the exact test, so that

    p = min( p_primary / 0.98, p_exact / 0.02 )            (weighted Bonferroni; the methods are dependent)

keeps alpha. Outside every calibrated class only exact p-values and bounds decide, each counted as often as there are.

    related     p <= alpha, and the value looks like that of a known derivative (rank) or has a size that matters (exact)
    unrelated   by `aligned-operators` only, which finds every known kind with power 0.9: p > alpha, its value lies below
                the known derivatives of every kind, and no other calibrated method sees a tenth of a derivative
    undecided   everything else
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from whorl.evidence import Evidence
from whorl.registry import smallest_effect

PRIMARY = ("aligned-operators", "head-spectra")
PRIMARY_SHARE = 0.98
ALPHA_RELATED = 0.05  # a value below 95 % of the derivatives of every kind does not look like any of them
DECIDING = ("exact", "bound")
TENTH = 0.1  # of the way from the unrelated band to the median derivative; it only ever forbids a verdict
NEGATIVE = PRIMARY[0]  # the other one is blind to long training, so its silence says little


@dataclass(frozen=True)
class Decision:
    """A verdict with its reasons.

    Args:
        verdict: "related", "unrelated" or "undecided".
        why: One sentence.
        p_value: Corrected for all p-values that could have decided; None when there is none.
        decided_by: Names of the methods that decided, none when undecided.
        excluded: Kinds of derivative that "unrelated" excludes.
        not_excluded: Kinds of this class that the primary method does not find with power; "unrelated" needs none.
        evidence: The evidence with each method's own verdict.
    """

    verdict: str
    why: str
    p_value: float | None
    decided_by: tuple[str, ...]
    excluded: tuple[str, ...]
    not_excluded: tuple[str, ...]
    evidence: tuple[Evidence, ...]


def level(alpha: float) -> float:
    """Largest rank p at which the primary method decides."""
    return PRIMARY_SHARE * alpha


def decide(evidence: Sequence[Evidence], alpha: float) -> Decision:
    """The verdict on a pair from the evidence of all methods."""
    judged = tuple(replace(e, verdict=_alone(e, alpha)) for e in evidence)
    primary = _primary(judged)
    shares = _shares(judged, primary)
    corrected = {name: min(1.0, p / shares[name]) for name, p in _deciding(judged, primary).items()}
    p = min(corrected.values(), default=None)
    found = tuple(e.name for e in judged if corrected.get(e.method, 1.0) <= alpha and _has_size(e))
    excluded, open_ = _kinds(primary)
    if found:
        return Decision("related", _related(judged, found, alpha), p, found, (), (), judged)
    against = tuple(e.name for e in judged if _speaks_against(e, alpha))
    if primary is not None and primary.verdict == "unrelated" and p is not None and p > alpha and not against:
        return Decision("unrelated", _unrelated(primary, excluded), p, (primary.name,), excluded, open_, judged)
    return Decision("undecided", _undecided(judged, primary, p, alpha, against), p, (), (), open_, judged)


def _primary(evidence: Sequence[Evidence]) -> Evidence | None:
    """The first comparable primary method, if it is calibrated for this pair."""
    for name in PRIMARY:
        for e in evidence:
            if e.name == name and e.comparable:
                return e if e.place is not None else None
    return None


def _deciding(evidence: Sequence[Evidence], primary: Evidence | None) -> dict[str, float]:
    """Canonical name -> p of all that may decide: chosen by what the pair is, never by what was found."""
    return {e.method: e.p_value for e in evidence if e.p_value is not None and (e is primary or e.p_kind in DECIDING)}


def _shares(evidence: Sequence[Evidence], primary: Evidence | None) -> dict[str, float]:
    others = [e.method for e in evidence if e.p_kind in DECIDING and e is not primary]
    left = 1.0 if primary is None else 1.0 - PRIMARY_SHARE
    shares = {name: left / len(others) for name in others}
    if primary is not None:
        shares[primary.method] = PRIMARY_SHARE if others else 1.0
    return shares


def _has_size(e: Evidence) -> bool:
    """Whether the effect is one that matters: like a derivative's (rank), or above the method's smallest effect."""
    if e.p_kind in DECIDING:
        return e.effect is not None and e.effect >= smallest_effect(e.method)
    return e.place is not None and e.place.p_related is not None and e.place.p_related > ALPHA_RELATED


def _below_all_kinds(e: Evidence) -> bool:
    return e.place is not None and e.place.p_related is not None and e.place.p_related <= ALPHA_RELATED


def _alone(e: Evidence, alpha: float) -> str:
    """What this method would say on its own."""
    if e.p_value is None:
        return "undecided"
    if e.p_value <= alpha:
        return "related" if _has_size(e) else "undecided"
    return "unrelated" if e.name == NEGATIVE and _below_all_kinds(e) and not _kinds(e)[1] else "undecided"


def _speaks_against(e: Evidence, alpha: float) -> bool:
    """Whether a method that finds some kind of derivative sees clearly more than unrelated models show."""
    place = e.place
    return place is not None and place.p_value <= alpha and place.excess is not None and place.excess >= TENTH


def _kinds(primary: Evidence | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Kinds that a low value excludes, and kinds that it does not."""
    if primary is None or primary.place is None:
        return (), ()
    powered = primary.place.powered
    return powered, tuple(kind for kind in primary.place.kinds if kind not in powered)


def _related(evidence: Sequence[Evidence], found: tuple[str, ...], alpha: float) -> str:
    parts = []
    for e in (e for e in evidence if e.name in found):
        rate = "" if e.p_kind in DECIDING or e.place is None else f", {_rate(e)}"
        parts.append(f"{e.name} p = {e.p_value:.2g} ({e.p_kind}{rate})")
    return f"after correction p is at most {alpha:.2g}: {', '.join(parts)}"


def _rate(e: Evidence) -> str:
    """How often unrelated pairs were as close, with the end of its exact 95 % interval."""
    place = e.place
    if place is None:
        return ""
    return f"{place.pairs_at_least_as_close} of {place.pairs} unrelated pairs as close, below {100 * place.upper_rate:.2g} %"


def _unrelated(primary: Evidence, excluded: tuple[str, ...]) -> str:
    return (
        f"{primary.name} lies where unrelated models lie, below the known derivatives of all {len(excluded)} kinds of this "
        "class"
    )


def _undecided(
    evidence: Sequence[Evidence], primary: Evidence | None, p: float | None, alpha: float, against: tuple[str, ...]
) -> str:
    if not any(e.comparable for e in evidence):
        return "no method could compare the two models"
    if primary is None or primary.place is None:
        tested = "exact tests found nothing" if p is not None else "no exact test applies"
        return f"no calibration covers these two models, and {tested}"
    if not primary.place.kinds:
        return f"{primary.place.pairs} unrelated pairs cannot give a p of {level(alpha):.2g}, or no derivative is known"
    if p is not None and p <= alpha:
        return f"{primary.name} is unlike unrelated models and unlike every known kind of derivative"
    if primary.place.p_related is None:
        return f"{primary.name} finds no known kind of derivative in this class with power 0.9"
    if against:
        return f"{primary.name} sees strangers, but unrelated pairs are not nearly as close by {', '.join(against)}"
    if not _below_all_kinds(primary):
        return f"{primary.name} lies between unrelated models and known derivatives"
    if primary.name != NEGATIVE:
        return f"{primary.name} cannot exclude a common origin: it is blind to long training; the weights of both are needed"
    return f"{primary.name} cannot exclude a common origin: it misses {', '.join(_kinds(primary)[1])}"
