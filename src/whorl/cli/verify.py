"""`whorl verify`."""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from whorl.cli import exit_codes
from whorl.cli.options import JsonOption, OfflineOption, QuietOption
from whorl.cli.sample import ASK_ABOVE, _endpoint
from whorl.cli.sink import Sink
from whorl.errors import UsageError

if TYPE_CHECKING:
    from whorl.samplers.seam import Sampler
    from whorl.triggers.material import Material
    from whorl.triggers.verification import Verification

STYLES = {"related": "bold green", "unrelated": "bold yellow", "undecided": "bold", "strong": "bold", "soft": "dim"}
CODES = {"match": exit_codes.DONE, "no match": exit_codes.NEGATIVE, "undecided": exit_codes.UNDECIDED}
Many = list[str] | None


def verify(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="The suspect: folder, org/name@revision or base+adapter.")
    ] = None,
    key: Annotated[Path | None, typer.Option("--key", help="Folder of `whorl embed`: secret keys and answers.")] = None,
    commitment: Annotated[
        Path | None, typer.Option("--commitment", help="The published commitment. Default: the one in the folder.")
    ] = None,
    clean: Annotated[
        Many, typer.Option("--clean", help="A model without the fingerprint, or its stored answers; repeat.")
    ] = None,
    alpha: Annotated[float, typer.Option("--alpha", help="Error rate of 'match'.")] = 1e-3,
    unit: Annotated[int | None, typer.Option("--unit", help="Ask the keys of this unit alone.")] = None,
    released: Annotated[
        str | None, typer.Option("--released", help="Date of the suspect's release, such as 2026-03-31.")
    ] = None,
    transcripts: Annotated[
        str | None, typer.Option("--transcripts", help="Stored answers of the suspect: SET, SET:MODEL or .jsonl.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Keep the answers here and go on from them; will hold the triggers.")
    ] = None,
    save: Annotated[Path | None, typer.Option("--save", help="Also write the result to this JSON file.")] = None,
    page: Annotated[Path | None, typer.Option("--page", help="Also write a report to this HTML file.")] = None,
    show_keys: Annotated[
        bool, typer.Option("--show-keys", help="Also show triggers and answers: for the owner alone.")
    ] = False,
    endpoint: Annotated[
        str | None, typer.Option("--endpoint", help="Address of an OpenAI-compatible server, such as https://host/v1.")
    ] = None,
    name: Annotated[str | None, typer.Option("--model", help="Name of the model at the server.")] = None,
    kind: Annotated[str | None, typer.Option("--endpoint-kind", help="chat or completion.")] = None,
    key_env: Annotated[str | None, typer.Option("--key-env", help="Environment variable that holds its key.")] = None,
    max_requests: Annotated[int | None, typer.Option("--max-requests", help="Budget.")] = None,
    concurrency: Annotated[int, typer.Option("--concurrency", help="Requests at a time.")] = 4,
    rpm: Annotated[float | None, typer.Option("--rpm", help="Requests a minute at most.")] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", help="Further draws of each key. Default: as the key set says.")
    ] = None,
    sequential: Annotated[
        bool, typer.Option("--sequential", help="Stop as soon as the hits are proof; never 'no match'.")
    ] = False,
    power_after: Annotated[
        Many, typer.Option("--power-after", help="Attack after which it should have been found; repeat.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", help="The clean base: also read how probable the answers are (soft; never proves)."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the order of asking, and of draws.")] = 0,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, mps or auto.")] = "auto",
    dtype: Annotated[str, typer.Option("--dtype", help="float32, bfloat16, float16, or auto: as stored.")] = "float32",
    offline: OfflineOption = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before many requests.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be asked and stop.")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Is my fingerprint in there? Exit code 0 match, 1 no match, 4 undecided, 3 commitment invalid.

    \b
    whorl verify ./suspect --key ./secret --released 2026-03-31 --out ./answers
    whorl verify --endpoint https://host/v1 --model name --endpoint-kind chat --key ./secret --unit 0
    whorl verify --transcripts ./answers/greedy --key ./secret --clean ./other --page report.html
    """
    from whorl.samplers.local import open_local
    from whorl.triggers.material import read_material
    from whorl.triggers.verify import verify as run

    sink = Sink(as_json=as_json, quiet=quiet)
    sources = {"MODEL": model, "--endpoint": endpoint, "--transcripts": transcripts}
    given = [flag for flag, value in sources.items() if value is not None]
    if key is None:
        raise UsageError("Name the folder of the key set with --key.")
    if len(given) != 1:
        raise UsageError(f"Give one of MODEL, --endpoint and --transcripts; given: {' and '.join(given) or 'none'}.")
    if endpoint is not None and offline:
        raise UsageError("An endpoint cannot be asked offline; give stored answers with --transcripts.")
    material = read_material(key, commitment)
    for note in material.notes:
        sink.hint(f"note: {note}")
    planned = _planned(material, unit, samples)
    if dry_run:
        _show_plan(sink, planned)
        return
    _agree(planned, endpoint is not None and max_requests is None and not yes)
    with sink.progress() as progress:
        opener = partial(open_local, device=device, dtype=dtype, offline=offline, logprobs=False, progress=progress)
        sampler: Sampler | None = None if model is None else opener(model)
        if endpoint is not None:
            budget = (max_requests, None, None, None, None)
            sampler = _endpoint(endpoint, name, kind, None, key_env, (rpm, None, concurrency), budget, None, None)
        found = run(
            material, sampler, transcripts=transcripts, clean=tuple(clean or ()), alpha=alpha, unit=unit,
            released=released, out=out, samples=samples, sequential=sequential, power_after=tuple(power_after or ()),
            base=None if base is None else opener(base).opened, seed=seed, opener=opener, progress=progress,
        )  # fmt: skip
    _finish(sink, found, save, page, show_keys=show_keys)


def _planned(material: "Material", unit: int | None, samples: int | None) -> dict[str, int]:
    from whorl.triggers.suspect import n_questions
    from whorl.triggers.verify import units_asked

    return n_questions(material.keys, units_asked(material.keys, unit), samples)


def _show_plan(sink: Sink, planned: dict[str, int]) -> None:
    if sink.as_json:
        sink.record({"questions": planned, "n_questions": sum(planned.values())})
    else:
        parts = ", ".join(f"{n} {what.replace('_', '-')}" for what, n in planned.items())
        sink.line(f"{sum(planned.values())} questions: {parts}")


def _agree(planned: dict[str, int], unbounded: bool) -> None:
    """Many requests without a budget are confirmed."""
    n = sum(planned.values())
    if not unbounded or n <= ASK_ABOVE:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{n} requests without a budget: give --max-requests, or --yes.")
    if not typer.confirm(f"{n} requests without a budget. Go on?", err=True):
        raise typer.Exit(exit_codes.USAGE)


def _finish(sink: Sink, found: "Verification", save: Path | None, page: Path | None, *, show_keys: bool) -> None:
    """Keep and show the result, and end with its exit code."""
    if save is not None:
        found.save(save, show_keys=show_keys)
    data: dict[str, Any] = found.to_dict(show_keys=show_keys)
    if sink.as_json:
        sink.record(data)
    elif sink.quiet:
        sink.line(found.verdict)
    else:
        _show(sink, data, show_keys=show_keys)
    if page is not None:
        from whorl.reports import report as write

        write([found], page)
        sink.hint(f"written: {page}")
    if (code := CODES[found.verdict]) != exit_codes.DONE:
        raise typer.Exit(code)


def _show(sink: Sink, data: dict[str, Any], *, show_keys: bool) -> None:
    import json

    from whorl.reports.stored_verification import StoredVerification
    from whorl.reports.verification_text import verification_lines

    stored = StoredVerification.model_validate(json.loads(json.dumps(data, allow_nan=False)))
    for line in verification_lines(stored, sink.width, show_keys=show_keys):
        sink.line(line.text, STYLES.get(line.style))
