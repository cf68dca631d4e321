"""Geometry of one method's picture: the average-linkage tree, the names beside its leaves, and the table of values.

Coordinates are in CSS pixels, the origin is the upper left corner. Only numbers, class names and cleaned texts leave
this module; the template draws them as inline SVG.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from whorl.reports.lineages import Lineage
from whorl.reports.shown import cut_name, decimals, number, short_number, tick_texts, ticks
from whorl.reports.stored_survey import StoredTable, StoredTree

TREE_WIDTH = 120
CHIP_WIDTH = 22
HEAD = 30
FOOT = 58
TABLE_WIDTH = 845
MAX_WITH_NUMBERS = 26
MAX_WITH_NAMES = 120
LEGEND_WIDTH = 180
LEGEND_TITLE_WIDTH = 210
MID, DEEP = 0.5, 0.7  # from these depths on, figures change ink: the first on a dark page, the second on a light one


@dataclass(frozen=True)
class Cell:
    """One cell: position, depth of colour in [0, 1] (None: not comparable), its figure, and its hover text."""

    x: float
    y: float
    pair: str
    depth: float | None
    text: str
    title: str
    kin: bool

    @property
    def ink(self) -> str:
        """Class that gives figure and outline an ink readable on this depth of colour."""
        depth = self.depth or 0.0
        return "deep" if depth >= DEEP else "mid" if depth >= MID else "pale"


@dataclass(frozen=True)
class Label:
    """One row: vertical middle, number, name, full name, lineage letter and colour class ("" without)."""

    y: float
    at: int
    name: str
    title: str
    letter: str = ""
    mark: str = ""


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    x: float
    text: str


@dataclass(frozen=True)
class Clustermap:
    """Everything the template draws."""

    width: float
    height: float
    cell_width: float
    cell_height: float
    left: float
    rows_bottom: float
    label_x: float
    font: float
    labels: tuple[Label, ...]
    cells: tuple[Cell, ...]
    branches: tuple[str, ...]
    tree_ticks: tuple[Tick, ...]
    tree_title: str
    legend: tuple[Tick, ...]
    legend_title: str
    alt: str
    has_chips: bool


@dataclass(frozen=True)
class _Layout:
    n: int
    has_tree: bool
    has_chips: bool

    @property
    def numbers(self) -> bool:
        return self.n <= MAX_WITH_NUMBERS

    @property
    def cell_height(self) -> float:
        return 24.0 if self.numbers else max(6.0, min(18.0, 1080 / self.n))

    @property
    def cell_width(self) -> float:
        return max(33.0, min(42.0, TABLE_WIDTH / self.n)) if self.numbers else self.cell_height

    @property
    def font(self) -> float:
        return 12.0 if self.numbers else max(6.0, min(12.0, self.cell_height - 2))

    @property
    def label_x(self) -> float:
        return (TREE_WIDTH + 8.0) if self.has_tree else 4.0

    @property
    def name_limit(self) -> int:
        return 24 if self.n <= MAX_WITH_NAMES else 0

    @property
    def left(self) -> float:
        chips = CHIP_WIDTH if self.has_chips else 0
        return self.label_x + chips + 26 + self.name_limit * self.font * 0.58 + 8

    def row(self, at: int) -> float:
        return HEAD + at * self.cell_height


def clustermap(
    table: StoredTable,
    names: Sequence[str],
    reasons: Mapping[tuple[int, int], str],
    lineages: Mapping[str, Lineage],
    marks: Mapping[str, tuple[str, str]],
) -> Clustermap:
    """The picture of one method.

    Args:
        table: Its values and tree.
        names: Model names by position in the table.
        reasons: Why a pair (i, j), i < j, is not comparable.
        lineages: What is known of the models; empty when nothing is.
        marks: Group -> its letter and colour class.
    """
    order = _order(table.tree, names)
    layout = _Layout(len(names), table.tree is not None, bool(lineages))
    values = [v for i, row in enumerate(table.values) for v in row[:i] if v is not None]
    scale = _Scale.of(values, larger_is_closer=table.direction == "similarity")
    branches, tree_ticks = _branches(table.tree, layout)
    n = len(order)
    return Clustermap(
        width=layout.left + max(n * layout.cell_width, LEGEND_WIDTH + LEGEND_TITLE_WIDTH) + 4,
        height=layout.row(n) + FOOT,
        cell_width=layout.cell_width,
        cell_height=layout.cell_height,
        left=layout.left,
        rows_bottom=layout.row(n),
        label_x=layout.label_x,
        font=layout.font,
        labels=tuple(_label(at, names[i], layout, lineages, marks) for at, i in enumerate(order)),
        cells=tuple(_cells(table, names, order, reasons, lineages, scale, layout)),
        branches=branches,
        tree_ticks=tree_ticks,
        tree_title="mean distance" if table.direction == "distance" else "1 \N{MINUS SIGN} mean similarity",
        legend=scale.legend(),
        legend_title=f"{table.direction}, stronger colour is closer",
        alt=_alt(table, names, values),
        has_chips=layout.has_chips,
    )


def _order(tree: StoredTree | None, names: Sequence[str]) -> list[int]:
    """Rows from top to bottom: leaves of the tree, then the models it leaves out."""
    place = {name: i for i, name in enumerate(names)}
    shown = [] if tree is None else [place[name] for name in tree.leaves]
    in_tree = set(shown)
    return [*shown, *(i for i in range(len(names)) if i not in in_tree)]


@dataclass(frozen=True)
class _Scale:
    """Linear from the tenth percentile of the closeness to its largest value; what is less close is left pale.

    A few strangers far from all others would otherwise take the whole range of colour.
    """

    low: float
    high: float
    sign: float
    digits: int

    @staticmethod
    def of(values: Sequence[float], *, larger_is_closer: bool) -> "_Scale":
        sign = 1.0 if larger_is_closer else -1.0
        closeness = sorted(sign * v for v in values) or [0.0]
        low = statistics.quantiles(closeness, n=10)[0] if len(closeness) > 10 else closeness[0]
        return _Scale(max(low, closeness[0]), closeness[-1], sign, decimals(values))

    def depth(self, value: float) -> float:
        if self.high <= self.low:
            return 1.0
        return min(1.0, max(0.0, (self.sign * value - self.low) / (self.high - self.low)))

    def legend(self) -> tuple[Tick, ...]:
        """Positions and labels below the colour bar."""
        if self.high <= self.low:
            return (Tick(LEGEND_WIDTH, number(self.sign * self.high, self.digits)),)
        ends = (self.low, (self.low + self.high) / 2, self.high)
        texts = [number(self.sign * v, max(self.digits, 2)) for v in ends]
        texts[0] = (
            f"\N{LESS-THAN OR EQUAL TO} {texts[0]}" if self.sign > 0 else f"\N{GREATER-THAN OR EQUAL TO} {texts[0]}"
        )
        return tuple(Tick(x, t) for x, t in zip((0, LEGEND_WIDTH / 2, LEGEND_WIDTH), texts, strict=True))


def _label(
    at: int, name: str, layout: _Layout, lineages: Mapping[str, Lineage], marks: Mapping[str, tuple[str, str]]
) -> Label:
    y = layout.row(at) + layout.cell_height / 2
    shown = cut_name(name, layout.name_limit) if layout.name_limit else ""
    known = lineages.get(name)
    title = cut_name(name, 120)
    if known is None:
        return Label(y, at + 1, shown, title)
    letter, mark = marks[known.group]
    kind = f", {cut_name(known.kind, 40)}" if known.kind else ""
    return Label(y, at + 1, shown, f"{title}: lineage {letter} ({cut_name(known.group, 40)}){kind}", letter, mark)


def _cells(
    table: StoredTable,
    names: Sequence[str],
    order: Sequence[int],
    reasons: Mapping[tuple[int, int], str],
    lineages: Mapping[str, Lineage],
    scale: _Scale,
    layout: _Layout,
) -> list[Cell]:
    method = table.method.partition("@")[0]
    found = []
    for row, i in enumerate(order):
        for column, j in enumerate(order):
            if i == j:
                continue
            value = table.values[i][j]
            pair = (min(i, j), max(i, j))
            why = number(value, 6) if value is not None else f"not comparable: {cut_name(reasons.get(pair, ''), 200)}"
            text = "" if not layout.numbers else ("n/c" if value is None else short_number(value, scale.digits))
            kin = names[i] in lineages and names[j] in lineages and lineages[names[i]].group == lineages[names[j]].group
            title = f"{cut_name(names[i], 60)} | {cut_name(names[j], 60)}\n{method}: {why}"
            x = layout.left + column * layout.cell_width
            depth = None if value is None else round(scale.depth(value), 3)
            found.append(Cell(x, layout.row(row), f"{pair[0]}-{pair[1]}", depth, text, title, kin))
    return found


def _branches(tree: StoredTree | None, layout: _Layout) -> tuple[tuple[str, ...], tuple[Tick, ...]]:
    """One path a merge, leaves on the right, heights growing to the left."""
    if tree is None:
        return (), ()
    highest = max(height for _, _, height in tree.merges) or 1.0
    right, span = float(TREE_WIDTH), float(TREE_WIDTH - 12)
    nodes = [(right, layout.row(at) + layout.cell_height / 2) for at in range(len(tree.leaves))]
    paths = []
    for a, b, height in tree.merges:
        x = right - span * height / highest
        (x1, y1), (x2, y2) = nodes[a], nodes[b]
        paths.append(f"M{x1:.1f} {y1:.1f}H{x:.1f}V{y2:.1f}H{x2:.1f}")
        nodes.append((x, (y1 + y2) / 2))
    marks = ticks(0.0, highest, 3)
    return tuple(paths), tuple(
        Tick(right - span * v / highest, t) for v, t in zip(marks, tick_texts(marks), strict=True)
    )


def _alt(table: StoredTable, names: Sequence[str], values: Sequence[float]) -> str:
    """What the picture shows, for people who do not see it."""
    method = table.method.partition("@")[0]
    if not values:
        return f"{method}: no pair of the {len(names)} models is comparable."
    best = (max if table.direction == "similarity" else min)(values)
    i, j = next((i, j) for i, row in enumerate(table.values) for j, v in enumerate(row) if v == best and j < i)
    return (
        f"{method}: {table.direction} of {len(values)} pairs of {len(names)} models as a table with a tree of average "
        f"linkage; values from {number(min(values))} to {number(max(values))}; "
        f"closest pair: {cut_name(names[j], 40)} and {cut_name(names[i], 40)}."
    )
