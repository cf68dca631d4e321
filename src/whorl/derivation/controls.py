"""Who may stand where: reference, suspect, controls outside the reference's lineage, planted derivatives inside it (ours).

A model that stands in two places would be its own evidence (LLM-DNA, arXiv 2509.24496: 10-15 equal pairs in train and test
of every split), so every model stands once, and controls share no lineage with reference, suspect or planted derivatives.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from whorl.errors import UsageError, safe_name
from whorl.transcripts.record import ModelId, Transcript

Role = Literal["reference", "suspect", "control", "planted"]
_DIGEST = re.compile(r"[0-9a-f]{40,64}")


@dataclass(frozen=True)
class Party:
    """One model of a test.

    Args:
        role: Where it stands.
        label: How the test calls it.
        model: Who answered.
        lineage: Its lineage; of a control without one, its own label.
        records: Its answers.
    """

    role: Role
    label: str
    model: ModelId
    lineage: str
    records: tuple[Transcript, ...]

    @property
    def name(self) -> str:
        """Role and label, as the table of answers and its messages call it."""
        return f"{self.role} {self.label}"

    def under_its_name(self, records: Iterable[Transcript]) -> Iterator[Transcript]:
        """Some of its answers under its name, so that two revisions of one reference stay apart in a table."""
        model = ModelId(self.name)
        return (replace(record, model=model) for record in records)


@dataclass(frozen=True)
class Parties:
    """All models of a test, each once."""

    reference: Party
    suspect: Party
    controls: tuple[Party, ...]
    planted: tuple[Party, ...]

    @property
    def others(self) -> tuple[Party, ...]:
        """Suspect, planted derivatives, controls: everything that is compared with the reference."""
        return (self.suspect, *self.planted, *self.controls)

    @property
    def all(self) -> tuple[Party, ...]:
        """Everything, the reference first."""
        return (self.reference, *self.others)


def parties(
    reference: Iterable[Transcript],
    suspect: Iterable[Transcript],
    controls: Mapping[str, Iterable[Transcript]],
    planted: Mapping[str, Iterable[Transcript]],
    lineages: Mapping[str, str],
) -> Parties:
    """Sort answers by where their models stand, and refuse a model that stands twice.

    Args:
        reference: Answers of one model, A.
        suspect: Answers of one model, B.
        controls: Label -> answers of one model outside A's lineage.
        planted: Label -> answers of one known derivative of A.
        lineages: Label -> lineage, for controls and planted derivatives; A and B by their model's reference.

    Raises:
        UsageError: answers of none or of several models in one place; one model, or one lineage, in two places.
    """
    a, b = _party("reference", None, reference, lineages), _party("suspect", None, suspect, lineages)
    outside = tuple(_party("control", label, records, lineages) for label, records in controls.items())
    inside = tuple(_party("planted", label, records, lineages) for label, records in planted.items())
    found = Parties(a, b, outside, inside)
    require_once(found.all)
    _require_disjoint(found, set(lineages))
    return found


def check_lineages(lineages: Mapping[str, str], among: Iterable[Party]) -> None:
    """Refuse a lineage of a model that is not there: a typing error would make a control its own lineage.

    Raises:
        UsageError: names the model.
    """
    unknown = sorted(set(lineages) - {party.label for party in among})
    if unknown:
        raise UsageError(f"The lineages name '{safe_name(unknown[0])}', which is no model of this test.")


def check_runs(runs: Mapping[str, str], planted: Iterable[Party]) -> None:
    """Refuse a run of a planted derivative that is not there: a typing error would make another a run of its own.

    Raises:
        UsageError: names the label.
    """
    unknown = sorted(set(runs) - {party.label for party in planted})
    if unknown:
        raise UsageError(f"The runs name '{safe_name(unknown[0])}', which is no planted derivative of this test.")


def _party(role: Role, label: str | None, records: Iterable[Transcript], known: Mapping[str, str]) -> Party:
    kept = tuple(records)
    what = role if label is None else f"{role} '{safe_name(label)}'"
    if not kept:
        raise UsageError(f"The {what} has no transcripts.")
    others = {record.model.key: record.model for record in kept}
    if len(others) > 1:
        first, second = (safe_name(model.ref) for model in list(others.values())[:2])
        raise UsageError(f"The {what} holds answers of {len(others)} models, '{first}' and '{second}'; give one.")
    model = kept[0].model
    label = model.ref if label is None else label
    return Party(role, label, model, known.get(label, label), kept)


def require_once(among: Iterable[Party]) -> None:
    """Every pair (A, X) once, in either order: by model key, and by digest where two names hold the same weights.

    Raises:
        UsageError: one model stands in two places; names both, and a record of each.
    """
    where: dict[str, Party] = {}
    for party in among:
        revision = party.model.revision or ""
        marks = [
            party.model.key,
            f"{revision} {party.model.precision}" if _DIGEST.fullmatch(revision) else party.model.key,
        ]
        for mark in dict.fromkeys(marks):
            other = where.setdefault(mark, party)
            if other is not party:
                raise UsageError(
                    f"One model stands in two places, as {_place(other)} and as {_place(party)}: a pair may be seen once, "
                    f"in either order. Records {other.records[0].id[:16]} and {party.records[0].id[:16]}; give one of them."
                )


def _require_disjoint(found: Parties, known: set[str]) -> None:
    """No control shares a lineage with anything else, and planted derivatives are of the reference's."""
    for control in found.controls:
        for other in (found.reference, found.suspect, *found.planted):
            if control.lineage == other.lineage:
                raise UsageError(
                    f"{_place(control)} and {_place(other)} are of one lineage, '{safe_name(control.lineage)}'; controls are "
                    f"models outside it. Records {control.records[0].id[:16]} and {other.records[0].id[:16]}; leave it out."
                )
    for party in found.planted:
        if party.label in known and found.reference.label in known and party.lineage != found.reference.lineage:
            raise UsageError(
                f"{_place(party)} is of lineage '{safe_name(party.lineage)}' and no derivative of {_place(found.reference)}."
            )


def _place(party: Party) -> str:
    return f"{party.role} '{safe_name(party.label)}'"
