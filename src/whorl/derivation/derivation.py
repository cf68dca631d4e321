"""`derivation_test`: does B derive from A, as far as outputs can tell (arXiv 2502.00706 with the nulls of outputs.md 5.2)?

    result = derivation_test(a, b, controls, lineages=lineages, planted=planted)
    result.verdict      # "related", "unrelated" or "undecided"

The paper compares an unpaired z-score of first-token agreement with controls and takes prompts as independent; here every
difference is paired, whole prompt groups are flipped, and the verdict follows the rank among models, not prompts. The score
that decides is chosen before the data are read; the others are shown beside it.
"""

from collections.abc import Iterable, Mapping

from whorl.derivation.alleles import allele_distance
from whorl.derivation.conclusion import Measured, Plan, conclude
from whorl.derivation.controls import Parties, check_lineages, check_runs, parties
from whorl.derivation.levels import closest, levels, rank_p
from whorl.derivation.result import DerivationResult, ScoreLine
from whorl.derivation.scores import ALLELES, SCORES, ScoreTable, Tables, score_table
from whorl.derivation.signflip import B
from whorl.errors import NotComparable, NotEnoughEvidence
from whorl.transcripts.record import Transcript

ALPHA = 0.01
DELTA = 0.02

Records = Iterable[Transcript]


def derivation_test(
    reference: Records,
    suspect: Records,
    controls: Mapping[str, Records],
    *,
    lineages: Mapping[str, str] | None = None,
    planted: Mapping[str, Records] | None = None,
    runs: Mapping[str, str] | None = None,
    alpha: float = ALPHA,
    delta: float = DELTA,
    score: str = "first-word",
    b: int = B,
    mixed_decoding: bool = False,
    seed: int = 0,
) -> DerivationResult:
    """Judge whether B derives from A by what both say to the same prompts.

    Args:
        reference: Answers of A.
        suspect: Answers of B.
        controls: Label -> answers of a model outside A's lineage, as like B as can be. 19 lineages are needed for an alpha of
            0.05, 99 for 0.01.
        lineages: Label -> lineage; A and B by the reference of their model. Controls of one lineage count once.
        planted: Label -> answers of a known derivative of A; "unrelated" needs 29 of 29 found.
        runs: Label of a planted derivative -> the training run that made it, where several are of one run: such count once,
            and only if all are found.
        alpha: Error rate, fixed before the data are read, in (0, 0.05].
        delta: Smallest lead over the controls that matters, in units of the score.
        score: What decides: "first-word", "first-4" (of greedy answers) or "alleles" (of repeated draws).
        b: Random sign flips.
        mixed_decoding: Compare answers of different decoding all the same.
        seed: Of the flips.

    Raises:
        UsageError: an unknown score or rate out of range; a model or a lineage in two places; mixed decoding.
        NotEnoughEvidence: the models did not answer the same prompts.
    """
    plan = Plan(score, alpha, delta, b, seed, mixed_decoding, runs or {})
    found = parties(reference, suspect, controls, planted or {}, lineages or {})
    check_lineages(lineages or {}, found.all)
    check_runs(plan.runs, found.planted)
    measured = measure(plan, found)
    return conclude(plan, measured, measured.p_model, 1)


def measure(plan: Plan, found: Parties) -> Measured:
    """Score all models, and rank suspect and planted derivatives among the controls.

    Raises:
        NotEnoughEvidence: the models did not answer the same prompts of the score that decides.
        UsageError: mixed decoding without the flag.
    """
    tables = Tables(found, mixed_decoding=plan.mixed_decoding)
    order = (plan.score, *(score for score in SCORES if score != plan.score))
    scored = {score: _table(score, tables, decides=score == plan.score) for score in order}
    lines = tuple(_line(score, scored[score], found, decides=score == plan.score) for score in order)
    main = scored[plan.score]
    if isinstance(main, str):
        return Measured(found, main, (), lines)
    at = 1 + len(found.planted)
    suspects, controls = main.values[:, :at], main.values[:, at:]
    lineages = [party.lineage for party in found.controls]
    ranked = levels(suspects, controls, main.groups, lineages, delta=plan.delta, b=plan.b, seed=plan.seed)
    return Measured(found, main, ranked, lines)


def _table(score: str, tables: Tables, *, decides: bool) -> ScoreTable | str:
    """The scores, or why there are none."""
    if not tables.parties.controls:
        return "there is no control, so nothing says how near strangers are"
    try:
        return score_table(score, tables)
    except NotComparable as reason:
        return str(reason)
    except NotEnoughEvidence as reason:
        if decides:
            raise
        return str(reason)


def _line(score: str, table: ScoreTable | str, found: Parties, *, decides: bool) -> ScoreLine:
    if isinstance(table, str):
        return ScoreLine(score, decides, table)
    similarity = table.values.mean(axis=0)
    value, outside = float(similarity[0]), similarity[1 + len(found.planted) :]
    return ScoreLine(
        score=score,
        decides=decides,
        similarity=value,
        distance=allele_distance(value) if score == ALLELES else None,
        closest=float(outside.max()),
        p_model=rank_p(value, closest(outside, [party.lineage for party in found.controls])),
        n_prompts=len(table.groups),
        n_groups=len(set(table.groups)),
        n_draws=table.n_draws,
    )
