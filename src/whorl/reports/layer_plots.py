"""Geometry of the pictures about layers: the map of all layer pairs, the strip of matched layers, and lost layers.

Coordinates are in CSS pixels, the origin is the upper left corner of each picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from whorl.reports.shown import number, short_number
from whorl.reports.stored_comparison import StoredAlignment

EDGE = 40.0
MAX_SIZE = 560.0
MAX_CELL = 34.0
MIN_FIGURES = 26.0  # cells at least as wide show their value
LEVELS = 24
MID, DEEP = 0.5, 0.7
STRIP_HEIGHT = 84.0
BOX, GAP = 26.0, 4.0

LayerPair = tuple[int | None, int | None]


@dataclass(frozen=True)
class Figure:
    """The value of one cell, and the class of its ink."""

    x: float
    y: float
    text: str
    ink: str


@dataclass(frozen=True)
class Shade:
    """All cells of one depth of colour, as one SVG path."""

    depth: float
    d: str


@dataclass(frozen=True)
class AxisLabel:
    """A layer number at the edge; `alone` where the layer has no partner."""

    at: float
    text: str
    alone: bool


@dataclass(frozen=True)
class LayerMap:
    """Similarity of every layer of A with every layer of B, and the path through it."""

    width: float
    height: float
    edge: float
    size: tuple[float, float]
    cell: float
    shades: tuple[Shade, ...]
    figures: tuple[Figure, ...]
    outlines: tuple[tuple[float, float], ...]
    path: str
    rows: tuple[AxisLabel, ...]
    columns: tuple[AxisLabel, ...]
    legend: tuple[str, str]
    alt: str


def layer_map(found: StoredAlignment) -> LayerMap | None:
    """The map of one alignment; None without scores."""
    if found.scores is None or found.path is None:
        return None
    n_rows, n_columns = len(found.scores), len(found.scores[0])
    cell = min(MAX_CELL, MAX_SIZE / max(n_rows, n_columns))
    values = [v for row in found.scores for v in row]
    low, high = min(0.0, *values), max(1.0, *values)  # not stretched: unrelated layers stay pale
    depths = [[_depth(v, low, high) for v in row] for row in found.scores]
    matched = [(i, j) for i, j in found.path if i is not None and j is not None]
    alone = ({i for i, j in found.path if j is None}, {j for i, j in found.path if i is None})
    return LayerMap(
        width=max(EDGE + n_columns * cell + 8, EDGE + 260),
        height=EDGE + n_rows * cell + 44,
        edge=EDGE,
        size=(n_columns * cell, n_rows * cell),
        cell=cell,
        shades=_shades(depths, cell),
        figures=_figures(found.scores, depths, cell),
        outlines=tuple((EDGE + j * cell, EDGE + i * cell) for i, j in matched),
        path="" if cell >= MIN_FIGURES else _line(matched, cell),
        rows=_labels(n_rows, cell, alone[0]),
        columns=_labels(n_columns, cell, alone[1]),
        legend=(number(low, 2), number(high, 2)),
        alt=_map_alt(found, n_rows, n_columns, len(matched)),
    )


def _line(matched: Sequence[tuple[int, int]], cell: float) -> str:
    """The path as a line; where cells show their figures the outlines alone do it."""
    return "".join(
        f"{'L' if at else 'M'}{_middle(j, cell):.1f} {_middle(i, cell):.1f}" for at, (i, j) in enumerate(matched)
    )


def _depth(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.0


def _middle(at: int, cell: float) -> float:
    return EDGE + (at + 0.5) * cell


def _shades(depths: Sequence[Sequence[float]], cell: float) -> tuple[Shade, ...]:
    """One path per level of colour, neighbours in a row joined: 100 x 100 layers stay a small picture."""
    paths: dict[int, list[str]] = {}
    for i, row in enumerate(depths):
        levels = [round(depth * (LEVELS - 1)) for depth in row]
        start = 0
        for j in range(1, len(levels) + 1):
            if j == len(levels) or levels[j] != levels[start]:
                x, y, width = EDGE + start * cell, EDGE + i * cell, (j - start) * cell
                paths.setdefault(levels[start], []).append(f"M{x:.1f} {y:.1f}h{width:.1f}v{cell:.1f}h-{width:.1f}z")
                start = j
    return tuple(Shade(round(level / (LEVELS - 1), 3), "".join(paths[level])) for level in sorted(paths))


def _figures(scores: Sequence[Sequence[float]], depths: Sequence[Sequence[float]], cell: float) -> tuple[Figure, ...]:
    if cell < MIN_FIGURES:
        return ()
    return tuple(
        Figure(_middle(j, cell), _middle(i, cell) + 4, short_number(v, 2), _ink(depths[i][j]))
        for i, row in enumerate(scores)
        for j, v in enumerate(row)
    )


def _ink(depth: float) -> str:
    return "deep" if depth >= DEEP else "mid" if depth >= MID else "pale"


def _labels(n: int, cell: float, alone: set[int | None]) -> tuple[AxisLabel, ...]:
    """Every layer, those without a partner marked; numbers only at every second, fifth, ... where they would touch."""
    step = _step(cell, 16)
    return tuple(
        AxisLabel(_middle(i, cell), "" if i % step else str(i), i in alone)
        for i in range(n)
        if i % step == 0 or i in alone
    )


def _step(size: float, room: float) -> int:
    return next((s for s in (1, 2, 5, 10, 20, 50, 100) if s * size >= room), 1000)


def _map_alt(found: StoredAlignment, rows: int, columns: int, matched: int) -> str:
    values = [v for _, _, v in found.layers]
    text = f"Similarity of {rows} layers of A with {columns} layers of B; {matched} are matched"
    if values:
        text += f", with similarities from {number(min(values), 2)} to {number(max(values), 2)}"
    return text + "."


@dataclass(frozen=True)
class Column:
    """One step of the path: both layer numbers ("–" for none), and its bar; `value` None where there is none."""

    x: float
    a: str
    b: str
    value: float | None
    y: float
    height: float
    title: str
    labelled: bool


@dataclass(frozen=True)
class LayerStrip:
    """Similarity along the path, one bar a step."""

    width: float
    height: float
    zero: float
    bar: float
    left: float
    columns: tuple[Column, ...]
    top: float
    alt: str


def layer_strip(found: StoredAlignment) -> LayerStrip | None:
    """The strip of matched layers; None when no layer was measured."""
    if not found.path or not found.layers:
        return None
    values: dict[LayerPair, float] = {(i, j): v for i, j, v in found.layers}
    bar = min(MAX_CELL, MAX_SIZE / len(found.path))
    low, high = min(0.0, *values.values()), max(1.0, *values.values())
    unit = STRIP_HEIGHT / (high - low)
    zero = 12 + high * unit
    step = _step(bar, 18)
    columns = tuple(_column(at, pair, values.get(pair), bar, zero, unit, step) for at, pair in enumerate(found.path))
    shown = list(values.values())
    alt = f"Similarity of {len(shown)} matched layers, from {number(min(shown), 3)} to {number(max(shown), 3)}."
    width = max(EDGE + len(found.path) * bar + 8, EDGE + 260)
    return LayerStrip(width, 12 + STRIP_HEIGHT + 44, zero, bar - min(3.0, bar / 4), EDGE, columns, high, alt)


def _column(
    at: int,
    pair: LayerPair,
    value: float | None,
    bar: float,
    zero: float,
    unit: float,
    step: int,
) -> Column:
    a, b = ("\N{EN DASH}" if layer is None else str(layer) for layer in pair)
    height = 0.0 if value is None else abs(value) * unit
    y = zero - height if value is None or value >= 0 else zero
    said = "no partner" if None in pair else "not measured" if value is None else number(value)
    return Column(EDGE + at * bar, a, b, value, y, height, f"layer {a} of A, layer {b} of B: {said}", at % step == 0)


@dataclass(frozen=True)
class Box:
    """One layer in its row; `alone` without a partner."""

    x: float
    text: str
    alone: bool


@dataclass(frozen=True)
class LayerLinks:
    """Layers of A above, layers of B below, and lines between partners."""

    width: float
    height: float
    box: float
    top: tuple[Box, ...]
    bottom: tuple[Box, ...]
    links: tuple[tuple[float, float], ...]
    sentence: str


def layer_links(pairs: Sequence[LayerPair]) -> LayerLinks:
    """The picture of dropped, repeated or moved layers."""
    rows = tuple(sorted({layer for layer in side if layer is not None}) for side in zip(*pairs, strict=True))
    linked = [(a, b) for a, b in pairs if a is not None and b is not None]
    box = min(BOX, MAX_SIZE / max(1, *(len(row) for row in rows)) - min(GAP, 2.0))
    places = tuple({layer: EDGE + at * (box + GAP) for at, layer in enumerate(row)} for row in rows)
    partners = ({a for a, _ in linked}, {b for _, b in linked})
    boxes = tuple(
        tuple(Box(places[s][x], str(x) if box > 15 else "", x not in partners[s]) for x in rows[s]) for s in (0, 1)
    )
    width = EDGE + max(len(row) for row in rows) * (box + GAP) + 4
    links = tuple((places[0][a] + box / 2, places[1][b] + box / 2) for a, b in linked)
    return LayerLinks(width, 2 * BOX + 60, box, boxes[0], boxes[1], links, _links_sentence(boxes, rows, linked))


def _links_sentence(
    boxes: tuple[tuple[Box, ...], ...], rows: tuple[list[int], ...], linked: Sequence[tuple[int, int]]
) -> str:
    parts = []
    for side, name, other in ((0, "A", "B"), (1, "B", "A")):
        alone = [layer for layer, box in zip(rows[side], boxes[side], strict=True) if box.alone]
        if alone:
            parts.append(f"layers of {name} without a partner in {other}: {_numbers(alone)}")
        counts = [pair[side] for pair in linked]
        twice = sorted({layer for layer in counts if counts.count(layer) > 1})
        if twice:
            parts.append(f"layers of {name} with several partners in {other}: {_numbers(twice)}")
    return "; ".join(parts) or "every layer has one partner"


def _numbers(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))
