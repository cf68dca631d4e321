"""Which model of which transcripts is meant: `SET` or `SET:MODEL` (ours).

`SET` is a set folder, a `.jsonl` or a `.parquet` file; `MODEL` is what the answers call their model, or its key. A path that
exists as typed is never cut, so colons inside paths do no harm; otherwise the shortest part before a colon that exists is the
set, so colons inside model names do none either.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from whorl.errors import UsageError, safe_name
from whorl.transcripts.record import ModelId, Transcript
from whorl.transcripts.store import open_set, read_records


def read_model(spec: str) -> list[Transcript]:
    """The answers of one model.

    Args:
        spec: `SET`, if it holds one model, or `SET:MODEL`.

    Raises:
        UsageError: no such set or model, or several models and none chosen.
        InputRefused: the set is not what it should be.
    """
    found = _by_model(spec)
    if len(found) > 1:
        path = safe_name(_parsed(spec)[0])
        named = ", ".join(f"'{path}:{safe_name(model.ref)}'" for model in list(found)[:3])
        raise UsageError(f"'{path}' holds answers of {len(found)} models; choose one of them: {named}.")
    return next(iter(found.values()), [])


def read_models(specs: Iterable[str]) -> dict[str, list[Transcript]]:
    """The answers of several models by label: what the answers call the model, with its key where two are called alike.

    Args:
        specs: `SET`, all its models, or `SET:MODEL`, one of them.

    Raises:
        UsageError: no such set or model, or a model given twice.
        InputRefused: a set is not what it should be.
    """
    found = [entry for spec in specs for entry in _by_model(spec).items()]
    seen: dict[str, ModelId] = {}
    for model, _ in found:
        if model.key in seen:
            raise UsageError(f"The model '{safe_name(model.ref)}' ({model.key}) is given twice; give it once.")
        seen[model.key] = model
    names = [model.ref for model in seen.values()]
    return {m.ref if names.count(m.ref) == 1 else f"{m.ref} ({m.key[:8]})": records for m, records in found}


def read_each(specs: Iterable[str]) -> dict[str, list[Transcript]]:
    """The answers of one model from each, by the name of the set: honest variants are often one model, asked in other ways.

    Args:
        specs: `SET`, if it holds one model, or `SET:MODEL`.

    Raises:
        UsageError: as `read_model`; or one of them is given twice.
        InputRefused: a set is not what it should be.
    """
    wanted = list(specs)
    if len(set(wanted)) < len(wanted):
        raise UsageError(f"'{safe_name(max(wanted, key=wanted.count))}' is given twice; give it once.")
    names = [_name(*_parsed(spec)) for spec in wanted]
    return {
        name if names.count(name) == 1 else spec: read_model(spec) for name, spec in zip(names, wanted, strict=True)
    }


def _name(path: Path, model: str | None) -> str:
    return model or (path.name if path.is_dir() else path.stem)


def _by_model(spec: str) -> dict[ModelId, list[Transcript]]:
    """Answers by model, in order of appearance; the id a server reports for itself tells no models apart."""
    first: dict[str, ModelId] = {}
    found: dict[ModelId, list[Transcript]] = {}
    for record in _records(spec):
        found.setdefault(first.setdefault(record.model.key, record.model), []).append(record)
    return found


def _records(spec: str) -> Iterator[Transcript]:
    path, model = _parsed(spec)
    if model is None:
        yield from read_records([path])
    elif path.is_dir():
        yield from open_set(path).records([model])
    else:
        found = [record for record in read_records([path]) if model in {record.model.ref, record.model.key}]
        if not found:
            raise UsageError(f"No model '{safe_name(model)}' is in '{safe_name(path)}'.")
        yield from found


def _parsed(spec: str) -> tuple[Path, str | None]:
    if Path(spec).exists():
        return Path(spec), None
    for at, character in enumerate(spec):
        if character == ":" and at and Path(spec[:at]).exists():
            return Path(spec[:at]), spec[at + 1 :]
    raise UsageError(f"There are no transcripts '{safe_name(spec)}'.")
