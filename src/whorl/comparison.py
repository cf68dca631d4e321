"""`compare`: do two models share an origin? Each method gives evidence; exact copies decide; the rest is calibrated.

A verdict is one of "related", "unrelated", "undecided". Exact relations (equal bytes, equal values, equal magnitudes in
another order, bit-equal matrices) decide. A method decides only where a calibration with enough independent lineages and
with known derivatives is in the package; in this release there is none, so its value and its rank p-value are shown and
the verdict stays "undecided". "Unrelated" needs measured power and is not given yet. A name, a config or its hash never
decides anything.
"""

import contextlib
import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from whorl import __version__
from whorl._atomic import write_text
from whorl._readers.open import OpenedModel, open_model
from whorl._threads import single_threaded
from whorl.calibration import Calibration, Place, find
from whorl.canonical.model import CanonicalModel
from whorl.errors import NotComparable, UsageError
from whorl.fingerprints import Fingerprint, say, scan
from whorl.lineage.exact import ExactFinding, same_bytes, same_values
from whorl.progress import Progress, silent
from whorl.registry import weight_methods
from whorl.weights.method import WeightMethod

SCHEMA = 1
ALPHA = 0.01
MAX_ALPHA = 0.05

NOT_SHOWN = (
    "Direction (which model came first) is not tested.",
    "Training on another model's outputs, or on the same data, leaves no exact trace and is not excluded.",
    "'Undecided' is not 'unrelated': the literature's descriptors overlap between kin and strangers of one recipe.",
)


@dataclass(frozen=True)
class Evidence:
    """What one method says about one pair.

    Args:
        method: Canonical name.
        comparable: False when a number would be meaningless; then `why` is the reason and all values are None.
        why: One sentence.
        similarity: Value of a similarity method, None for distances.
        distance: Value of a distance method, None for similarities.
        threshold: Calibrated threshold at alpha, None where the calibration cannot support one.
        p_value: In (0, 1], None without a calibration.
        p_kind: "rank" or None.
        verdict: "related", "unrelated" or "undecided".
        place: Where the value lies among unrelated pairs.
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
    variants: Mapping[str, float | None] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def value(self) -> float | None:
        """The similarity or the distance, whichever the method has."""
        return self.similarity if self.similarity is not None else self.distance

    def to_dict(self) -> dict[str, Any]:
        """JSON types; `place` with its percentile."""
        data = asdict(self)
        data["warnings"] = list(self.warnings)
        if self.place is not None:
            data["place"]["percentile"] = self.place.percentile
        return data


@dataclass(frozen=True)
class Comparison:
    """The verdict on one pair of models.

    Args:
        a: Fingerprint of the first model.
        b: Fingerprint of the second model.
        verdict: "related", "unrelated" or "undecided".
        relation: "identical", "re-laid-out", "shared tensors", or "undecided".
        why: One sentence.
        p_value: Smallest corrected p of the calibrated methods, None when there is none; exact relations need none.
        alpha: Error rate fixed before the data were read.
        evidence: One entry a method, in the order asked for.
        exact: What exact comparison found.
        skipped: What was left out, and why.
    """

    a: Fingerprint
    b: Fingerprint
    verdict: str
    relation: str
    why: str
    p_value: float | None
    alpha: float
    evidence: tuple[Evidence, ...]
    exact: ExactFinding
    skipped: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Exactly what `whorl compare --json` prints."""
        return {
            "schema": SCHEMA,
            "kind": "comparison",
            "status": "partial" if self.skipped else "done",
            "whorl_version": __version__,
            "verdict": self.verdict,
            "relation": self.relation,
            "why": self.why,
            "p_value": self.p_value,
            "alpha": self.alpha,
            "evidence": [e.to_dict() for e in self.evidence],
            "exact": {"relation": self.exact.relation, "why": self.exact.why, "shared": list(self.exact.shared)},
            "models": [model_dict(self.a), model_dict(self.b)],
            "skipped": list(self.skipped),
            "does_not_show": list(NOT_SHOWN),
            "environment": _environments(self.a, self.b),
            "config": {"methods": [e.method for e in self.evidence], "alpha": self.alpha},
        }

    def save(self, path: str | Path) -> Path:
        """Write as JSON, atomically."""
        return write_text(Path(path), json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")

    def __repr__(self) -> str:
        return f"<Comparison {self.a.resolved!r} {self.b.resolved!r}: {self.verdict} ({self.relation})>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td><code>{html.escape(e.method)}</code></td><td>{'–' if e.value is None else format(e.value, '.4f')}"
            f"</td><td>{html.escape(e.verdict if e.comparable else 'not comparable')}</td>"
            f"<td>{html.escape(e.why)}</td></tr>"
            for e in self.evidence
        )
        caption = f"<b>{html.escape(self.verdict)}</b> ({html.escape(self.relation)}): {html.escape(self.why)}"
        head = "<tr><th>method</th><th>value</th><th>verdict</th><th>why</th></tr>"
        return f"<table><caption>{caption}</caption>{head}{rows}</table>"


def _environments(a: Fingerprint, b: Fingerprint) -> dict[str, str]:
    """Versions behind both fingerprints; where they differ, both."""
    found = {}
    for key in sorted(a.environment.keys() | b.environment.keys()):
        values = {a.environment.get(key, "not recorded"), b.environment.get(key, "not recorded")}
        found[key] = " and ".join(sorted(values))
    return found


def model_dict(f: Fingerprint) -> dict[str, Any]:
    """A model as results show it: reference, digest and shape, without the values of its methods."""
    return {
        "typed": f.typed,
        "resolved": f.resolved,
        "commit": f.commit,
        "weights_digest": f.weights_digest,
        "shape": asdict(f.shape),
        "declared": dict(f.declared),
        "notes": list(f.notes),
    }


def compare(
    a: str | Fingerprint,
    b: str | Fingerprint,
    methods: Iterable[str | WeightMethod] | None = None,
    *,
    adapters: tuple[str | None, str | None] = (None, None),
    alpha: float = ALPHA,
    offline: bool = False,
    progress: Progress = silent,
) -> Comparison:
    """Compare two models, or stored fingerprints of them.

    Args:
        a: Reference (folder, file, Hub `org/name@revision`, `base+adapter`), path of a saved fingerprint (`.json`), or
            a `Fingerprint`.
        b: The other one.
        methods: Method names or instances; None for all (with stored fingerprints: all they hold).
        adapters: LoRA adapters to merge into `a` and `b`.
        alpha: Error rate of a "related" verdict, fixed before anything is read, in (0, 0.05].
        offline: Open no socket.
        progress: Called once per sublayer.

    Raises:
        UsageError: unknown method, alpha out of range, a stored fingerprint that lacks a method asked for.
        InputRefused: a file that must not or cannot be read.
    """
    check_alpha(alpha)
    chosen = common_methods((a, b)) if methods is None else weight_methods(methods)
    with contextlib.ExitStack() as stack:
        sides = [
            open_side(ref, chosen, adapter, offline, progress, stack)
            for ref, adapter in zip((a, b), adapters, strict=True)
        ]
        exact, skipped = exact_finding(sides[0], sides[1])
    return judge(sides[0].fingerprint, sides[1].fingerprint, chosen, exact, alpha, skipped)


def check_alpha(alpha: float) -> None:
    """Refuse an error rate that no verdict should rest on.

    Raises:
        UsageError: not in (0, 0.05].
    """
    if not 0 < alpha <= MAX_ALPHA:
        raise UsageError(f"alpha is an error rate above 0 and at most {MAX_ALPHA}, not {alpha}.")


@dataclass(frozen=True)
class Side:
    """One of two models: its fingerprint, and the open model unless only the fingerprint was given."""

    fingerprint: Fingerprint
    opened: OpenedModel | None


def open_side(
    ref: str | Fingerprint,
    methods: Sequence[WeightMethod],
    adapter: str | None,
    offline: bool,
    progress: Progress,
    stack: contextlib.ExitStack,
) -> Side:
    """Fingerprint a reference, keeping it open on `stack`; stored fingerprints are loaded and checked.

    Raises:
        UsageError: a stored fingerprint lacks one of the methods.
        InputRefused: as `whorl.fingerprint`.
    """
    if isinstance(ref, str) and ref.endswith(".json"):
        ref = Fingerprint.load(ref)
    if isinstance(ref, Fingerprint):
        missing = [m.canonical_name for m in methods if m.canonical_name not in ref.methods]
        if missing:
            raise UsageError(
                f"The stored fingerprint of '{ref.resolved}' lacks {missing[0]}: make it again from the model."
            )
        return Side(ref, None)
    opened = stack.enter_context(open_model(ref, adapter=adapter, offline=offline, progress=partial(say, progress)))
    return Side(scan(opened, methods, progress), opened)


def common_methods(refs: Sequence[str | Fingerprint]) -> tuple[WeightMethod, ...]:
    """All methods, or those that every stored fingerprint holds."""
    stored = [Fingerprint.load(r) if isinstance(r, str) and r.endswith(".json") else r for r in refs]
    held = [set(f.methods) for f in stored if isinstance(f, Fingerprint)]
    if not held:
        return weight_methods(None)
    common = set.intersection(*held)
    if not common:
        raise UsageError("The stored fingerprints have no method in common: make one of them again from the model.")
    return weight_methods(sorted(common))


def exact_finding(a: Side, b: Side) -> tuple[ExactFinding, tuple[str, ...]]:
    """Exact comparison as far as it can be made, and what had to be skipped."""
    found = same_bytes(a.fingerprint, b.fingerprint)
    if found.relation is not None:
        return found, ()
    if a.opened is None or b.opened is None:
        return found, ("exact comparison of values: a stored fingerprint holds no weights",)
    return same_values(CanonicalModel(a.opened.source), CanonicalModel(b.opened.source), found.shared), ()


def judge(
    a: Fingerprint,
    b: Fingerprint,
    methods: Iterable[WeightMethod],
    exact: ExactFinding,
    alpha: float = ALPHA,
    skipped: tuple[str, ...] = (),
) -> Comparison:
    """The verdict on two fingerprints: exact findings first, then calibrated evidence (no weights needed)."""
    calibration = find(a.shape, b.shape)
    chosen = tuple(methods)
    with single_threaded():
        evidence = _decided(tuple(_evidence(m, a, b, calibration) for m in chosen), alpha)
    related = [e.method for e in evidence if e.verdict == "related"]
    corrected = None if exact.relation is not None else _bonferroni(evidence)
    if exact.relation is not None:
        verdict, relation, why = "related", exact.relation, exact.why
    elif related:
        verdict, relation, why = "related", "undecided", f"p at most {alpha} after correction: {', '.join(related)}"
    else:
        verdict, relation, why = "undecided", "undecided", _undecided(evidence, calibration, exact, alpha, skipped)
    return Comparison(a, b, verdict, relation, why, corrected, alpha, evidence, exact, skipped)


def _evidence(method: WeightMethod, a: Fingerprint, b: Fingerprint, calibration: Calibration | None) -> Evidence:
    name = method.canonical_name
    try:
        outcome = method.compare(a.methods[name], b.methods[name], (a.shape, b.shape))
    except NotComparable as reason:
        return Evidence(method=name, comparable=False, why=str(reason))
    if not math.isfinite(outcome.value):
        raise RuntimeError(f"{name} returned {outcome.value}: a method must raise NotComparable instead")
    closer = method.direction == "similarity"
    place = None if calibration is None else calibration.place(method, a, b, outcome.value)
    return Evidence(
        method=name,
        comparable=True,
        why=f"{outcome.why}; {_placed(place)}",
        similarity=outcome.value if closer else None,
        distance=None if closer else outcome.value,
        p_value=None if place is None else place.p_value,
        p_kind=None if place is None else "rank",
        place=place,
        variants=outcome.variants,
        warnings=outcome.warnings,
    )


def _placed(place: Place | None) -> str:
    if place is None:
        return "uncalibrated: no unrelated models of this shape are in a calibration"
    less = place.pairs - place.pairs_at_least_as_close
    return (
        f"{less} of {place.pairs} calibration pairs of this shape are less close"
        f" ({place.lineages} lineages: p cannot be below {1 / (place.lineages + 1):.2g})"
    )


def _decided(evidence: tuple[Evidence, ...], alpha: float) -> tuple[Evidence, ...]:
    """Methods on one pair are dependent, so each p counts m-fold; and the value must look like a known derivative's."""
    m = sum(e.p_value is not None for e in evidence)
    return tuple(
        replace(e, verdict="related") if e.place is not None and _is_related(e.place, m, alpha) else e for e in evidence
    )


def _is_related(place: Place, m: int, alpha: float) -> bool:
    return m * place.p_value <= alpha and place.p_related is not None and place.p_related > alpha


def _bonferroni(evidence: Sequence[Evidence]) -> float | None:
    """min(1, m * smallest p) over the m methods with a p-value: methods on one pair are dependent."""
    found = [e.p_value for e in evidence if e.p_value is not None]
    return min(1.0, len(found) * min(found)) if found else None


def _undecided(
    evidence: Sequence[Evidence],
    calibration: Calibration | None,
    exact: ExactFinding,
    alpha: float,
    skipped: tuple[str, ...],
) -> str:
    looked = "exact comparison of values was skipped" if skipped else exact.why
    if not any(e.comparable for e in evidence):
        return f"{looked}; no method could compare the two models"
    placed = [e.place for e in evidence if e.place is not None]
    if calibration is None or not placed:
        return f"{looked}; no calibration covers models of this shape"
    if all(place.p_related is None for place in placed):
        return f"{looked}; the calibration of this shape holds no known derivatives, so values alone decide nothing"
    return f"{looked}; no corrected p-value is at most {alpha} with a value like that of known derivatives"
