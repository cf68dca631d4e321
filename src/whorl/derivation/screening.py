"""Several candidate parents of one suspect: Holm's correction over their rank p-values (statistics.md 6)."""

from collections.abc import Mapping, Sequence

import numpy as np

from whorl.derivation.conclusion import Plan, conclude
from whorl.derivation.controls import check_lineages, parties, require_once
from whorl.derivation.derivation import ALPHA, DELTA, Records, measure
from whorl.derivation.result import DerivationResult
from whorl.derivation.signflip import B
from whorl.errors import UsageError


def screen(
    candidates: Mapping[str, Records],
    suspect: Records,
    controls: Mapping[str, Records],
    *,
    lineages: Mapping[str, str] | None = None,
    planted: Mapping[str, Mapping[str, Records]] | None = None,
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
    plan = Plan(score, alpha, delta, b, seed, mixed_decoding)
    mine, others = tuple(suspect), {label: tuple(records) for label, records in controls.items()}
    known, derived = lineages or {}, planted or {}
    tests = [parties(records, mine, others, derived.get(label, {}), known) for label, records in candidates.items()]
    require_once([found.reference for found in tests])
    check_lineages(known, [party for found in tests for party in found.all])
    measured = [measure(plan, found) for found in tests]
    scored = [m.p_model for m in measured if m.p_model is not None]
    corrected = iter(holm(scored, len(measured)))
    return tuple(conclude(plan, m, None if m.p_model is None else next(corrected), len(measured)) for m in measured)


def holm(p_values: Sequence[float], n_tests: int) -> list[float]:
    """Holm's step-down p-values (Scandinavian Journal of Statistics 6, 1979), any dependence.

    Args:
        p_values: In (0, 1].
        n_tests: How many hypotheses there are; those without a p-value count as 1.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    steps = p[order] * (n_tests - np.arange(p.size))
    found = np.empty(p.size)
    found[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(x) for x in found]
