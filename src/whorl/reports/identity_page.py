"""From one checked test of identity to what its template and the terminal show; the same words serve both."""

from collections.abc import Sequence
from dataclasses import dataclass

from whorl.reports.clustermap import Tick
from whorl.reports.shown import cut_name, number, p_text, short_refs, tick_texts, ticks
from whorl.reports.stored_parts import Verdict
from whorl.reports.stored_transcripts import StoredDetection, StoredIdentity, StoredNull
from whorl.reports.verdict_words import SYMBOLS, percent

VERDICTS: dict[str, Verdict] = {"match": "related", "no match": "unrelated", "undecided": "undecided"}
WIDTH, LEFT, RIGHT, LINE, TOP = 720.0, 190.0, 24.0, 34.0, 10.0
SPREAD = 2.0  # standard deviations of the relabellings that the band shows

Row = tuple[str, float, float, float]


@dataclass(frozen=True)
class Band:
    """One honest model: its name, where relabelled answers lie (low, middle, high), and where the suspect's do."""

    y: float
    name: str
    note: str
    low: float
    middle: float
    high: float
    observed: float
    title: str


@dataclass(frozen=True)
class BandPlot:
    """Everything the template draws."""

    height: float
    bands: tuple[Band, ...]
    axis: tuple[Tick, ...]
    axis_y: float
    alt: str
    width: float = WIDTH
    left: float = LEFT
    right: float = WIDTH - RIGHT


@dataclass(frozen=True)
class IdentityView:
    """One test of identity."""

    result: StoredIdentity
    verdict: Verdict
    symbol: str
    rate: str
    power: tuple[tuple[StoredDetection, str], ...]
    plot: BandPlot | None
    kind: str = "identity"

    @property
    def title(self) -> str:
        """The question about the two models in short."""
        suspect, claimed = short_refs([self.result.suspect.ref, self.result.nulls[0].model.ref])
        return f"Is {suspect} what it claims to be: {claimed}?"


def identity_view(result: StoredIdentity) -> IdentityView:
    """The view of one result."""
    verdict = VERDICTS[result.verdict]
    return IdentityView(
        result=result,
        verdict=verdict,
        symbol=SYMBOLS[verdict],
        rate=error_rate(result),
        power=tuple((d, power_words(d)) for d in result.power),
        plot=_plot(result),
    )


def error_rate(result: StoredIdentity) -> str:
    """The error rate behind the verdict, or why there is none."""
    fixed = (
        f"'No match' needs p at most {result.alpha:g} against every honest model, fixed before the answers were read."
    )
    if result.p_value is None:
        return f"No p-value: one of the honest models could not be tested. {fixed}"
    n = len(result.nulls)
    over = "against the reference" if n == 1 else f"the largest over {n} honest models"
    return f"p = {p_text(result.p_value)} ({result.statistic}, {over}; {result.config.b} relabellings). {fixed}"


def power_words(found: StoredDetection) -> str:
    """What would have been noticed, in a sentence."""
    rate = f"found in {percent(found.rate)} % of resamples, at the lower 95 % end in {percent(found.lower)} %"
    if found.enough:
        return rate
    why = "below the noise between honest models" if found.undetectable else f"needs {found.prompts_needed} prompts"
    return f"{rate}: {why}"


def _plot(result: StoredIdentity) -> BandPlot | None:
    """Where relabelled answers lie and where the suspect's do, honest model by honest model."""
    known = [row for null in result.nulls if (row := _row(null, result)) is not None]
    if not known:
        return None
    ends = [v for _, value, mean, sd in known for v in (value, mean - SPREAD * sd, mean + SPREAD * sd)]
    low, high = min(ends), max(ends)
    margin = (high - low) * 0.03 or 1.0

    def place(value: float) -> float:
        return round(LEFT + (value - low + margin) / (high - low + 2 * margin) * (WIDTH - RIGHT - LEFT), 1)

    bands = tuple(
        Band(
            y=TOP + at * LINE,
            name=cut_name(name, 26),
            note=f"{cut_name(result.statistic, 20)} {number(value)}",
            low=place(mean - SPREAD * sd),
            middle=place(mean),
            high=place(mean + SPREAD * sd),
            observed=place(value),
            title=f"observed {number(value, 6)}; relabelled {number(mean, 6)}, sd {number(sd, 6)}",
        )
        for at, (name, value, mean, sd) in enumerate(known)
    )
    axis_y = TOP + len(bands) * LINE + 2
    marks = ticks(low, high, 6)
    axis = tuple(Tick(place(v), t) for v, t in zip(marks, tick_texts(marks), strict=True))
    return BandPlot(axis_y + 24, bands, axis, axis_y, _alt(known, result.statistic))


def _row(null: StoredNull, result: StoredIdentity) -> Row | None:
    """Name, observed value, mean and sd over relabellings of the statistic that decides."""
    s = next((s for s in null.statistics if s.name == result.statistic), None)
    if s is None or s.value is None or s.expected is None or s.sd is None:
        return None
    return null.name, s.value, s.expected, s.sd


def _alt(known: Sequence[Row], statistic: str) -> str:
    said = "; ".join(
        f"{cut_name(name, 60)}: observed {number(value)}, relabelled {number(mean)} with sd {number(sd)}"
        for name, value, mean, sd in known
    )
    return f"{cut_name(statistic, 40)} of the suspect and of relabelled answers. {said}."
