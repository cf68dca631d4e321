"""From checked results to what the templates show: plots, sentences and short tables, still without any HTML."""

import inspect
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

from whorl.calibration import Calibration, shipped
from whorl.errors import UsageError
from whorl.registry import method as method_of
from whorl.reports.clustermap import Clustermap, clustermap
from whorl.reports.comparison_page import ComparisonView, comparison_view
from whorl.reports.derivation_page import DerivationView, derivation_view
from whorl.reports.identification_page import IdentificationView, identification_view
from whorl.reports.identity_page import IdentityView, identity_view
from whorl.reports.lineages import Lineage, Separation, letters, separation
from whorl.reports.rug import Rug, rug
from whorl.reports.shown import number
from whorl.reports.stored import Stored
from whorl.reports.stored_comparison import StoredComparison
from whorl.reports.stored_identification import StoredIdentification
from whorl.reports.stored_survey import StoredPair, StoredSurvey, StoredTable, StoredWarning
from whorl.reports.stored_transcripts import StoredDerivation, StoredIdentity
from whorl.reports.stored_tree import StoredLineage
from whorl.reports.stored_verification import StoredVerification
from whorl.reports.tree_page import TreeView, tree_view
from whorl.reports.verdict_words import EXACT
from whorl.reports.verification_page import VerificationView, verification_view
from whorl.reports.words import separation_words, survey_summary

N_COLOURS = 8


@dataclass(frozen=True)
class TableView:
    """One method of a survey."""

    table: StoredTable
    short: str
    anchor: str
    picture: Clustermap
    sentences: tuple[str, ...]
    plot: Rug | None
    warnings: tuple[StoredWarning, ...]
    gaps: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Neighbour:
    """The nearest model by one method: names (several when tied), value, and whether it is kin (None: not known)."""

    names: tuple[str, ...]
    value: str
    kin: bool | None


@dataclass(frozen=True)
class Mark:
    """One lineage in the key: letter, colour class, group, how many models."""

    letter: str
    colour: str
    group: str
    count: int


@dataclass(frozen=True)
class SurveyView:
    """Many models."""

    result: StoredSurvey
    found: str
    rate: str
    related: tuple[StoredPair, ...]
    tables: tuple[TableView, ...]
    neighbours: tuple[tuple[str, tuple[Neighbour | None, ...]], ...]
    lineages: Mapping[str, Lineage]
    key: tuple[Mark, ...]
    kind: str = "survey"

    @property
    def title(self) -> str:
        """How many models."""
        return f"{len(self.result.models)} models, {len(self.result.pairs)} pairs"

    def name(self, at: int) -> str:
        """The name of a model by position."""
        return self.result.models[at].name

    def kin(self, a: int, b: int) -> bool | None:
        """Whether two models are of one lineage; None when that is not known."""
        return _kin(self.name(a), self.name(b), self.lineages)


@dataclass(frozen=True)
class MethodView:
    """What a method does, in the words of its own source file."""

    name: str
    anchor: str
    paper: str
    paragraphs: tuple[str, ...]


View = ComparisonView | IdentificationView | SurveyView | TreeView | IdentityView | DerivationView | VerificationView
TEST_MODULES = {
    StoredIdentity: ("whorl.identity.identity", "whorl.identity.permutation", "whorl.identity.power"),
    StoredDerivation: ("whorl.derivation.levels", "whorl.derivation.signflip", "whorl.derivation.judgement"),
    StoredVerification: ("whorl.triggers.nulls", "whorl.triggers.verdict", "whorl.triggers.sequential"),
}
"""Where the tests on outputs are written down; each module is one entry under "The methods"."""


def short_name(method: str) -> str:
    """The method without version and parameters."""
    return method.partition("@")[0]


def _anchors(methods: Iterable[str]) -> dict[str, str]:
    """A target inside the page for each method; names of foreign files never become targets."""
    return {m: f"method-{i}" for i, m in enumerate(dict.fromkeys(methods), 1)}


def views(
    results: Sequence[Stored], truth: Mapping[str, Lineage], calibrations: Sequence[Calibration] | None = None
) -> tuple[tuple[View, ...], tuple[MethodView, ...]]:
    """All sections of the page, and the methods they mention.

    Args:
        results: Checked results.
        truth: Known lineages by model name.
        calibrations: Where the values behind a plot are looked up; None for those in the package.
    """
    anchors = _anchors(name for r in results for name in _methods(r))
    known = shipped() if calibrations is None else calibrations
    sections = tuple(_view(r, anchors, truth, known) for r in results)
    tests = dict.fromkeys(
        m
        for r in results
        if isinstance(r, StoredIdentity | StoredDerivation | StoredVerification)
        for m in TEST_MODULES[type(r)]
    )
    methods = [_method(name, anchor) for name, anchor in anchors.items()]
    return sections, (*methods, *(_test(module, f"test-{i}") for i, module in enumerate(tests, 1)))


def _view(
    result: Stored, anchors: Mapping[str, str], truth: Mapping[str, Lineage], calibrations: Sequence[Calibration]
) -> View:
    if isinstance(result, StoredComparison):
        return comparison_view(result, anchors, calibrations)
    if isinstance(result, StoredIdentification):
        return identification_view(result, anchors, calibrations)
    if isinstance(result, StoredLineage):
        return tree_view(result)
    if isinstance(result, StoredIdentity):
        return identity_view(result)
    if isinstance(result, StoredDerivation):
        return derivation_view(result)
    if isinstance(result, StoredVerification):
        return verification_view(result)
    return _survey(result, anchors, truth)


def _methods(result: Stored) -> list[str]:
    if isinstance(result, StoredComparison):
        return [e.method for e in result.evidence]
    if isinstance(result, StoredIdentification):
        return [e.method for c in result.candidates for e in c.evidence]
    if isinstance(result, StoredLineage):
        return result.config.methods
    return [t.method for t in result.tables] if isinstance(result, StoredSurvey) else []


def _method(name: str, anchor: str) -> MethodView:
    try:
        kind = type(method_of(name))
    except UsageError:
        return MethodView(name, anchor, "", ("This method is not installed where the report was made.",))
    return MethodView(name, anchor, kind.paper, _paragraphs(sys.modules[kind.__module__]))


def _test(module: str, anchor: str) -> MethodView:
    return MethodView(module.removeprefix("whorl."), anchor, "", _paragraphs(import_module(module)))


def _paragraphs(module: ModuleType) -> tuple[str, ...]:
    text = inspect.getdoc(module) or ""
    return tuple(" ".join(p.split()).replace("`", "") for p in text.split("\n\n"))


def _survey(result: StoredSurvey, anchors: Mapping[str, str], truth: Mapping[str, Lineage]) -> SurveyView:
    names = [m.name for m in result.models]
    known = {name: truth[name] for name in names if name in truth}
    key = _key(known)
    marks = {m.group: (m.letter, m.colour) for m in key}
    found, rate = survey_summary(result)
    return SurveyView(
        result=result,
        found=found,
        rate=rate,
        related=tuple(p for p in result.pairs if p.relation in EXACT or p.verdict != "undecided"),
        tables=tuple(_table(t, result, names, anchors, known, marks) for t in result.tables),
        neighbours=tuple(
            (name, tuple(_nearest(t, i, names, known) for t in result.tables)) for i, name in enumerate(names)
        ),
        lineages=known,
        key=key,
    )


def _key(lineages: Mapping[str, Lineage]) -> tuple[Mark, ...]:
    """Lineages with several models take the colours in order of appearance; the others have a letter only."""
    counts: dict[str, int] = {}
    for lineage in lineages.values():
        counts[lineage.group] = counts.get(lineage.group, 0) + 1
    several = [group for group, n in counts.items() if n > 1]
    colours = {group: f"mark{i}" for i, group in enumerate(several[:N_COLOURS], 1)}
    return tuple(
        Mark(letter, colours.get(group, "mark0"), group, counts[group]) for group, letter in letters(lineages).items()
    )


def _table(
    table: StoredTable,
    result: StoredSurvey,
    names: Sequence[str],
    anchors: Mapping[str, str],
    lineages: Mapping[str, Lineage],
    marks: Mapping[str, tuple[str, str]],
) -> TableView:
    reasons = {(p.a, p.b): p.not_comparable[table.method] for p in result.pairs if table.method in p.not_comparable}
    short = short_name(table.method)
    apart = separation(table.values, names, lineages, larger_is_closer=table.direction == "similarity")
    counted: dict[str, int] = {}
    for why in reasons.values():
        counted[why] = counted.get(why, 0) + 1
    sentences = () if apart is None else tuple(separation_words(apart, names, f"{short} {table.direction}"))
    return TableView(
        table=table,
        short=short,
        anchor=anchors[table.method],
        picture=clustermap(table, names, reasons, lineages, marks),
        sentences=sentences,
        plot=_values_plot(table, short, apart, sentences),
        warnings=tuple(w for w in result.warnings if w.method == table.method),
        gaps=tuple(counted.items()),
    )


def _values_plot(table: StoredTable, short: str, apart: Separation | None, sentences: Sequence[str]) -> Rug | None:
    if apart is not None:
        groups = (("one lineage", apart.kin.all), ("different lineages", apart.strangers.all))
        return rug(groups, f"{short}: values of pairs of kin and of strangers. {sentences[0]}")
    values = [v for i, row in enumerate(table.values) for v in row[:i] if v is not None]
    if len(values) < 2:
        return None
    return rug(
        (("all pairs", values),), f"{short}: {len(values)} values from {number(min(values))} to {number(max(values))}."
    )


def _nearest(table: StoredTable, at: int, names: Sequence[str], lineages: Mapping[str, Lineage]) -> Neighbour | None:
    found = [(v, j) for j, v in enumerate(table.values[at]) if v is not None]
    if not found:
        return None
    best = (max if table.direction == "similarity" else min)(v for v, _ in found)
    nearest = [names[j] for v, j in found if v == best]
    kin = [_kin(names[at], name, lineages) for name in nearest]
    return Neighbour(tuple(nearest), number(best), None if None in kin else any(kin))


def _kin(a: str, b: str, lineages: Mapping[str, Lineage]) -> bool | None:
    if a not in lineages or b not in lineages:
        return None
    return lineages[a].group == lineages[b].group


def origins(result: Any) -> list[tuple[str, str]]:
    """Versions the result depends on, in fixed order."""
    return sorted({"whorl": result.whorl_version, **result.environment}.items())
