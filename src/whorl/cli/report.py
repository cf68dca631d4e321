"""`whorl report` and `whorl survey`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from whorl.cli import exit_codes
from whorl.cli.options import JsonOption, MethodOption, OfflineOption, QuietOption
from whorl.cli.sink import Sink
from whorl.errors import safe_name

if TYPE_CHECKING:
    from whorl.reports.lineages import Lineage
    from whorl.surveys import Survey, Table

LightOption = Annotated[bool, typer.Option("--light", help="Leave out the page's script; pictures stay.")]


def report(
    results: Annotated[list[Path], typer.Argument(metavar="RESULT", help="Saved results: compare, survey, demo.")],
    out: Annotated[Path, typer.Option("--out", help="The HTML file.")] = Path("report.html"),
    light: LightOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show results to somebody: one HTML file that needs no network and no whorl.

    \b
    whorl report result.json
    whorl report demo-out/survey.json --out page.html
    whorl report a.json b.json --out both.html --light
    """
    from whorl.reports import report as write

    target = write(results, out, light=light)
    Sink(quiet=quiet).line(str(target) if quiet else f"written: {target}")


def survey(
    models: Annotated[list[str], typer.Argument(metavar="MODEL", help="Folders, files, org/name@revision, JSON.")],
    out: Annotated[Path | None, typer.Option("--out", help="Also write the result to this JSON file.")] = None,
    page: Annotated[Path | None, typer.Option("--page", help="Also write a report to this HTML file.")] = None,
    method: MethodOption = None,
    offline: OfflineOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Many models at once: every pair judged, one similarity table per method.

    \b
    whorl survey ./a ./b ./c --page report.html
    whorl survey fingerprints/*.json --out survey.json
    whorl survey ./a org/b@main --method std-vector --json
    """
    from whorl.reports import report as write
    from whorl.surveys import survey as compare_all

    sink = Sink(as_json=as_json, quiet=quiet)
    with sink.progress() as progress:
        found = compare_all(models, method, offline=offline, progress=progress)
    written = [] if out is None else [found.save(out)]
    written += [] if page is None else [write([found], page)]
    for skipped in found.skipped:
        sink.hint(f"skipped {safe_name(skipped.name)}: {skipped.why}")
    if as_json:
        sink.record(found.to_dict())
    else:
        if not quiet:
            show_survey(sink, found, {})
        for path in written:
            sink.line(str(path) if quiet else f"written: {path}")
    if found.skipped:
        raise typer.Exit(exit_codes.UNDECIDED)


def show_survey(sink: Sink, found: "Survey", lineages: "Mapping[str, Lineage]") -> None:
    """One table a method, and how many pairs have a verdict."""
    from whorl.reports.text import MAX_MODELS

    if len(found.names) <= MAX_MODELS:
        for table in found.tables:
            _show_table(sink, table, found.names, lineages)
    exact = [
        (safe_name(c.a.typed, 60), safe_name(c.b.typed, 60), c.verdict, c.relation, c.why)
        for c in found.comparisons
        if c.verdict != "undecided"
    ]
    if exact and not lineages:
        sink.table("Pairs with a verdict", ("model", "model", "verdict", "relation", "why"), exact)
    rest = len(found.comparisons) - len(exact)
    sink.line(f"{len(exact)} of {len(found.comparisons)} pairs have a verdict, {rest} are undecided.")
    sink.line("")


def _show_table(sink: Sink, table: "Table", names: tuple[str, ...], lineages: "Mapping[str, Lineage]") -> None:
    from whorl.reports.text import hundredths_or_thousandths, matrix_lines

    unit = "thousandths" if hundredths_or_thousandths(table.values) == 1000 else "hundredths"
    sink.line(table.method)
    sink.line(f"{table.direction} in {unit}; = is 1 to nine digits, n/c not comparable")
    for line in matrix_lines(table.values, names, lineages, sink.width):
        sink.line(line)
    sink.line("")
