"""`whorl compare`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from whorl.cli import exit_codes
from whorl.cli.compare_transcripts import (
    Asked,
    ControlOption,
    LineagesOption,
    MixedOption,
    PlantedOption,
    QuestionOption,
    SwapOption,
    VariantOption,
    compare_transcripts,
)
from whorl.cli.options import JsonOption, MethodOption, OfflineOption, OutOption, QuietOption
from whorl.cli.sink import Sink
from whorl.errors import UsageError, safe_name

if TYPE_CHECKING:
    from whorl.comparison import Comparison

STYLES = {
    "related": "bold green",
    "unrelated": "bold yellow",
    "undecided": "bold",
    "strong": "bold",
    "soft": "dim",
    "": None,
}


def compare(
    a: Annotated[
        str, typer.Argument(metavar="A", help="Folder, file, org/name@revision, base+adapter, or a fingerprint.")
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="The other model.")],
    source: Annotated[
        str, typer.Option("--from", help="weights, or transcripts: A and B are SET or SET:MODEL.")
    ] = "weights",
    method: MethodOption = None,
    adapter_a: Annotated[str | None, typer.Option("--adapter-a", help="LoRA adapter to merge into A.")] = None,
    adapter_b: Annotated[str | None, typer.Option("--adapter-b", help="LoRA adapter to merge into B.")] = None,
    alpha: Annotated[float, typer.Option("--alpha", help="Error rate of a 'related' verdict.")] = 0.01,
    question: QuestionOption = None,
    variant: VariantOption = None,
    swap: SwapOption = None,
    control: ControlOption = None,
    planted: PlantedOption = None,
    lineages: LineagesOption = None,
    mixed_decoding: MixedOption = False,
    check: Annotated[
        bool, typer.Option("--check", help="Exit 1 when the verdict is 'unrelated' or 'no match'.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", help="Of everything drawn at random.")] = 0,
    offline: OfflineOption = False,
    out: OutOption = None,
    page: Annotated[Path | None, typer.Option("--page", help="Also write a report to this HTML file.")] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Same origin? Related, unrelated or undecided, with its error rate; each method; how, and which came first.

    \b
    whorl compare ./base ./suspect
    whorl compare org/base@main ./suspect.gguf --json
    whorl compare base.json ./suspect --method head-spectra --out result.json --page report.html
    whorl compare reference.jsonl endpoint.jsonl --from transcripts --variant int8.jsonl --swap smaller.jsonl
    whorl compare set:org/a set:org/b --from transcripts --question derivation --control others --planted derived
    """
    from whorl.adapters import adapter_folder
    from whorl.comparison import compare as judge
    from whorl.reports import report as write

    sink = Sink(as_json=as_json, quiet=quiet)
    asked = Asked(question, variant, swap, control, planted, lineages, mixed_decoding)
    if source == "transcripts":
        _refuse(source, {"--adapter-a": adapter_a, "--adapter-b": adapter_b})
        compare_transcripts(sink, (a, b), asked, method, alpha, seed, out, page, check=check)
        return
    if source != "weights":
        raise UsageError(f"--from is weights or transcripts, not '{safe_name(source)}'.")
    _refuse(source, asked.given())
    alone = adapter_folder(a), adapter_folder(b)
    if alone[0] is not None and alone[1] is not None and adapter_a is adapter_b is None:
        _adapters(sink, alone[0], alone[1], alpha, out, quiet=quiet)
        return
    with sink.progress() as progress:
        adapters = (adapter_a, adapter_b)
        result = judge(a, b, method, adapters=adapters, alpha=alpha, seed=seed, offline=offline, progress=progress)
    if out is not None:
        result.save(out)
    if as_json:
        sink.record(result.to_dict())
    elif quiet:
        sink.line(result.verdict)
    else:
        _show(sink, result)
    if page is not None:
        write([result], page)
        if not as_json:
            sink.hint(f"written: {page}")
    if result.verdict == "undecided":
        raise typer.Exit(exit_codes.UNDECIDED)
    if check and result.verdict == "unrelated":
        raise typer.Exit(exit_codes.NEGATIVE)


def _refuse(source: str, given: Mapping[str, object]) -> None:
    """Options of the other source would be ignored in silence."""
    wrong = [name for name, value in given.items() if value]
    if wrong:
        raise UsageError(f"{wrong[0]} does not go with --from {source}.")


def _show(sink: Sink, result: "Comparison") -> None:
    from whorl.reports.comparison_text import comparison_lines, stored_comparison

    for model in (result.a, result.b):
        for note in model.notes:
            sink.hint(f"note: {safe_name(model.typed)}: {note}")
    for line in comparison_lines(stored_comparison(result), sink.width):
        sink.line(line.text, STYLES[line.style])


def _adapters(sink: Sink, a: Path, b: Path, alpha: float, out: Path | None, *, quiet: bool) -> None:
    """Two adapters without a base: only their updates can be compared."""
    from whorl.adapters import compare_adapters

    result = compare_adapters(a, b, alpha=alpha)
    if out is not None:
        result.save(out)
    if sink.as_json:
        sink.record(result.to_dict())
    elif quiet:
        sink.line(result.verdict)
    else:
        sink.line(f"{result.verdict} ({result.relation}): {result.why}", STYLES[result.verdict])
        if result.similarity is not None:
            sink.line(f"cosine of the two updates: {result.similarity:.4f} over {len(result.by_module)} modules")
        for side, claims in result.declared.items():
            for key, claim in claims.items():
                sink.line(f"declared  {side.upper()} {safe_name(key)}: {safe_name(claim)} (not evidence)")
        sink.line(result.to_dict()["does_not_show"][0])
    if result.verdict == "undecided":
        raise typer.Exit(exit_codes.UNDECIDED)
