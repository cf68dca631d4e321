"""From one checked test of derivation to what its template and the terminal show; the same words serve both."""

from dataclasses import dataclass

from whorl.derivation.levels import ROUNDING
from whorl.derivation.signflip import MAX_EXACT
from whorl.reports.rug import Rug, rug
from whorl.reports.shown import number, p_text, short_refs
from whorl.reports.stored_transcripts import StoredDerivation, StoredMember
from whorl.reports.verdict_words import SYMBOLS, percent

SCORE_WORDS = {
    "first-word": "agreement of the greedy answer's first word",
    "first-4": "agreement of the greedy answer's first 4 characters",
    "alleles": "allele similarity of repeated draws",
}


@dataclass(frozen=True)
class LevelRow:
    """One of the three levels: what was asked, what was found, what it needs, whether that was met."""

    level: str
    found: str
    needs: str
    passed: bool


@dataclass(frozen=True)
class DerivationView:
    """One test of derivation."""

    result: StoredDerivation
    symbol: str
    rate: tuple[str, ...]
    levels: tuple[LevelRow, ...]
    power: str
    score: str
    plot: Rug | None
    controls: tuple[StoredMember, ...]
    kind: str = "derivation"

    @property
    def title(self) -> str:
        """The question about the two models in short."""
        a, b = short_refs([m.ref for m in self.result.members[:2]])
        return f"Does {b} derive from {a}?"


def derivation_view(result: StoredDerivation) -> DerivationView:
    """The view of one result."""
    return DerivationView(
        result=result,
        symbol=SYMBOLS[result.verdict],
        rate=error_rate(result),
        levels=level_rows(result),
        power=power_words(result),
        score=SCORE_WORDS[result.config.score],
        plot=_plot(result),
        controls=tuple(sorted(result.controls, key=lambda m: -(m.similarity or 0.0))),
    )


def error_rate(result: StoredDerivation) -> tuple[str, ...]:
    """Sentences on the error rate behind the verdict, or why there is none."""
    fixed = f"'Related' needs p at most {result.alpha:g} over prompts and over models, fixed before the data were read."
    if result.p_value is None or result.p_model is None:
        return ("No p-value: nothing could be scored.", fixed)
    n, least = result.n_lineages, 1 / (result.n_lineages + 1)
    of = "1 control lineage" if n == 1 else f"{n} control lineages"
    found = [f"Rank among {of}: p = {p_text(result.p_model)} (never below {p_text(least)})."]
    if result.n_candidates > 1:
        found.append(f"Corrected for {result.n_candidates} candidate parents (Holm): p = {p_text(result.p_value)}.")
    return (*found, fixed)


def level_rows(result: StoredDerivation) -> tuple[LevelRow, ...]:
    """The three levels; empty when nothing could be scored."""
    if result.p_value is None or result.p_prompt is None or result.effect is None:
        return ()
    line, alpha = result.scores[0], f"p at most {result.alpha:g}"
    tried = "" if result.n_candidates == 1 else f" corrected for {result.n_candidates} parents"
    groups = "1 group" if line.n_groups == 1 else f"{line.n_groups} groups"
    flips = "all flips" if line.n_groups <= MAX_EXACT else "random flips"
    size = f"{line.n_prompts} prompts in {groups}, {flips}"
    beaten = f"p = {p_text(result.p_prompt)}, the largest over {len(result.controls)} controls; {size}"
    rank = f"p = {p_text(result.p_value)}{tried}, rank among {result.n_lineages} lineages"
    needs = f"{alpha}; {result.needed_lineages} lineages make it possible"
    lead, least = f"lead over the closest control {number(result.effect, 3)}", f"at least {result.delta:g}"
    return (
        LevelRow(
            "prompts", beaten, f"{alpha} of a lead above {result.delta:g}", passed=result.p_prompt <= result.alpha
        ),
        LevelRow("models", rank, needs, passed=result.p_value <= result.alpha + ROUNDING),
        LevelRow("size", lead, least, passed=result.effect >= result.delta - ROUNDING),
    )


def power_words(result: StoredDerivation) -> str:
    """What the planted derivatives show, in a sentence."""
    if result.power is None:
        n = len(result.planted)
        return f"{n or 'No'} planted derivatives of A were scored, so no power is known and 'unrelated' cannot be said."
    p = result.power
    enough = "enough" if p.enough else "too little: 90 % are needed"
    least = f"at least {percent(p.lower)} % (95 %)"
    return f"{p.found} of {p.n} planted derivatives of A were found, {least}; for 'unrelated' that is {enough}."


def _plot(result: StoredDerivation) -> Rug | None:
    """Controls and planted derivatives on the axis of similarity, with B."""
    if result.similarity is None:
        return None
    controls = [m.similarity for m in result.controls if m.similarity is not None]
    planted = [m.similarity for m in result.planted if m.similarity is not None]
    groups = [("controls", controls), *([("planted derivatives", planted)] if planted else [])]
    alt = (
        f"Similarity with A: {len(controls)} controls from {number(min(controls))} to {number(max(controls))}, "
        f"{len(planted)} planted derivatives, B at {number(result.similarity)}."
    )
    return rug(groups, alt, pointer=result.similarity)
