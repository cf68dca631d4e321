"""`CanonicalModel`: a tensor source read by role, one sublayer in memory at a time, each tensor once per pass."""

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import numpy as np

from whorl._readers.float_codecs import count_nonfinite
from whorl.canonical.families import layout_of
from whorl.canonical.layout import Inventory, Layout, PartPlan, Stored
from whorl.canonical.roles import ModelShape, Part
from whorl.errors import MalformedFile, NotComparable, safe_name
from whorl.source import Floats, TensorSource

Digests = dict[str, str]
"""Tensor name -> SHA-256 of its stored bytes, in hexadecimal."""

_ROWS_AT_ONCE = 8192
_BLOCKS_WAITING = 32  # of 1 MiB each, as sources read them
_VALUE_TYPES = ("F", "BF", "Q", "BOOL")  # floats, GGUF block types, masks; integer tables are not weights


class CanonicalModel:
    """A model by roles.

    A model that its config calls tied and whose file holds another output matrix than the embedding is untied, as
    transformers 5 reads it; a copy of the embedding is ignored.

    Args:
        source: Its tensors and config; stays open and belongs to the caller.

    Raises:
        UnsupportedFile: the architecture has no layout.
        MalformedFile: a tensor is missing or contradicts the config.
    """

    def __init__(self, source: TensorSource) -> None:
        self.source = source
        self.layout: Layout = layout_of(source)
        self.notes: tuple[str, ...] = ()
        if self._has_own_head():
            head = safe_name(self.layout.head_name, 80)
            self.layout = self.layout.untied()
            self.notes = (f"the config ties embedding and output, but '{head}' holds other values: read as untied",)

    @property
    def label(self) -> str:
        """How messages call this model."""
        return self.source.label

    @property
    def shape(self) -> ModelShape:
        """Sizes and conventions."""
        return self.layout.shape

    @property
    def inventory(self) -> Inventory:
        """Used, ignored and unknown tensor names."""
        return self.layout.inventory

    def parts(self, digests: Digests | None = None) -> Iterator[Part]:
        """All sublayers: per layer the attention, a dense or shared MLP, then the routed experts by index.

        Args:
            digests: Filled with the digest of every tensor read; complete when the iterator is exhausted.

        Raises:
            MalformedFile: a value is NaN or infinite.
        """
        yield from self._read_plans(self.layout.parts, digests)

    def layer_parts(self, layer: int, digests: Digests | None = None) -> Iterator[Part]:
        """The sublayers of one layer."""
        yield from self._read_plans([plan for plan in self.layout.parts if plan.layer == layer], digests)

    def attention_part(self, layer: int, digests: Digests | None = None) -> Part:
        """The attention of one layer; its MLP is not read.

        Raises:
            LookupError: the model has no such layer.
        """
        plans = [plan for plan in self.layout.parts if plan.layer == layer and plan.kind == "attention"]
        if not plans:
            raise LookupError(f"{self.label} has no layer {layer}")
        return next(self._read_plans(plans[:1], digests))

    def embedding_blocks(self, n_rows: int = 8192, digests: Digests | None = None) -> Iterator[Floats]:
        """Embedding rows as stored, in blocks (at most n_rows, d)."""
        yield from self._blocks(self.layout.outer["embed"], n_rows, digests)

    def unembedding_blocks(self, n_rows: int = 8192, digests: Digests | None = None) -> Iterator[Floats]:
        """Unembedding rows as stored, in blocks (at most n_rows, d); of a tied model those of the embedding.

        Raises:
            NotComparable: the file is a bare trunk without an output matrix.
        """
        if not self.shape.has_unembed:
            raise NotComparable(f"{self.label} has no output matrix: the file holds a bare trunk.")
        stored = self.layout.outer["embed" if self.shape.tied else "unembed"]
        yield from self._blocks(stored, n_rows, digests)

    def position_embedding(self, digests: Digests | None = None) -> Floats | None:
        """Learned position rows as stored (n, d); OPT keeps 2 unused rows in front. None without learned positions."""
        return self._outer(("pos_embed",), digests).get("pos_embed")

    def final_norm(self, digests: Digests | None = None) -> dict[str, Floats]:
        """`norm_final` and, for a LayerNorm with bias, `norm_final.b`; empty when the model has none."""
        return self._outer(("norm_final", "norm_final.b"), digests)

    def embed_norm(self, digests: Digests | None = None) -> dict[str, Floats]:
        """`embed_norm` and `embed_norm.b` of a model that normalises embedding rows (BLOOM); else empty."""
        return self._outer(("embed_norm", "embed_norm.b"), digests)

    def unembed_bias(self, digests: Digests | None = None) -> Floats | None:
        """Bias on the logits (V,), or None."""
        return self._outer(("unembed.b",), digests).get("unembed.b")

    def outer_tensors(self, digests: Digests | None = None) -> dict[str, Floats]:
        """Every tensor outside the layers by role, whole: both token tables are in memory at once."""
        return self._outer(tuple(self.layout.outer), digests)

    def read_rest(self, digests: Digests) -> tuple[str, ...]:
        """Read, check and hash what no pass has read so far, in row blocks; unknown integer tensors are left out.

        Returns:
            Notes on tensors without a role that hold values which are not finite: masks may, weights may not.

        Raises:
            MalformedFile: a value of a tensor with a role is NaN or infinite.
        """
        notes: list[str] = []
        with _Hasher(digests) as hasher:
            for name in (n for n in self.inventory.used if n not in digests):
                self._read_blocks(name, hasher, check=True)
            for name in self.inventory.unknown:
                if self.source.tensors[name].dtype.startswith(_VALUE_TYPES):
                    n_bad = self._read_blocks(name, hasher, check=False)
                    if n_bad:
                        notes.append(f"tensor '{safe_name(name, 80)}' has no role and {n_bad} NaN or infinite values")
        return tuple(notes)

    def _read_blocks(self, name: str, hasher: "_Hasher", *, check: bool) -> int:
        """How many values are not finite; with `check` none is."""
        shape, n_bad = self.source.tensors[name].shape, 0
        for start in range(0, shape[0] if shape else 1, _ROWS_AT_ONCE):
            stop = min(start + _ROWS_AT_ONCE, shape[0]) if shape else None
            values = self.source.rows(name, start, stop, digest=hasher.of(name))
            n_bad += 0 if check else count_nonfinite(values)
            if check:
                _finite(values, name)
        return n_bad

    def _has_own_head(self) -> bool:
        """Whether a tied model's file holds an output matrix with other values than the embedding."""
        head, embed = self.source.tensors.get(self.layout.head_name), self.layout.outer["embed"]
        if not self.shape.tied or head is None or not head.n_values:
            return False
        if tuple(head.shape) != embed.shape:
            advice = "The config belongs to another model, or the file is damaged."
            raise MalformedFile("tensor", head.name, f"shape {head.shape}", f"{embed.shape}, as the embedding", advice)
        blocks = [
            (start, min(start + _ROWS_AT_ONCE, embed.shape[0])) for start in range(0, embed.shape[0], _ROWS_AT_ONCE)
        ]
        return not all(
            np.array_equal(self.source.rows(head.name, *block), self.source.rows(embed.name, *block))
            for block in blocks
        )

    def _outer(self, roles: Sequence[str], digests: Digests | None) -> dict[str, Floats]:
        found: dict[str, Floats] = {}
        with _Hasher(digests) as hasher:
            for stored in (self.layout.outer[role] for role in roles if role in self.layout.outer):
                found.update(self._read(stored, hasher))
        return found

    def _blocks(self, stored: Stored, n_rows: int, digests: Digests | None) -> Iterator[Floats]:
        with _Hasher(digests) as hasher:
            for start in range(0, stored.shape[0], n_rows):
                stop = min(start + n_rows, stored.shape[0])
                rows = self.source.rows(stored.name, start, stop, digest=hasher.of(stored.name))
                yield _finite(rows, stored.name)

    def _read_plans(self, plans: Sequence[PartPlan], digests: Digests | None) -> Iterator[Part]:
        with _Hasher(digests) as hasher:
            layer, vectors = -1, dict[str, Floats]()
            for plan in plans:
                if plan.layer != layer:
                    layer, vectors = plan.layer, {}  # a norm may feed several parts of its layer
                raw: dict[str, Floats] = {}
                for stored in plan.stored:
                    raw.update(self._read(stored, hasher, vectors))
                yield Part(self.shape, plan.layer, plan.kind, plan.expert, raw)

    def _read(self, stored: Stored, hasher: "_Hasher", vectors: dict[str, Floats] | None = None) -> dict[str, Floats]:
        if vectors is not None and stored.name in vectors:
            return stored.unpack(vectors[stored.name])
        start, stop = (0, None) if stored.row is None else (stored.row, stored.row + 1)
        array = _finite(self.source.rows(stored.name, start, stop, digest=hasher.of(stored.name)), stored.name)
        array.flags.writeable = False  # roles are views of one array
        if vectors is not None and array.ndim == 1:
            vectors[stored.name] = array
        return stored.unpack(array)


def _finite(array: Floats, name: str) -> Floats:
    if n_bad := count_nonfinite(array):
        raise MalformedFile(
            "tensor",
            name,
            f"{n_bad} of {array.size} values read are NaN or infinite",
            "finite numbers",
            "The file is damaged or training diverged: no method can use it.",
        )
    return array


class _Hasher:
    """SHA-256 of tensors in a worker thread, so that hashing overlaps with decoding (hashlib releases the lock)."""

    def __init__(self, digests: Digests | None) -> None:
        self._digests = digests
        self._hashes: dict[str, Any] = {}
        self._pending: deque[Future[None]] = deque()
        self._pool = ThreadPoolExecutor(1, "whorl-digest") if digests is not None else None

    def of(self, name: str) -> "_Feed | None":
        """Where to feed the stored bytes of a tensor; None when no digest is wanted or it is already known."""
        if self._digests is None or name in self._digests:
            return None
        return _Feed(self, self._hashes.setdefault(name, hashlib.sha256()))

    def submit(self, hashing: Any, data: Any) -> None:
        """Queue one block; waits for the oldest when many are queued."""
        if self._pool is None:
            return
        # Copied, because a source may read the next block into the same memory while this one waits.
        self._pending.append(self._pool.submit(hashing.update, bytes(data)))
        if len(self._pending) > _BLOCKS_WAITING:
            self._pending.popleft().result()

    def wait(self) -> None:
        while self._pending:
            self._pending.popleft().result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._pool is None or self._digests is None:
            return
        self._pool.shutdown(wait=True)
        if kind is None:  # a pass that was cut short has half-fed hashes
            self.wait()
            self._digests.update({name: hashing.hexdigest() for name, hashing in self._hashes.items()})


class _Feed:
    """The digest of one tensor, as `TensorSource.rows` expects it."""

    def __init__(self, hasher: _Hasher, hashing: Any) -> None:
        self._hasher, self._hashing = hasher, hashing

    def update(self, data: Any, /) -> None:
        self._hasher.submit(self._hashing, data)
