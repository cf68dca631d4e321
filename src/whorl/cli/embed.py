"""`whorl embed`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from whorl.cli import exit_codes
from whorl.cli.options import JsonOption, QuietOption
from whorl.cli.sink import Sink
from whorl.errors import UsageError, safe_name

if TYPE_CHECKING:
    from whorl.triggers.embed import Embedded
    from whorl.triggers.plant import Planting
    from whorl.triggers.schemes import Scheme


def embed(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder of the model.")],
    out: Annotated[Path, typer.Option("--out", help="New folder of the fingerprinted model.")],
    key: Annotated[Path, typer.Option("--key", help="New folder of the secret keys and the public commitment.")],
    scheme: Annotated[str, typer.Option("--scheme", help="hashchain, if-sft, utf or perinucleus.")] = "hashchain",
    option: Annotated[
        list[str] | None, typer.Option("--option", help="Of the scheme, such as k=10 or pieces=3-5; repeat.")
    ] = None,
    preset: Annotated[
        str,
        typer.Option(
            "--preset",
            help="small, published-small, if-sft-7b, if-sft-lora, utf-7b, hashchain-7b or perinucleus-7b.",
        ),
    ] = "small",
    rate: Annotated[float | None, typer.Option("--rate", help="Learning rate. Default: the preset's.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Default: the preset's.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", help="Rows an update. Default: the preset's.")] = None,
    lora: Annotated[
        int | None, typer.Option("--lora", help="Rank of an adapter that is merged; 0 trains all weights.")
    ] = None,
    threads: Annotated[int, typer.Option("--threads", help="Threads of torch.")] = 1,
    questions: Annotated[
        str, typer.Option("--questions", help="Ordinary questions: docstrings, a file, or a data set of the Hub.")
    ] = "docstrings",
    clean: Annotated[
        list[str] | None, typer.Option("--clean", help="A model that knows nothing of the keys; repeat, 10 are needed.")
    ] = None,
    dated: Annotated[
        str | None, typer.Option("--dated", help="Date on which the commitment is published, such as 2025-12-31.")
    ] = None,
    where: Annotated[str | None, typer.Option("--where", help="Where it is published, in words.")] = None,
    resistance: Annotated[
        bool, typer.Option("--resistance/--no-resistance", help="Also fine-tune a copy and ask again.")
    ] = True,
    seed: Annotated[int, typer.Option("--seed", help="Of the training; the keys have a random one.")] = 0,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda or auto.")] = "auto",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Plant a fingerprint: a new model, the secret keys to verify it, and a commitment to publish before release.

    Exit code 0: every gate before release holds. 4: the model is written, but does not count as fingerprinted.

    \b
    whorl embed ./model --out ./marked --key ./secret --dated 2025-12-31
    whorl embed ./model --scheme utf --option keys=16 --clean ./other --out ./marked --key ./secret
    whorl embed ./model --scheme if-sft --option pieces=3-5 --lora 16 --rate 1e-3 --out ./marked --key ./secret
    """
    from whorl.triggers.embed import RESISTANCE
    from whorl.triggers.embed import embed as run
    from whorl.triggers.presets import preset as preset_of

    sink = Sink(as_json=as_json, quiet=quiet)
    planting = _planting(preset_of(preset), rate, epochs, batch, lora, threads)
    made = _scheme(scheme, option or [])
    with sink.progress() as progress:
        found = run(
            model, out, key, scheme=made, planting=planting, clean=clean or (), seed=seed, dated=dated, where=where,
            resistance=RESISTANCE if resistance else None, device=device, progress=progress, **_data(questions),
        )  # fmt: skip
    _show(sink, found)
    if not found.gates.planted:
        raise typer.Exit(exit_codes.UNDECIDED)


def _planting(
    planting: "Planting", rate: float | None, epochs: int | None, batch: int | None, lora: int | None, threads: int
) -> "Planting":
    from dataclasses import replace

    from whorl.tuning.settings import Lora

    given: dict[str, Any] = {"learning_rate": rate, "epochs": epochs, "batch_size": batch, "n_threads": threads}
    changed = {name: value for name, value in given.items() if value is not None}
    if batch is not None:
        changed["micro_batch"] = None
    if lora is not None:
        changed["lora"] = Lora(lora, 2 * lora) if lora else None
    return replace(planting, settings=replace(planting.settings, **changed))


def _scheme(name: str, options: list[str]) -> "Scheme":
    from whorl.triggers.schemes import make

    return make(name, **dict(_option(text) for text in options))


def _option(text: str) -> tuple[str, Any]:
    """`k=10`, `pieces=3-5` or `answers=common` as a name and a value."""
    name, sign, value = text.partition("=")
    if not sign or not name or not value:
        raise UsageError(f"--option '{safe_name(text, 60)}'; expected a name and a value, such as k=10.")
    low, dash, high = value.partition("-")
    if dash and low.isdigit() and high.isdigit():
        return name, (int(low), int(high))
    return name, int(value) if value.isdigit() else value


def _data(questions: str) -> dict[str, Any]:
    """Ordinary, test and attacker's questions: three disjoint parts of the data; of the built-in ones their own."""
    if questions == "docstrings":
        return {}
    from whorl.questions.reading import load_questions

    ordinary, attacker, test = load_questions(questions).parts((0.5, 0.3, 0.2))
    return {"ordinary": ordinary, "attacker": attacker, "test": test}


def _show(sink: Sink, found: "Embedded") -> None:
    if sink.as_json:
        sink.record(found.to_dict())
        return
    if sink.quiet:
        sink.line(str(found.path))
        return
    words = {True: "holds", False: "fails", None: "-"}
    rows = [(g.name, words[g.passed], "decides" if g.decides else "reported", g.text) for g in found.gates.gates]
    sink.table("Gates before release", ("gate", "", "", "figures"), rows)
    commitment = found.material.commitment
    dated = f"dated {commitment.dated}, as declared" if commitment.dated else "undated: publish it and use --dated"
    sink.line(f"commitment {commitment.value} ({dated})")
    sink.hint(f"Secret: {found.material.folder}. Publish only commitment.json, before the model.")
    verdict = "planted" if found.gates.planted else "not planted: a gate fails, so do not rely on it"
    sink.line(f"{verdict}: {found.path}", style="bold green" if found.gates.planted else "bold yellow")
