"""`whorl report`, `whorl survey` and `whorl demo`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from whorl.cli import exit_codes
from whorl.cli.options import JsonOption, MethodOption, OfflineOption, QuietOption
from whorl.cli.sink import Sink
from whorl.errors import safe_name

if TYPE_CHECKING:
    from whorl.demo import Demo, Example
    from whorl.reports.lineages import Lineage, Values
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
            _show_survey(sink, found, {})
        for path in written:
            sink.line(str(path) if quiet else f"written: {path}")
    if found.skipped:
        raise typer.Exit(exit_codes.UNDECIDED)


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for fingerprints, survey and report.")] = Path("demo-out"),
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Does it work here? The whole story on small example models: offline, without torch, in about half a minute.

    \b
    whorl demo
    whorl demo --out /tmp/demo
    whorl demo --json --quiet
    """
    from whorl.demo import run_demo

    sink = Sink(as_json=as_json, quiet=quiet)
    with sink.progress() as progress:
        found = run_demo(out, progress=progress)
    for skipped in found.survey.skipped:
        sink.hint(f"skipped {safe_name(skipped.name)}: {skipped.why}")
    page = str(found.files[-1])
    if as_json:
        sink.record(found.survey.to_dict() | {"files": [str(f) for f in found.files]})
    elif quiet:
        sink.line(page)
    else:
        _show_demo(sink, found)
        sink.line(f"{len(found.files) - 1} files beside the report: {out}")
        sink.line(f"Report: {page}")
    if found.survey.skipped:
        raise typer.Exit(exit_codes.UNDECIDED)


def _show_demo(sink: Sink, found: "Demo") -> None:
    from whorl.reports.lineages import letters

    groups = [x.group for x in found.lineages.values()]
    key = ", ".join(f"{mark} {group} ({groups.count(group)})" for group, mark in letters(found.lineages).items())
    sink.line(f"{len(found.survey.names)} example models of known origin, {len(found.survey.comparisons)} pairs.")
    sink.line(f"Lineages: {key}")
    sink.line("")
    _show_survey(sink, found.survey, found.lineages)
    _show_separation(sink, found)
    sink.line("Some pairs, and what is known of them:")
    for example in found.examples:
        for line in _example_lines(example):
            sink.line(line)
    sink.line("'undecided' is not 'unrelated': only exact relations decide without a calibration of unrelated models.")


def _show_survey(sink: Sink, found: "Survey", lineages: "Mapping[str, Lineage]") -> None:
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


def _show_separation(sink: Sink, found: "Demo") -> None:
    from whorl.reports.lineages import separation

    rows = []
    for table in found.survey.tables:
        closer = table.direction == "similarity"
        apart = separation(table.values, found.survey.names, found.lineages, larger_is_closer=closer)
        if apart is not None:
            rows.append(
                (
                    table.method.partition("@")[0],
                    _span(apart.kin),
                    _span(apart.strangers),
                    f"{apart.strangers_inside} of {len(apart.strangers.all)}",
                    f"{apart.auc:.3f}",
                )
            )
    sink.line("Does a method follow lineage? Means and ranges; overlap: strangers as close as the least close kin.")
    sink.table(
        "A description of these models, not an error rate", ("method", "kin", "strangers", "overlap", "AUC"), rows
    )
    sink.line("")


def _span(values: "Values") -> str:
    from whorl.reports.shown import number

    return f"{number(values.mean, 3)} ({number(values.low, 3)}..{number(values.high, 3)})"


def _example_lines(example: "Example") -> tuple[str, str]:
    from whorl.reports.shown import number

    c = example.comparison
    verdict = c.verdict if c.relation == c.verdict else f"{c.verdict}: {c.relation}"
    values = ", ".join(f"{e.method.partition('@')[0]} {number(e.value, 3)}" for e in c.evidence)
    return f"  {example.a} | {example.b} ({example.known})", f"    {verdict}; {values}"
