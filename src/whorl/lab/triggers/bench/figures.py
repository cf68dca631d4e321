"""The plots of the benchmark as inline SVG: grid of outcomes, FSR against cost, p against keys asked.

Colours are variables of the report's style sheet, which has a light and a dark set; every outcome also has a letter,
every curve a dash of its own. Every text is escaped.
"""

import html
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from whorl.lab.triggers.bench.outcome import IN_BUDGET, LETTERS, Outcome
from whorl.lab.triggers.bench.records import Record
from whorl.lab.triggers.bench.results import Best

WIDTH, LEFT, RIGHT, TOP = 760.0, 60.0, 560.0, 34.0
PLOT_HEIGHT = 210.0
CELL_WIDTH, CELL_HEIGHT, NAMES_WIDTH = 118.0, 30.0, 210.0
DASHES = ("", "7 4", "2 3", "9 3 2 3", "1 4", "12 4")
MOST_CURVES = len(DASHES)
MOST_COST = 1.0  # a larger rise of perplexity is drawn at the edge
LEAST_EXPONENT = 30  # p below 1e-30 is drawn there
UNCOUNTED = "missing"
CLASSES: Mapping[Outcome, str] = {
    "survives": "survives",
    "weakened, provable": "provable",
    "gone": "gone",
    "model ruined": "ruined",
    "not run": "missing",
}
SHAPES = """
.triggers text { fill: var(--ink); font-size: 12.5px; }
.triggers .soft { fill: var(--muted); font-size: 11px; }
.triggers .rule { stroke: var(--line); }
.triggers .bound { stroke: var(--pair); stroke-width: 1.4; stroke-dasharray: 5 4; }
.triggers rect { stroke: var(--line); fill: var(--surface); }
.triggers .survives { fill: var(--related); }
.triggers .provable { fill: var(--cell); }
.triggers .gone { fill: var(--unrelated); }
.triggers .ruined { fill: var(--sunken); }
.triggers .missing { fill: var(--surface); stroke-dasharray: 3 3; }
.triggers text.on { fill: var(--surface); font-weight: 600; }
.triggers .dot { fill: var(--cell); }
.triggers .mark { fill: var(--ink); font-size: 11px; font-weight: 600; }
.triggers .curve { fill: none; stroke: var(--cell); stroke-width: 2; }
"""


def grid(cells: Sequence[Best], *, title: str) -> str:
    """Scheme x attack, coloured by outcome, with its letter and the mean FSR.

    Args:
        cells: At least one; every scheme under every attack.
        title: Shown above and read aloud.
    """
    schemes = list(dict.fromkeys(one.scheme for one in cells))
    attacks = list(dict.fromkeys(one.attack for one in cells))
    parts = [_text(8, 18, title)]
    parts += [_text(NAMES_WIDTH + CELL_WIDTH * (i + 0.5), TOP + 12, s, anchor="middle") for i, s in enumerate(schemes)]
    for j, attack in enumerate(attacks):
        parts.append(_text(NAMES_WIDTH - 8, TOP + 20 + CELL_HEIGHT * (j + 0.65), attack, anchor="end"))
    for one in cells:
        x = NAMES_WIDTH + CELL_WIDTH * schemes.index(one.scheme)
        y = TOP + 20 + CELL_HEIGHT * attacks.index(one.attack)
        box = f'x="{x:.1f}" y="{y:.1f}" width="{CELL_WIDTH - 2:.1f}" height="{CELL_HEIGHT - 2:.1f}"'
        parts.append(f'<rect class="{CLASSES[one.outcome] if one.counts else UNCOUNTED}" {box}/>')
        label = LETTERS[one.outcome] + ("" if one.fsr is None else f" {one.fsr:.2f}")
        label = label if one.counts or one.outcome == "not run" else f"({label})"
        kind = "on" if one.counts and one.outcome in IN_BUDGET else ""
        parts.append(_text(x + CELL_WIDTH / 2, y + CELL_HEIGHT * 0.62, label, kind, "middle"))
    bottom = TOP + 20 + CELL_HEIGHT * len(attacks)
    key = ", ".join(f"{letter} {name}" for name, letter in LETTERS.items())
    key += "" if all(one.counts for one in cells) else "; (in parentheses) not planted, does not count"
    parts.append(_text(8, bottom + 20, f"{key}; number: mean FSR at the attacker's best setting in budget", "soft"))
    words = "; ".join(f"{one.scheme} under {one.attack}: {one.outcome}" for one in cells)
    width = max(WIDTH, NAMES_WIDTH + CELL_WIDTH * len(schemes) + 8)
    return _svg(bottom + 32, title, words, parts, width)


def frontier(records: Sequence[Record], *, budget: float, title: str) -> str:
    """FSR against what the attack cost, outcome and number of the scheme for each cell; "" when nothing was measured.

    Args:
        records: Cells of one attack.
        budget: Largest relative rise of perplexity, drawn as a line; for serving attacks the line is left out.
        title: Shown above and read aloud.
    """
    found = [(_cost(r), r.asked, r) for r in records]
    points = [(min(x, MOST_COST), said.share.value, r) for x, said, r in found if x is not None and said is not None]
    if not points:
        return ""
    serving = points[0][2].over == "serving"
    low, high = min(0.0, *(x for x, _, _ in points)), max(0.2, *(x for x, _, _ in points))
    bottom = TOP + PLOT_HEIGHT

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + (x - low) / (high - low) * (RIGHT - LEFT), bottom - y * PLOT_HEIGHT

    parts = [_text(8, 18, title), *_frame(bottom)]
    ticks = _ticks(low, high)
    parts += [_text(place(tick, 0)[0], bottom + 17, f"{100 * tick:+.0f} %", "soft", "middle") for tick in ticks]
    if not serving:
        x = place(budget, 0)[0]
        parts += [_line("bound", x, TOP, x, bottom), _text(x + 4, TOP + 12, "budget", "soft")]
    schemes = list(dict.fromkeys(r.scheme for _, _, r in points))
    marks = [(*place(x, y), f"{LETTERS[r.outcome or 'not run']}{schemes.index(r.scheme) + 1}") for x, y, r in points]
    parts += [f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y, _ in marks]
    parts += [_text(x + 5, y + 4, label, "mark") for x, y, label in _labels(marks)]
    what = (
        "ordinary answers changed"
        if serving
        else "perplexity, the larger change of in and out of the domain (above +100 %: at the edge)"
    )
    parts.append(_text(LEFT, bottom + 34, f"{what}; {', '.join(f'{i} {s}' for i, s in enumerate(schemes, 1))}", "soft"))
    words = "; ".join(f"{r.scheme} {r.point}: FSR {y:.2f} at {x:+.1%}" for x, y, r in points)
    return _svg(bottom + 46, title, words, parts, WIDTH)


def curves(series: Mapping[str, Sequence[float | None]], *, alpha: float, title: str) -> str:
    """The p-value against the number of keys asked, downwards in powers of ten; "" when no curve has a p.

    Args:
        series: Name -> p after 1, 2, ... keys; at most `MOST_CURVES`.
        alpha: Largest p that proves, drawn as a line.
        title: Shown above and read aloud.
    """
    known = {name: [(n, p) for n, p in enumerate(values, 1) if p is not None] for name, values in series.items()}
    known = {name: points for name, points in known.items() if points}
    if not known:
        return ""
    most = max(n for points in known.values() for n, _ in points)
    deepest = max(3.0, min(LEAST_EXPONENT, max(-math.log10(p) for points in known.values() for _, p in points)))
    bottom = TOP + PLOT_HEIGHT

    def place(n: int, p: float) -> tuple[float, float]:
        depth = min(LEAST_EXPONENT, -math.log10(p))
        return LEFT + (n - 1) / max(most - 1, 1) * (RIGHT - LEFT), TOP + depth / deepest * PLOT_HEIGHT

    parts = [_text(8, 18, title), _line("rule", LEFT, TOP, LEFT, bottom), _line("rule", LEFT, bottom, RIGHT, bottom)]
    for exponent in range(0, math.floor(deepest) + 1, max(1, math.ceil(deepest / 6))):
        label = f"1e-{exponent}" if exponent else "1"
        parts += [_text(LEFT - 8, place(1, 10.0**-exponent)[1] + 4, label, "soft", "end")]
    y = place(1, alpha)[1]
    parts += [_line("bound", LEFT, y, RIGHT, y), _text(LEFT + 4, y - 4, f"proves below {alpha:g}", "soft")]
    for n in sorted({1, most, *range(5, most, max(5, most // 8))}):
        parts.append(_text(place(n, 1.0)[0], bottom + 17, str(n), "soft", "middle"))
    ends = _apart([place(*points[-1])[1] for points in known.values()])
    for at, (name, points) in enumerate(known.items()):
        drawn = " ".join("{:.1f},{:.1f}".format(*place(n, p)) for n, p in points)
        dash = f' stroke-dasharray="{DASHES[at % len(DASHES)]}"' if DASHES[at % len(DASHES)] else ""
        parts += [f'<polyline class="curve" points="{drawn}"{dash}/>', _text(RIGHT + 8, ends[at] + 4, name, "soft")]
    parts.append(_text(RIGHT, bottom + 34, "keys asked, in the order of the key set", "soft", "end"))
    words = "; ".join(f"{name}: {points[-1][1]:.2g} after {points[-1][0]} keys" for name, points in known.items())
    return _svg(bottom + 46, title, words, parts, WIDTH)


def _cost(r: Record) -> float | None:
    """Relative rise of perplexity, or the share of ordinary answers that changed."""
    if r.agreement is not None:
        return 1.0 - r.agreement.value
    if r.perplexity_in is None or r.perplexity_out is None:
        return None
    return max(r.perplexity_in[1] / r.perplexity_in[0], r.perplexity_out[1] / r.perplexity_out[0]) - 1


def _frame(bottom: float) -> list[str]:
    parts = []
    for tick in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        y = bottom - tick * PLOT_HEIGHT
        parts += [_line("rule", LEFT, y, RIGHT, y), _text(LEFT - 8, y + 4, f"{tick:.1f}", "soft", "end")]
    return parts


def _ticks(low: float, high: float) -> list[float]:
    step = 10.0 ** math.floor(math.log10(high - low))
    step = next(step * k for k in (0.2, 0.5, 1.0, 2.0) if (high - low) / (step * k) <= 6)
    return [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _apart(heights: Sequence[float]) -> list[float]:
    """Labels moved down until none covers another."""
    found = list(heights)
    order = sorted(range(len(found)), key=found.__getitem__)
    for above, below in pairwise(order):
        found[below] = max(found[below], found[above] + 14)
    return found


def _labels(marks: Sequence[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """Labels of points: equal ones that nearly coincide become one with their number, others move until all can be read."""
    groups: list[list[tuple[float, float, str]]] = []
    for mark in sorted(marks, key=lambda m: (m[1], m[2], m[0])):
        last = groups[-1][-1] if groups else mark
        if groups and last[2] == mark[2] and abs(last[0] - mark[0]) < 16 and abs(last[1] - mark[1]) < 9:
            groups[-1].append(mark)
        else:
            groups.append([mark])
    placed: list[tuple[float, float, str]] = []
    for group in groups:
        x, y = max(x for x, _, _ in group), group[0][1]
        steps = sorted(range(-20, 21), key=abs)
        free = (y + 11 * i for i in steps if all(abs(x - u) >= 36 or abs(y + 11 * i - v) >= 11 for u, v, _ in placed))
        label = group[0][2] if len(group) == 1 else f"{group[0][2]} \u00d7{len(group)}"
        placed.append((x, next(free, y), label))
    return placed


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _svg(height: float, title: str, words: str, parts: Sequence[str], width: float) -> str:
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    alt = f"<title>{html.escape(title)}</title><desc>{html.escape(words)}</desc>"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="triggers fluid" role="img" {size}>'
    return f"{head}{alt}{''.join(parts)}</svg>\n"
