"""The plots of the lab as inline SVG: accuracy of each factor, and lines over a number of texts.

Colours are the CSS variables of the report page; alone, a picture carries its own light and dark set. Labels of the lab's
own making only (factors, classifiers), escaped all the same.
"""

import html
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from whorl.lab.natural.results import Measured

WIDTH, LEFT, RIGHT, ROW, TOP = 760.0, 150.0, 640.0, 34.0, 30.0
PLOT_HEIGHT = 190.0
N_TICKS = 6
DASHES = ("", "7 4", "2 3", "9 3 2 3")

STYLE = """
.natural { --surface: #ffffff; --ink: #1d1d1b; --muted: #5c5b57; --line: #d6d4cf; --cell: #103f80; --pair: #c2410c; }
@media (prefers-color-scheme: dark) {
  .natural { --surface: #171716; --ink: #efeeea; --muted: #aeada7; --line: #3b3a37; --cell: #9ccaff; --pair: #ff9d5c; }
}
.natural { background: var(--surface); font-family: system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
"""
SHAPES = """
.natural text { fill: var(--ink); font-size: 13px; }
.natural .soft { fill: var(--muted); font-size: 11.5px; }
.natural .grid { stroke: var(--line); }
.natural .chance { stroke: var(--pair); stroke-width: 1.6; stroke-dasharray: 5 4; }
.natural .wide { stroke: var(--cell); stroke-width: 7; stroke-opacity: .28; }
.natural .thin { stroke: var(--muted); stroke-width: 1; }
.natural .dot { fill: var(--surface); stroke: var(--cell); stroke-width: 1.8; }
.natural .mean { fill: var(--cell); }
.natural .curve { fill: none; stroke: var(--cell); stroke-width: 2; }
"""


def forest(rows: Sequence[Measured], *, title: str, alone: bool = True) -> str:
    """Accuracy of each factor: a circle per replicate with its interval over prompts, the band over replicates, the mean.

    Args:
        rows: Factors under one condition by one classifier, at least one, of one chance level.
        title: Shown above and read aloud.
        alone: Carry the style sheet.
    """
    chance = rows[0].chance
    values = [x for m in rows for pair in (*m.intervals, m.over_replicates or m.intervals[0]) for x in pair]
    low, high = _rounded(min(*values, chance), max(*values, chance))
    height = TOP + 26 + ROW * len(rows) + 52

    def x(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (RIGHT - LEFT)

    bottom = TOP + 12 + ROW * len(rows)
    parts = [_text(LEFT, 18, title)]
    for tick in _ticks(low, high):
        parts.append(_line("grid", x(tick), TOP, x(tick), bottom))
        parts.append(_text(x(tick), bottom + 17, f"{100 * tick:.0f} %", "soft", "middle"))
    parts.append(_line("chance", x(chance), TOP, x(chance), bottom))
    parts.append(_text(x(chance) + 4, bottom + 34, f"chance {100 * chance:.1f} %", "soft"))
    for at, m in enumerate(rows):
        parts += _forest_row(m, TOP + ROW * (at + 0.65), x)
    return _svg(height, title, _in_words(rows), parts, alone)


def _forest_row(m: Measured, y: float, place: Callable[[float], float]) -> list[str]:
    parts = [_text(LEFT - 10, y + 4, m.factor, anchor="end")]
    if m.over_replicates is not None:
        parts.append(_line("wide", place(m.over_replicates[0]), y, place(m.over_replicates[1]), y))
    for i, (value, (low, high)) in enumerate(zip(m.accuracies, m.intervals, strict=True)):
        at = y + (i - (len(m.accuracies) - 1) / 2) * 7
        parts.append(_line("thin", place(low), at, place(high), at))
        parts.append(f'<circle class="dot" cx="{place(value):.1f}" cy="{at:.1f}" r="3"/>')
    mean = place(m.accuracy)
    parts.append(f'<path class="mean" d="M{mean:.1f} {y - 6:.1f} l5 6 l-5 6 l-5 -6 z"/>')
    parts.append(_text(RIGHT + 12, y + 4, f"{100 * m.accuracy:.1f} %"))
    return parts


def lines(
    series: Mapping[str, Mapping[int, float]], *, chance: float, title: str, unit: str, alone: bool = True
) -> str:
    """Accuracy over a number of texts, one line a series, doubling on the horizontal axis.

    Args:
        series: Name -> number -> accuracy in [0, 1]; every series non-empty.
        chance: Drawn as a line.
        title: Shown above and read aloud.
        unit: What the numbers count.
        alone: Carry the style sheet.
    """
    numbers = sorted({n for found in series.values() for n in found})
    low, high = _rounded(min(chance, *(a for s in series.values() for a in s.values())), 1.0)
    first, last = math.log2(numbers[0]), math.log2(numbers[-1])
    bottom = TOP + PLOT_HEIGHT

    def place(n: int, accuracy: float) -> tuple[float, float]:
        across = (math.log2(n) - first) / max(last - first, 1e-9)
        return LEFT - 90 + across * (RIGHT - LEFT), bottom - (accuracy - low) / (high - low) * PLOT_HEIGHT

    left = place(numbers[0], low)[0]
    right = place(numbers[-1], low)[0]
    parts = [_text(left, 18, title)]
    for tick in _ticks(low, high):
        y = place(numbers[0], tick)[1]
        parts += [_line("grid", left, y, right, y), _text(left - 8, y + 4, f"{100 * tick:.0f} %", "soft", "end")]
    y = place(numbers[0], chance)[1]
    parts.append(_line("chance", left, y, right, y))
    parts += [_text(place(n, low)[0], bottom + 17, f"{n:,}", "soft", "middle") for n in numbers]
    parts.append(_text(right, bottom + 34, unit, "soft", "end"))
    ends = _apart([place(max(s), s[max(s)])[1] for s in series.values()])
    for at, (name, found) in enumerate(series.items()):
        points = " ".join("{:.1f},{:.1f}".format(*place(n, found[n])) for n in sorted(found))
        dash = f' stroke-dasharray="{DASHES[at % len(DASHES)]}"' if DASHES[at % len(DASHES)] else ""
        parts.append(f'<polyline class="curve" points="{points}"{dash}/>')
        parts.append(_text(right + 10, ends[at] + 4, f"{name} {100 * found[max(found)]:.0f} %", "soft"))
    words = "; ".join(f"{n}: " + ", ".join(f"{k} {100 * v:.1f} %" for k, v in s.items()) for n, s in series.items())
    return _svg(bottom + 46, title, words, parts, alone)


def _apart(heights: Sequence[float]) -> list[float]:
    """Labels moved down until none covers another."""
    found = list(heights)
    order = sorted(range(len(found)), key=found.__getitem__)
    for above, below in pairwise(order):
        found[below] = max(found[below], found[above] + 14)
    return found


def _rounded(low: float, high: float) -> tuple[float, float]:
    """Outward to twentieths."""
    return math.floor(low * 20 - 1e-9) / 20, math.ceil(high * 20 + 1e-9) / 20


def _ticks(low: float, high: float) -> list[float]:
    step = 0.05 * math.ceil((high - low) / 0.05 / N_TICKS)
    first = math.ceil(low / step - 1e-9)
    return [step * i for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _in_words(rows: Sequence[Measured]) -> str:
    return "; ".join(
        f"{m.factor} {100 * m.accuracy:.1f} %"
        + (
            ""
            if m.over_replicates is None
            else f" ({100 * m.over_replicates[0]:.1f} to {100 * m.over_replicates[1]:.1f})"
        )
        for m in rows
    )


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _svg(height: float, title: str, words: str, parts: Sequence[str], alone: bool) -> str:
    size = f'viewBox="0 0 {WIDTH:.0f} {height:.0f}" width="{WIDTH:.0f}" height="{height:.0f}"'
    style = f"<style>{STYLE}{SHAPES}</style>" if alone else ""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="natural fluid" role="img" {size}>'
    alt = f"<title>{html.escape(title)}</title><desc>{html.escape(words)}</desc>"
    return f"{head}{style}{alt}{''.join(parts)}</svg>\n"
