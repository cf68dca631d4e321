"""The sentences of a survey's report: what was found, and what known lineages say about a method."""

from collections.abc import Sequence

from whorl.reports.lineages import Separation
from whorl.reports.shown import cut_name, decimals, number
from whorl.reports.stored_survey import StoredSurvey
from whorl.reports.verdict_words import EXACT


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
