"""From a checked answer of a gallery to what its template shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from whorl.calibration import Calibration
from whorl.reports.comparison_page import EvidenceView, evidence_view
from whorl.reports.shown import cut_name, short_refs
from whorl.reports.stored_identification import StoredCandidate, StoredIdentification
from whorl.reports.verdict_words import EXACT, SYMBOLS, primary

VERDICTS = {"found": "related", "none of these": "unrelated", "undecided": "undecided"}


@dataclass(frozen=True)
class CandidateView:
    """One entry, its mark, and the evidence of the primary method."""

    candidate: StoredCandidate
    symbol: str
    main: EvidenceView | None


@dataclass(frozen=True)
class IdentificationView:
    """One model against a gallery."""

    result: StoredIdentification
    verdict: str
    symbol: str
    answer: str
    rate: str
    candidates: tuple[CandidateView, ...]
    kind: str = "identification"

    @property
    def title(self) -> str:
        """The question."""
        return f"{short_refs([self.result.model.typed])[0]} among {self.result.gallery.entries} known models"


def identification_view(
    result: StoredIdentification, anchors: Mapping[str, str], calibrations: Sequence[Calibration]
) -> IdentificationView:
    """The view of one answer; arguments as for `comparison_view`."""
    verdict = VERDICTS[result.conclusion]
    best = "" if result.best is None else f": {cut_name(result.best, 80)}"
    return IdentificationView(
        result=result,
        verdict=verdict,
        symbol=SYMBOLS[verdict],
        answer=f"{result.conclusion}{best}",
        rate=_rate(result),
        candidates=tuple(_candidate(c, anchors, calibrations) for c in result.candidates),
    )


def _candidate(c: StoredCandidate, anchors: Mapping[str, str], calibrations: Sequence[Calibration]) -> CandidateView:
    main = primary(c.evidence)
    view = None if main is None else evidence_view(main, c.decided_by, anchors, calibrations)
    return CandidateView(c, SYMBOLS[c.verdict], view)


def _rate(result: StoredIdentification) -> str:
    best = next((c for c in result.candidates if c.name == result.best), None)
    if best is not None and best.exact.relation is not None:
        return EXACT[best.exact.relation]
    return (
        f"p-values are corrected over all {result.gallery.entries} entries so that at most {100 * result.config.q:g} % of "
        f"the entries called related are expected to be wrong (Benjamini and Yekutieli); {result.resolution.why}."
    )
