"""`whorl fingerprint`."""

from pathlib import Path
from typing import Annotated

import typer

from whorl.cli import exit_codes
from whorl.cli.options import AdapterOption, JsonOption, MethodOption, OfflineOption, QuietOption, RevisionOption
from whorl.cli.sink import Sink
from whorl.errors import InputRefused, RemoteError, UsageError, safe_name


def fingerprint(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL", help="Folder, file, org/name@revision, base+adapter.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="File (one model) or folder (several) for the JSON.")
    ] = None,
    method: MethodOption = None,
    adapter: AdapterOption = None,
    revision: RevisionOption = None,
    offline: OfflineOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """What identifies these weights? Writes a small JSON file without weights.

    \b
    whorl fingerprint ./model --out model.json
    whorl fingerprint org/name@main --method std-vector
    whorl fingerprint ./a ./b ./c --out fingerprints/
    """
    sink = Sink(as_json=as_json, quiet=quiet)
    if len(models) > 1 and (adapter or revision):
        raise UsageError("--adapter and --revision go with one model; write `base+adapter` or `org/name@rev` instead.")
    targets = _targets(models, out)
    results, refused = [], []
    for model in models:
        try:
            results.append(_one(sink, model, targets.get(model), method, adapter, revision, offline))
        except (InputRefused, RemoteError) as error:
            if len(models) == 1:
                raise
            refused.append({"model": model, "error": error.to_dict()})
            sink.hint(f"skipped {safe_name(model)}: {error}")
    if as_json:
        sink.record(results[0] if len(models) == 1 else {"status": "done", "results": results, "skipped": refused})
    if refused:
        raise typer.Exit(exit_codes.UNDECIDED)


def _targets(models: list[str], out: Path | None) -> dict[str, Path]:
    """Where each fingerprint goes; several models go into a folder under their own names."""
    if out is None:
        return {}
    if len(models) == 1 and out.suffix == ".json":
        return {models[0]: out}
    names = {model: f"{_file_name(model)}.json" for model in models}
    doubled = {name for name in names.values() if list(names.values()).count(name) > 1}
    if doubled:
        raise UsageError(f"Two models would be written to '{doubled.pop()}' in '{out}'; fingerprint them separately.")
    return {model: out / name for model, name in names.items()}


def _file_name(model: str) -> str:
    name = model.rstrip("/").rsplit("/", 1)[-1]
    return "".join(c if c.isalnum() or c in "-_.@+" else "_" for c in name) or "model"


def _one(
    sink: Sink,
    model: str,
    target: Path | None,
    method: list[str] | None,
    adapter: str | None,
    revision: str | None,
    offline: bool,
) -> dict[str, object]:
    from whorl.fingerprints import Fingerprint, kept
    from whorl.fingerprints import fingerprint as make

    if target is not None and not adapter and not revision and kept(target, model, method, offline=offline):
        sink.hint(f"kept {target}: the model has not changed since")
        found = Fingerprint.load(target)
    else:
        with sink.progress() as progress:
            found = make(model, method, adapter=adapter, revision=revision, offline=offline, progress=progress)
    for note in found.notes:
        sink.hint(f"note: {note}")
    if target is not None:
        found.save(target)
    if sink.quiet and not sink.as_json:
        sink.line(str(target) if target is not None else found.weights_digest)
    elif not sink.as_json:
        rows = [(name, str(sum(v.size for v in values.values()))) for name, values in found.methods.items()]
        shape = f"{found.shape.family}, {found.shape.n_layers} layers, width {found.shape.d_model}"
        sink.table(f"{found.resolved}: {shape}, digest {found.weights_digest[:16]}", ("method", "values"), rows)
        if target is not None:
            sink.line(f"written: {target}")
    return found.to_dict()
