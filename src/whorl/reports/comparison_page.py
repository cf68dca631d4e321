"""From one checked comparison to what its template shows, in reading order; still without any HTML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from whorl.calibration import Calibration
from whorl.reports import verdict_words as words
from whorl.reports.layer_plots import LayerLinks, LayerMap, LayerStrip, layer_links, layer_map, layer_strip
from whorl.reports.place_plot import PlacePlot, place_plot
from whorl.reports.shown import number, p_text, short_refs
from whorl.reports.stored_comparison import StoredComparison, StoredEvidence


@dataclass(frozen=True)
class EvidenceView:
    """One row of the evidence table, and its place among unrelated pairs when the calibration is at hand."""

    evidence: StoredEvidence
    short: str
    anchor: str
    value: str
    threshold: str
    p: str
    decided: bool
    plot: PlacePlot | None

    @property
    def kind(self) -> str:
        """The kind of its p-value in words."""
        return words.P_KINDS.get(self.evidence.p_kind or "", "")


@dataclass(frozen=True)
class LayersView:
    """The layers: frame in words, map, strip of matched layers, lost layers."""

    frame: str
    map: LayerMap | None
    strip: LayerStrip | None
    links: LayerLinks | None


@dataclass(frozen=True)
class ComparisonView:
    """One pair."""

    result: StoredComparison
    symbol: str
    rate: tuple[str, ...]
    calibrated: str
    relation: str
    direction: str
    evidence: tuple[EvidenceView, ...]
    refused: tuple[EvidenceView, ...]
    main: EvidenceView | None
    others: tuple[EvidenceView, ...]
    layers: LayersView
    kinds: tuple[words.KindRow, ...]
    excludes: str
    kind: str = "comparison"

    @property
    def title(self) -> str:
        """The two models in short."""
        return " | ".join(short_refs([m.typed for m in self.result.models]))


def comparison_view(
    result: StoredComparison, anchors: Mapping[str, str], calibrations: Sequence[Calibration]
) -> ComparisonView:
    """The view of one pair.

    Args:
        result: Checked.
        anchors: Targets inside the page by canonical method name.
        calibrations: Where the values behind a plot are looked up.
    """
    seen = tuple(evidence_view(e, result.decided_by, anchors, calibrations) for e in result.evidence)
    primary = words.primary(result.evidence)
    placed = [e for e in seen if e.evidence.place is not None]
    main = next((e for e in placed if e.evidence is primary), None)
    return ComparisonView(
        result=result,
        symbol=words.SYMBOLS[result.verdict],
        rate=words.error_rate(result),
        calibrated=words.class_words(result),
        relation=words.relation_words(result),
        direction=words.direction_words(result),
        evidence=tuple(e for e in seen if e.evidence.comparable),
        refused=tuple(e for e in seen if not e.evidence.comparable),
        main=main,
        others=tuple(e for e in placed if e is not main),
        layers=_layers(result),
        kinds=() if primary is None else words.kind_rows(result, primary),
        excludes=words.excludes(result),
    )


def evidence_view(
    e: StoredEvidence, decided_by: Sequence[str], anchors: Mapping[str, str], calibrations: Sequence[Calibration]
) -> EvidenceView:
    """One row of evidence, with its plot where the values are at hand."""
    return EvidenceView(
        evidence=e,
        short=e.short,
        anchor=anchors[e.method],
        value=number(e.value),
        threshold="" if e.threshold is None else f"{'>' if e.similarity is not None else '<'} {number(e.threshold)}",
        p="" if e.p_value is None else p_text(e.p_value),
        decided=e.short in decided_by,
        plot=place_plot(e, calibrations),
    )


def _layers(result: StoredComparison) -> LayersView:
    found = result.alignment
    layers = result.layer_map or ()
    moved = layer_links(layers) if any(i != j for i, j in layers) else None
    if found is None:
        return LayersView(words.frame_words(result), None, None, moved)
    return LayersView(words.frame_words(result), layer_map(found), layer_strip(found), moved)
