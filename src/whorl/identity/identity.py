"""`identity_test`: is this endpoint the model it claims to be?

    null        the suspect answers like the reference, or like one of the honest variants the user allows
    p           of the main statistic against each of them; the largest counts (the null is composite)
    no match    p <= alpha: different from every one of them
    match       p > alpha, and every difference declared to matter would have been found with power 0.9
    undecided   everything else; says what would decide it

The main statistic and alpha are fixed by the call, before an answer is read. The other statistics are shown, from the same
relabellings, and decide nothing.
"""

import math
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

from whorl import __version__
from whorl._threads import single_threaded
from whorl.errors import UsageError, safe_name
from whorl.identity.classifier import Classifier
from whorl.identity.draws import (
    MIN_DRAWS,
    MIN_PROMPTS,
    Paired,
    PromptDraws,
    Side,
    pair,
    require_same_decoding,
    require_same_settings,
    side,
)
from whorl.identity.first_word import FirstWord
from whorl.identity.kernel import N_CHARACTERS, Characters
from whorl.identity.length import Length
from whorl.identity.loglikelihood import LogLikelihood
from whorl.identity.permutation import MAX_T, B, Permuted, Statistic, monte_carlo_sd, p_value, permute
from whorl.identity.power import Detection, detection, planted_sets
from whorl.identity.result import IdentityResult, NullResult, StatisticResult
from whorl.progress import Progress, silent
from whorl.transcripts.record import Transcript

ALPHA = 0.01
MAX_ALPHA = 0.05
REFERENCE = "reference"
STATISTICS = ("mmd", "first-word", "classifier", "log-likelihood", MAX_T)
B_POWER = 1_999
NEAR_SD = 3.0  # a p this near to alpha is drawn again with ten times as many relabellings, a rule fixed beforehand

Likelihood = Callable[[Sequence[Transcript]], Sequence[float]]
"""Log-likelihood of each answer under the reference, nats per token; see `loglikelihood.likelihood_under`."""


@dataclass(frozen=True)
class _Plan:
    """What was fixed before the answers were read."""

    statistic: str
    alpha: float
    b: int
    seed: int
    n_characters: int
    likelihood: Likelihood | None

    def statistics(self, prompts: Sequence[PromptDraws]) -> tuple[Statistic, ...]:
        """All statistics for some prompts; the main one among them."""
        known: list[Statistic] = [Characters(self.n_characters), FirstWord(), Classifier(self.n_characters), Length()]
        if self.likelihood is not None:
            known.append(LogLikelihood.of(prompts, self.likelihood))
        return tuple(known)

    def main(self, prompts: Sequence[PromptDraws]) -> list[Statistic]:
        """The statistics that decide."""
        content = [s for s in self.statistics(prompts) if s.name != "length"]
        return content if self.statistic == MAX_T else [s for s in content if s.name == self.statistic]

    def deciding(self, names: Iterable[str]) -> tuple[str, ...]:
        """The statistics that decide, among those that could be computed."""
        content = tuple(name for name in names if name != "length")
        return content if self.statistic == MAX_T else tuple(name for name in content if name == self.statistic)


def identity_test(
    reference: Iterable[Transcript],
    suspect: Iterable[Transcript],
    *,
    variants: Mapping[str, Iterable[Transcript]] | None = None,
    smallest: Mapping[str, Iterable[Transcript]] | None = None,
    alpha: float = ALPHA,
    b: int = B,
    statistic: str = "mmd",
    seed: int = 0,
    n_characters: int = N_CHARACTERS,
    likelihood: Likelihood | None = None,
    mixed_decoding: bool = False,
    progress: Progress = silent,
) -> IdentityResult:
    """Test a suspect's answers against those of the model it claims to be.

    Args:
        reference: Answers of the claimed model, from weights you run or an endpoint you trust.
        suspect: Answers of the suspect to the same prompts, under the same decoding.
        variants: Honest variants that would be acceptable (another system prompt, template, server, precision): each is
            a null of its own. Their decoding may differ; that may be what makes them variants.
        smallest: Differences that matter, planted: another model's answers, or a `mixture`. Needed for "match". At least
            twice as many draws a prompt as the suspect has show the power much more sharply. Sampled with the suspect's
            settings: others would be found in place of the model.
        alpha: Error rate of "no match", in (0, 0.05].
        b: Relabellings.
        statistic: What decides: "mmd" (characters), "first-word", "classifier", "log-likelihood", or "max-t" of them all.
        seed: Of relabellings and resamples.
        n_characters: Answers are cut here; length is tested apart.
        likelihood: Log-likelihoods under the reference, when its weights are at hand.
        mixed_decoding: Compare although reference, suspect and planted answers were sampled with different settings.
        progress: Called once a test.

    Raises:
        UsageError: alpha, b or statistic out of range; several models on one side; shared answers; mixed decoding.
        MalformedFile: an answer occurs twice.
    """
    plan = _plan(statistic, alpha, b, seed, n_characters, likelihood)
    honest = [side(reference, REFERENCE), *(side(v, name) for name, v in (variants or {}).items())]
    asked = side(suspect, "suspect")
    planted = [side(records, name) for name, records in (smallest or {}).items()]
    if not mixed_decoding:
        require_same_decoding(honest[0], asked)
        for one in planted:
            require_same_settings(asked, one)
    with single_threaded():
        nulls = []
        for at, one in enumerate(honest):
            progress("tests", at, len(honest))
            nulls.append(_test(one, asked, plan))
        p = _composite(nulls)
        power: tuple[Detection, ...] = ()
        if p is not None and p > alpha:
            power = tuple(_power(one, honest, asked, plan, progress) for one in planted)
    verdict, why, needed = _decide(nulls, p, power, planted, plan)
    warnings = _warnings(honest, asked, planted)
    return IdentityResult(
        verdict=verdict,
        why=why,
        needed=needed,
        p_value=p,
        alpha=alpha,
        statistic=statistic,
        nulls=tuple(nulls),
        power=power,
        suspect=_described(asked),
        b=b,
        seed=seed,
        config={"statistic": statistic, "n_characters": n_characters, "declared": [s.label for s in planted]},
        decoding=tuple(sorted((asdict(d) for d in asked.decodings | honest[0].decodings), key=str)),
        warnings=warnings,
        environment=environment(),
    )


def _plan(statistic: str, alpha: float, b: int, seed: int, n_characters: int, likelihood: Likelihood | None) -> _Plan:
    if not 0 < alpha <= MAX_ALPHA:
        raise UsageError(f"alpha is an error rate above 0 and at most {MAX_ALPHA}, not {alpha}.")
    if statistic not in STATISTICS:
        raise UsageError(f"Unknown statistic '{safe_name(statistic)}'; known are {', '.join(STATISTICS)}.")
    if statistic == "log-likelihood" and likelihood is None:
        raise UsageError("'log-likelihood' needs the weights of the reference; give `likelihood`.")
    if (b + 1) * alpha < 1:
        raise UsageError(f"{b} permutations cannot give a p of {alpha}; use at least {math.ceil(1 / alpha) - 1}.")
    if n_characters < 1:
        raise UsageError(f"Answers are cut at 1 character or more, not {n_characters}.")
    return _Plan(statistic, alpha, b, seed, n_characters, likelihood)


def _test(honest: Side, suspect: Side, plan: _Plan) -> NullResult:
    """The suspect against one honest model."""
    paired = pair(honest, suspect)
    tested = NullResult(
        name=honest.label,
        model=_model(honest),
        digest=honest.digest,
        n_prompts=len(paired.prompts),
        n_too_few=paired.too_few,
        n_draws=paired.n_draws,
        p_value=None,
    )
    if len(paired.prompts) < MIN_PROMPTS:
        return replace(tested, why=_too_few(paired))
    statistics = plan.statistics(paired.prompts)
    run = permute(paired.prompts, statistics, plan.b, plan.seed)
    results = [_of_statistic(run, name, plan) for name in (*run.names, *run.missing)]
    names = plan.deciding(run.names)
    if not names:
        return replace(tested, statistics=tuple(results), why=f"{plan.statistic}: {_why_missing(run, plan)}")
    results.insert(0, _max_t(run))
    main = next(r for r in results if r.name == plan.statistic)
    main = _refined(main, paired, [s for s in statistics if s.name in names], plan)
    ordered = (main, *(r for r in results if r.name != plan.statistic))
    return replace(tested, statistics=ordered, p_value=main.p_value)


def _too_few(paired: Paired) -> str:
    n = len(paired.prompts)
    if paired.too_few:
        return (
            f"{n} prompts have at least {MIN_DRAWS} independent draws on both sides and {paired.too_few} have fewer; "
            f"{MIN_PROMPTS} are needed"
        )
    return f"{n} prompts; at least {MIN_PROMPTS} are needed"


def _why_missing(run: Permuted, plan: _Plan) -> str:
    return run.missing.get(plan.statistic, "no statistic varies between answers")


def _of_statistic(run: Permuted, name: str, plan: _Plan) -> StatisticResult:
    if name in run.missing:
        return StatisticResult(name, None, None, None, None, plan.b, run.missing[name])
    return _summary(name, run.row(name))


def _summary(name: str, row: Any) -> StatisticResult:
    return StatisticResult(name, float(row[0]), float(row.mean()), float(row.std()), p_value(row), row.size - 1)


def _max_t(run: Permuted) -> StatisticResult:
    content = [name for name in run.names if name != "length"]
    return _summary(MAX_T, run.max_t(content))


def _refined(main: StatisticResult, paired: Paired, deciding: Sequence[Statistic], plan: _Plan) -> StatisticResult:
    """The main statistic again with ten times as many relabellings, if its p is too near to alpha to tell."""
    p = main.p_value
    if p is None or abs(p - plan.alpha) > NEAR_SD * monte_carlo_sd(p, plan.b):
        return main
    again = permute(paired.prompts, deciding, 10 * (plan.b + 1) - 1, plan.seed)
    row = again.max_t(again.names) if plan.statistic == MAX_T else again.row(plan.statistic)
    return _summary(main.name, row)


def _composite(nulls: Sequence[NullResult]) -> float | None:
    """Largest p; None when an allowed variant could not be tested, since it might have given a larger one."""
    found = [null.p_value for null in nulls]
    known = [p for p in found if p is not None]
    return max(known) if len(known) == len(found) else None


def _power(planted: Side, honest: Sequence[Side], suspect: Side, plan: _Plan, progress: Progress) -> Detection:
    """Detection of one declared difference, on the prompts that all honest models share with it."""
    progress(f"power: {planted.label}", 0, 1)
    common = set.intersection(*(set(one.by_prompt) for one in (*honest, suspect, planted)))
    like = replace(suspect, by_prompt={key: suspect.by_prompt[key] for key in common})
    sets = planted_sets(planted, like)
    pairs = [[pair(one, found) for found in sets] for one in honest]
    usable = set.intersection(*({p.prompt_id for p in paired.prompts} for row in pairs for paired in row))
    b = max(B_POWER, math.ceil(20 / plan.alpha) - 1)
    runs = []
    for row in pairs:
        tests = []
        for paired in row:
            prompts = [p for p in paired.prompts if p.prompt_id in usable]
            if len(prompts) < MIN_PROMPTS:
                return Detection(planted.label, 0.0, 0.0, 1.0, len(prompts), len(sets), 0, MIN_PROMPTS)
            tests.append(permute(prompts, plan.main(prompts), b, plan.seed))
        runs.append(tests)
    names = [n for n in plan.deciding(runs[0][0].names) if all(n in run.names for row in runs for run in row)]
    if not names:
        return Detection(planted.label, 0.0, 0.0, 1.0, len(usable), len(sets), 0, None)
    n_draws = sum(len(found) for key, found in sets[0].by_prompt.items() if key in usable)
    return detection(planted.label, runs, names, plan.alpha, n_draws, plan.seed)


def _decide(
    nulls: Sequence[NullResult], p: float | None, power: Sequence[Detection], planted: Sequence[Side], plan: _Plan
) -> tuple[str, str, str | None]:
    """Verdict, reason, and what would decide it."""
    several = f"all {len(nulls)} honest models" if len(nulls) > 1 else "the reference"
    if p is None:
        failed = next(null for null in nulls if null.p_value is None)
        return "undecided", f"no p against '{safe_name(failed.name)}': {failed.why}", _more_draws(failed)
    if p <= plan.alpha:
        return "no match", f"the answers differ from those of {several}, p = {p:.2g} <= {plan.alpha:.2g}", None
    alike = f"by {plan.statistic} the answers do not differ from those of {several} at {plan.alpha:.2g}, p = {p:.2g}"
    if not planted:
        needed = "plant the smallest difference that matters (`smallest`, --swap): without it no power is known"
        return "undecided", alike, needed
    weak = [d for d in power if not d.enough]
    if not weak:
        least = min(power, key=lambda d: d.lower)
        named = ", ".join(safe_name(d.name, 40) for d in power)
        return "match", f"{alike}; {named} would have been found with power {least.lower:.2f} or more", None
    return "undecided", f"{alike}, but {_missed(weak)}", _more_prompts(weak, nulls[0])


def _missed(weak: Sequence[Detection]) -> str:
    return "; ".join(
        f"'{safe_name(d.name, 40)}' would be missed (power {d.lower:.2f}, at best {d.upper:.2f})" for d in weak
    )


def _more_prompts(weak: Sequence[Detection], null: NullResult) -> str:
    below = [d for d in weak if d.undetectable]
    if below:
        named = ", ".join(f"'{safe_name(d.name, 40)}'" for d in below)
        return f"undetectable here: {named} lies below the noise between honest models, and 16 times the prompts would not do"
    extra = max((d.prompts_needed or 0) - d.n_prompts for d in weak)
    draws = [round(n / max(null.n_prompts, 1)) for n in null.n_draws]
    fewer = " (fewer, if it is planted with twice as many draws)" if any(d.n_sets == 1 for d in weak) else ""
    return (
        f"about {extra} more prompts with {draws[0]} + {draws[1]} draws each ({extra * sum(draws)} draws in all){fewer}"
    )


def _more_draws(failed: NullResult) -> str:
    missing = MIN_PROMPTS - failed.n_prompts
    if missing > 0:
        return f"at least {missing} more prompts with {MIN_DRAWS} independent draws on each side (25 prompts x 10 is usual)"
    return "answers that vary: sample at temperature 1, or ask other prompts"


def _warnings(honest: Sequence[Side], suspect: Side, planted: Sequence[Side]) -> tuple[str, ...]:
    said = [text for one in (*honest, suspect, *planted) for text in one.warnings]
    templates = [{r.template.digest for found in one.by_prompt.values() for r in found} for one in (honest[0], suspect)]
    if templates[0] != templates[1]:
        said.append(
            "reference and suspect were asked through different templates: an honest server may differ by that alone"
        )
    said.extend(
        f"{safe_name(one.label)}: planted with other settings than the suspect's; its power may be theirs alone"
        for one in planted
        if len(suspect.decodings | one.decodings) > 1 or len(suspect.framings | one.framings) > 1
    )
    for one in (*honest, suspect):
        if one.n_failed:
            said.append(f"{safe_name(one.label)}: {one.n_failed} answers failed and were left out")
        if one.n_repeats:
            said.append(
                f"{safe_name(one.label)}: {one.n_repeats} greedy answers were left out: repeats are no new draws"
            )
    return tuple(said)


def _model(one: Side) -> dict[str, Any]:
    return {"ref": one.model.ref, "revision": one.model.revision, "precision": one.model.precision}


def _described(suspect: Side) -> dict[str, Any]:
    reported = sorted({r.model.reported for found in suspect.by_prompt.values() for r in found if r.model.reported})
    counts = {"n_prompts": len(suspect.by_prompt), "n_draws": sum(map(len, suspect.by_prompt.values()))}
    return _model(suspect) | {"reported": reported, "digest": suspect.digest, "n_failed": suspect.n_failed} | counts


def environment() -> dict[str, str]:
    """Versions that a p-value depends on."""
    libraries = {name: version(name) for name in ("numpy", "scipy")}
    return {"whorl": __version__, "python": platform.python_version(), **libraries}
