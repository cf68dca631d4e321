"""Several candidate parents of one suspect: Holm's correction over their rank p-values (statistics.md 6)."""

from collections.abc import Mapping

from whorl.derivation.conclusion import Plan, conclude
from whorl.derivation.controls import check_lineages, check_runs, parties, require_once
from whorl.derivation.derivation import ALPHA, DELTA, Records, measure
from whorl.derivation.result import DerivationResult
from whorl.derivation.signflip import B
from whorl.errors import UsageError
from whorl.multiple import holm


def screen(
    candidates: Mapping[str, Records],
    suspect: Records,
    controls: Mapping[str, Records],
    *,
    lineages: Mapping[str, str] | None = None,
    planted: Mapping[str, Mapping[str, Records]] | None = None,
    runs: Mapping[str, str] | None = None,
    alpha: float = ALPHA,
    delta: float = DELTA,
    score: str = "first-word",
    b: int = B,
    mixed_decoding: bool = False,
    seed: int = 0,
) -> tuple[DerivationResult, ...]:
    """Judge each candidate parent of one suspect; the chance that any of them is wrongly called related is at most alpha.

    Args:
        candidates: Label -> answers of a candidate parent.
        suspect: Answers of B.
        controls: Label -> answers of a model outside the lineages of all candidates. K candidates need K/alpha - 1 lineages.
        lineages: Label -> lineage; candidates and B by the reference of their model.
        planted: Candidate -> label -> answers of a known derivative of it.
        runs: Label of a planted derivative -> the training run that made it; see `derivation_test`.
        alpha: Error rate of the whole screening.
        delta: As in `derivation_test`, like all that follow.
        score: What decides.
        b: Random sign flips.
        mixed_decoding: Compare answers of different decoding all the same.
        seed: Of the flips.

    Returns:
        One result a candidate, in the order given; `p_value` is corrected.

    Raises:
        UsageError: no candidate; otherwise as `derivation_test`.
    """
    if not candidates:
        raise UsageError("Screening needs at least one candidate parent.")
    plan = Plan(score, alpha, delta, b, seed, mixed_decoding, runs or {})
    mine, others = tuple(suspect), {label: tuple(records) for label, records in controls.items()}
    known, derived = lineages or {}, planted or {}
    tests = [parties(records, mine, others, derived.get(label, {}), known) for label, records in candidates.items()]
    require_once([found.reference for found in tests])
    check_lineages(known, [party for found in tests for party in found.all])
    check_runs(plan.runs, [party for found in tests for party in found.planted])
    measured = [measure(plan, found) for found in tests]
    scored = [m.p_model for m in measured if m.p_model is not None]
    corrected = iter(holm(scored, len(measured)))
    return tuple(conclude(plan, m, None if m.p_model is None else next(corrected), len(measured)) for m in measured)
