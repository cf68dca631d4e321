"""`whorl bench`: how good are the methods?"""

from pathlib import Path
from typing import Annotated

import typer

from whorl.cli.options import QuietOption
from whorl.cli.sink import Sink

app = typer.Typer(
    help="How good are the methods? Pairs whose lineage is known, judged as a user's are.", no_args_is_help=True
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
