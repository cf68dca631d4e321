"""The lab's results as one HTML file: verdicts first, then plots, tables, controls, and what they do not show."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from whorl._atomic import write_text
from whorl.lab.natural import figures
from whorl.lab.natural.config import level_names
from whorl.lab.natural.measure import HEADLINE, YARDSTICK
from whorl.lab.natural.page import N_WORDS, blocks, finding, limits_of, method
from whorl.lab.natural.results import Measured, Results
from whorl.reports.single import render


def write(results: Results, path: Path) -> Path:
    """Write the report; the same results give the same bytes."""
    rows = results.of("prompts", HEADLINE)
    found, rest = finding(results)
    page = render(
        "natural.html",
        title=f"Natural fingerprints: models trained on the same {results.text['windows'][0]:,} windows",
        data=results.to_dict(),
        styles=figures.SHAPES,
        found=found,
        rest=rest,
        method=method(results),
        yardstick=YARDSTICK,
        forests=[_picture(picture) for picture in forests(results)],
        tables=blocks(results),
        curves=[_picture(picture) for picture in _curves(results, rows)],
        confusions=[_confusion(results, m) for m in rows],
        ngrams=[(model, [_word(n) for n in words[:N_WORDS]]) for model, words in results.ngrams.items()],
        limits=limits_of(results),
    )
    return write_text(path, page)


def forests(results: Results, *, alone: bool = False) -> list[str]:
    """The plot of all factors, for each condition."""
    found = []
    for condition in dict.fromkeys(m.condition for m in results.measured):
        title = f"3-way accuracy by {HEADLINE}, {condition.replace('prompts', 'prompted')} texts"
        found.append(figures.forest(results.of(condition, HEADLINE), title=title, alone=alone))
    return found


def _curves(results: Results, rows: Sequence[Measured]) -> list[str]:
    found = []
    if rows:
        pooled = {m.factor: {int(n): a for n, a in m.pooled.items()} for m in rows}
        title = "Accuracy when several texts are judged together"
        found.append(figures.lines(pooled, chance=rows[0].chance, title=title, unit="texts of one model", alone=False))
    if results.curves:
        title = f"Accuracy by number of prompts learned from, factor '{YARDSTICK}'"
        found.append(figures.lines(results.curves, chance=1 / 3, title=title, unit="prompts", alone=False))
    return found


def _picture(svg: str) -> Any:
    from markupsafe import Markup

    return Markup(svg)  # noqa: S704  made by `figures`, which escapes every text


def _confusion(results: Results, m: Measured) -> dict[str, Any]:
    """Shares of each row in per cent, the mean over replicates."""
    levels = level_names(results.experiment, m.factor)
    rows = [
        [sum(c[i][j] / sum(c[i]) for c in m.confusions) / len(m.confusions) for j in range(len(levels))]
        for i in range(len(levels))
    ]
    return {"factor": m.factor, "levels": levels, "rows": [[f"{100 * x:.0f}" for x in row] for row in rows]}


def _word(found: dict[str, Any]) -> dict[str, str]:
    return {"text": str(found["text"]), "rates": f"{found['inside']:.0f} / {found['outside']:.0f}"}
