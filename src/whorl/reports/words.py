"""The sentences of a report: error rates, places among unrelated pairs, and what known lineages say about a method."""

from collections.abc import Sequence

from whorl.reports.lineages import Separation
from whorl.reports.shown import cut_name, decimals, number, p_text
from whorl.reports.stored import StoredComparison, StoredEvidence, StoredPlace, StoredSurvey

EXACT = {
    "identical": "No error rate applies: the numbers are the same, not alike.",
    "re-laid-out": (
        "No error rate applies: the same magnitudes in another order. Two different sets of numbers of inputs not made "
        "to collide would pass with a chance of about 2\u207b\u00b9\u00b2\u2078."
    ),
    "shared tensors": (
        "No error rate applies: the bytes of these tensors are equal. That does not say who copied them, "
        "nor where the other tensors come from."
    ),
}


def error_rate(result: StoredComparison) -> str:
    """The error rate behind the verdict on one pair, or why there is none."""
    if result.relation in EXACT:
        return EXACT[result.relation]
    places = [e.place for e in result.evidence if e.place is not None]
    if result.p_value is not None and places:
        floor = max(1 / (p.lineages + 1) for p in places)
        return (
            f"Smallest p-value, corrected for {len(places)} methods: {p_text(result.p_value)}; 'related' needs at most "
            f"{result.alpha:g}, fixed beforehand. With {min(p.lineages for p in places)} independent lineages in the "
            f"calibration no single p-value can be below {p_text(floor)}, and without known derivatives in it none decides."
        )
    return (
        "No error rate can be stated: the package holds no calibration with unrelated models of this "
        "shape, so the values below are descriptions, not evidence."
    )


def place_words(place: StoredPlace) -> str:
    """Where a value lies among unrelated pairs; 0 of n is never called 0 %."""
    k, n = place.pairs_at_least_as_close, place.pairs
    share = f"{100 * k / n:.{2 if k < n else 3}g} %" if k else f"below 3/{n}, were they independent"
    return (
        f"{k} of {n} unrelated pairs are as close or closer ({share}); they are pairs of {place.lineages} lineages, "
        f"and p = {p_text(place.p_value)}, never below {p_text(1 / (place.lineages + 1))}."
    )


def value_words(evidence: StoredEvidence) -> str:
    """The value and which way is up, or "not comparable"."""
    if evidence.similarity is not None:
        return f"{number(evidence.similarity)} similarity"
    if evidence.distance is not None:
        return f"{number(evidence.distance)} distance"
    return "not comparable"


def survey_summary(result: StoredSurvey) -> tuple[str, str]:
    """What was found, and the error rate behind it."""
    exact = [p for p in result.pairs if p.relation in EXACT]
    other = [p for p in result.pairs if p.relation not in EXACT]
    related = sum(p.verdict == "related" for p in other)
    unrelated = sum(p.verdict == "unrelated" for p in other)
    undecided = len(other) - related - unrelated
    counts = (
        (len(exact), "related by an exact relation"),
        (related, "related by calibrated evidence"),
        (unrelated, "unrelated"),
        (undecided, "undecided"),
    )
    parts = [f"{n} {what}" for n, what in counts if n] or ["no pairs"]
    found = f"Of {len(result.pairs)} pairs {', '.join(parts)}."
    if any(p.p_value is not None for p in result.pairs):
        rate = (
            f"Exact relations need no error rate. A pair is called related on other evidence only when its corrected "
            f"p-value is at most {result.alpha:g} and its value looks like that of known derivatives; a calibration "
            "without derivatives shows where values lie and decides nothing."
        )
    else:
        rate = (
            "Exact relations need no error rate. The statistical methods decide nothing here: no calibration with "
            "unrelated models of these architecture classes is in the package, so no error rate can be stated for them."
        )
    return found, rate


def separation_words(found: Separation, names: Sequence[str], method: str) -> list[str]:
    """Three plain sentences on kin and strangers for one method."""
    digits = max(3, decimals([*found.kin.all, *found.strangers.all]))

    def num(value: float) -> str:
        return number(value, digits)

    def pair(a: int, b: int) -> str:
        return f"{cut_name(names[a], 40)} and {cut_name(names[b], 40)}"

    kin, far = found.kin, found.strangers
    first = (
        f"Within lineages the mean {method} is {num(kin.mean)} ({num(kin.low)} to {num(kin.high)}, {len(kin.all)} "
        f"pairs); between lineages {num(far.mean)} ({num(far.low)} to {num(far.high)}, {len(far.all)} pairs)."
    )
    a, b = found.farthest_kin, found.closest_strangers
    if found.overlap:
        second = (
            f"The two ranges overlap: {found.strangers_inside} of {len(far.all)} pairs of strangers are at least as "
            f"close as the least close kin ({pair(a.a, a.b)}, {num(a.value)}), and {found.kin_inside} of "
            f"{len(kin.all)} pairs of kin are no closer than the closest strangers ({pair(b.a, b.b)}, {num(b.value)}). "
            "No threshold separates them."
        )
    else:
        second = (
            f"In this set the two ranges do not overlap: the least close kin ({pair(a.a, a.b)}, {num(a.value)}) are "
            f"closer than the closest strangers ({pair(b.a, b.b)}, {num(b.value)}). That is no threshold for other "
            "models."
        )
    third = (
        f"A pair of kin is closer than a pair of strangers in {100 * found.auc:.1f} % of all combinations "
        f"(AUC {found.auc:.3f}; 0.5 is chance). This describes these {len(names)} models; pairs share models, so it is "
        "not an error rate."
    )
    return [first, second, third]
