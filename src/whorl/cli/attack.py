"""`whorl attack`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from whorl.cli.options import JsonOption, QuietOption
from whorl.cli.sink import Sink
from whorl.errors import UsageError, safe_name

_HELP_KINDS = (
    "disguise, prune, quantise, cast, merge, finetune, lora, instruct, erase, unlearn, distil, drop-layers, "
    "duplicate-layers, insert-layers, transplant."
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
        str | None,
        typer.Option("--pattern", help="prune: magnitude, 2:4, neurons, heads, width, blocks, wanda or sparsegpt."),
    ] = None,
    share: Annotated[float | None, typer.Option("--share", help="prune: share that goes.")] = None,
    include: Annotated[
        str | None, typer.Option("--include", help="prune, quantise: matrices whose names match this shell pattern.")
    ] = None,
    importance: Annotated[
        str | None, typer.Option("--importance", help="prune blocks: l1, l2, random or taylor.")
    ] = None,
    format: Annotated[  # noqa: A002
        str | None, typer.Option("--format", help="quantise: int8, int4, fp8 or nf4; fixes the grid.")
    ] = None,
    bits: Annotated[int | None, typer.Option("--bits", help="quantise: 2 to 8.")] = None,
    group: Annotated[int | None, typer.Option("--group", help="quantise: weights that share a scale.")] = None,
    asymmetric: Annotated[
        bool, typer.Option("--asymmetric", help="quantise: grid from minimum to maximum, not around zero.")
    ] = False,
    dtype: Annotated[str | None, typer.Option("--dtype", help="cast: F32, F16 or BF16.")] = None,
    method: Annotated[
        str | None, typer.Option("--method", help="merge: linear, task, ties, dare, dare-ties or slerp.")
    ] = None,
    coefficients: Annotated[
        str | None, typer.Option("--coefficients", help="merge: one number a model, such as 0.7,0.3.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", help="merge: folder of the base (task, ties, dare, dare-ties); distil, unlearn."),
    ] = None,
    density: Annotated[
        float | None, typer.Option("--density", help="merge: share of changes kept (ties, dare, dare-ties).")
    ] = None,
    layers: Annotated[
        str | None, typer.Option("--layers", help="drop, duplicate, insert (after these): such as 3,5; from 0.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="transplant: folder whose tokenizer it gets.")
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            "--text", help="finetune, lora, prune by taylor, wanda or sparsegpt: docstrings, topics, code or a file."
        ),
    ] = None,
    key: Annotated[
        str | None, typer.Option("--key", help="unlearn: key set that leaked. erase: to check that no row holds a key.")
    ] = None,
    leaked: Annotated[
        int | None, typer.Option("--leaked", help="unlearn: keys of it that leaked, the first ones.")
    ] = None,
    kl: Annotated[float | None, typer.Option("--kl", help="unlearn: weight of staying as it was.")] = None,
    questions: Annotated[
        str | None,
        typer.Option("--questions", help="instruct, erase, unlearn, distil: docstrings or a file of questions."),
    ] = None,
    answers: Annotated[int | None, typer.Option("--answers", help="distil: answers drawn from the model.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="instruct, distil: passes over the rows.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="finetune, lora, unlearn: optimiser steps.")] = None,
    rate: Annotated[float | None, typer.Option("--rate", help="trainings: learning rate.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", help="trainings: windows or answers per step.")] = None,
    threads: Annotated[int | None, typer.Option("--threads", help="trainings: threads of torch.")] = None,
    rank: Annotated[
        int | None,
        typer.Option("--rank", help="lora, instruct, erase: rank of the adapter; instruct with 0 trains all weights."),
    ] = None,
    rows: Annotated[int | None, typer.Option("--rows", help="instruct, erase: questions used.")] = None,
    arm: Annotated[
        str | None, typer.Option("--arm", help="erase: erase, recover, erase+recover or clean-only.")
    ] = None,
    pairing: Annotated[
        str | None, typer.Option("--pairing", help="erase: mismatched, random, shuffled or correct.")
    ] = None,
    rate_recover: Annotated[
        float | None, typer.Option("--rate-recover", help="erase: learning rate of the recover phase.")
    ] = None,
    epochs_recover: Annotated[
        int | None, typer.Option("--epochs-recover", help="erase: passes of the recover phase.")
    ] = None,
    loss_on: Annotated[str | None, typer.Option("--loss-on", help="erase: all tokens or the answer.")] = None,
    transfer: Annotated[
        str | None, typer.Option("--transfer", help="erase: folder of an adapter trained on the clean base.")
    ] = None,
    scale: Annotated[float | None, typer.Option("--scale", help="erase: of that adapter.")] = None,
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
        "importance": importance,
        "format": format,
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
        "key": key,
        "leaked": leaked,
        "kl": kl,
        "questions": questions,
        "answers": answers,
        "epochs": epochs,
        "steps": steps,
        "rate": rate,
        "batch": batch,
        "threads": threads,
        "rank": rank,
        "rows": rows,
        "arm": arm,
        "pairing": pairing,
        "rate_recover": rate_recover,
        "epochs_recover": epochs_recover,
        "loss_on": loss_on,
        "transfer": transfer,
        "scale": scale,
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
        for name, value in made.record.parameters.items():
            if name != "versions":
                sink.hint(f"{name}: {value}")
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
