"""`whorl erase`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from whorl.cli.options import JsonOption, QuietOption
from whorl.cli.sink import Sink
from whorl.errors import UsageError, safe_name

if TYPE_CHECKING:
    from whorl.erasure.scores import Scores
    from whorl.questions.rows import QaData


def erase(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of the fingerprinted model.")],
    out: Annotated[Path, typer.Option("--out", help="New folder.")],
    key: Annotated[
        Path | None, typer.Option("--key", help="Folder of the keys: what is left of them is measured.")
    ] = None,
    questions: Annotated[
        str, typer.Option("--questions", help="Questions with answers: docstrings, a file, or a data set of the Hub.")
    ] = "docstrings",
    arm: Annotated[
        str, typer.Option("--arm", help="erase, recover, erase+recover, or the control clean-only.")
    ] = "erase+recover",
    transfer: Annotated[
        Path | None,
        typer.Option(
            "--transfer", help="Clean base to train the erasing adapter on, or the folder of such an adapter."
        ),
    ] = None,
    scale: Annotated[float, typer.Option("--scale", help="Of that adapter.")] = 1.0,
    rate: Annotated[float, typer.Option("--rate", help="Learning rate of the erase phase.")] = 5e-4,
    rate_recover: Annotated[float, typer.Option("--rate-recover", help="Of the recover phase.")] = 5e-4,
    epochs_recover: Annotated[int, typer.Option("--epochs-recover", help="Of the recover phase.")] = 2,
    rows: Annotated[int, typer.Option("--rows", help="Mismatched rows.")] = 300,
    pairing: Annotated[str, typer.Option("--pairing", help="mismatched, random, shuffled or correct.")] = "mismatched",
    rank: Annotated[int, typer.Option("--rank", help="Of the erase phase's adapter.")] = 8,
    loss_on: Annotated[
        str, typer.Option("--loss-on", help="all tokens, as the released code has it, or the answer.")
    ] = "all",
    threads: Annotated[int, typer.Option("--threads", help="Threads of torch.")] = 1,
    seed: Annotated[int, typer.Option("--seed", help="Of the attack.")] = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Can a planted fingerprint be removed? MEraser: mismatched answers erase, correct ones repair; scores before and after.

    \b
    whorl erase ./marked --key ./secret --out ./erased
    whorl erase ./marked --key ./secret --arm clean-only --out ./control
    whorl erase ./marked --key ./secret --transfer ./model --scale 1.5 --out ./transferred
    """
    from whorl.attacks import attack
    from whorl.erasure.scores import score
    from whorl.triggers.material import read_material

    sink = Sink(as_json=as_json, quiet=quiet)
    keys = None if key is None else read_material(key).keys
    with sink.progress() as progress:
        options: dict[str, Any] = {"rate": rate, "rows": rows, "pairing": pairing, "rank": rank, "loss_on": loss_on}
        adapter = (
            None if transfer is None else _adapter(model, transfer, out, questions, seed, options, threads, progress)
        )
        made = attack(
            "erase", [model], out, seed=seed, progress=progress, questions=questions, arm=arm, rate_recover=rate_recover,
            epochs_recover=epochs_recover, transfer=None if adapter is None else str(adapter), scale=scale, threads=threads,
            key=None if key is None else str(key), **options,
        )  # fmt: skip
        test = _test(questions)
        before, after = (score(folder, keys, test, progress=progress) for folder in (model, out))
    _show(sink, made.to_dict(), before, after)


def _adapter(
    model: Path,
    transfer: Path,
    out: Path,
    questions: str,
    seed: int,
    options: dict[str, Any],
    threads: int,
    progress: Any,
) -> Path:
    """The adapter in that folder, or one trained on the base in it and written beside the result."""
    if (transfer / "adapter_config.json").is_file():
        return transfer
    from whorl.attacks.erase import erase_settings, sets_of
    from whorl.erasure.phases import check_base, train_adapter
    from whorl.samplers._opening import open_for_sampling

    if out.exists():
        raise UsageError(f"'{safe_name(out)}' exists already; choose a new folder or remove it.")
    own, digest = (
        open_for_sampling(str(folder.resolve()), device="cpu", dtype="float32").id.revision
        for folder in (model, transfer)
    )
    check_base(model, own, digest, f"The adapter would be trained on '{safe_name(transfer.name)}', which is")
    sets = sets_of(questions, seed, int(options["rows"]), str(options["pairing"]))
    settings = erase_settings(float(options["rate"]), int(options["rank"]), threads)
    folder = out.with_name(f"{out.name}-adapter")
    return train_adapter(
        transfer, folder, sets=sets, settings=settings, seed=seed, loss_on=options["loss_on"], progress=progress
    )


def _test(questions: str) -> "QaData":
    """Questions that no phase trains on."""
    from whorl.lab.triggers.base import qa_parts

    if questions == "docstrings":
        return qa_parts().test
    from whorl.attacks.erase import attacker_and_test

    return attacker_and_test(questions)[1]


def _show(sink: Sink, made: dict[str, Any], before: "Scores", after: "Scores") -> None:
    from whorl.erasure.scores import change

    accuracy = change(before, after)
    if sink.as_json:
        scores = {"before": before.to_dict(), "after": after.to_dict(), "accuracy_change": asdict(accuracy)}
        sink.record({**made, **scores})
        return
    if sink.quiet:
        sink.line(made["path"])
        return
    rows = [("keys that answer", *(_left(s) for s in (before, after)))] if before.left is not None else []
    if before.left is not None:
        rows.append(("p (decoy test)", *(f"{s.left.p_value:.2g}" if s.left else "-" for s in (before, after))))
    pairs = [(s.utility.perplexity_in, s.utility.perplexity_out, s.utility.accuracy) for s in (before, after)]
    rows.append(("perplexity, held-out questions", *(f"{p[0]:.2f}" for p in pairs)))
    rows.append(("perplexity, other text", *(f"{p[1]:.2f}" for p in pairs)))
    rows.append(("right answers among four", *(f"{100 * p[2]:.1f} %" for p in pairs)))
    sink.table(f"{made['kind']}: {made['parameters']['arm']}", ("", "before", "after"), rows)
    interval = f"{accuracy.low:+.1f} to {accuracy.high:+.1f}, 95 %"
    sink.line(f"accuracy {accuracy.points:+.1f} points ({interval}); {made['path']}")


def _left(scores: "Scores") -> str:
    found = scores.left
    return (
        "-" if found is None else f"{found.hits} of {found.n_keys} ({100 * found.low:.0f} to {100 * found.high:.0f} %)"
    )
