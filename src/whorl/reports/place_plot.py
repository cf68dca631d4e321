"""Geometry of "where this pair lies": unrelated pairs as a histogram, known derivatives as strips, threshold, this pair.

One axis for all, in CSS pixels, origin at the upper left. Values of a strip that fall on one pixel become one mark.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from whorl.calibration import Calibration, Scores
from whorl.reports.clustermap import Tick
from whorl.reports.rug import Mark, marks_at
from whorl.reports.shown import cut_name, number, tick_texts, ticks
from whorl.reports.stored_comparison import StoredEvidence

WIDTH = 760.0
LEFT = 176.0
RIGHT = 736.0
HEAD = 40.0
BARS = 64.0
LINE = 24.0
N_BINS = 56
LETTER = 6.6  # pixels a letter of the labels takes, about


@dataclass(frozen=True)
class Bar:
    """One bar of the histogram: position, size, hover text."""

    x: float
    y: float
    width: float
    height: float
    title: str


@dataclass(frozen=True)
class Strip:
    """Known derivatives of one kind: baseline, name, how many lie beyond the threshold, and their marks."""

    y: float
    name: str
    note: str
    title: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Flag:
    """A vertical line with its text; `anchor` keeps the text inside the picture."""

    x: float
    text: str
    anchor: str


@dataclass(frozen=True)
class PlacePlot:
    """Everything the template draws."""

    height: float
    unrelated: str
    note: str
    bars: tuple[Bar, ...]
    bars_y: float
    strips: tuple[Strip, ...]
    axis: tuple[Tick, ...]
    axis_y: float
    direction: str
    closer_right: bool
    threshold: Flag | None
    pointer: Flag
    alt: str
    width: float = WIDTH
    left: float = LEFT
    right: float = RIGHT


def place_plot(e: StoredEvidence, calibrations: Sequence[Calibration]) -> PlacePlot | None:
    """The plot of one method; None when the calibration with its values is not among those at hand."""
    if e.place is None or e.value is None:
        return None
    scores = _scores(e, calibrations)
    if scores is None:
        return None
    unrelated = [v for v in scores.unrelated if v is not None]
    derived = {k: [v for v in d.values if v is not None] for k, d in scores.derived.items()}
    place = _axis(unrelated, derived, e.value, e.threshold)
    kinds = sorted(derived, key=lambda k: (-_median(derived[k], closer_is_larger=e.similarity is not None), k))
    strips = tuple(_strip(e, k, derived[k], len(scores.derived[k].values), i, place) for i, k in enumerate(kinds))
    bars_y = HEAD + BARS
    axis_y = bars_y + 8 + len(strips) * LINE
    shown = ticks(place.low, place.high, 7)
    gaps = len(scores.unrelated) - len(unrelated)
    return PlacePlot(
        height=axis_y + 40,
        unrelated="unrelated pairs",
        note=f"{len(unrelated)} pairs" + (f", {gaps} n/c" if gaps else ""),
        bars=_bars(unrelated, place, bars_y),
        bars_y=bars_y,
        strips=strips,
        axis=tuple(Tick(round(place(v), 1), t) for v, t in zip(shown, tick_texts(shown), strict=True)),
        axis_y=axis_y,
        direction="similarity" if e.similarity is not None else "distance",
        closer_right=e.similarity is not None,
        threshold=None if e.threshold is None else _flag(place(e.threshold), f"threshold {number(e.threshold)}"),
        pointer=_flag(place(e.value), f"this pair: {number(e.value)}"),
        alt=_alt(e, unrelated, derived),
    )


def _scores(e: StoredEvidence, calibrations: Sequence[Calibration]) -> Scores | None:
    if e.place is None:
        return None
    found = next((c for c in calibrations if c.id == e.place.calibration), None)
    condition = next((c for c in found.conditions if c.name == e.place.condition), None) if found else None
    scores = condition.scores.get(e.method) if condition else None
    return scores if scores is not None and any(v is not None for v in scores.unrelated) else None


def _median(values: Sequence[float], *, closer_is_larger: bool) -> float:
    """Closeness by which kinds are put in order; kinds without values last."""
    if not values:
        return -math.inf
    return float(np.median(values)) * (1.0 if closer_is_larger else -1.0)


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float

    def __call__(self, value: float) -> float:
        return LEFT + (value - self.low) / (self.high - self.low) * (RIGHT - LEFT)


def _axis(
    unrelated: Sequence[float], derived: Mapping[str, Sequence[float]], value: float, threshold: float | None
) -> _Axis:
    values = [*unrelated, *(v for found in derived.values() for v in found), value]
    values += [] if threshold is None else [threshold]
    low, high = min(values), max(values)
    margin = (high - low) * 0.025 or max(abs(high), 1.0) * 0.025
    return _Axis(low - margin, high + margin)


def _bars(values: Sequence[float], axis: _Axis, bottom: float) -> tuple[Bar, ...]:
    """Bins of equal width over the whole axis, empty ones left out."""
    edges = np.linspace(axis.low, axis.high, N_BINS + 1)
    counts = np.histogram(values, edges)[0]
    width, tallest = (RIGHT - LEFT) / N_BINS, max(int(counts.max()), 1)
    found = []
    for i, n in enumerate(int(c) for c in counts):
        if n:
            height = max(3.0, BARS * n / tallest)
            title = f"{n} unrelated {'pair' if n == 1 else 'pairs'} from {number(edges[i])} to {number(edges[i + 1])}"
            found.append(Bar(LEFT + i * width, bottom - height, width - 1, height, title))
    return tuple(found)


def _strip(
    e: StoredEvidence, kind: str, values: Sequence[float], n: int, at: int, place: Callable[[float], float]
) -> Strip:
    known = e.place.kinds.get(kind) if e.place else None
    note = f"{n}" if known is None else f"{known.found}/{known.n}"
    return Strip(HEAD + BARS + 8 + (at + 1) * LINE, cut_name(kind, 22), note, kind, marks_at(values, place))


def _flag(x: float, text: str) -> Flag:
    half = len(text) * LETTER / 2
    anchor = "end" if x + half > WIDTH else "start" if x - half < 0 else "middle"
    return Flag(round(x, 1), text, anchor)


def _alt(e: StoredEvidence, unrelated: Sequence[float], derived: Mapping[str, Sequence[float]]) -> str:
    """What the plot shows, for people who do not see it."""
    parts = [
        f"{cut_name(e.short, 60)}: this pair at {number(e.value)}",
        f"{len(unrelated)} unrelated pairs from {number(min(unrelated))} to {number(max(unrelated))}",
    ]
    parts += [
        f"derivatives of kind {cut_name(k, 40)} from {number(min(v))} to {number(max(v))}"
        for k, v in derived.items()
        if v
    ]
    if e.threshold is not None:
        parts.append(f"threshold {number(e.threshold)}")
    return "; ".join(parts) + "."
