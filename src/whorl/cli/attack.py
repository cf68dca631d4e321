"""`whorl attack`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from whorl.cli.options import JsonOption, QuietOption
from whorl.cli.sink import Sink
from whorl.errors import UsageError, safe_name

_HELP_KINDS = (
    "disguise, prune, quantise, cast, merge, finetune, lora, drop-layers, duplicate-layers, insert-layers, transplant."
)


def attack(
    models: Annotated[list[str], typer.Argument(metavar="MODEL", help="Local folder or file; several for merge.")],
    kind: Annotated[str, typer.Option("--kind", help=f"One of {_HELP_KINDS}")],
    out: Annotated[Path, typer.Option("--out", help="New folder.")],
    seed: Annotated[int, typer.Option("--seed", help="Seed of whatever is random.")] = 0,
    edits: Annotated[str | None, typer.Option("--edits", help="disguise: names such as R1,N1, or all.")] = None,
    rename_tokens: Annotated[
        bool, typer.Option("--rename-tokens", help="disguise: strings of tokens that carry nothing.")
    ] = False,
    pattern: Annotated[
        str | None, typer.Option("--pattern", help="prune: magnitude, 2:4, neurons, heads or width.")
    ] = None,
    share: Annotated[float | None, typer.Option("--share", help="prune: share that goes.")] = None,
    include: Annotated[
        str | None, typer.Option("--include", help="prune, quantise: matrices whose names match this shell pattern.")
    ] = None,
    bits: Annotated[int | None, typer.Option("--bits", help="quantise: 2 to 8.")] = None,
    group: Annotated[int | None, typer.Option("--group", help="quantise: weights that share a scale.")] = None,
    asymmetric: Annotated[
        bool, typer.Option("--asymmetric", help="quantise: grid from minimum to maximum, not around zero.")
    ] = False,
    dtype: Annotated[str | None, typer.Option("--dtype", help="cast: F32, F16 or BF16.")] = None,
    method: Annotated[str | None, typer.Option("--method", help="merge: linear, ties, dare or slerp.")] = None,
    coefficients: Annotated[
        str | None, typer.Option("--coefficients", help="merge: one number a model, such as 0.7,0.3.")
    ] = None,
    base: Annotated[str | None, typer.Option("--base", help="merge: folder of the base, for ties and dare.")] = None,
    density: Annotated[
        float | None, typer.Option("--density", help="merge: share of changes kept, for ties and dare.")
    ] = None,
    layers: Annotated[
        str | None, typer.Option("--layers", help="drop, duplicate, insert (after these): such as 3,5; from 0.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="transplant: folder whose tokenizer it gets.")
    ] = None,
    text: Annotated[
        str | None, typer.Option("--text", help="finetune, lora: docstrings, topics, code or a file.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="finetune, lora: optimiser steps.")] = None,
    rate: Annotated[float | None, typer.Option("--rate", help="finetune, lora: learning rate.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", help="finetune, lora: windows per step.")] = None,
    threads: Annotated[int | None, typer.Option("--threads", help="finetune, lora: threads of torch.")] = None,
    rank: Annotated[int | None, typer.Option("--rank", help="lora: rank of the adapter.")] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """What would a thief do? Writes a changed copy whose lineage is known: whorl_truth.json says what was done.

    \b
    whorl attack ./model --kind disguise --rename-tokens --out ./hidden
    whorl attack ./model --kind prune --pattern 2:4 --out ./pruned
    whorl attack ./one ./two --kind merge --coefficients 0.7,0.3 --out ./merged
    """
    from whorl.attacks import attack as run

    given: dict[str, Any] = {
        "edits": edits if edits in {None, "all"} else _list(edits, str, "--edits"),
        "rename_tokens": rename_tokens or None,
        "pattern": pattern,
        "share": share,
        "include": include,
        "bits": bits,
        "group": group,
        "asymmetric": asymmetric or None,
        "dtype": dtype,
        "method": method,
        "coefficients": _list(coefficients, float, "--coefficients"),
        "base": base,
        "density": density,
        "layers": _list(layers, int, "--layers"),
        "tokenizer": tokenizer,
        "text": text,
        "steps": steps,
        "rate": rate,
        "batch": batch,
        "threads": threads,
        "rank": rank,
    }
    sink = Sink(as_json=as_json, quiet=quiet)
    options = {name: value for name, value in given.items() if value is not None}
    with sink.progress() as progress:
        made = run(kind, models, out, seed=seed, progress=progress, **options)
    if as_json:
        sink.record(made.to_dict())
    elif quiet:
        sink.line(str(made.path))
    else:
        for key, value in made.record.parameters.items():
            if key != "versions":
                sink.hint(f"{key}: {value}")
        sink.line(f"{made.record.kind}: {', '.join(made.record.parents)} -> {made.path}")


def _list(value: str | None, kind: Callable[[str], Any], flag: str) -> list[Any] | None:
    """The parts of "a,b"."""
    if value is None:
        return None
    parts = [part.strip() for part in value.split(",")]
    try:
        return [kind(part) for part in parts]
    except ValueError as error:
        raise UsageError(f"{flag} is '{safe_name(value)}'; expected numbers with commas, such as 3,5.") from error
