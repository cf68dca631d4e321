"""`whorl gallery add`, `list`, `show`, `remove`, `export`, `import`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from whorl.cli import exit_codes
from whorl.cli.options import JsonOption, OfflineOption, QuietOption
from whorl.cli.sink import Sink
from whorl.errors import InputRefused, RemoteError, UsageError, safe_name

if TYPE_CHECKING:
    from whorl.gallery import Gallery

GalleryOption = Annotated[
    Path | None, typer.Option("--gallery", help="The gallery file. Default: $WHORL_GALLERY, or the user's own.")
]
app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Known fingerprints in one SQLite file.")


def _open(path: Path | None, *, write: bool = False) -> "Gallery":
    from whorl.gallery import Gallery

    return Gallery.open(path, write=write)


@app.command(short_help="Store models.")
def add(
    models: Annotated[list[str], typer.Argument(metavar="MODEL", help="Folder, file, org/name@revision, or JSON.")],
    name: Annotated[str | None, typer.Option("--name", help="Name of the entry (one model).")] = None,
    label: Annotated[list[str] | None, typer.Option("--label", help="A label; repeat for several.")] = None,
    note: Annotated[str, typer.Option("--note", help="Free text.")] = "",
    gallery: GalleryOption = None,
    offline: OfflineOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Store what identifies models, without their weights.

    \b
    whorl gallery add ./model --name base-v1
    whorl gallery add org/name@main --label public
    whorl gallery add fingerprints/*.json --gallery ours.sqlite
    """
    sink = Sink(as_json=as_json, quiet=quiet)
    if len(models) > 1 and name is not None:
        raise UsageError("--name goes with one model; several get their own names.")
    done: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    with _open(gallery, write=True) as store, sink.progress() as progress:
        for model in models:
            try:
                found = store.add(model, name=name, labels=label or (), note=note, offline=offline, progress=progress)
            except (InputRefused, RemoteError) as error:
                if len(models) == 1:
                    raise
                refused.append({"model": model, "error": error.to_dict()})
                sink.hint(f"skipped {safe_name(model)}: {error}")
                continue
            done.append({"what": found.what, **found.entry.to_dict()})
            if not as_json:
                sink.line(found.entry.name if quiet else f"{found.what}: {found.entry.name} ({found.entry.resolved})")
    if as_json:
        sink.record({"status": "partial" if refused else "done", "results": done, "skipped": refused})
    if refused:
        raise typer.Exit(exit_codes.UNDECIDED)


@app.command("list", short_help="All entries.")
def list_(gallery: GalleryOption = None, as_json: JsonOption = False, quiet: QuietOption = False) -> None:
    """All entries, by name.

    \b
    whorl gallery list
    whorl gallery list --gallery ours.sqlite
    whorl gallery list --json
    """
    sink = Sink(as_json=as_json, quiet=quiet)
    with _open(gallery) as store:
        entries, path = store.entries(), str(store.path)
    if as_json:
        sink.record({"status": "done", "gallery": path, "entries": [e.to_dict() for e in entries]})
    elif quiet:
        for e in entries:
            sink.line(e.name)
    else:
        columns = ("name", "model", "digest", "labels", "added")
        rows = [
            (
                safe_name(e.name),
                f"{safe_name(e.family, 20)}, {e.n_layers} layers, width {e.d_model}",
                safe_name(e.weights_digest[:12]),
                safe_name(", ".join(e.labels)),
                safe_name(e.added[:10]),
            )
            for e in entries
        ]
        sink.table(f"{len(entries)} entries in {path}", columns, rows)


@app.command(short_help="One entry with its fingerprint.")
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the entry.")],
    out: Annotated[Path | None, typer.Option("--out", help="Write its fingerprint to this JSON file.")] = None,
    gallery: GalleryOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """One entry: where it came from, and what its fingerprint holds.

    \b
    whorl gallery show base-v1
    whorl gallery show base-v1 --out base-v1.json
    whorl gallery show base-v1 --json
    """
    sink = Sink(as_json=as_json, quiet=quiet)
    with _open(gallery) as store:
        entry, found = store.entry(name), store.fingerprint(name)
    if out is not None:
        found.save(out)
    if as_json:
        sink.record(
            {"status": "done", **entry.to_dict(), "methods": list(found.methods), "tensors": len(found.tensors)}
        )
        return
    if quiet:
        sink.line(entry.weights_digest if out is None else str(out))
        return
    facts = {k: v for k, v in entry.to_dict().items() if v not in (None, "", [])}
    facts |= {"labels": ", ".join(entry.labels), "tensors": len(found.tensors), "methods": ", ".join(found.methods)}
    sink.table(entry.name, ("fact", "value"), [(key, safe_name(value, 400)) for key, value in facts.items()])
    if out is not None:
        sink.line(f"written: {out}")


@app.command(short_help="Delete one entry.")
def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the entry.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    gallery: GalleryOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Delete one entry; there is no way back but a copy of the file.

    \b
    whorl gallery remove base-v1
    whorl gallery remove base-v1 --yes
    whorl gallery remove base-v1 --gallery ours.sqlite --yes --json
    """
    sink = Sink(as_json=as_json, quiet=quiet)
    with _open(gallery, write=True) as store:
        entry = store.entry(name)
        if not yes:
            _confirm(f"Remove '{entry.name}' ({safe_name(entry.resolved)}) from {store.path}?")
        store.remove(name)
    if as_json:
        sink.record({"status": "done", "removed": entry.to_dict()})
    else:
        sink.line(entry.name if quiet else f"removed: {entry.name}")


def _confirm(question: str) -> None:
    """Ask on a terminal; elsewhere nobody could answer.

    Raises:
        UsageError: no terminal, or the answer is no.
    """
    if not sys.stdin.isatty():
        raise UsageError("Removing needs --yes when nobody can be asked.")
    if not typer.confirm(question, err=True):
        raise UsageError("Nothing was removed.")


@app.command(short_help="Write a gallery as a Parquet data set.")
def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The Parquet file to write.")],
    gallery: GalleryOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write all entries as a Parquet data set, to share. Where weights lie on this machine stays here.

    \b
    whorl gallery export gallery.parquet
    whorl gallery export ours.parquet --gallery ours.sqlite
    whorl gallery export gallery.parquet --json
    """
    from whorl.gallery.parquet import export_parquet

    sink = Sink(as_json=as_json, quiet=quiet)
    with _open(gallery) as store, sink.progress() as progress:
        n_rows = export_parquet(store, file, progress)
    if as_json:
        sink.record({"status": "done", "file": str(file), "entries": n_rows})
    else:
        sink.line(str(file) if quiet else f"written: {file}, {n_rows} entries")


@app.command("import", short_help="Take over a Parquet data set.")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file of `whorl gallery export`.")],
    gallery: GalleryOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Take over the entries of an exported gallery: all of them, or none when one is not what it should be.

    \b
    whorl gallery import gallery.parquet
    whorl gallery import theirs.parquet --gallery ours.sqlite
    whorl gallery import gallery.parquet --json
    """
    from whorl.gallery.parquet import import_parquet

    sink = Sink(as_json=as_json, quiet=quiet)
    with _open(gallery, write=True) as store, sink.progress() as progress:
        found = import_parquet(store, file, progress)
    if as_json:
        sink.record({"status": "done", **found.to_dict()})
    else:
        text = f"{found.added} added, {found.updated} updated, {found.skipped} skipped (weights known already)"
        sink.line(str(found.added) if quiet else text)
