"""`AdapterSource`: a base with a LoRA adapter, presented as the merged model, one block of rows at a time.

For a linear layer y = W x with stored factors A (r, in) and B (out, r):

    W' = W + s B A                                       s = alpha / r, or alpha / sqrt(r) with rsLoRA
    W' = diag(m / ||W + s B A||_row) (W + s B A)         DoRA (arXiv:2402.09353), m the stored magnitudes

Layers stored as (in, out) (Conv1D) and embeddings (tokens, width) take the transposed product, and DoRA then rescales
columns. Modules stored whole replace the base's. Nothing is rounded to the base's type: W' is float32 (float64 on a
float64 base), where peft rounds the merged weights of a bfloat16 base.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from whorl._readers.adapter_config import CONFIG_NAME, read_config
from whorl._readers.adapter_plan import Change, Plan, make_plan
from whorl._readers.local_files import LocalFolder
from whorl._readers.safetensors_file import SafetensorsFile
from whorl._readers.subject import Subject
from whorl.errors import safe_name
from whorl.source import Digest, Floats, TensorInfo, TensorSource

WEIGHTS_NAME = "adapter_model.safetensors"
_NORM_BLOCK_VALUES = 4_000_000
_PRODUCT_ROWS = 256


class AdapterSource:
    """A `TensorSource` over base and adapter; closing it closes both.

    Args:
        base: The base, named by the user and never by the adapter.
        adapter_folder: Folder with `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        MalformedFile: a file is broken, or ranks, shapes, targets or names fit neither each other nor the base.
        UnsafeFile: two readings are possible.
        UnsupportedFile: not a LoRA adapter, or a variant that is not merged here.
    """

    def __init__(self, base: TensorSource, adapter_folder: Path | str) -> None:
        folder = LocalFolder.at(adapter_folder)
        self._base, self._label = base, f"{base.label}+{adapter_folder}"
        self._lora = read_config(folder.json(CONFIG_NAME, "adapter config"), CONFIG_NAME)
        self._adapter = SafetensorsFile(folder.file(WEIGHTS_NAME, "adapter"))
        self._subject = Subject("adapter", WEIGHTS_NAME)
        self._plan: Plan = make_plan(base, self._adapter.tensors, self._lora, self._subject)
        self._last: tuple[str, Floats, Floats] | None = None
        self._norms: dict[str, Floats] = {}
        self._check_copies()

    @property
    def label(self) -> str:
        """Labels of base and adapter, joined by a plus sign."""
        return self._label

    @property
    def base(self) -> TensorSource:
        """The base; closed with this source."""
        return self._base

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Tensors of the merged model; changed ones are F32 or F64 and count the stored bytes of all their parts."""
        return self._plan.tensors

    @property
    def config(self) -> Mapping[str, Any]:
        """The base's config, with what the adapter's whole modules change: vocabulary size, tying."""
        return self._plan.config

    @property
    def declared(self) -> Mapping[str, str]:
        """What the adapter claims about its base; never evidence, never fetched."""
        return self._lora.declared

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of a result should know about the base and this merge."""
        return (*getattr(self._base, "notes", ()), *self._plan.notes)

    def rows(self, name: str, start: int = 0, stop: int | None = None, digest: Digest | None = None) -> Floats:
        """Merged values of rows [start, stop).

        `digest` sees the adapter's tensors with the first row and the base's bytes of these rows, so it does not
        depend on how a tensor is cut into blocks.
        """
        change = self._plan.changes.get(name)
        if change is None:
            return self._base.rows(name, start, stop, digest)
        n_rows = self.tensors[name].shape[0]
        stop = n_rows if stop is None else stop
        if not 0 <= start <= stop <= n_rows:
            raise IndexError(f"rows {start} to {stop} of '{safe_name(name)}', which has {n_rows}")
        if digest is not None and start == 0:
            for part in change.parts:
                self._adapter.rows(part, digest=digest)
        values = self._sum(name, change, start, stop, digest)
        return values if change.magnitude is None else self._rescaled(name, change, values, start)

    def factors(self, name: str) -> tuple[Floats, Floats, float] | None:
        """The update of a matrix as (B, A, s), W' = W + s B A in the layout in which W is stored.

        Returns:
            B (rows, r), A (r, columns) and s; None where W' - W is not such a product: untouched and replaced
            tensors, biases, DoRA.
        """
        change = self._plan.changes.get(name)
        if change is None or change.a is None or change.whole is not None or change.magnitude is not None:
            return None
        left, right = self._product(name, change)
        return left.copy(), right.copy(), change.scale

    def close(self) -> None:
        """Close base and adapter."""
        with contextlib.closing(self._base):
            self._adapter.close()

    def _sum(self, name: str, change: Change, start: int, stop: int, digest: Digest | None = None) -> Floats:
        """Rows after replacing and adding, before rescaling."""
        if change.whole is None:
            values = self._base.rows(name, start, stop, digest)
        else:
            values = self._adapter.rows(change.whole, start, stop)
        if change.a is not None:
            self._add_product(name, change, values, start)
        if change.bias is not None:
            values += change.scale * self._adapter.rows(change.bias, start, stop)
        return values

    def _add_product(self, name: str, change: Change, values: Floats, start: int) -> None:
        """Add rows of s B A in place, in pieces of fixed rows: the last bit does not depend on the block asked for."""
        left, right = self._product(name, change)
        stop = start + len(values)
        for first in range(start - start % _PRODUCT_ROWS, stop, _PRODUCT_ROWS):
            piece = change.scale * (left[first : first + _PRODUCT_ROWS] @ right)  # (rows, columns)
            begin, end = max(first, start), min(first + _PRODUCT_ROWS, stop)
            values[begin - start : end - start] += piece[begin - first : end - first]

    def _product(self, name: str, change: Change) -> tuple[Floats, Floats]:
        """Left (rows, r) and right (r, columns) factor in the layout of the tensor; the last pair is kept."""
        if self._last is not None and self._last[0] == name:
            return self._last[1:]
        a, b = self._adapter.rows(str(change.a)), self._adapter.rows(str(change.b))
        left, right = (a.T, b.T) if change.transposed else (b, a)
        self._last = (name, left, right)
        return left, right

    def _rescaled(self, name: str, change: Change, values: Floats, start: int) -> Floats:
        """DoRA: every output of the layer, a row or (transposed) a column, gets its stored magnitude as norm."""
        magnitude = self._adapter.rows(str(change.magnitude))
        if change.transposed:
            factor = magnitude / self._column_norms(name, change)  # (columns,)
        else:
            norms = np.linalg.norm(values.astype(np.float64), axis=1)
            self._check_norms(name, norms)
            factor = (magnitude[start : start + len(values)] / norms)[:, None]  # (rows, 1)
        return values * factor.astype(values.dtype)

    def _column_norms(self, name: str, change: Change) -> Floats:
        """Norms of the columns of W + dW, (columns,), in one pass over the rows; kept, because they are small."""
        if name not in self._norms:
            n_rows, n_columns = self.tensors[name].shape
            squares = np.zeros(n_columns)
            step = max(1, _NORM_BLOCK_VALUES // n_columns)
            for start in range(0, n_rows, step):
                block = self._sum(name, change, start, min(start + step, n_rows)).astype(np.float64)
                squares += np.einsum("ij,ij->j", block, block)
            self._norms[name] = np.sqrt(squares)
            self._check_norms(name, self._norms[name])
        return self._norms[name]

    def _check_norms(self, name: str, norms: Floats) -> None:
        if np.any(norms == 0):
            found = f"magnitudes for '{safe_name(name, 80)}', which has an output of norm 0"
            raise self._subject.malformed(found, "outputs that can be rescaled", "Ask its owner for another adapter.")

    def _check_copies(self) -> None:
        """A module may be stored twice; two different values would be two models."""
        for copy, twin in self._plan.copies.items():
            if not np.array_equal(self._adapter.rows(copy), self._adapter.rows(twin), equal_nan=True):
                raise self._subject.unsafe(f"two different values of '{safe_name(twin, 80)}'", "one")
