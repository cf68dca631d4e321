"""`compare`: do two models share an origin, how, and which came first?

Exact relations (equal bytes, equal values, equal magnitudes in another order, bit-equal matrices) decide by themselves.
Then methods give evidence, a calibration says how unrelated models and known derivatives of this class compare, and
`whorl.verdict` decides with a stated error rate. A name, a config or its hash never decides anything.
"""

import contextlib
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from whorl import __version__
from whorl._atomic import write_text
from whorl._threads import single_threaded
from whorl.calibration import Calibration, Condition, find
from whorl.errors import NotComparable, UsageError
from whorl.evidence import Evidence, Measured, gather
from whorl.fingerprints import Fingerprint
from whorl.lineage.exact import ExactFinding
from whorl.lineage.relation import Relation, find_relation
from whorl.method import Method
from whorl.pairs.method import PairMethod
from whorl.pairs.pair import Pair
from whorl.pairs.run import PairResult, compare_pair
from whorl.progress import Progress, silent
from whorl.registry import pair_methods, resolve
from whorl.sides import Side, common_methods, exact_finding, open_side
from whorl.verdict import Decision, decide, level
from whorl.weights.method import WeightMethod

SCHEMA = 2
ALPHA = 0.01
MAX_ALPHA = 0.05

NOT_SHOWN = (
    "Training on another model's outputs (distillation), or on the same data, leaves no trace in weights: not excluded.",
    "'Related': weights share an origin, a common base, one made from the other, or one seed of initial weights.",
    "'Unrelated' excludes the listed kinds, as strong as they were made for the calibration.",
    "Longer training, several edits together and models of which parts were replaced are never excluded.",
    "A rank p holds for models trained like the calibration's: the class is recognised by shape, not by recipe.",
    "Relation and direction are given apart from the verdict, where they can be found, without an error rate.",
    "'Undecided' is not 'unrelated'.",
)


@dataclass(frozen=True)
class Comparison:
    """The verdict on one pair of models.

    Args:
        a: Fingerprint of the first model.
        b: Fingerprint of the second model.
        decision: Verdict, p-value, reasons, and the evidence of every method, in the order asked for.
        alpha: Error rate fixed before the data were read.
        exact: What exact comparison found.
        relation: How they are related and in which direction; None unless related and weights were at hand.
        pair: Frame and layer alignment, None when the weights of both were not at hand.
        covering: Calibration and condition that cover the pair, None when none does.
        seed: Of everything drawn.
        skipped: What was left out, and why.
    """

    a: Fingerprint
    b: Fingerprint
    decision: Decision
    alpha: float
    exact: ExactFinding
    relation_found: Relation | None = None
    pair: PairResult | None = None
    covering: tuple[Calibration, Condition] | None = None
    seed: int = 0
    skipped: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """One of "related", "unrelated" and "undecided"."""
        return "related" if self.exact.relation is not None else self.decision.verdict

    @property
    def relation(self) -> str:
        """How they are related ("identical", "fine-tuned", ...), "unrelated", or "undecided"."""
        if self.exact.relation in {"identical", "re-laid-out"}:
            return str(self.exact.relation)
        if self.verdict == "unrelated":
            return "unrelated"
        if self.relation_found is not None and self.relation_found.name != "undecided":
            return self.relation_found.name
        return self.exact.relation or "undecided"

    @property
    def why(self) -> str:
        """One sentence."""
        return self.exact.why if self.exact.relation is not None else self.decision.why

    @property
    def p_value(self) -> float | None:
        """Corrected p of the methods that may decide; None when there is none, and for exact relations."""
        return None if self.exact.relation is not None else self.decision.p_value

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        """One entry a method."""
        return self.decision.evidence

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
            "decided_by": list(self.decision.decided_by),
            "excluded": list(self.decision.excluded),
            "not_excluded": list(self.decision.not_excluded),
            "direction": _direction(self.relation_found),
            "facts": [] if self.relation_found is None else [_fact(f) for f in self.relation_found.facts],
            "layer_map": _layer_map(self.relation_found),
            "evidence": [e.to_dict() for e in self.evidence],
            "exact": {"relation": self.exact.relation, "why": self.exact.why, "shared": list(self.exact.shared)},
            "alignment": None if self.pair is None else _alignment(self.pair),
            "calibration": None if self.covering is None else _covering(*self.covering),
            "models": [model_dict(self.a), model_dict(self.b)],
            "skipped": list(self.skipped),
            "does_not_show": list(NOT_SHOWN),
            "environment": _environments(self.a, self.b),
            "config": {"methods": [e.method for e in self.evidence], "alpha": self.alpha, "seed": self.seed},
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


def _direction(relation: Relation | None) -> dict[str, Any] | None:
    return None if relation is None else asdict(relation.direction)


def _fact(fact: Any) -> dict[str, Any]:
    return {**asdict(fact), "numbers": dict(fact.numbers)}


def _layer_map(relation: Relation | None) -> list[list[int | None]] | None:
    if relation is None or relation.layer_map is None:
        return None
    return [list(pair) for pair in relation.layer_map]


def _alignment(pair: PairResult) -> dict[str, Any]:
    frame, alignment = pair.frame, pair.alignment
    return {
        "rung": None if frame is None else frame.rung,
        "n_tokens": None if frame is None else frame.n_tokens,
        "held_out": None if frame is None else frame.held_out,
        "why": pair.frame_why if frame is None else frame.why,
        "scores": None if alignment is None else [[round(float(x), 6) for x in row] for row in alignment.scores],
        "path": None if alignment is None else [list(p) for p in alignment.path.pairs],
        "layers": [[i, j, round(float(value), 6)] for i, j, value in pair.layers],
    }


def _covering(calibration: Calibration, condition: Condition) -> dict[str, Any]:
    return {"id": calibration.id, "condition": condition.name, "lineages": len(calibration.members)}


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
    methods: Iterable[str | Method] | None = None,
    *,
    adapters: tuple[str | None, str | None] = (None, None),
    alpha: float = ALPHA,
    seed: int = 0,
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
        seed: Of everything drawn: probes, splits of tokens, null draws.
        offline: Open no socket.
        progress: Called once per sublayer.

    Raises:
        UsageError: unknown method, alpha out of range, a stored fingerprint that lacks a method asked for.
        InputRefused: a file that must not or cannot be read.
    """
    check_alpha(alpha)
    chosen = (*common_methods((a, b)), *pair_methods(None)) if methods is None else resolve(methods)
    with contextlib.ExitStack() as stack:
        one, other = (
            open_side(ref, chosen, adapter, offline, progress, stack)
            for ref, adapter in zip((a, b), adapters, strict=True)
        )
        return compare_sides(one, other, chosen, alpha=alpha, seed=seed, progress=progress)


def check_alpha(alpha: float) -> None:
    """Refuse an error rate that no verdict should rest on.

    Raises:
        UsageError: not in (0, 0.05].
    """
    if not 0 < alpha <= MAX_ALPHA:
        raise UsageError(f"alpha is an error rate above 0 and at most {MAX_ALPHA}, not {alpha}.")


def compare_sides(
    a: Side,
    b: Side,
    methods: Sequence[Method],
    *,
    alpha: float = ALPHA,
    seed: int = 0,
    calibrations: tuple[Calibration, ...] | None = None,
    progress: Progress = silent,
) -> Comparison:
    """Compare two opened sides; `calibrations` stands in for those of the package."""
    exact, skipped = exact_finding(a, b)
    measured, pair = measure(a, b, methods, seed, progress)
    by_strings = pair is None or (pair.frame is not None and pair.frame.rung == 1)  # stored values do not depend on it
    covering = find(a.fingerprint.shape, b.fingerprint.shape, vocabulary=by_strings, among=calibrations)
    decision = _decide(methods, measured, covering, alpha)
    related = exact.relation is not None or decision.verdict == "related"
    relation = _relation(a, b, pair) if related else None
    return Comparison(a.fingerprint, b.fingerprint, decision, alpha, exact, relation, pair, covering, seed, skipped)


def measure(
    a: Side, b: Side, methods: Sequence[Method], seed: int = 0, progress: Progress = silent
) -> tuple[Measured, PairResult | None]:
    """Every method's outcome on a pair, without any judgement.

    Args:
        a: One side.
        b: The other.
        methods: Methods to run.
        seed: Of everything drawn.
        progress: Called once per matched layer.

    Returns:
        Outcome, or the reason why there is none, by canonical name; and what the pairwise methods shared.
    """
    pairwise = [m for m in methods if isinstance(m, PairMethod)]
    with single_threaded():
        found: dict[str, Any] = {
            m.canonical_name: _stored(m, a.fingerprint, b.fingerprint) for m in methods if isinstance(m, WeightMethod)
        }
    if a.model is None or b.model is None or not pairwise:
        why = "needs the weights of both models; only a stored fingerprint is at hand"
        return found | {m.canonical_name: why for m in pairwise}, None
    pair = Pair(a.model, b.model, (a.tokens.tokens, b.tokens.tokens), seed)
    result = compare_pair(pair, pairwise, progress)
    return found | dict(result.outcomes), result


def _stored(method: WeightMethod, a: Fingerprint, b: Fingerprint) -> Any:
    name = method.canonical_name
    try:
        return method.compare(a.methods[name], b.methods[name], (a.shape, b.shape))
    except NotComparable as reason:
        return str(reason)


def _decide(
    methods: Sequence[Method], measured: Measured, covering: tuple[Calibration, Condition] | None, alpha: float
) -> Decision:
    evidence = [gather(m, measured[m.canonical_name], covering, level(alpha)) for m in methods]
    return decide(evidence, alpha)


def _relation(a: Side, b: Side, pair: PairResult | None) -> Relation | None:
    if a.model is None or b.model is None:
        return None
    path = None if pair is None or pair.alignment is None else pair.alignment.path.pairs
    return find_relation(a.model, b.model, alignment_path=path, aligned=None if pair is None else pair.layers)


def judge(
    a: Fingerprint,
    b: Fingerprint,
    methods: Sequence[WeightMethod],
    exact: ExactFinding,
    alpha: float = ALPHA,
    skipped: tuple[str, ...] = (),
    calibrations: tuple[Calibration, ...] | None = None,
) -> Comparison:
    """The verdict on two fingerprints alone, by what they hold."""
    with single_threaded():
        measured: Mapping[str, Any] = {m.canonical_name: _stored(m, a, b) for m in methods}
    covering = find(a.shape, b.shape, vocabulary=True, among=calibrations)
    decision = _decide(methods, measured, covering, alpha)
    return Comparison(a, b, decision, alpha, exact, covering=covering, skipped=skipped)
