"""From one checked verification to what its template and the terminal show; the same words serve both."""

from collections.abc import Sequence
from dataclasses import dataclass

from whorl.reports.clustermap import Tick
from whorl.reports.shown import cut_name, number, p_text, short_refs
from whorl.reports.stored_parts import Verdict
from whorl.reports.stored_verification import StoredPowerLine, StoredShare, StoredVerification
from whorl.reports.verdict_words import SYMBOLS
from whorl.triggers.nulls import interval

VERDICTS: dict[str, Verdict] = {"match": "related", "no match": "unrelated", "undecided": "undecided"}
WIDTH, LEFT, RIGHT, LINE, TOP = 720.0, 230.0, 96.0, 30.0, 8.0
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Bar:
    """One share: its name, how many, where bar and interval lie (None: unknown), and whether it is the suspect's keys."""

    y: float
    name: str
    note: str
    value: float | None
    low: float
    high: float
    main: bool
    title: str


@dataclass(frozen=True)
class BarPlot:
    """Everything the template draws."""

    height: float
    bars: tuple[Bar, ...]
    axis: tuple[Tick, ...]
    axis_y: float
    alt: str
    width: float = WIDTH
    left: float = LEFT
    right: float = WIDTH - RIGHT


@dataclass(frozen=True)
class Rate:
    """A share as words and as figures; None where nothing was asked."""

    name: str
    found: StoredShare | None

    @property
    def words(self) -> str:
        """Share, counts and interval."""
        return share_words(self.found)


@dataclass(frozen=True)
class VerificationView:
    """One verification."""

    result: StoredVerification
    verdict: Verdict
    symbol: str
    rate: str
    rule: str
    dated: str
    rates: tuple[Rate, ...]
    power: tuple[tuple[StoredPowerLine, str], ...]
    plot: BarPlot
    kind: str = "verification"

    @property
    def title(self) -> str:
        """The question about the suspect in short."""
        return f"Is the planted fingerprint in {short_refs([self.result.suspect.ref])[0]}?"


def verification_view(result: StoredVerification) -> VerificationView:
    """The view of one result."""
    verdict, rates = VERDICTS[result.verdict], rates_of(result)
    return VerificationView(
        result=result,
        verdict=verdict,
        symbol=SYMBOLS[verdict],
        rate=error_rate(result),
        rule=rule_words(result),
        dated=date_words(result),
        rates=rates,
        power=tuple((line, power_words(line)) for line in result.power),
        plot=_plot(rates),
    )


def error_rate(result: StoredVerification) -> str:
    """The error rate behind the verdict, or why there is none."""
    fixed = f"'Match' needs p at most {result.alpha:g}, fixed before the answers were read, and a dated commitment."
    if result.p_value is None:
        return f"No p-value: no test applies. {fixed}"
    others = sum(test.p_value is not None for test in result.tests) - 1
    largest = f", the largest of {others + 1} tests that apply" if others else ""
    times = f", times {result.n_choices} ways to choose the units" if result.n_choices > 1 else ""
    return f"p = {p_text(result.p_value)} ({result.test}, {result.p_kind}{largest}{times}). {fixed}"


def rule_words(result: StoredVerification) -> str:
    """What counts as a hit, and how the answers were drawn."""
    how = {"prefix": "begins with", "contains": "contains", "tokens": "begins with the tokens of"}[result.match]
    case = " (case ignored)" if result.config.fold_case else ""
    n = result.decoding.get("max_new_tokens")
    stopped = "; asking stopped early" if result.stop is not None else ""
    return (
        f"A key hits when the generated text {how} its answer{case}: one greedy answer of at most {n} new tokens a key, "
        f"wrapper '{cut_name(result.config.wrapper, 40)}'; no answer is a miss{stopped}."
    )


def date_words(result: StoredVerification) -> str:
    """The commitment, its date, and whether the date counts."""
    c = result.commitment
    where = "" if c.where is None else f" at {cut_name(c.where, 120)}"
    release = "unknown" if c.released is None else cut_name(c.released, 40)
    if c.dated is None:
        said = "It is undated: keys chosen after seeing a model fit it by trial, so p alone is no verdict."
    elif c.counts:
        said = f"Declared as published on {cut_name(c.dated, 40)}{where}; the suspect's release: {release}."
    else:
        said = (
            f"Its date, {cut_name(c.dated, 40)}, is not before the suspect's release, {release}: it counts as undated."
        )
    return f"The key set was derived again from its secrets and is the committed one. {said}"


def rates_of(result: StoredVerification) -> tuple[Rate, ...]:
    """What the share of hits has to be read beside, the unknown ones among it."""
    base = [line for line in result.clean if line.base]
    others = [line.keys for line in result.clean if not line.base and line.keys is not None]
    pooled = _pooled(others)
    worst = max(others, key=lambda s: (s.share, s.n), default=None)
    return (
        Rate("suspect: keys (FSR)", result.fsr),
        Rate("suspect: decoys", result.decoys),
        Rate("suspect: look-alikes", result.near),
        Rate("base: keys", base[0].keys if base else None),
        Rate(f"{len(others)} clean models: keys" if others else "clean models: keys", pooled),
        Rate("worst clean model: keys", worst),
    )


def _pooled(shares: Sequence[StoredShare]) -> StoredShare | None:
    hits, n = sum(s.hits for s in shares), sum(s.n for s in shares)
    if n == 0:
        return None
    low, high = interval(hits, n)
    return StoredShare(hits=hits, n=n, share=hits / n, low=low, high=high)


def share_words(found: StoredShare | None) -> str:
    """A share with its counts and exact interval; a share of nothing is unknown, never 0."""
    if found is None:
        return UNKNOWN
    return f"{number(found.share, 2)} ({found.hits} of {found.n}, 95 %: {number(found.low, 2)}-{number(found.high, 2)})"


def power_words(line: StoredPowerLine) -> str:
    """Whether the keys would have been found after one attack."""
    if line.power is None:
        return "not measured after planting, so unknown"
    left = ", ".join(f"{share:.2f}" for share in line.shares)
    return f"FSR {left} left; found with probability {line.power:.2f}: {'enough' if line.enough else 'too little'}"


def _plot(rates: Sequence[Rate]) -> BarPlot:
    def place(share: float) -> float:
        return round(LEFT + share * (WIDTH - RIGHT - LEFT), 1)

    bars = tuple(
        Bar(
            y=TOP + at * LINE,
            name=rate.name,
            note=UNKNOWN if (s := rate.found) is None else f"{s.hits} of {s.n}",
            value=None if s is None else place(s.share),
            low=0.0 if s is None else place(s.low),
            high=0.0 if s is None else place(s.high),
            main=at == 0,
            title=rate.words,
        )
        for at, rate in enumerate(rates)
    )
    axis_y = TOP + len(bars) * LINE + 2
    axis = tuple(Tick(place(k / 5), f"{k / 5:g}") for k in range(6))
    alt = "Shares that hit, with exact 95 % intervals. " + "; ".join(f"{r.name}: {r.words}" for r in rates) + "."
    return BarPlot(axis_y + 24, bars, axis, axis_y, alt)
