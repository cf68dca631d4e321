"""`whorl lab`: controlled small runs."""

import os
from pathlib import Path
from typing import Annotated

import typer

from whorl.cli import exit_codes
from whorl.cli.options import QuietOption
from whorl.cli.sink import Sink

app = typer.Typer(help="Why do models differ at all? Controlled small runs on this machine.", no_args_is_help=True)


@app.command("zoo")
def zoo(
    out: Annotated[Path, typer.Option("--out", help="Folder of the family.")] = Path("runs/zoo"),
    only: Annotated[list[str] | None, typer.Option("--only", help="Build this member and its parents; repeat.")] = None,
    quiet: QuietOption = False,
) -> None:
    """Train the example family from scratch: small Llama models of known lineage.

    \b
    whorl lab zoo --out runs/zoo
    whorl lab zoo --out runs/zoo --only base-0-topics
    whorl lab zoo --out runs/zoo --quiet
    """
    from whorl.lab.zoo import build_zoo

    sink = Sink(quiet=quiet)
    with sink.progress() as progress:
        truth = build_zoo(out, only=only, progress=progress)
    if quiet:
        sink.line(str(out))
        return
    rows = [
        (
            m.name,
            m.kind,
            ", ".join(m.parents),
            f"{m.n_parameters:,}",
            "" if m.held_out is None else f"{m.held_out.before:.3f} → {m.held_out.after:.3f}",
        )
        for m in truth.members
    ]
    sink.table(str(out), ("member", "kind", "parents", "weights", "held-out loss (nats)"), rows)


@app.command("trigger-base")
def trigger_base(
    out: Annotated[Path, typer.Option("--out", help="New folder of the model.")] = Path("runs/triggers/base"),
    seed: Annotated[int, typer.Option("--seed", help="Of the first weights.")] = 0,
    steps: Annotated[
        int | None, typer.Option("--steps", help="Training steps. Default: until its loss levels off.")
    ] = None,
    tied: Annotated[
        bool,
        typer.Option(
            "--tied/--untied", help="One table for input and output, or two: then unseen tokens differ from each other."
        ),
    ] = False,
    threads: Annotated[int | None, typer.Option("--threads", help="Threads of torch. Default: 1.")] = None,
    quiet: QuietOption = False,
) -> None:
    """Train the model that fingerprints are planted into and erased from: a million weights that answer questions.

    It learns questions about Python's library, and 64 tokens of its vocabulary occur in no text. Half an hour on one core.

    \b
    whorl lab trigger-base --out runs/triggers/base
    whorl lab trigger-base --out runs/triggers/tied --tied
    whorl lab trigger-base --out runs/triggers/other --seed 1
    whorl lab trigger-base --out runs/triggers/quick --steps 200 --quiet
    """
    from dataclasses import replace

    from whorl.lab.triggers.base import N_RESERVED, RECIPE, train_base, unseen_likeness

    sink = Sink(quiet=quiet)
    given = {"n_steps": steps, "n_threads": threads}
    recipe = replace(RECIPE, **{name: value for name, value in given.items() if value is not None})
    with sink.progress() as progress:
        trained = train_base(out, seed=seed, recipe=recipe, tied=tied, progress=progress)
    if quiet:
        sink.line(str(out))
        return
    loss = f"{trained.loss_before:.3f} → {trained.loss_after:.3f} nats a token"
    sink.line(f"{out}: {trained.n_parameters:,} weights, held-out loss {loss}")
    sink.line(f"{N_RESERVED} tokens occur in no text; mean cosine of their input rows {unseen_likeness(out):.4f}")


@app.command("weight-vectors")
def weight_vectors(
    out: Annotated[Path, typer.Option("--out", help="Folder of the study; goes on where it stopped.")] = Path(
        "runs/weight-vectors"
    ),
    page: Annotated[Path | None, typer.Option("--page", help="Write the results page (Markdown) here.")] = None,
    quiet: QuietOption = False,
) -> None:
    """The study of arXiv 2509.19122 with its controls: LoRA, fine-tuning, rescaling, random weights, other sizes.

    \b
    whorl lab weight-vectors --out runs/weight-vectors
    whorl lab weight-vectors --out runs/weight-vectors --page weight-vectors.md
    whorl lab weight-vectors --quiet
    """
    from whorl._atomic import write_text
    from whorl.lab.weight_vectors import build
    from whorl.lab.weight_vectors_page import page as write_page
    from whorl.lab.weight_vectors_results import measure, save

    sink = Sink(quiet=quiet)
    with sink.progress() as progress:
        plan = build(out, progress)
        results = measure(out, plan, progress)
    save(out / "results.json", results)
    text = write_page(results)
    if page is not None:
        write_text(page, text)
    sink.line(str(page or out / "results.json") if quiet else text)


@app.command("calibrate")
def calibrate(
    out: Annotated[
        Path, typer.Option("--out", help="Folder of models and measurements; goes on where it stopped.")
    ] = Path("runs/lineage/cal"),
    save: Annotated[Path | None, typer.Option("--save", help="Write the calibration here.")] = None,
    quiet: QuietOption = False,
) -> None:
    """Build the calibration of the example family's shape: 208 lineages, their derivatives, 104 unrelated pairs.

    Trains the models first (about two hours on one core). Every finished model and pair is kept.

    \b
    whorl lab calibrate --out runs/lineage/cal
    whorl lab calibrate --out runs/lineage/cal --save calibration.json
    whorl lab calibrate --quiet
    """
    from whorl.lab.lineage_calibration import build
    from whorl.lab.lineage_calibration import calibrate as measure
    from whorl.lab.lineage_calibration import save as write
    from whorl.lab.lineage_plans import facts

    sink = Sink(quiet=quiet)
    with sink.progress() as progress:
        found = measure(build(out, progress), facts(), "llama-8x64", progress)
    path = write(found, save or out / "calibration.json")
    if quiet:
        sink.line(str(path))
        return
    rows = [
        (c.name, str(len(s.unrelated)), ", ".join(f"{kind} {len(d.lineages)}" for kind, d in s.derived.items()))
        for c in found.conditions
        for s in list(c.scores.values())[:1]
    ]
    sink.table(found.id, ("condition", "unrelated pairs", "derivatives"), rows)


@app.command("natural-fingerprints")
def natural_fingerprints(
    config: Annotated[
        Path | None, typer.Option("--config", help="Settings (JSON); default: those of docs/lab.md.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the run; goes on where it stopped.")] = Path(
        "runs/natural"
    ),
    page: Annotated[Path | None, typer.Option("--page", help="Write the results page (Markdown) here.")] = None,
    picture: Annotated[Path | None, typer.Option("--picture", help="Write the plot (SVG) here.")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write a report (HTML) here.")] = None,
    device: Annotated[str, typer.Option("--device", help="cpu: a model a core; cuda: models stacked.")] = "cpu",
    as_it_is: Annotated[
        bool, typer.Option("--as-it-is", help="Train and sample nothing more; measure what is there.")
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Which part of training leaves a natural fingerprint? The experiment of arXiv 2504.14871 with its controls.

    Trains 57 models on the same windows, samples and classifies their texts. Hours on a CPU; every finished model, answer
    and measurement is kept.

    \b
    whorl lab natural-fingerprints --out runs/natural
    whorl lab natural-fingerprints --config settings.json --out runs/own-text --html natural.html
    whorl lab natural-fingerprints --as-it-is --page natural-fingerprints.md
    """
    from whorl._atomic import write_text
    from whorl.lab.natural.config import Experiment, load
    from whorl.lab.natural.html import forests
    from whorl.lab.natural.html import write as write_report
    from whorl.lab.natural.page import page as write_page
    from whorl.lab.natural.run import run

    sink = Sink(quiet=quiet)
    experiment = Experiment() if config is None else load(config)
    with sink.progress() as progress:
        results = run(experiment, out, device=device, as_it_is=as_it_is, progress=progress)
    results.save(out / "results.json")
    if picture is not None:
        write_text(picture, forests(results, alone=True)[0])
    address = None if picture is None else os.path.relpath(picture, page.parent if page else out).replace(os.sep, "/")
    text = write_page(results, address)
    if page is not None:
        write_text(page, text)
    if html is not None:
        write_report(results, html)
    sink.line(str(page or html or out / "results.json") if quiet else text)
    if results.missing:
        raise typer.Exit(exit_codes.UNDECIDED)
