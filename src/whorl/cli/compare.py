"""`whorl compare`."""

from typing import Annotated

import typer

from whorl.cli import exit_codes
from whorl.cli.options import JsonOption, MethodOption, OfflineOption, OutOption, QuietOption
from whorl.cli.sink import Sink


def compare(
    a: Annotated[
        str, typer.Argument(metavar="A", help="Folder, file, org/name@revision, base+adapter, or a fingerprint.")
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="The other model.")],
    method: MethodOption = None,
    adapter_a: Annotated[str | None, typer.Option("--adapter-a", help="LoRA adapter to merge into A.")] = None,
    adapter_b: Annotated[str | None, typer.Option("--adapter-b", help="LoRA adapter to merge into B.")] = None,
    alpha: Annotated[float, typer.Option("--alpha", help="Error rate of a 'related' verdict.")] = 0.01,
    check: Annotated[bool, typer.Option("--check", help="Exit 1 when the verdict is 'unrelated'.")] = False,
    offline: OfflineOption = False,
    out: OutOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Same origin? Related, unrelated or undecided, per method and combined.

    \b
    whorl compare ./base ./suspect
    whorl compare org/base@main ./suspect.gguf --json
    whorl compare base.json ./suspect --method std-vector --out result.json
    """
    from whorl.comparison import compare as judge

    sink = Sink(as_json=as_json, quiet=quiet)
    with sink.progress() as progress:
        result = judge(a, b, method, adapters=(adapter_a, adapter_b), alpha=alpha, offline=offline, progress=progress)
    if out is not None:
        result.save(out)
    if as_json:
        sink.record(result.to_dict())
    elif quiet:
        sink.line(result.verdict)
    else:
        for model in (result.a, result.b):
            for note in model.notes:
                sink.hint(f"note: {model.typed}: {note}")
        rows = [
            (
                e.method.partition("@")[0],
                "not comparable" if e.value is None else f"{e.value:.6f}",
                "" if e.p_value is None else f"{e.p_value:.3g}",
                e.verdict if e.comparable else "–",
                "; ".join((e.why, *e.warnings)),
            )
            for e in result.evidence
        ]
        sink.table(f"{result.a.resolved}  |  {result.b.resolved}", ("method", "value", "p", "verdict", "why"), rows)
        for side, model in (("A", result.a), ("B", result.b)):
            for key, claim in model.declared.items():
                sink.line(f"declared  {side} {key}: {claim} (not evidence)")
        relation = "" if result.relation == result.verdict else f" ({result.relation})"
        sink.line(f"{result.verdict}{relation}: {result.why}")
    if result.verdict == "undecided":
        raise typer.Exit(exit_codes.UNDECIDED)
    if check and result.verdict == "unrelated":
        raise typer.Exit(exit_codes.NEGATIVE)
