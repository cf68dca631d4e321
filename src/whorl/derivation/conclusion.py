"""From scores and ranks to the result: correction, power, verdict, and the record of every model."""

import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from whorl.derivation.controls import Parties, Party
from whorl.derivation.judgement import Judgement, Setting, judge
from whorl.derivation.levels import Levels
from whorl.derivation.power import Power, controls_needed, power
from whorl.derivation.result import DerivationResult, Found, Member, PromptCounts, ScoreLine
from whorl.derivation.scores import ALLELES, ScoreTable, check_score
from whorl.derivation.signflip import is_exact, mcnemar_p
from whorl.errors import UsageError, safe_name
from whorl.identity.draws import is_greedy

MAX_ALPHA = 0.05
EMPTY = 0.05  # share of empty answers worth a warning


@dataclass(frozen=True)
class Plan:
    """What is fixed before the data are read; fields as in `derivation_test`."""

    score: str
    alpha: float
    delta: float
    b: int
    seed: int
    mixed_decoding: bool
    runs: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_score(self.score)
        if not 0 < self.alpha <= MAX_ALPHA:
            raise UsageError(f"alpha is an error rate above 0 and at most {MAX_ALPHA}, not {self.alpha}.")
        if not 0 <= self.delta < 1:
            raise UsageError(f"delta is a difference of at least 0 and below 1, not {self.delta}.")
        if self.b * self.alpha < 1:
            raise UsageError(f"{self.b} flips give no p below {1 / (self.b + 1):.2g}; alpha is {self.alpha:g}.")


@dataclass(frozen=True)
class Measured:
    """One candidate parent and the suspect, before any judgement.

    Args:
        parties: All models.
        main: The score that decides, or why it could not be computed.
        ranked: Suspect and planted derivatives among the controls; empty when nothing could be scored.
        lines: Every score, the main one first.
    """

    parties: Parties
    main: ScoreTable | str
    ranked: tuple[Levels, ...]
    lines: tuple[ScoreLine, ...]

    @property
    def p_model(self) -> float | None:
        """Rank p of the suspect."""
        return self.ranked[0].p_model if self.ranked else None


def conclude(plan: Plan, measured: Measured, corrected: float | None, n_candidates: int) -> DerivationResult:
    """The result, once p_model is corrected for the parents tried.

    Args:
        plan: What was fixed beforehand.
        measured: One candidate parent.
        corrected: p_model after Holm's correction; None when nothing could be scored.
        n_candidates: Parents tried; planted derivatives are found at the strictest of Holm's steps.
    """
    level = plan.alpha / n_candidates
    lineages = {party.lineage for party in measured.parties.controls}
    needed, found = controls_needed(level), _power(plan, measured, level)
    main = measured.main
    n_groups = 0 if isinstance(main, str) else len(set(main.groups))
    setting = Setting(plan.alpha, plan.delta, len(lineages), needed, n_groups, n_candidates)
    suspect = measured.ranked[0] if measured.ranked else None
    if suspect is None or corrected is None:
        judgement = Judgement("undecided", "nothing could be scored", (f"{plan.score}: {main}",))
    else:
        judgement = judge(suspect, corrected, found, setting)
    return DerivationResult(
        verdict=judgement.verdict,
        why=judgement.why,
        missing=judgement.missing,
        p_value=corrected,
        alpha=plan.alpha,
        delta=plan.delta,
        similarity=None if suspect is None else suspect.similarity,
        p_prompt=None if suspect is None else suspect.p_prompt,
        p_prompt_kind=None if isinstance(main, str) else _kind(plan, main),
        p_model=None if suspect is None else suspect.p_model,
        effect=None if suspect is None else suspect.effect,
        in_bulk=None if suspect is None else suspect.in_bulk,
        n_lineages=len(lineages),
        needed_lineages=needed,
        n_candidates=n_candidates,
        power=Found(found.found, found.n, found.lower, found.enough) if found.n else None,
        scores=measured.lines,
        closest=None if isinstance(main, str) else _counts(main, measured.parties),
        members=tuple(_members(plan, measured, level)),
        warnings=tuple(_warnings(plan, measured)),
        decoding=_decodings(plan, measured.parties),
        prompts_digest=None if isinstance(main, str) else main.prompts_digest,
        config={"score": plan.score, "b": plan.b, "seed": plan.seed, "mixed_decoding": plan.mixed_decoding},
        environment={"numpy": np.__version__, "python": platform.python_version()},
    )


def _kind(plan: Plan, table: ScoreTable) -> str:
    """Exact only where every flip is made and the null is symmetric: of alleles each model is divided by its own norm."""
    return "exact" if plan.delta == 0 and table.score != ALLELES and is_exact(table.groups) else "monte-carlo"


def _power(plan: Plan, measured: Measured, level: float) -> Power:
    """A run is found if all its planted derivatives are: checkpoints of one run are no independent evidence."""
    runs: dict[str, bool] = {}
    for party, ranked in zip(measured.parties.planted, measured.ranked[1:], strict=False):  # none ranked if none scored
        run = plan.runs.get(party.label, party.label)
        runs[run] = runs.get(run, True) and ranked.stands_out(level, plan.alpha, plan.delta)
    return power(sum(runs.values()), len(runs))


def _counts(table: ScoreTable, found: Parties) -> PromptCounts | None:
    """Prompts on which suspect and closest control differ; of graded scores there is none."""
    if table.score == ALLELES:
        return None
    at = 1 + len(found.planted)
    nearest = int(table.values[:, at:].mean(axis=0).argmax())
    difference = table.values[:, 0] - table.values[:, at + nearest]
    more, less = int((difference > 0).sum()), int((difference < 0).sum())
    return PromptCounts(found.controls[nearest].label, more, less, mcnemar_p(more, less))


def _members(plan: Plan, measured: Measured, level: float) -> Iterator[Member]:
    """Reference, suspect, planted derivatives, controls."""
    found, main = measured.parties, measured.main
    blank = [_member(party, main, plan.runs) for party in found.all]
    if isinstance(main, str):
        yield from blank
        return
    similarity = main.values.mean(axis=0)
    yield blank[0]
    against = measured.ranked[0].p_by_control
    for at, (member, value) in enumerate(zip(blank[1:], similarity, strict=True)):
        scored = replace(member, similarity=float(value))
        if member.role == "control":
            yield replace(scored, p_prompt=against[at - len(measured.ranked)])
        elif member.role == "planted":
            x = measured.ranked[at]
            passed = x.stands_out(level, plan.alpha, plan.delta)
            yield replace(scored, p_prompt=x.p_prompt, p_model=x.p_model, effect=x.effect, found=passed)
        else:
            yield scored


def _member(party: Party, main: ScoreTable | str, runs: Mapping[str, str]) -> Member:
    model, n = party.model, len(party.records)
    dropped = None if isinstance(main, str) else main.dropped[party.name]
    run = runs.get(party.label, party.label) if party.role == "planted" else None
    return Member(party.role, party.label, model.ref, model.revision, model.key, party.lineage, n, dropped, run=run)


def _warnings(plan: Plan, measured: Measured) -> Iterator[str]:
    found, main = measured.parties, measured.main
    alone = [party for party in found.controls if party.lineage == party.label]
    if alone and len(alone) == len(found.controls):
        yield "no lineages were given for the controls: each counts as a lineage of its own, which must be true"
    elif alone:
        yield f"{len(alone)} of {len(found.controls)} controls have no lineage and count as one of their own"
    kinds = {party.role: {record.template.kind for record in party.records} for party in found.all}
    if len(set().union(*kinds.values())) > 1:
        yield "some models were asked raw and some through a chat template: formatting alone makes such models alike"
    decodings = {record.decoding for party in found.all for record in party.records}
    if not all(decoding.known for decoding in decodings):
        yield "the decoding of some answers is unknown, so they may differ for that reason alone"
    if not isinstance(main, str):
        empty = [party for party in found.all if main.empty[party.name] > EMPTY]
        for party in empty[:5]:
            yield f"{main.empty[party.name]:.0%} of the answers of {party.role} '{safe_name(party.label)}' are empty"
    if any(party.label not in plan.runs for party in found.planted):
        yield (
            "planted derivatives without a run are taken as made independently of each other; checkpoints of one training are "
            "one run, and count once"
        )


def _decodings(plan: Plan, found: Parties) -> tuple[dict[str, object], ...]:
    """Distinct decoding settings of the answers that serve the main score."""
    used = dict.fromkeys(
        record.decoding
        for party in found.all
        for record in party.records
        if is_greedy(record.decoding) == (plan.score != ALLELES)
    )
    return tuple(asdict(decoding) for decoding in used)
