"""The benchmark as one HTML file: findings, the grid, frontiers, curves, all tables, and what they do not show."""

from pathlib import Path
from typing import Any

from whorl._atomic import write_text
from whorl.lab.triggers.bench import erasure_page, figures
from whorl.lab.triggers.bench.cells import NONE
from whorl.lab.triggers.bench.erasure import contests
from whorl.lab.triggers.bench.page import blocks, findings, limits, marked, method
from whorl.lab.triggers.bench.results import Results
from whorl.lab.triggers.bench.tables import Block, every_cell
from whorl.reports.single import render


def write(results: Results, path: Path) -> Path:
    """Write the report; the same results give the same bytes."""
    page = render(
        "triggers.html",
        title="Which planted fingerprints survive which attack?",
        data=results.to_dict(),
        styles=figures.SHAPES,
        findings=[
            *findings(results),
            *erasure_page.verdicts(results),
            *((text, "") for text in erasure_page.controls(results)),
        ],
        method=method(results),
        grid=_picture(figures.grid(results.grid, title="Outcome at the attacker's best setting")),
        frontiers=_pictures(_frontiers(results)),
        curves=_pictures(_curves(results)),
        tables=_tables(results),
        limits=limits(results),
    )
    return write_text(path, page)


def _tables(results: Results) -> list[Block]:
    own = erasure_page.blocks(results) if contests(results) else []
    return [*blocks(results), *own, every_cell(results.records)]


def _frontiers(results: Results) -> list[str]:
    counting = [name for name, standing in results.standings.items() if standing.counts]
    return [
        figures.frontier(
            [r for name in counting for r in results.entering(name, attack.name)],
            budget=results.bench.budget.perplexity,
            title=f"FSR against cost: {attack.name}",
        )
        for attack in results.bench.attacks
    ]


def _curves(results: Results) -> list[str]:
    """For each scheme, the first planting under the attacks that left fewest keys, beside the unattacked one."""
    found = []
    for row in results.bench.schemes:
        mine = [one for one in results.grid if one.scheme == row.name and one.fsr is not None]
        plain = [one for one in mine if one.attack == NONE]
        others = sorted((one for one in mine if one.attack != NONE), key=lambda one: (one.fsr or 0.0, one.attack))
        series = {}
        for one in (*plain, *others[: figures.MOST_CURVES - 1]):
            cells = [r for r in results.entering(row.name, one.attack) if r.point == one.point]
            series[one.attack] = next(r.asked.curve for r in cells if r.asked is not None)
        title = f"p against keys asked: {marked(results, row.name)}"
        found.append(figures.curves(series, alpha=results.bench.alpha, title=title))
    return found


def _pictures(found: list[str]) -> list[Any]:
    return [_picture(svg) for svg in found if svg]


def _picture(svg: str) -> Any:
    from markupsafe import Markup

    return Markup(svg)  # noqa: S704  made by `figures`, which escapes every text
