"""`open_model`: from what a user typed to a tensor source, with everything a result must record about it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from whorl._readers.adapter import AdapterSource
from whorl._readers.folder import open_local
from whorl._readers.hub import Kind, Progress, fetch_snapshot
from whorl.errors import UsageError, safe_name
from whorl.refs import ModelRef, local_path, parse_ref, with_revision, without_query
from whorl.source import TensorSource

# Fields of a config that say where a model comes from; anybody can write anything there.
_CLAIMS = ("_name_or_path", "base_model_name_or_path", "base_model")


@dataclass(frozen=True)
class OpenedModel:
    """An open model; closes its files at the end of a `with` block.

    Args:
        typed: The reference as the user gave it.
        resolved: What it is: a path or "org/name@<full commit>", with "+adapter" in the same form.
        commit: Full commit of the base, None for local files.
        source: The tensors.
        declared: What configs claim about the origin. Shown, never evidence, never fetched.
        notes: What was seen and left alone, in plain sentences.
    """

    typed: str
    resolved: str
    commit: str | None
    source: TensorSource
    declared: Mapping[str, str]
    notes: tuple[str, ...]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        self.source.close()


@dataclass(frozen=True)
class _Place:
    """One reference found on this machine."""

    path: Path
    resolved: str
    commit: str | None
    notes: tuple[str, ...] = ()


def open_model(
    ref: str | ModelRef,
    *,
    adapter: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> OpenedModel:
    """Open a local model or one on the Hub, with or without an adapter.

    Args:
        ref: What `whorl.refs.parse_ref` takes, or its result.
        adapter: Reference of a LoRA adapter to put on the model.
        revision: Branch, tag, commit or "refs/pr/N" of a Hub repository; the same as "@revision" in `ref`.
        offline: Use only local files and the cache of the Hub; opens no socket.
        progress: Called with one line of text at each step of a download.

    Raises:
        UsageError: the reference is none, has two readings, or names nothing that exists.
        InputRefused: files or repository break a rule.
        RemoteError: the network or the Hub failed.
    """
    parsed = _parsed(ref, adapter, revision)
    place = _find(parsed.base, "model", offline=offline, progress=progress)
    if parsed.adapter is None:
        return _opened(ref, adapter, place, open_local(place.path))
    second = _find(parsed.adapter, "adapter", offline=offline, progress=progress)
    base = open_local(place.path)
    try:
        source = _with_adapter(base, second)
    except BaseException:
        base.close()
        raise
    both = replace(place, resolved=f"{place.resolved}+{second.resolved}", notes=(*place.notes, *second.notes))
    return _opened(ref, adapter, both, source)


def _parsed(ref: str | ModelRef, adapter: str | None, revision: str | None) -> ModelRef:
    if isinstance(ref, str):
        parsed = parse_ref(ref, adapter=adapter)
    elif adapter is None:
        parsed = ref
    elif ref.adapter is None:
        parsed = replace(ref, adapter=parse_ref(adapter))
    else:
        raise UsageError(f"'{ref}' names an adapter already; drop it or drop '{safe_name(adapter)}'.")
    return with_revision(parsed, revision)


def _find(ref: ModelRef, kind: Kind, *, offline: bool, progress: Progress | None) -> _Place:
    if ref.path is not None:
        path = local_path(ref.path)
        return _Place(path, str(path), None)
    snapshot = fetch_snapshot(str(ref.repo), ref.revision, kind=kind, offline=offline, progress=progress)
    return _Place(snapshot.folder, f"{snapshot.repo}@{snapshot.commit}", snapshot.commit, snapshot.notes)


def _with_adapter(base: TensorSource, place: _Place) -> TensorSource:
    if not place.path.is_dir():
        raise UsageError(f"'{safe_name(place.path)}' is no folder; an adapter is a folder with adapter_config.json.")
    return AdapterSource(base, place.path)


def _opened(ref: str | ModelRef, adapter: str | None, place: _Place, source: TensorSource) -> OpenedModel:
    typed = without_query(str(ref)) if adapter is None else f"{without_query(str(ref))}+{without_query(adapter)}"
    declared = {
        field: safe_name(source.config[field])
        for field in _CLAIMS
        if isinstance(source.config.get(field), str) and source.config[field]
    }
    declared |= getattr(source, "declared", {})
    notes = (*place.notes, *getattr(source, "notes", ()))
    return OpenedModel(typed, place.resolved, place.commit, source, declared, notes)
