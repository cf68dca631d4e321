"""Geometry of a rug plot: one thin mark a pair along the axis of values, one line a group of pairs.

Marks that would fall on the same pixel become one darker mark, so that large surveys stay small files.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from whorl.reports.clustermap import Tick
from whorl.reports.shown import number, tick_texts, ticks

WIDTH = 720
LEFT = 190
RIGHT = 24
LINE = 34


@dataclass(frozen=True)
class Mark:
    """One mark: position, depth in (0, 1], hover text."""

    x: float
    depth: float
    title: str


@dataclass(frozen=True)
class Line:
    """One group of pairs: its name, how many there are, where its mean is (None: not drawn), and its marks."""

    y: float
    name: str
    count: int
    mean: float | None
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Rug:
    """Everything the template draws; `pointer` is the position of the pair in question."""

    height: float
    lines: tuple[Line, ...]
    axis: tuple[Tick, ...]
    axis_y: float
    pointer: Tick | None
    alt: str
    width: float = WIDTH
    left: float = LEFT
    right: float = WIDTH - RIGHT


def rug(groups: Sequence[tuple[str, Sequence[float]]], alt: str, pointer: float | None = None) -> Rug:
    """The plot of several groups of values on one axis.

    Args:
        groups: Name and values of each line, top to bottom.
        alt: What the plot shows, in words.
        pointer: The value of the pair in question.
    """
    values = [v for _, found in groups for v in found] + ([] if pointer is None else [pointer])
    low, high = min(values), max(values)
    margin = (high - low) * 0.02 or max(abs(high), 1.0) * 0.02
    low, high = low - margin, high + margin

    def place(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (WIDTH - RIGHT - LEFT)

    top = 28.0 if pointer is not None else 8.0
    lines = []
    for at, (name, found) in enumerate(groups):
        mean = place(math.fsum(found) / len(found)) if len(found) > 1 else None
        lines.append(Line(top + at * LINE, name, len(found), mean, marks_at(found, place)))
    axis_y = top + len(groups) * LINE + 2
    marks = ticks(low, high, 6)
    axis = tuple(Tick(round(place(v), 1), t) for v, t in zip(marks, tick_texts(marks), strict=True))
    shown = None if pointer is None else Tick(round(place(pointer), 1), number(pointer))
    return Rug(axis_y + 24, tuple(lines), axis, axis_y, shown, alt)


def marks_at(values: Sequence[float], place: Callable[[float], float]) -> tuple[Mark, ...]:
    """Marks along an axis, those of one pixel joined."""
    by_pixel: dict[int, list[float]] = {}
    for value in sorted(values):
        by_pixel.setdefault(round(place(value)), []).append(value)
    return tuple(Mark(x, _depth(len(found)), _title(found)) for x, found in by_pixel.items())


def _depth(n: int) -> float:
    return round(min(1.0, 0.45 + 0.15 * math.log2(n)), 2)


def _title(values: Sequence[float]) -> str:
    if len(values) == 1:
        return number(values[0], 6)
    return f"{len(values)} pairs, {number(values[0], 6)} to {number(values[-1], 6)}"
