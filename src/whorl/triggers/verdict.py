"""From hits to p to a verdict (spec 4.4 and 4.5).

The reported p is the largest of the tests that apply, times the number of ways in which so many of the committed units could
have been picked. `match` needs p <= alpha and a commitment dated before the suspect's release: keys chosen after seeing a
model can be ground out until they fit. Without such a date only hits beyond any grinding count, 2^-68 by design (9 of 10 keys
at 1/256). `no match` needs hits such as unrelated models give, and power: the same keys would have been found after the
attacks that the user lists.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from whorl.linalg.blocks import Doubles
from whorl.triggers.nulls import decoy_p, design_p, poisson_binomial_tail, upper_rates
from whorl.triggers.verification import ERASURE, NullTest, PowerLine, Said, Share

MIN_CLEAN = 10
POWER = 0.9
BAND = 0.05  # hits rarer than this are not inside the band of unrelated models (statistics.md 1): never "no match"
UNGRINDABLE = 2.0**-68  # 9 of 10 keys at 1/256 are 2^-68.7: more salts than anybody can try (ours)
UNATTACKED = "unattacked"

UNDATED = "undated: keys chosen after seeing a model fit it by trial, so p alone is no verdict"
DATE_NEEDED = "a commitment dated before the suspect's release"
DECOY_NULL = "keys and decoys are exchangeable draws of one committed pool"
DESIGN_NULL = "the answer of each key is drawn from the list by a hash that the model cannot know"
MEASURED_NULL = "the suspect hits as often as the clean models at their upper 95 % rate"


@dataclass(frozen=True)
class CleanCounts:
    """Hits of clean models on the keys asked.

    Args:
        hits: Of each key, over all clean answers.
        trials: Clean answers to each key.
        worst: Largest share of keys that one clean model hit, in [0, 1].
        n_models: Clean models, the base not counted.
    """

    hits: tuple[int, ...]
    trials: tuple[int, ...]
    worst: float
    n_models: int

    @property
    def rates(self) -> Doubles:
        """Upper rate of each key, pooled: keys of one key set come from one generator."""
        return upper_rates(self.hits, self.trials)


@dataclass(frozen=True)
class Nulls:
    """Everything a p-value needs beside the hits, so that it can be asked what other hits would have given.

    Args:
        n_keys: Keys asked; those without an answer are among them, as misses.
        n_answered: Keys that answered.
        decoy_hits: Decoys that hit.
        n_decoys: Decoys that answered.
        answer_list: Entries of the list that answers are drawn from; None for schemes without one.
        no_design: Why there is no design rate, "" when there is.
        clean: Hits of clean models.
        n_choices: Ways to choose so many of the committed units.
        dated: Whether the commitment was dated before the release.
        samples: Draws of each key when any hit counts; 1 for the greedy answer.
        constant: Whether every answer was the same text, which says nothing of any key.
    """

    n_keys: int
    n_answered: int
    decoy_hits: int
    n_decoys: int
    answer_list: int | None
    no_design: str
    clean: CleanCounts
    n_choices: int = 1
    dated: bool = True
    samples: int = 1
    constant: bool = False

    def tests(self, hits: int) -> tuple[NullTest, ...]:
        """The three tests of so many hits, those that do not apply with the reason."""
        if (nothing := self.nothing) is not None:
            nulls = {"decoy": DECOY_NULL, "design": DESIGN_NULL, "measured": MEASURED_NULL}
            return tuple(NullTest(name, None, None, null, f"not applicable: {nothing}") for name, null in nulls.items())
        return self._decoy(hits), self._design(hits), self._measured(hits)

    @property
    def nothing(self) -> str | None:
        """Why no test of these answers means anything; None when they do."""
        if self.constant:
            return "every answer is the same text"
        return None if self.n_answered else "no key was answered"

    def _decoy(self, hits: int) -> NullTest:
        if self.n_decoys == 0:
            return NullTest("decoy", None, None, DECOY_NULL, "not applicable: no decoy was answered")
        p = decoy_p(hits, self.n_keys, self.decoy_hits, self.n_decoys)
        why = f"{hits} of {self.n_keys} keys and {self.decoy_hits} of {self.n_decoys} decoys hit"
        return NullTest("decoy", p, "exact", DECOY_NULL, why)

    def _design(self, hits: int) -> NullTest:
        if self.answer_list is None:
            return NullTest("design", None, None, DESIGN_NULL, f"not applicable: {self.no_design}")
        p = design_p(hits, self.n_keys, self.answer_list, self.samples)
        draws = "" if self.samples == 1 else f", {self.samples} draws"
        why = f"{hits} of {self.n_keys} keys at {self.samples}/{self.answer_list} each{draws}"
        return NullTest("design", p, "bound", DESIGN_NULL, why)

    def _measured(self, hits: int) -> NullTest:
        if (missing := self.no_measure) is not None:
            return NullTest("measured", None, None, MEASURED_NULL, f"not applicable: {missing}")
        rates, n = self.clean.rates, self.n_keys
        worst = max(self.clean.worst, float(rates.max()))
        by_rates, by_worst = poisson_binomial_tail(rates, hits), poisson_binomial_tail([worst] * n, hits)
        why = (
            f"{hits} of {n} keys at {rates.mean():.3g} each ({sum(self.clean.hits)} of {sum(self.clean.trials)} clean answers "
            f"hit, upper 95 %): p = {by_rates:.2g}; at {worst:.3g}, the worst clean model: p = {by_worst:.2g}"
        )
        return NullTest("measured", max(by_rates, by_worst), "bound", MEASURED_NULL, why)

    @property
    def no_measure(self) -> str | None:
        """Why no rate was measured; None when one was."""
        if self.samples > 1:
            return "clean models gave one greedy answer, not several draws"
        n = self.clean.n_models
        return None if n >= MIN_CLEAN else f"{n} clean models, {MIN_CLEAN} needed"

    def p(self, hits: int) -> tuple[float | None, str | None]:
        """Largest p of the tests that apply, times the choices of units, and the test it comes from."""
        known = [(test.p_value, test.name) for test in self.tests(hits) if test.p_value is not None]
        if not known:
            return None, None
        largest, name = max(known)
        return min(1.0, largest * self.n_choices), name

    def matches(self, hits: int, alpha: float) -> bool:
        """Whether so many hits are a match."""
        p, _ = self.p(hits)
        return p is not None and p <= alpha and (self.dated or self.beyond_grinding(hits))

    def beyond_grinding(self, hits: int) -> bool:
        """Whether nobody could have found keys with so many hits by trying salts."""
        if self.answer_list is None:
            return False
        return design_p(hits, self.n_keys, self.answer_list, self.samples) * self.n_choices <= UNGRINDABLE

    def power(self, rate: float, alpha: float) -> float:
        """Chance of a match when each answered key hits at a rate, keys independent and decoys as they were."""
        from scipy.stats import binom

        found = np.array([self.matches(h, alpha) for h in range(self.n_answered + 1)])
        chances = binom.pmf(np.arange(self.n_answered + 1), self.n_answered, rate)
        return float(min(1.0, chances[found].sum()))


@dataclass(frozen=True)
class Judgement:
    """Verdict, sentence, and what would decide it."""

    verdict: Said
    why: str
    needed: str | None
    p_value: float | None
    test: str | None


def power_lines(
    nulls: Nulls, measured: Mapping[str, Sequence[float]], listed: Sequence[str], alpha: float
) -> tuple[PowerLine, ...]:
    """Power after each attack listed, or of the fingerprint as it was planted when none is."""
    found = []
    for name in listed or (UNATTACKED,):
        shares = tuple(float(s) for s in measured.get(name, ()))
        power = nulls.power(min(shares), alpha) if shares else None
        found.append(PowerLine(name, shares, power, power is not None and power >= POWER))
    return tuple(found)


def judge(hits: Share, nulls: Nulls, power: tuple[PowerLine, ...], alpha: float, rule: str) -> Judgement:
    """The verdict on so many hits.

    Args:
        hits: Keys that hit, of the keys asked.
        nulls: What they are compared with.
        power: As `power_lines`.
        alpha: Error rate.
        rule: Match rule and decoding in words.
    """
    p, test = nulls.p(hits.hits)
    low, high = hits.bounds
    said = f"{hits.hits} of {hits.n} keys hit (FSR {hits.value:.2f}, 95 %: {low:.2f}-{high:.2f}; {rule})"
    if p is None:
        reasons = nulls.nothing or "; ".join(f"{t.name} {t.why}" for t in nulls.tests(hits.hits))
        return Judgement(
            "undecided", f"{said}, but no test applies: {reasons}; {ERASURE}", _tests_needed(nulls), None, None
        )
    said += f", p = {p:.2g} by the {test} test"
    if nulls.n_choices > 1:
        said += f", times {nulls.n_choices} for the choice of units"
    if nulls.matches(hits.hits, alpha):
        undated = "" if nulls.dated else "; undated, but more hits than anybody can grind out"
        return Judgement("match", said + undated, None, p, test)
    found = Judgement("undecided", said, None, p, test)
    if p <= alpha:
        return replace(found, why=f"{said}; {UNDATED}; {ERASURE}", needed=DATE_NEEDED)
    return _negative(found, power, alpha, dated=nulls.dated)


def _negative(found: Judgement, power: tuple[PowerLine, ...], alpha: float, *, dated: bool) -> Judgement:
    """`no match` where the hits are what unrelated models give and every listed attack would have left more, else undecided."""
    if found.p_value is not None and found.p_value <= max(BAND, alpha):
        why = f"{found.why}, above {alpha:g}: more hits than unrelated models give, too few for proof; {ERASURE}"
        return replace(found, why=why, needed="more keys or decoys")
    if all(line.enough for line in power):
        named = ", ".join(line.attack for line in power)
        why = f"{found.why}, above {alpha:g}; would have been found with power at least {POWER} ({named}); {ERASURE}"
        return replace(found, verdict="no match", why=why)
    unknown = [line.attack for line in power if line.power is None]
    weak = [line.attack for line in power if line.power is not None and not line.enough]
    gaps = [f"no hit rates measured after {', '.join(unknown)}"] if unknown else []
    gaps += [f"too little power after {', '.join(weak)}"] if weak else []
    measure = "hit rates measured after these attacks, in the gates of the key set"
    needed = measure if unknown else "more keys or decoys" if dated else DATE_NEEDED
    return replace(found, why=f"{found.why}, above {alpha:g}, but {' and '.join(gaps)}; {ERASURE}", needed=needed)


def beside_soft(found: Judgement, soft: NullTest | None) -> Judgement:
    """The verdict beside soft evidence: never a match by it, and no "no match" where the keys' answers stand out."""
    if found.verdict != "no match" or soft is None or soft.p_value is None or soft.p_value > BAND:
        return found
    why = (
        f"{found.why}; yet the keys' answers are more probable than those of decoys (soft p = {soft.p_value:.2g}): no proof by "
        "the committed rule, and no absence either"
    )
    return replace(found, verdict="undecided", why=why, needed="another unit of keys, or other evidence")


def _tests_needed(nulls: Nulls) -> str:
    if nulls.nothing is not None:
        return "answers to the keys that differ from one another"
    return f"answers to the decoys, or {MIN_CLEAN} clean models asked the same keys"
