"""`whorl identify`."""

from typing import TYPE_CHECKING, Annotated

import typer

from whorl.cli import exit_codes
from whorl.cli.gallery import GalleryOption
from whorl.cli.options import AdapterOption, JsonOption, MethodOption, OfflineOption, OutOption, QuietOption
from whorl.cli.sink import Sink
from whorl.errors import safe_name

if TYPE_CHECKING:
    from whorl.identification import Identification


def identify(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder, file, org/name@revision, base+adapter, or a fingerprint.")
    ],
    gallery: GalleryOption = None,
    method: MethodOption = None,
    adapter: AdapterOption = None,
    top: Annotated[int, typer.Option("--top", help="Entries to compare; small galleries are compared whole.")] = 10,
    alpha: Annotated[float, typer.Option("--alpha", help="Error rate of one 'related'.")] = 0.01,
    q: Annotated[float, typer.Option("--q", help="False-discovery rate over the gallery.")] = 0.05,
    seed: Annotated[int, typer.Option("--seed", help="Of everything drawn.")] = 0,
    no_weights: Annotated[bool, typer.Option("--no-weights", help="Compare stored values only.")] = False,
    offline: OfflineOption = False,
    out: OutOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Which known model is this nearest to? "None of these" is an answer too.

    \b
    whorl identify ./suspect
    whorl identify org/name@main --gallery ours.sqlite --top 50
    whorl identify suspect.json --no-weights --json
    """
    from whorl.identification import UNDECIDED
    from whorl.identification import identify as find

    sink = Sink(as_json=as_json, quiet=quiet)
    with sink.progress() as progress:
        found = find(
            model, gallery, method, adapter=adapter, top=top, alpha=alpha, q=q, seed=seed,
            read_weights=not no_weights, offline=offline, progress=progress, tell=sink.hint,
        )  # fmt: skip
    if out is not None:
        found.save(out)
    if as_json:
        sink.record(found.to_dict())
    elif quiet:
        sink.line(found.best or found.conclusion)
    else:
        _show(sink, found)
    if found.conclusion == UNDECIDED or found.skipped:
        raise typer.Exit(exit_codes.UNDECIDED)


def _show(sink: Sink, found: "Identification") -> None:
    from whorl.identification import shown_p

    for skipped in found.skipped:
        sink.hint(f"skipped {safe_name(skipped, 500)}")
    rows = [
        (
            str(rank),
            safe_name(c.entry.name),
            c.verdict,
            c.comparison.relation,
            shown_p(c.comparison.p_value),
            shown_p(c.corrected_p),
            "–" if c.cosine is None else f"{c.cosine:.3f}",
            f"{c.comparison.why}; weights: {c.weights}",
        )
        for rank, c in enumerate(found.candidates[:20], 1)
    ]
    entries = found.resolution.n_entries
    title = f"{found.model.resolved}: {len(found.candidates)} of {entries} entries compared"
    sink.table(title, ("", "entry", "verdict", "relation", "p", "corrected p", "search", "why"), rows)
    if len(found.candidates) > len(rows):
        sink.line(f"{len(found.candidates) - len(rows)} more in --json")
    best = "" if found.best is None else f" {safe_name(found.best)}"
    sink.line(f"{found.conclusion}{best}: {found.why}")
