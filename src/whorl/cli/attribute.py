"""`whorl attribute fit`, `predict`, `enrol`, `report`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from whorl.cli import exit_codes
from whorl.cli.options import JsonOption, OutOption, QuietOption
from whorl.cli.sink import Sink
from whorl.errors import MalformedFile, UsageError, safe_name

if TYPE_CHECKING:
    from whorl.attribution.attributor import Attributor
    from whorl.attribution.predict import Attribution
    from whorl.transcripts.record import Transcript

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Which model wrote this? By style, with error rates."
)

STYLES = {"match": "bold green", "none of these": "bold yellow", "undecided": "bold"}
SETS = (".jsonl", ".parquet")
ROWS = 20

BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder that `whorl attribute fit` made.")]
NewOption = Annotated[Path, typer.Option("--out", help="The bundle to make: a new folder.")]
ShiftOption = Annotated[
    list[str] | None,
    typer.Option("--shift", metavar="NAME=SET", help="Also test on transcripts of another condition; repeat."),
]
MixedOption = Annotated[
    bool, typer.Option("--mixed-decoding", help="Allow transcripts of different decoding settings.")
]
PageOption = Annotated[Path | None, typer.Option("--page", help="Also write a report to this HTML file.")]


@app.command(short_help="Learn to tell models apart.")
def fit(
    sets: Annotated[list[Path], typer.Argument(metavar="SET...", help="Transcripts of at least two models.")],
    out: NewOption,
    lineage: Annotated[
        list[str] | None,
        typer.Option("--lineage", metavar="LABEL=NAME", help="Lineage of a model; repeat. Default: its own."),
    ] = None,
    shift: ShiftOption = None,
    shares: Annotated[
        str, typer.Option("--shares", help="Shares of the prompts for training and for calibration.")
    ] = "0.8,0.1",
    alpha: Annotated[float, typer.Option("--alpha", help="How often a model's own text may be called foreign.")] = 0.05,
    characters: Annotated[
        int | None, typer.Option("--characters", help="Cut texts here. Default: what 90 % of them reach.")
    ] = None,
    keep_names: Annotated[bool, typer.Option("--keep-names", help="Do not mask names of models.")] = False,
    mixed_decoding: MixedOption = False,
    seed: Annotated[int, typer.Option("--seed", help="Of everything drawn.")] = 0,
    page: PageOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Learn to tell models apart by their answers to the same prompts, and measure how well that goes.

    \b
    whorl attribute fit transcripts --out bundle
    whorl attribute fit a.jsonl b.jsonl --out bundle --lineage org/tuned=org/base --page bundle.html
    whorl attribute fit transcripts --out bundle --shares 0.5,0.35 --shift greedy=greedy.jsonl
    """
    from whorl.attribution.fit import fit as learn
    from whorl.transcripts.store import read_records

    sink = Sink(as_json=as_json, quiet=quiet)
    _require_new(out)
    with sink.progress() as progress:
        found = learn(
            read_records(sets), lineages=_pairs(lineage, "--lineage"), shifts=_shifts(shift), seed=seed,
            shares=_shares(shares), alpha=alpha, n_characters=characters, mask_names=not keep_names,
            mixed_decoding=mixed_decoding, progress=progress,
        )  # fmt: skip
    _keep(sink, found, out, page)


@app.command(short_help="Whose text is this?")
def predict(
    bundle: BundleArgument,
    texts: Annotated[
        list[str], typer.Argument(metavar="TEXT...", help="Text files, transcripts, or - for standard input.")
    ],
    together: Annotated[
        bool, typer.Option("--together", help="All texts are of one source: judge them as one.")
    ] = False,
    lines: Annotated[bool, typer.Option("--lines", help="Every line of a text file is a text of its own.")] = False,
    out: OutOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Whose text is this? One of the enrolled models, none of them, or undecided.

    \b
    whorl attribute predict bundle letter.txt
    whorl attribute predict bundle suspect.jsonl --together --json
    whorl attribute predict bundle answers.txt --lines --together
    cat letter.txt | whorl attribute predict bundle -
    """
    import json

    from whorl._atomic import write_text
    from whorl.attribution.bundle import load
    from whorl.attribution.predict import predict as ask

    sink = Sink(as_json=as_json, quiet=quiet)
    found = _read_texts(texts, lines=lines)
    groups = [group for _, _, group in found] if together else None
    answers = ask(
        load(bundle), [text for _, text, _ in found], together=together, sources=[name for name, _, _ in found],
        groups=groups,
    )  # fmt: skip
    record = {"status": "done", "answers": [answer.to_dict() for answer in answers]}
    if out is not None:
        write_text(out, json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n")
    if as_json:
        sink.record(record)
    else:
        _show(sink, answers)
    if any(answer.verdict == "undecided" for answer in answers):
        raise typer.Exit(exit_codes.UNDECIDED)


@app.command(short_help="Add a model.")
def enrol(
    bundle: BundleArgument,
    sets: Annotated[list[Path], typer.Argument(metavar="SET...", help="Transcripts of the new model.")],
    out: NewOption,
    lineage: Annotated[str | None, typer.Option("--lineage", help="Its lineage. Default: its own.")] = None,
    shift: ShiftOption = None,
    mixed_decoding: MixedOption = False,
    page: PageOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Add a model from its answers to the bundle's prompts; the others are not trained again, all rates are measured again.

    \b
    whorl attribute enrol bundle new.jsonl --out larger
    whorl attribute enrol bundle new.jsonl --out larger --lineage org/base
    whorl attribute enrol bundle new.jsonl --out larger --page larger.html --json
    """
    from whorl.attribution.bundle import load
    from whorl.attribution.enrol import enrol as add
    from whorl.transcripts.store import read_records

    sink = Sink(as_json=as_json, quiet=quiet)
    _require_new(out)
    with sink.progress() as progress:
        found = add(
            load(bundle), read_records(sets), lineage=lineage, shifts=_shifts(shift), mixed_decoding=mixed_decoding,
            progress=progress,
        )  # fmt: skip
    _keep(sink, found, out, page)


@app.command(short_help="How good is a bundle?")
def report(
    bundle: BundleArgument,
    page: PageOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """How often a bundle is right, on how much text, and how often strangers pass for one of its models.

    \b
    whorl attribute report bundle
    whorl attribute report bundle --page bundle.html
    whorl attribute report bundle --json
    """
    from whorl.attribution.bundle import load

    _tell(Sink(as_json=as_json, quiet=quiet), load(bundle), bundle, page)


def _require_new(out: Path) -> None:
    """Say it before minutes of work."""
    if out.exists():
        raise UsageError(f"'{safe_name(out)}' exists already; choose a new folder or remove it.")


def _pairs(given: Sequence[str] | None, option: str) -> dict[str, str]:
    found = {}
    for text in given or ():
        name, _, value = text.partition("=")
        if not name or not value or name in found:
            raise UsageError(f"{option} takes a new name, an equals sign and a value; '{safe_name(text)}' is not that.")
        found[name] = value
    return found


def _shifts(given: Sequence[str] | None) -> dict[str, list["Transcript"]]:
    from whorl.transcripts.store import read_records

    return {name: read_records([path]) for name, path in _pairs(given, "--shift").items()}


def _shares(text: str) -> tuple[float, float]:
    try:
        train, validation = (float(part) for part in text.split(","))
    except ValueError:
        train = validation = -1.0
    if not (0 < train < 1 and 0 < validation < 1 and train + validation < 1):
        raise UsageError(
            f"--shares takes two shares that leave some prompts for testing, such as 0.8,0.1; not '{safe_name(text)}'."
        )
    return train, validation


def _read_texts(given: Sequence[str], *, lines: bool) -> list[tuple[str, str, str | None]]:
    """Name, text and prompt group of every text, None where the prompt is unknown."""
    from whorl.transcripts.splits import group_of
    from whorl.transcripts.store import read_records

    found: list[tuple[str, str, str | None]] = []
    for name in given:
        if name != "-" and (Path(name).is_dir() or name.endswith(SETS)):
            for record in read_records([name]):
                if record.ok:
                    group = group_of(record.prompt, record.sample_index)
                    found.append((f"{name}: {record.id[:16]}", record.response, group))
        elif lines:
            numbered = enumerate(_read_text(name).splitlines(), 1)
            found += [(f"{name}: line {at}", line, None) for at, line in numbered if line.strip()]
        else:
            found.append((name, _read_text(name), None))
    return found


def _read_text(name: str) -> str:
    from whorl._readers.local_files import read_checked

    if name != "-" and not Path(name).exists():
        raise UsageError(f"There is no text file '{safe_name(name)}'.")
    data = sys.stdin.buffer.read() if name == "-" else read_checked(name, "text")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"a byte that is not UTF-8 at position {error.start}"
        raise MalformedFile("text", name, found, "text in UTF-8", "Save it as UTF-8.") from None


def _keep(sink: Sink, found: "Attributor", out: Path, page: Path | None) -> None:
    from whorl.attribution.bundle import save

    save(found, out)
    _tell(sink, found, out, page)


def _tell(sink: Sink, found: "Attributor", bundle: Path, page: Path | None) -> None:
    if page is not None:
        from whorl.reports.attribution_page import attribution_report

        attribution_report(found, page)
        sink.hint(f"written: {page}")
    if sink.as_json:
        models = [{"model": one.name, "revision": one.model.revision, "lineage": one.lineage} for one in found.classes]
        sink.record({"status": "done", "bundle": str(bundle), "models": models, "evaluation": dict(found.evaluation)})
    elif sink.quiet:
        sink.line(str(bundle))
    else:
        _summary(sink, found, bundle)


def _summary(sink: Sink, found: "Attributor", bundle: Path) -> None:
    closed, strangers = found.evaluation["closed_set"], found.evaluation["open_set"]["by_model"]
    crossed = {row["n_texts"]: row["accepted_by_crossing"] for row in strangers}
    rows = [
        (
            str(row["n_texts"]),
            _percent(row["accuracy"], row["interval"]),
            _percent(row["verdicts"]["match, right"]),
            _percent(row["verdicts"]["match, wrong"]),
            _percent(row["verdicts"]["none of these"]),
            "–" if (s := crossed.get(row["n_texts"])) is None else _percent(s["mean"], s["interval"]),
        )
        for row in found.evaluation["by_number_of_texts"]
    ]
    columns = ("texts", "accuracy", "match, right", "match, wrong", "none of these", "strangers accepted")
    n_models, n_prompts = len(found.classes), closed["n_prompts"]
    title = f"{safe_name(bundle)}: {n_models} models, {n_prompts} test prompts, chance {closed['chance']:.1%}"
    sink.table(title, columns, rows)
    error = closed["probabilities"]["calibration_error"]
    sink.line(
        f"calibration error of the probabilities: {error:.1%}; strangers: models left out in turn, {len(found.classes)} here"
    )
    sink.line("Attribution is a claim about style; it can be imitated and is no proof of ownership.")


def _percent(value: float, interval: Sequence[float] | None = None) -> str:
    return f"{value:.1%}" if interval is None else f"{value:.1%} ({interval[0]:.1%} to {interval[1]:.1%})"


def _show(sink: Sink, answers: "Sequence[Attribution]") -> None:
    for answer in answers:
        named = answer.model or (f"lineage {answer.lineage}" if answer.lineage else "")
        if sink.quiet:
            sink.line(safe_name(answer.model) if answer.model else answer.verdict)
            continue
        title = f"{safe_name(answer.source)}: {answer.verdict} {safe_name(named)}".rstrip()
        sink.line(title, STYLES[answer.verdict])
        sink.line(f"  {answer.why}.")
        for warning in answer.warnings:
            sink.line(f"  caution: {warning}")
        if len(answers) == 1:
            _candidates(sink, answer)
    if not sink.quiet:
        sink.line("Attribution is a claim about style; it can be imitated and is no proof of ownership.")


def _candidates(sink: Sink, answer: "Attribution") -> None:
    rows = [
        (safe_name(c.model), safe_name(c.lineage), f"{c.probability:.1%}", f"{c.p_value:.2g}", f"{c.acceptance:.2f}")
        for c in answer.candidates[:ROWS]
    ]
    sink.table(f"{answer.n_texts} texts", ("model", "lineage", "probability", "p", "typical"), rows)
    if answer.contributions:
        shown = ", ".join(f"{safe_name(repr(c.text), 40)} {c.value:+.3f}" for c in answer.contributions[:8])
        sink.line(f"n-grams that speak for '{safe_name(answer.candidates[0].model)}': {shown}")
