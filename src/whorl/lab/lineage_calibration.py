"""Build the calibration of a class of models: disjoint pairs of lineages, and known derivatives of every kind (ours).

The models come from `lineage_plans.calibration_plans`; lineage 2k is paired with 2k + 1. In each condition the second
model of a pair gets the edit that the condition allows (fewer layers, fewer neurons, ...), so that strangers are looked
at just as a suspect would be. Where a condition has several edits, the closest counts for the pair: the search is in the
null. Everything is measured with and without token strings.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from whorl._atomic import write_text
from whorl.calibration import CLASS_FIELDS, Calibration, Condition, Derived, Scores, to_dict
from whorl.canonical.roles import ModelShape
from whorl.comparison import measure
from whorl.fingerprints import Fingerprint
from whorl.lab._jobs import Row, run_jobs
from whorl.lab.lineage_models import FINGERPRINTS, side
from whorl.lab.lineage_plans import DERIVED, N_CALIBRATION, calibration_plans
from whorl.lab.lineage_set import edits_of
from whorl.lab.zoo import build_zoo
from whorl.method import Outcome
from whorl.progress import Progress, silent
from whorl.registry import pair_methods, resolve

DIGITS = 6
SAME = "same shape"
# condition -> edits of the second model that it stands for; no edit is the model itself
CONDITIONS: Mapping[str, tuple[str, ...]] = {
    SAME: ("",),
    "other number of layers": ("dropped", "duplicated", "inserted"),
    "fewer MLP neurons": ("neurons-pruned",),
    "fewer heads": ("heads-pruned",),
    "smaller width": ("width-pruned",),
}
CHILDREN = ("tuned", "long")  # that were edited after they had been trained
# kinds of derivative of the same shape; those of the other conditions are their edits
SAME_SHAPE_KINDS = (
    "disguised", "pruned-60", "pruned-2-4", "int8", "int4", "topics", "long", "lora", "merged", "tuned-disguised",
)  # fmt: skip


@dataclass(frozen=True)
class Roots:
    """What is measured.

    Args:
        folder: Folder of all models: `<root>`, and `<root>-<kind>` for its derivatives.
        names: Roots in order; neighbours are paired off.
    """

    folder: Path
    names: tuple[str, ...]

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Disjoint pairs of lineages."""
        return tuple(zip(self.names[::2], self.names[1::2], strict=True))

    def has(self, name: str) -> bool:
        """Whether a model is there."""
        return (self.folder / name).is_dir()


def build(folder: Path, progress: Progress = silent) -> Roots:
    """Train the lineages (hours on two cores; goes on where it stopped) and make their edits.

    Trained derivatives exist for 22 lineages, edits that change the shape for the second model of every pair, and those
    that keep it for every second pair.
    """
    build_zoo(folder, plans=calibration_plans(), progress=progress)
    roots = Roots(folder, tuple(f"cal-{i:03d}" for i in range(N_CALIBRATION)))
    edits = [edit for edits in CONDITIONS.values() for edit in edits if edit]
    for at, name in enumerate(roots.names):
        progress("edits", at, len(roots.names))
        trained = at in DERIVED
        trained_as = {"tuned": "topics", "other": "long", "long": "long", "lora": "lora"}
        children = {key: folder / f"{name}-{kind}" for key, kind in trained_as.items()}
        kept = at % 4 == 0 or trained
        only = [*(edits if at % 2 or trained else ()), *(SAME_SHAPE_KINDS if kept else ()), *_trained_then(edits)]
        edits_of(folder / name, folder, at, children if trained else None, only)
    progress("edits", len(roots.names), len(roots.names))
    return roots


def keys_of(roots: Roots) -> list[str]:
    """All measurements: `a|b|tokens` for the models in the folder."""
    keys = []
    for tokens in ("1", "0"):
        for a, b in roots.pairs:
            keys += [f"{a}|{_named(b, edit)}|{tokens}" for edits in CONDITIONS.values() for edit in edits]
        for root in roots.names:
            keys += [f"{root}|{_named(root, kind)}|{tokens}" for kind in _all_kinds()]
    return [key for key in dict.fromkeys(keys) if roots.has(key.split("|")[1])]


def _all_kinds() -> list[str]:
    edits = [edit for edits in CONDITIONS.values() for edit in edits if edit]
    return [*SAME_SHAPE_KINDS, *edits, *_trained_then(edits)]


def _trained_then(edits: Sequence[str]) -> list[str]:
    """Kinds that were trained first and edited then; those that were not made are left out when they are looked for."""
    return [f"{child}-{edit}" for child in CHILDREN for edit in edits]


def _named(root: str, kind: str) -> str:
    return f"{root}-{kind}" if kind else root


def measure_pair(folder: Path, key: str) -> Row:
    """One measurement: the value of every method, None where it is not comparable.

    Methods on stored values do not see tokens; without token strings only the pairwise ones are measured.
    """
    a, b, tokens = key.split("|")
    methods = resolve(None) if tokens == "1" else pair_methods(None)
    with side(folder / a, tokens=tokens == "1") as one, side(folder / b, tokens=tokens == "1") as other:
        found, _ = measure(one, other, methods)
    return {"values": {name: round(x.value, DIGITS) if isinstance(x, Outcome) else None for name, x in found.items()}}


def calibrate(roots: Roots, recipe: Mapping[str, Any], name: str, progress: Progress = silent) -> Calibration:
    """Measure all pairs (resumable, on all cores) and put the calibration together.

    Args:
        roots: The models.
        recipe: How the roots were trained, for the record.
        name: First part of the id.
        progress: Called with "pairs" and their count.
    """
    path = roots.folder / "pairs.jsonl"
    rows = _complete(run_jobs(keys_of(roots), partial(measure_pair, roots.folder), path, "pairs", progress))
    base = _fingerprint(roots, roots.names[0])
    conditions = [
        _condition(roots, rows, base.shape, condition, vocabulary=vocabulary)
        for vocabulary in (True, False)
        for condition in CONDITIONS
    ]
    members = {root: _fingerprint(roots, root).weights_digest for root in roots.names}
    present = tuple(c for c in conditions if c is not None)
    return Calibration(_identity(name, members), base.shape, members, recipe, present, base.environment)


def _complete(rows: Mapping[str, Row]) -> dict[str, Row]:
    """Rows without token strings get what does not depend on tokens from their twins."""
    return {
        key: row if key.endswith("|1") else {"values": {**rows[f"{key[:-1]}1"]["values"], **row["values"]}}
        for key, row in rows.items()
    }


def save(calibration: Calibration, path: Path) -> Path:
    """Write the JSON form, atomically."""
    return write_text(path, json.dumps(to_dict(calibration), allow_nan=False, separators=(",", ":")) + "\n")


def _fingerprint(roots: Roots, name: str) -> Fingerprint:
    return Fingerprint.load(roots.folder / FINGERPRINTS / f"{name}.json")


def _identity(name: str, members: Mapping[str, str]) -> str:
    import hashlib

    return f"{name}-{hashlib.sha256(''.join(members.values()).encode()).hexdigest()[:12]}"


def _condition(
    roots: Roots, rows: Mapping[str, Row], base: ModelShape, name: str, *, vocabulary: bool
) -> Condition | None:
    """One condition, None where no pair of it was made."""
    edits = CONDITIONS[name]
    if not all(roots.has(_named(b, edit)) for _, b in roots.pairs for edit in edits):
        return None
    tokens = "1" if vocabulary else "0"
    kinds = SAME_SHAPE_KINDS if name == SAME else (*edits, *_trained_then(edits))
    methods = resolve(None)
    scores = {}
    for m in methods:
        closest = max if m.direction == "similarity" else min
        unrelated = [
            _closest([rows[f"{a}|{_named(b, edit)}|{tokens}"]["values"][m.canonical_name] for edit in edits], closest)
            for a, b in roots.pairs
        ]
        derived = {kind: _derived(roots, rows, kind, tokens, m.canonical_name) for kind in kinds}
        scores[m.canonical_name] = Scores(tuple(unrelated), {k: d for k, d in derived.items() if d.lineages})
    words = name if vocabulary else f"{name}, no token strings in common"
    return Condition(words, vocabulary, _ranges(roots, base, edits), scores)


def _closest(values: Sequence[float | None], choose: Any) -> float | None:
    comparable = [v for v in values if v is not None]
    return choose(comparable) if comparable else None


def _derived(roots: Roots, rows: Mapping[str, Row], kind: str, tokens: str, method: str) -> Derived:
    """Each lineage's derivative of one kind against its root."""
    lineages = tuple(root for root in roots.names if roots.has(_named(root, kind)))
    return Derived(lineages, tuple(rows[f"{r}|{_named(r, kind)}|{tokens}"]["values"][method] for r in lineages))


def _ranges(roots: Roots, base: ModelShape, edits: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Shape fields that the edits change, from the smallest to the largest value that occurs."""
    shapes = [_fingerprint(roots, _named(b, edit)).shape for _, b in roots.pairs for edit in edits]
    found = {}
    for name in CLASS_FIELDS:
        values = {getattr(shape, name) for shape in shapes}
        if values != {getattr(base, name)}:
            found[name] = (min(values), max(values))
    return found
