"""`fingerprint`: read a model once and keep what its methods need.

One pass: each tensor is read, hashed and given to all methods, then forgotten. What stays is a `Fingerprint`, a small
value without weights that can be saved as JSON, compared with others and shared.
"""

import hashlib
import html
import json
import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from whorl import __version__
from whorl._atomic import write_text
from whorl._readers.limits import FINGERPRINT_SCHEMA
from whorl._readers.open import OpenedModel, open_model
from whorl._threads import cores
from whorl.canonical.embedding import embedding_rms
from whorl.canonical.model import CanonicalModel
from whorl.canonical.roles import ModelShape
from whorl.errors import MalformedFile
from whorl.method import Method
from whorl.progress import Progress, silent
from whorl.registry import weight_methods
from whorl.weights.method import WeightMethod
from whorl.weights.part_statistics import PartStatistics
from whorl.weights.values import Observation, Values

if TYPE_CHECKING:
    from whorl._readers.fingerprint_file import FingerprintFile

DIGITS = 9  # significant digits kept of every value: below float32 resolution, and the file stays small


@dataclass(frozen=True)
class TensorRecord:
    """One tensor as read: stored type and shape, and the SHA-256 of its stored bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str


@dataclass(frozen=True)
class Fingerprint:
    """What identifies the weights of one model; holds no weights.

    Args:
        typed: The reference as the user typed it.
        resolved: Path, or repository with its full commit.
        commit: Hub commit, None for local files.
        shape: Shape facts of the model.
        declared: Claims of config and adapter files; never evidence.
        notes: What the reader noticed (custom code named but not run, guessed mapping, ...).
        inventory: Counts of used, ignored and unknown tensors, and the names of those not used.
        tensors: One record for each tensor read.
        methods: Canonical method name -> its values.
        environment: Versions that the values depend on.
    """

    typed: str
    resolved: str
    commit: str | None
    shape: ModelShape
    declared: Mapping[str, str]
    notes: tuple[str, ...]
    inventory: Mapping[str, Any]
    tensors: tuple[TensorRecord, ...]
    methods: Mapping[str, Values]
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def weights_digest(self) -> str:
        """SHA-256 over (name, dtype, shape, digest) of all tensors in name order: independent of sharding."""
        total = hashlib.sha256()
        for t in sorted(self.tensors, key=lambda t: t.name):
            total.update(json.dumps([t.name, t.dtype, list(t.shape), t.sha256]).encode())
        return total.hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """The fingerprint as JSON types; `Fingerprint.from_dict` is the inverse."""
        return {
            "schema": FINGERPRINT_SCHEMA,
            "kind": "fingerprint",
            "whorl_version": __version__,
            "typed": self.typed,
            "resolved": self.resolved,
            "commit": self.commit,
            "weights_digest": self.weights_digest,
            "shape": asdict(self.shape),
            "declared": dict(self.declared),
            "notes": list(self.notes),
            "inventory": dict(self.inventory),
            "tensors": [asdict(t) | {"shape": list(t.shape)} for t in self.tensors],
            "methods": {name: _encode(values) for name, values in self.methods.items()},
            "environment": dict(self.environment),
        }

    @staticmethod
    def from_dict(data: object, name: str = "fingerprint") -> "Fingerprint":
        """A fingerprint from its JSON form, fully checked.

        Raises:
            MalformedFile, UnsupportedFile: wrong schema, unknown field, numbers that are not finite, wrong digest.
        """
        from whorl._readers.fingerprint_file import check

        return _from_file(check(data, name), name)

    def save(self, path: str | Path) -> Path:
        """Write as JSON, atomically."""
        return write_text(Path(path), json.dumps(self.to_dict(), allow_nan=False) + "\n")

    @staticmethod
    def load(path: str | Path) -> "Fingerprint":
        """Read a saved fingerprint.

        Raises:
            InputRefused: as `from_dict`, or the file is not strict JSON.
        """
        from whorl._readers.fingerprint_file import read_file

        return _from_file(read_file(Path(path)), Path(path).name)

    def __repr__(self) -> str:
        return f"<Fingerprint of {self.resolved!r}: {', '.join(self.methods)}>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td><code>{html.escape(name)}</code></td><td>{sum(v.size for v in values.values())} values</td></tr>"
            for name, values in self.methods.items()
        )
        head = f"{html.escape(self.resolved)} <small>{self.weights_digest[:16]}</small>"
        return f"<table><caption>{head}</caption>{rows}</table>"


def _from_file(file: "FingerprintFile", name: str) -> Fingerprint:
    found = Fingerprint(
        typed=file.typed,
        resolved=file.resolved,
        commit=file.commit,
        shape=ModelShape(**file.shape),  # type: ignore[arg-type]
        declared=file.declared,
        notes=tuple(file.notes),
        inventory=file.inventory,
        tensors=tuple(TensorRecord(t.name, t.dtype, tuple(t.shape), t.sha256) for t in file.tensors),
        methods={
            key: {part: np.array(array.values, dtype=np.float64).reshape(array.shape) for part, array in arrays.items()}
            for key, arrays in file.methods.items()
        },
        environment=file.environment,
    )
    if found.weights_digest != file.weights_digest:
        expected = "the digest as written"
        raise MalformedFile("fingerprint", name, "its digest does not fit its tensors", expected, "Ask for it again.")
    return found


def _encode(values: Values) -> dict[str, Any]:
    return {k: {"shape": list(v.shape), "values": v.ravel().tolist()} for k, v in values.items()}


def fingerprint(
    ref: str,
    methods: Iterable[str | Method] | None = None,
    *,
    adapter: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    progress: Progress = silent,
) -> Fingerprint:
    """Fingerprint the weights of one model.

    Args:
        ref: Local folder or file, Hub `org/name@revision`, or `base+adapter`.
        methods: Method names or instances; None for all.
        adapter: A LoRA adapter to merge into `ref`.
        revision: Branch, tag or commit, when not part of `ref`.
        offline: Open no socket.
        progress: Called once per sublayer.

    Returns:
        The fingerprint, with one entry for each method.

    Raises:
        UsageError: unknown method or ambiguous reference.
        InputRefused: a file that must not or cannot be read; nothing is kept of it.
        RemoteError: the Hub could not be reached.
    """
    chosen = weight_methods(methods)
    said = partial(say, progress)
    with open_model(ref, adapter=adapter, revision=revision, offline=offline, progress=said) as opened:
        return scan(opened, chosen, progress)


def kept(path: Path, ref: str, methods: Iterable[str | Method] | None = None, *, offline: bool = False) -> bool:
    """Whether a saved fingerprint still stands for a model, so that an interrupted run need not make it again.

    It does when it holds the methods asked for, the model's headers list the same tensors, and nothing of the model is
    newer than the file (local models) or the commit is the same (Hub). Only headers are read.

    Raises:
        InputRefused: the saved file or the model is not what it should be.
    """
    if not path.is_file():
        return False
    saved = Fingerprint.load(path)
    if not {m.canonical_name for m in weight_methods(methods)} <= set(saved.methods):
        return False
    with open_model(ref, offline=offline) as opened:
        known = {(t.name, t.dtype, t.shape) for t in saved.tensors}
        listed = {(t.name, t.dtype, tuple(t.shape)) for t in opened.source.tensors.values()}
        if saved.resolved != opened.resolved or not known <= listed:
            return False
        return opened.commit is not None or _newest(Path(opened.resolved)) < path.stat().st_mtime


def _newest(model: Path) -> float:
    files = [model, *model.iterdir()] if model.is_dir() else [model]
    return max(file.stat().st_mtime for file in files)


def _environment() -> dict[str, str]:
    """Versions that values and comparisons depend on."""
    libraries = {name: version(name) for name in ("numpy", "scipy", "scikit-learn")}
    return {"whorl": __version__, "python": platform.python_version(), **libraries}


def say(progress: Progress, text: str) -> None:
    """A step without a count, such as a download."""
    progress(text, 0, 1)


def scan(opened: OpenedModel, methods: Iterable[WeightMethod], progress: Progress = silent) -> Fingerprint:
    """Fingerprint an opened model in one pass over its tensors."""
    model = CanonicalModel(opened.source)
    digests: dict[str, str] = {}
    rms = embedding_rms(model, digests)
    observed = observe(model, tuple(methods), digests, rms, progress)
    rest = model.read_rest(digests)
    shape = model.shape
    with np.errstate(all="raise", under="ignore"):
        values = {m.canonical_name: _rounded(m.assemble(shape, seen)) for m, seen in observed}
    return Fingerprint(
        typed=opened.typed,
        resolved=opened.resolved,
        commit=opened.commit,
        shape=shape,
        declared=opened.declared,
        notes=(*opened.notes, *model.notes, *rest),
        inventory=model.inventory.to_dict(),
        tensors=_records(model, digests),
        methods=values,
        environment=_environment(),
    )


def observe(
    model: CanonicalModel,
    methods: tuple[WeightMethod, ...],
    digests: dict[str, str] | None,
    embed_rms: float,
    progress: Progress = silent,
) -> Iterator[tuple[WeightMethod, list[Observation]]]:
    """Show every sublayer to every method, in one pass."""
    seen: list[list[Observation]] = [[] for _ in methods]
    total = len(model.layout.parts)
    with cores() as map_:
        for done, part in enumerate(model.parts(digests)):
            progress(model.label, done, total)
            statistics = PartStatistics(part, embed_rms, map_)
            for method, kept in zip(methods, seen, strict=True):
                kept.append(Observation(part.layer, part.expert, method.observe(statistics)))
    progress(model.label, total, total)
    return iter(zip(methods, seen, strict=True))


def _rounded(values: Values) -> dict[str, Any]:
    """Values with `DIGITS` significant digits, so that a saved fingerprint compares like a fresh one."""
    return {k: np.array([float(f"{x:.{DIGITS}g}") for x in v.ravel()]).reshape(v.shape) for k, v in values.items()}


def _records(model: CanonicalModel, digests: Mapping[str, str]) -> tuple[TensorRecord, ...]:
    tensors = model.source.tensors
    return tuple(TensorRecord(n, tensors[n].dtype, tuple(tensors[n].shape), digests[n]) for n in sorted(digests))
