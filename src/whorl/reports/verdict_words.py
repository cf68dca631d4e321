"""The sentences about one pair: error rate, relation, direction, frame, and what a verdict excludes.

The same words serve the HTML page and the terminal.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from whorl.reports.shown import cut_text, number, p_text, sentence
from whorl.reports.stored_comparison import StoredComparison, StoredEvidence, StoredPlace
from whorl.verdict import PRIMARY

EXACT = {
    "identical": "Exact relation, no error rate applies: the numbers are the same, not alike.",
    "re-laid-out": (
        "Exact relation, no error rate applies: the same magnitudes in another order. Two different sets of numbers of "
        "inputs not made to collide would pass with a chance of about 2\u207b\u00b9\u00b2\u2078."
    ),
    "shared tensors": (
        "Exact relation, no error rate applies: the bytes of these tensors are equal. That does not say who copied "
        "them, nor where the other tensors come from."
    ),
}
SYMBOLS = {"related": "\N{ALMOST EQUAL TO}", "unrelated": "\N{NOT EQUAL TO}", "undecided": "?"}
P_KINDS = {
    "exact": "exact",
    "bound": "upper bound",
    "rank": "rank",
    "monte-carlo": "Monte Carlo",
    "nominal": "nominal, never decides",
}
INTERVAL = 0.95


def primary(evidence: Sequence[StoredEvidence]) -> StoredEvidence | None:
    """The method whose place among unrelated pairs decides, or would; None without a calibration."""
    placed = [e for e in evidence if e.place is not None]
    return next((e for name in PRIMARY for e in placed if e.short == name), None)


def error_rate(result: StoredComparison) -> tuple[str, ...]:
    """Sentences on the error rate behind the verdict, or why there is none."""
    if result.exact.relation is not None:
        return (EXACT[result.exact.relation],)
    main = primary(result.evidence)
    others = [e for e in result.evidence if e is not main and e.p_kind in {"exact", "bound"}]
    fixed = f"'Related' needs p at most {result.alpha:g}, fixed before the data were read."
    if main is None or main.place is None:
        outside = "Outside every calibrated class: only exact tests and bounds decide."
        if not others or result.p_value is None:
            return (
                outside,
                "None applies to this pair, so no error rate can be stated and the values are no evidence.",
            )
        tests = () if result.decided_by else (_tests(others),)  # the verdict's own sentence has named them
        return (outside, *tests, f"Corrected p = {p_text(result.p_value)}. {fixed}")
    found = [f"{main.short}: {ranked(main.place)}"]
    if others:
        found.append(f"{_tests(others)} Tried beside it, so both are corrected.")
    if others and result.p_value is not None:
        found.append(f"Corrected p = {p_text(result.p_value)}.")
    return (*found, fixed)


def _tests(evidence: Sequence[StoredEvidence]) -> str:
    return (
        "; ".join(f"{e.short}: p = {p_text(e.p_value or 1.0)} ({P_KINDS[e.p_kind or 'exact']})" for e in evidence) + "."
    )


def ranked(place: StoredPlace) -> str:
    """How many unrelated pairs are as close, and the p-value with its floor; 0 of n is never called 0 %."""
    k, n = place.pairs_at_least_as_close, place.pairs
    verb = "is" if k == 1 else "are"
    return f"{k} of {n} unrelated pairs {verb} as close, p = {p_text(place.p_value)} (never below 1/{n + 1})."


def class_words(result: StoredComparison) -> str:
    """Calibration and class in one sentence, "" where none covers the pair."""
    c = result.calibration
    if c is None:
        return ""
    return (
        f"Calibration {cut_text(c.id, 200)}, class '{cut_text(c.condition, 200)}': {c.lineages} independently trained "
        "lineages, paired off once."
    )


def direction_words(result: StoredComparison) -> str:
    """Which model came first, or that it is undecided; "" where there is nothing to direct."""
    found = result.direction
    if result.verdict != "related" or found is None:
        return ""
    if found.parent is None:
        return f"Direction undecided{_because(found.why.removeprefix('direction undecided').lstrip(': '))}."
    parent, child = ("A", "B") if found.parent == "a" else ("B", "A")
    proof = f" ({cut_text(found.evidence, 200)})" if found.evidence else ""
    return f"{child} was made from {parent}{_because(found.why)}{proof}."


def _because(why: str) -> str:
    text = cut_text(why, 600).strip().rstrip(".")
    return f": {text}" if text else ""


def relation_words(result: StoredComparison) -> str:
    """The relation in one sentence; "" where the verdict says it all."""
    if result.verdict != "related" or result.relation == result.exact.relation:
        return ""
    if result.relation == "undecided":
        return "How they are related is undecided."
    strongest = next((f for f in result.facts if f.holds and f.relation == result.relation), None)
    because = _because(strongest.why) if strongest else ""
    return f"Relation: {cut_text(result.relation, 100)}{because}."


def frame_words(result: StoredComparison) -> str:
    """How the common frame was found, in one or two sentences."""
    found = result.alignment
    if found is None:
        return "No common frame: the weights of both models were not at hand, or no pairwise method was asked for."
    if found.rung is None:
        return f"No common frame{_because(found.why)}."
    how = {
        1: f"from {found.n_tokens} tokens with equal strings",
        2: f"from {found.n_tokens} tokens matched by invariants of their rows",
        3: "without tokens, from the attention operators of every other matched layer",
    }[found.rung]
    held = "" if found.held_out is None else f"; cosine on tokens that were not fitted: {number(found.held_out, 3)}"
    detail = f" {sentence(cut_text(found.why, 600))}" if found.why and found.rung > 1 else ""
    return f"Common frame of the two residual streams found {how} (rung {found.rung} of 3){held}.{detail}"


@dataclass(frozen=True)
class KindRow:
    """Known derivatives of one kind: how many are found, with an exact interval, and how the pair compares."""

    kind: str
    found: int
    n: int
    low: float
    high: float
    p_value: float
    powered: bool
    excluded: bool

    @property
    def interval(self) -> str:
        """The 95 % interval of the share that is found."""
        return f"{percent(self.low)}\N{EN DASH}{percent(self.high)} %"


def percent(share: float) -> str:
    """A share in percent with the figures that it deserves; only exact 0 and 1 become 0 and 100."""
    value = 100 * share
    if value in {0.0, 100.0}:
        return f"{value:.0f}"
    return f"{value:.1f}" if value < 10 or value >= 99.5 else f"{value:.0f}"


def kind_rows(result: StoredComparison, e: StoredEvidence) -> tuple[KindRow, ...]:
    """Power of one method in its class, kind by kind, with exact (Clopper and Pearson 1934) intervals."""
    from scipy.stats import binomtest

    if e.place is None:
        return ()
    rows = []
    for kind, k in e.place.kinds.items():
        low, high = binomtest(k.found, k.n).proportion_ci(INTERVAL, method="exact") if k.n else (0.0, 1.0)
        powered, excluded = kind in e.place.powered, kind in result.excluded
        rows.append(KindRow(kind, k.found, k.n, float(low), float(high), k.p_value, powered, excluded))
    return tuple(rows)


def excludes(result: StoredComparison) -> str:
    """What "unrelated" excludes and what it does not, in sentences; "" for other verdicts."""
    if result.verdict != "unrelated":
        return ""
    text = f"Excluded, because they would have been found: {joined(result.excluded)}."
    if result.not_excluded:
        text += f" Not excluded: {joined(result.not_excluded)}."
    return text


def joined(kinds: Sequence[str]) -> str:
    """Kinds of derivative in one phrase."""
    shown = [cut_text(k, 60) for k in kinds]
    return ", ".join(shown[:-1]) + (" and " if len(shown) > 1 else "") + shown[-1] if shown else "none"
