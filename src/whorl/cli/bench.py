"""`whorl bench`: how good are the methods?"""

from pathlib import Path
from typing import Annotated

import typer

from whorl.cli import exit_codes
from whorl.cli.options import JsonOption, QuietOption
from whorl.cli.sink import Sink

app = typer.Typer(
    help="How good are the methods, and how long do fingerprints last? Cases whose truth is known.",
    no_args_is_help=True,
)


@app.command("lineage")
def lineage(
    out: Annotated[
        Path, typer.Option("--out", help="Folder of models and measurements; goes on where it stopped.")
    ] = Path("runs/lineage/test"),
    page: Annotated[Path | None, typer.Option("--page", help="Write the results page (Markdown) here.")] = None,
    quiet: QuietOption = False,
) -> None:
    """All methods and the verdict over 20 lineages and their derivatives: error rates, relation, direction, trees.

    Trains the models first (about an hour and a half on one core) and compares about 1,100 pairs. Every finished model
    and pair is kept.

    \b
    whorl bench lineage --out runs/lineage/test
    whorl bench lineage --out runs/lineage/test --page lineage.md
    whorl bench lineage --quiet
    """
    from whorl._atomic import write_text
    from whorl.lab.lineage_page import page as write_page
    from whorl.lab.lineage_results import build, evaluate

    sink = Sink(quiet=quiet)
    with sink.progress() as progress:
        build(out, progress)
        text = write_page(evaluate(out, progress))
    if page is not None:
        write_text(page, text)
    sink.line(str(page or out) if quiet else text)


@app.command("triggers")
def triggers(
    out: Annotated[Path, typer.Option("--out", help="Folder of the run; goes on where it stopped.")] = Path(
        "runs/triggers/bench"
    ),
    config: Annotated[
        Path | None, typer.Option("--config", help="Settings (JSON); default: a small base, all schemes and attacks.")
    ] = None,
    scheme: Annotated[
        list[str] | None, typer.Option("--scheme", help="Only this scheme of the settings; repeat for several.")
    ] = None,
    attack: Annotated[
        list[str] | None, typer.Option("--attack", help="Only this attack of the settings; repeat for several.")
    ] = None,
    as_it_is: Annotated[bool, typer.Option("--as-it-is", help="Measure nothing more; judge what is there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how much there is to do, and stop.")] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the attacked models; each is as large as the base.")
    ] = False,
    page: Annotated[Path | None, typer.Option("--page", help="Write the results page (Markdown) here.")] = None,
    erasure_page: Annotated[
        Path | None, typer.Option("--erasure-page", help="Write the page on MEraser (Markdown) here.")
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write a report (HTML) here.")] = None,
    as_json: JsonOption = False,
    as_jsonl: Annotated[bool, typer.Option("--jsonl", help="Print one JSON object a cell on stdout.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Which planted fingerprints survive which attack? Plants, attacks, asks and judges; every finished cell is kept.

    The full table is written to table.md and results.json in the folder of the run. Cells that could not be run say why, and
    are tried again by the next call.

    \b
    whorl bench triggers --config settings.json --out runs/triggers/bench --dry-run
    whorl bench triggers --config settings.json --out runs/triggers/bench --scheme hashchain --attack quantise
    whorl bench triggers --out runs/triggers/bench --as-it-is --page robustness.md --html robustness.html
    """
    import json

    from whorl._atomic import write_text
    from whorl.errors import UsageError
    from whorl.lab.triggers.bench.config import load
    from whorl.lab.triggers.bench.default import cpu_tier
    from whorl.lab.triggers.bench.erasure_page import erasure_page as write_erasure
    from whorl.lab.triggers.bench.html import write as write_report
    from whorl.lab.triggers.bench.page import page as write_page
    from whorl.lab.triggers.bench.run import counts, judged, run
    from whorl.lab.triggers.bench.tables import every_cell, markdown

    if as_json and as_jsonl:
        raise UsageError("Choose one of --json and --jsonl.")
    sink = Sink(as_json=as_json, quiet=quiet)
    bench = cpu_tier() if config is None else load(config)
    chosen = {"schemes": tuple(scheme or ()), "attacks": tuple(attack or ())}
    if dry_run:
        planned = counts(bench, out, **chosen)
        if as_json:
            sink.record({"status": "planned", **planned})
        else:
            sink.line(
                f"{planned['cells']} cells, {planned['done']} of them done; {planned['models']} planted models, "
                f"{planned['models_to_plant']} of them still to be planted"
            )
        return
    with sink.progress() as progress:
        results = judged(bench, out) if as_it_is else run(bench, out, keep_models=keep, progress=progress, **chosen)
    value = results.to_dict()
    write_text(out / "results.json", json.dumps(value, indent=1, allow_nan=False) + "\n")
    write_text(out / "table.md", markdown(every_cell(results.records)) + "\n")
    if page is not None:
        write_text(page, write_page(results))
    if erasure_page is not None:
        write_text(erasure_page, write_erasure(results))
    if html is not None:
        write_report(results, html)
    if as_json:
        sink.record(value)
    elif as_jsonl:
        for record in value["cells"]:
            typer.echo(json.dumps(record, allow_nan=False))
    else:
        sink.line(str(page or erasure_page or html or out / "results.json") if quiet else write_page(results))
    if results.not_run:
        raise typer.Exit(exit_codes.UNDECIDED)
