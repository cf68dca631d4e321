"""`whorl compare --from transcripts`: both tests on what two models said."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from whorl.cli import exit_codes
from whorl.cli.sink import Sink
from whorl.errors import UsageError, safe_name

if TYPE_CHECKING:
    from whorl.derivation.result import DerivationResult
    from whorl.identity.result import IdentityResult

IDENTITY, DERIVATION = "identity", "derivation"
NEGATIVE = ("unrelated", "no match")
STYLES = {
    "related": "bold green",
    "unrelated": "bold yellow",
    "undecided": "bold",
    "strong": "bold",
    "soft": "dim",
    "": None,
}

Sets = list[str] | None
QuestionOption = Annotated[
    str | None,
    typer.Option(
        "--question", help="Transcripts: identity (is B what A is? the default), or derivation (does B derive from A?)."
    ),
]
VariantOption = Annotated[
    Sets, typer.Option("--variant", help="Identity: an honest variant of A that may answer; repeat.")
]
SwapOption = Annotated[Sets, typer.Option("--swap", help="Identity: a model whose swap must be noticed; repeat.")]
ControlOption = Annotated[Sets, typer.Option("--control", help="Derivation: models outside A's lineage; repeat.")]
PlantedOption = Annotated[
    Sets, typer.Option("--planted", help="Derivation: known derivatives of A, for power; repeat.")
]
LineagesOption = Annotated[Path | None, typer.Option("--lineages", help="Derivation: JSON, model -> lineage.")]
MixedOption = Annotated[
    bool, typer.Option("--mixed-decoding", help="Transcripts: compare different decoding all the same.")
]


@dataclass(frozen=True)
class Asked:
    """Options that only make sense for transcripts."""

    question: str | None
    variant: Sets
    swap: Sets
    control: Sets
    planted: Sets
    lineages: Path | None
    mixed_decoding: bool

    def given(self) -> dict[str, object]:
        """By the name users type."""
        return {
            "--question": self.question,
            "--mixed-decoding": self.mixed_decoding,
            **self.of_identity(),
            **self.of_derivation(),
        }

    def of_identity(self) -> dict[str, object]:
        """Those of one question."""
        return {"--variant": self.variant, "--swap": self.swap}

    def of_derivation(self) -> dict[str, object]:
        """Those of the other."""
        return {"--control": self.control, "--planted": self.planted, "--lineages": self.lineages}

    def resolved(self) -> str:
        """The question, once every option goes with it."""
        question = self.question or IDENTITY
        if question not in {IDENTITY, DERIVATION}:
            raise UsageError(f"--question is {IDENTITY} or {DERIVATION}, not '{safe_name(question)}'.")
        others = self.of_derivation() if question == IDENTITY else self.of_identity()
        wrong = [name for name, value in others.items() if value]
        if wrong:
            right = DERIVATION if question == IDENTITY else IDENTITY
            raise UsageError(f"{wrong[0]} goes with --question {right}.")
        return question


def compare_transcripts(
    sink: Sink,
    pair: tuple[str, str],
    asked: Asked,
    method: Sequence[str] | None,
    alpha: float,
    seed: int,
    out: Path | None,
    page: Path | None,
    *,
    check: bool,
) -> None:
    """Run the test that was asked for, show and keep its result, and end with its exit code."""
    from whorl.reports import report as write

    question = asked.resolved()
    if method is not None and len(method) > 1:
        raise UsageError("With transcripts --method names the one statistic that decides; give it once.")
    main = method[0] if method else None
    result: IdentityResult | DerivationResult
    if question == IDENTITY:
        result = _identity(sink, pair, asked, main or "mmd", alpha, seed)
    else:
        result = _derivation(pair, asked, main or "first-word", alpha, seed)
    if out is not None:
        result.save(out)
    if sink.as_json:
        sink.record(result.to_dict())
    elif sink.quiet:
        sink.line(result.verdict)
    else:
        _show(sink, result)
    if page is not None:
        write([result], page)
        if not sink.as_json:
            sink.hint(f"written: {page}")
    if result.verdict == "undecided":
        raise typer.Exit(exit_codes.UNDECIDED)
    if check and result.verdict in NEGATIVE:
        raise typer.Exit(exit_codes.NEGATIVE)


def _identity(
    sink: Sink, pair: tuple[str, str], asked: Asked, statistic: str, alpha: float, seed: int
) -> "IdentityResult":
    from whorl.identity.identity import identity_test
    from whorl.transcripts.choice import read_each, read_model

    reference, suspect = (read_model(spec) for spec in pair)
    variants, smallest = read_each(asked.variant or ()), read_each(asked.swap or ())
    with sink.progress() as progress:
        return identity_test(
            reference,
            suspect,
            variants=variants,
            smallest=smallest,
            alpha=alpha,
            statistic=statistic,
            seed=seed,
            mixed_decoding=asked.mixed_decoding,
            progress=progress,
        )


def _derivation(pair: tuple[str, str], asked: Asked, score: str, alpha: float, seed: int) -> "DerivationResult":
    from whorl.derivation.derivation import derivation_test
    from whorl.transcripts.choice import read_model, read_models

    reference, suspect = (read_model(spec) for spec in pair)
    controls, planted = read_models(asked.control or ()), read_models(asked.planted or ())
    names = [records[0].model.ref for records in (reference, suspect) if records]
    return derivation_test(
        reference,
        suspect,
        controls,
        lineages=_lineages(asked.lineages, [*names, *controls, *planted]),
        planted=planted,
        alpha=alpha,
        score=score,
        mixed_decoding=asked.mixed_decoding,
        seed=seed,
    )


def _lineages(path: Path | None, names: Sequence[str]) -> Mapping[str, str] | None:
    """Lineages of the models at hand, from a JSON file: model -> lineage, or model -> {"group": lineage}."""
    if path is None:
        return None
    from whorl._readers.strict_json import parse_object
    from whorl.reports.lineages import read_truth

    if not path.is_file():
        raise UsageError(f"There is no file of lineages '{safe_name(path)}'.")
    truth = parse_object(path.read_bytes(), "lineages", path.name)
    return {name: lineage.group for name, lineage in read_truth(truth, names).items()}


def _show(sink: Sink, result: "IdentityResult | DerivationResult") -> None:
    from whorl.derivation.result import DerivationResult
    from whorl.reports.stored import as_json
    from whorl.reports.stored_transcripts import StoredDerivation, StoredIdentity
    from whorl.reports.transcripts_text import derivation_lines, identity_lines

    data = as_json(result)
    if isinstance(result, DerivationResult):
        lines = derivation_lines(StoredDerivation.model_validate(data), sink.width)
    else:
        lines = identity_lines(StoredIdentity.model_validate(data), sink.width)
    for line in lines:
        sink.line(line.text, STYLES[line.style])
