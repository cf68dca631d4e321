"""The page of an attribution bundle: what it knows, how often it is right, and what it cannot say.

Names, n-grams and every other text of a model are hostile; the template escapes them, and the policy of the page admits no
script at all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from whorl._atomic import write_text
from whorl.attribution.attributor import Attributor
from whorl.attribution.bundle import to_dict
from whorl.attribution.predict import NOT_SHOWN
from whorl.reports.clustermap import Tick
from whorl.reports.shown import cut_name

CELL, EDGE, HEAD = 34.0, 210.0, 26.0
WIDTH, HEIGHT, LEFT, TOP = 520.0, 230.0, 52.0, 14.0
RIGHT_MARGIN, BOTTOM = 18.0, 34.0
MAX_CELLS = 40  # rows of a confusion matrix that can still be read


@dataclass(frozen=True)
class Cell:
    """One cell of the confusion matrix: position, depth of colour in [0, 1], its count and hover text."""

    x: float
    y: float
    depth: float
    text: str
    title: str


@dataclass(frozen=True)
class Matrix:
    """Everything the template draws of a confusion matrix; rows are the true models, columns the answers."""

    size: tuple[float, float]
    names: tuple[Tick, ...]
    columns: tuple[Tick, ...]
    cells: tuple[Cell, ...]
    alt: str
    cell: float = CELL
    edge: float = EDGE


@dataclass(frozen=True)
class Point:
    """One measured rate: position, ends of its interval, hover text."""

    x: float
    y: float
    low: float
    high: float
    title: str


@dataclass(frozen=True)
class Curve:
    """Rates along an axis, with the line of chance or of perfect calibration."""

    points: tuple[Point, ...]
    line: str
    reference: str
    reference_name: str
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    title: str
    alt: str
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    right: float = WIDTH - RIGHT_MARGIN
    bottom: float = HEIGHT - BOTTOM


def attribution_report(attributor: Attributor, out: str | Path) -> Path:
    """Write one HTML file about a bundle; the same bundle gives the same bytes.

    Args:
        attributor: From `fit`, `enrol` or `load`.
        out: The file; missing folders are made.
    """
    from whorl.reports import _environment, _own_text, _policy, embedded

    css, data = _own_text("style.css"), to_dict(attributor)
    page = (
        _environment()
        .get_template("attribution.html")
        .render(
            a=attributor,
            e=data["evaluation"],
            matrix=_matrix(attributor.names, data["evaluation"]["closed_set"]["confusion"]),
            reliability=_reliability(data["evaluation"]["closed_set"]["probabilities"]["bins"]),
            curves=_curves(data["evaluation"]),
            limits=NOT_SHOWN,
            version=data["whorl_version"],
            policy=_policy(css, None),
            css=Markup(css),  # noqa: S704  a file of this package
            data=Markup(embedded(data)),  # noqa: S704  holds no "<", ">" or "&"
        )
    )
    return write_text(Path(out), page)


def _matrix(names: Sequence[str], confusion: Sequence[Sequence[int]]) -> Matrix | None:
    """The confusion matrix; None when there are too many models to read one."""
    k = len(names)
    if k > MAX_CELLS:
        return None
    shown, cells = [cut_name(name, 28) for name in names], []
    for i, row in enumerate(confusion):
        total = max(1, sum(row))
        for j, n in enumerate(row):
            title = f"{shown[i]} taken for {shown[j]}: {n} of {total} texts"
            cells.append(Cell(EDGE + j * CELL, HEAD + i * CELL, round(n / total, 3), str(n) if n else "", title))
    right = sum(confusion[i][i] for i in range(k))
    return Matrix(
        size=(k * CELL, k * CELL),
        names=tuple(Tick(HEAD + (i + 0.5) * CELL, f"{name}  {i + 1}") for i, name in enumerate(shown)),
        columns=tuple(Tick(EDGE + (i + 0.5) * CELL, str(i + 1)) for i in range(k)),
        cells=tuple(cells),
        alt=f"Confusion matrix of {k} models: {right} of {sum(map(sum, confusion))} test texts on the diagonal.",
    )


def _across(share: float) -> float:
    return LEFT + share * (WIDTH - RIGHT_MARGIN - LEFT)


def _up(rate: float) -> float:
    return TOP + (1 - rate) * (HEIGHT - BOTTOM - TOP)


UP = tuple(Tick(_up(v), f"{v:.0%}") for v in (0.0, 0.25, 0.5, 0.75, 1.0))


def _reliability(bins: Sequence[Mapping[str, Any]]) -> Curve:
    points = tuple(
        Point(
            _across(b["confidence"]), _up(b["accuracy"]), _up(b["accuracy"]), _up(b["accuracy"]),
            f"{b['n']} texts: said {b['confidence']:.1%}, right {b['accuracy']:.1%}",
        )
        for b in bins
    )  # fmt: skip
    return Curve(
        points=points,
        line=_path(points),
        reference=f"M{_across(0):.1f} {_up(0):.1f}L{_across(1):.1f} {_up(1):.1f}",
        reference_name="said = right",
        across=tuple(Tick(_across(v), f"{v:.0%}") for v in (0.0, 0.25, 0.5, 0.75, 1.0)),
        up=UP,
        title="largest probability",
        alt="Reliability: share of texts that were right, by the probability that was said. "
        + "; ".join(p.title for p in points),
    )


def _curves(e: Mapping[str, Any]) -> tuple[tuple[str, Curve], ...]:
    chance = e["closed_set"]["chance"]
    wanted = (
        ("Texts put together", "by_number_of_texts", "n_texts", "texts of one source"),
        ("Words of a text", "by_words", "n_words", "words"),
        ("Training texts of each model", "by_training_texts", "n_texts_a_class", "training texts"),
    )
    return tuple((name, _curve(e[key], at, title, chance)) for name, key, at, title in wanted if e[key])


def _curve(rows: Sequence[Mapping[str, Any]], at: str, title: str, chance: float) -> Curve:
    step = 1 / max(1, len(rows) - 1)
    points = tuple(
        Point(
            _across(0.04 + 0.92 * i * step), _up(row["accuracy"]), _up(row["interval"][0]), _up(row["interval"][1]),
            f"{row[at]} {title}: {row['accuracy']:.1%} ({row['interval'][0]:.1%} to {row['interval'][1]:.1%})",
        )
        for i, row in enumerate(rows)
    )  # fmt: skip
    return Curve(
        points=points,
        line=_path(points),
        reference=f"M{_across(0):.1f} {_up(chance):.1f}H{_across(1):.1f}",
        reference_name=f"chance {chance:.1%}",
        across=tuple(Tick(p.x, str(row[at])) for p, row in zip(points, rows, strict=True)),
        up=UP,
        title=title,
        alt=f"Accuracy by {title}, chance {chance:.1%}. " + "; ".join(p.title for p in points),
    )


def _path(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{p.x:.1f} {p.y:.1f}" for p in points)
