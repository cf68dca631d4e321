"""`whorl tree`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from whorl.cli import exit_codes
from whorl.cli.options import JsonOption, MethodOption, OfflineOption, QuietOption
from whorl.cli.sink import Sink
from whorl.errors import safe_name

if TYPE_CHECKING:
    from whorl.lineage.graph import Edge
    from whorl.trees import Tree


def tree(
    models: Annotated[list[str], typer.Argument(metavar="MODEL", help="Folders, files, org/name@revision.")],
    out: Annotated[
        list[Path] | None, typer.Option("--out", help="Also write .json, .svg, .nwk or .html; repeat for several.")
    ] = None,
    method: MethodOption = None,
    alpha: Annotated[float, typer.Option("--alpha", help="Error rate of 'related' on one pair.")] = 0.01,
    fdr: Annotated[float, typer.Option("--fdr", help="Share of wrong pairs among the related ones.")] = 0.05,
    seed: Annotated[int, typer.Option("--seed", help="Of everything drawn.", min=0)] = 0,
    offline: OfflineOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Who descends from whom? A lineage graph with edge support; exit code 4 when a part of it is undecided.

    \b
    whorl tree ./base ./tuned ./merged
    whorl tree ./a ./b org/c@main --out tree.svg --out tree.nwk
    whorl tree ./base ./tuned --json
    """
    from whorl.trees import check_ending
    from whorl.trees import tree as grow

    for path in out or ():
        check_ending(path)
    sink = Sink(as_json=as_json, quiet=quiet)
    with sink.progress() as progress:
        found = grow(models, method, alpha=alpha, fdr=fdr, seed=seed, offline=offline, progress=progress)
    written = [found.save(path) for path in out or ()]
    for skipped in found.skipped:
        sink.hint(f"skipped {safe_name(skipped.name)}: {skipped.why}")
    if as_json:
        sink.record(found.to_dict())
    else:
        _show(sink, found)
        for path in written:
            sink.line(str(path) if quiet else f"written: {path}")
    if found.open_questions:
        raise typer.Exit(exit_codes.UNDECIDED)


def _show(sink: Sink, found: "Tree") -> None:
    """An indented tree; names of models are foreign text and are escaped."""
    from whorl.lineage.graph import NO_PARENT

    graph = found.graph
    copies = {node.name: node.copies for node in graph.nodes}
    for depth, name in graph.walk():
        edges = graph.parents(name)
        same = "".join(f" = {safe_name(other, 60)}" for other in copies[name])
        mark = "" if not depth else "   " * (depth - 1) + ("└─ " if edges[0].decided else "└┄ ")
        sink.line(f"{mark}{safe_name(name, 60)}{same}  {_words(edges) if edges else f'({NO_PARENT})'}")
    if sink.quiet:
        return
    for edge in graph.edges:
        if edge.primary and edge.alternatives:
            others = ", ".join(safe_name(o, 60) for o in edge.alternatives)
            sink.hint(f"{safe_name(edge.child, 60)}: nearly as near to {others}")
    if any(not e.decided for e in graph.edges):
        sink.hint("└┄ marks an edge whose direction is not decided: the models are related, either may come first.")
    for note in graph.notes:
        sink.hint(f"note: {safe_name(note, 300)}")
    if graph.undecided:
        rows = [(safe_name(o.a, 60), safe_name(o.b, 60), safe_name(o.why, 200)) for o in graph.undecided]
        sink.table("Undecided pairs: no edge, but not unrelated either", ("model", "model", "why"), rows)


def _words(edges: "tuple[Edge, ...]") -> str:
    first = edges[0]
    parts = [first.relation]
    if first.share is not None:
        shares = [(safe_name(e.parent, 60), "?" if e.share is None else f"{e.share:.2f}") for e in edges]
        parts = [f"merged: {' + '.join(f'{share} {name}' for name, share in shares)}"]
    parts.append(f"distance {first.distance:.3f}")
    parts.append(
        f"support {first.support:.0%}" if first.support is not None else f"no support value: {first.support_why}"
    )
    if not first.decided:
        parts.append("direction undecided")
    return ", ".join(safe_name(part, 200) for part in parts)
