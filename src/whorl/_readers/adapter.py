"""`AdapterSource`: a base with a LoRA adapter, presented as the merged model, one block of rows at a time.

For a linear layer y = W x with stored factors A (r, in) and B (out, r):

    W' = W + s B A                          s = alpha / r, or alpha / sqrt(r) with rsLoRA
    W' = diag(m / ||W + s B A||_row) (W + s B A)        DoRA (arXiv:2402.09353), m the stored magnitudes

Layers stored as (in, out) (Conv1D) and embeddings (tokens, width) take the transposed product, and DoRA then rescales
columns. Modules saved whole replace the base's. Nothing of the base is rounded: W' is float32 (float64 on a float64
base) even where merging in the stored type would round it.

Every tensor of the adapter must find its place, or the adapter is refused: a partial merge would be another model.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from whorl._readers.adapter_config import CONFIG_NAME, LoraConfig, read_config
from whorl._readers.adapter_names import (
    Factors,
    Located,
    is_embedding_name,
    locate_all,
    sort_tensors,
)
from whorl._readers.folder import read_checked
from whorl._readers.safetensors_file import SafetensorsFile
from whorl._readers.strict_json import parse_object
from whorl._readers.subject import Subject
from whorl.errors import MalformedFile, safe_name
from whorl.source import Digest, Floats, TensorInfo, TensorSource

WEIGHTS_NAME = "adapter_model.safetensors"
_FORGET_BASE = "Apply it to the base it was trained on, or ask its owner for the original adapter."
_NORM_BLOCK_VALUES = 4_000_000

# Models of transformers whose attention and MLP matrices are stored (in, out); their heads are ordinary.
_TRANSPOSED_FAMILIES = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp", "jais")
_ORDINARY_MODULES = ("lm_head", "score", "classifier")


@dataclass(frozen=True)
class _Change:
    """What happens to one tensor of the base: replace it, then add, then rescale.

    Args:
        whole: Adapter tensor that stands in for the base's.
        a: Factor A.
        b: Factor B.
        scale: s of dW = s B A, or of an added bias.
        transposed: Whether the product is added transposed.
        magnitude: DoRA magnitudes, one an output of the layer.
        bias: Bias of factor B, added to the layer's bias.
    """

    whole: str | None = None
    a: str | None = None
    b: str | None = None
    scale: float = 1.0
    transposed: bool = False
    magnitude: str | None = None
    bias: str | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """Adapter tensors this change reads, in a fixed order."""
        return tuple(p for p in (self.whole, self.a, self.b, self.magnitude, self.bias) if p is not None)


class AdapterSource:
    """A `TensorSource` over base and adapter; closing it closes both.

    Args:
        base: The base, named by the user and never by the adapter.
        folder: Folder with `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        MalformedFile: a file is broken, or ranks, shapes, targets or names fit neither each other nor the base.
        UnsafeFile: two readings are possible.
        UnsupportedFile: not a LoRA adapter, or a variant that is not merged here.
    """

    def __init__(self, base: TensorSource, folder: Path) -> None:
        self._base, self._label = base, f"{base.label}+{folder}"
        self._lora = read_adapter_config(folder)
        self._adapter = SafetensorsFile(folder / WEIGHTS_NAME)
        self._cached: tuple[str, Floats, Floats] | None = None
        self._norms: dict[str, Floats] = {}
        try:
            self._plan()
        except BaseException:
            self._adapter.close()
            raise

    @property
    def label(self) -> str:
        """Labels of base and adapter, joined by a plus sign."""
        return self._label

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The base's tensors; changed ones are of type F32 or F64 and count the bytes of all their parts."""
        return self._tensors

    @property
    def config(self) -> Mapping[str, Any]:
        """The base's config; vocabulary size and tying follow from modules that the adapter stores whole."""
        return self._config

    @property
    def declared(self) -> Mapping[str, str]:
        """What the adapter claims about its base; never evidence."""
        return self._lora.declared

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the result should know about the merge."""
        return self._notes

    def rows(self, name: str, start: int = 0, stop: int | None = None, digest: Digest | None = None) -> Floats:
        """Merged values of rows [start, stop).

        `digest` sees the adapter's tensors before the first row and the base's bytes of these rows, so it does not
        depend on how a tensor is cut into blocks.
        """
        change = self._changes.get(name)
        if change is None:
            return self._base.rows(name, start, stop, digest)
        n_rows = self._tensors[name].shape[0]
        stop = n_rows if stop is None else stop
        if not 0 <= start <= stop <= n_rows:
            raise IndexError(f"rows {start} to {stop} of '{safe_name(name)}', which has {n_rows}")
        if digest is not None and start == 0:
            for part in change.parts:
                self._adapter.rows(part, digest=digest)
        values = self._added(name, change, start, stop, digest)
        return values if change.magnitude is None else self._rescaled(name, change, values, start)

    def factors(self, name: str) -> tuple[Floats, Floats, float] | None:
        """The update of a tensor as (B, A, s) with W' = W + s B A in the layout of the tensor.

        Returns:
            B (rows, r), A (r, columns) and s; None where the adapter adds no product of two factors to the base's own
            values: untouched and replaced tensors, biases, DoRA.
        """
        change = self._changes.get(name)
        if change is None or change.a is None or change.whole is not None or change.magnitude is not None:
            return None
        left, right = self._product(name, change)
        return left, right, change.scale

    def close(self) -> None:
        """Close base and adapter."""
        with contextlib.closing(self._base):
            self._adapter.close()

    # -- numbers ---------------------------------------------------------------------------------------------------

    def _added(self, name: str, change: _Change, start: int, stop: int, digest: Digest | None = None) -> Floats:
        """Rows after replacing and adding, before rescaling."""
        if change.whole is None:
            values = self._base.rows(name, start, stop, digest)
        else:
            values = self._adapter.rows(change.whole, start, stop)
        if change.a is not None:
            left, right = self._product(name, change)
            values += change.scale * (left[start:stop] @ right)  # (rows, columns)
        if change.bias is not None:
            values += change.scale * self._adapter.rows(change.bias, start, stop)
        return values

    def _product(self, name: str, change: _Change) -> tuple[Floats, Floats]:
        """Left (rows, r) and right (r, columns) factor in the layout of the tensor; the last pair is kept."""
        if self._cached is not None and self._cached[0] == name:
            return self._cached[1:]
        a, b = self._adapter.rows(str(change.a)), self._adapter.rows(str(change.b))
        left, right = (a.T, b.T) if change.transposed else (b, a)
        self._cached = (name, left, right)
        return left, right

    def _rescaled(self, name: str, change: _Change, values: Floats, start: int) -> Floats:
        """DoRA: every output of the layer gets its stored magnitude."""
        magnitude = self._adapter.rows(str(change.magnitude))
        if change.transposed:
            return values * (magnitude / self._column_norms(name, change)).astype(values.dtype)
        norms = np.linalg.norm(values.astype(np.float64), axis=1)
        self._check_norms(name, norms)
        factor = magnitude[start : start + len(values)] / norms
        return values * factor[:, None].astype(values.dtype)

    def _column_norms(self, name: str, change: _Change) -> Floats:
        """Norms of the columns of W + dW, (columns,), in one pass over the rows; kept, they are small."""
        if name not in self._norms:
            n_rows, n_columns = self._tensors[name].shape
            squares = np.zeros(n_columns)
            step = max(1, _NORM_BLOCK_VALUES // n_columns)
            for start in range(0, n_rows, step):
                block = self._added(name, change, start, min(start + step, n_rows)).astype(np.float64)
                squares += np.einsum("ij,ij->j", block, block)
            norms = np.sqrt(squares)
            self._check_norms(name, norms)
            self._norms[name] = norms
        return self._norms[name]

    def _check_norms(self, name: str, norms: Floats) -> None:
        if not np.all(norms > 0):
            found = f"'{safe_name(name, 80)}' has an output of norm zero or not a number"
            raise self._refusal(found, "weights that magnitudes can rescale")

    # -- the plan: which tensor of the adapter changes which tensor of the base -------------------------------------

    def _plan(self) -> None:
        modules, wholes, copies = sort_tensors(self._adapter.tensors, self._subject)
        self._check_copies(copies, wholes)
        for module in modules:
            if not self._lora.is_target(module):
                found = f"factors for '{safe_name(module, 80)}'"
                raise self._refusal(found, "factors for the target_modules of the adapter config only")
        located = locate_all(self._base.tensors, modules, wholes)
        changes: dict[str, _Change] = {}
        self._new: dict[str, TensorInfo] = {}
        for name, stored in wholes.items():
            self._add_whole(name, stored, located, changes)
        for module, factors in modules.items():
            self._add_factors(module, factors, located, changes)
        if not changes:
            raise self._refusal("no tensors", "factors or whole modules")
        self._changes = changes
        self._tensors = MappingProxyType(dict(self._merged_infos()))
        self._config, notes = self._merged_config()
        self._notes = (*self._lora.notes, *notes, *self._missing_targets(modules))

    @property
    def _subject(self) -> Subject:
        return Subject("adapter", WEIGHTS_NAME)

    def _refusal(self, found: str, expected: str) -> MalformedFile:
        return self._subject.malformed(found, expected, _FORGET_BASE)

    def _check_copies(self, copies: Mapping[str, str | None], wholes: Mapping[str, str]) -> None:
        """peft may store a module twice, or the unused original beside it; two different values are two readings."""
        for stored, twin in copies.items():
            if twin is None:
                continue
            if twin not in wholes:
                raise self._refusal(f"'{safe_name(stored, 80)}' without the module it copies", "both")
            if not np.array_equal(self._adapter.rows(stored), self._adapter.rows(wholes[twin]), equal_nan=True):
                raise self._subject.unsafe(f"two different values of '{safe_name(twin, 80)}'", "one value")

    def _add_whole(self, name: str, stored: str, located: Located, changes: dict[str, _Change]) -> None:
        """A tensor stored whole: announced by the config, and of the base's shape but for a resized vocabulary."""
        info = self._adapter.tensors[stored]
        if not self._is_announced(name):
            found = f"'{safe_name(name, 80)}' stored whole"
            raise self._refusal(found, "only modules that modules_to_save or bias announce")
        target = located.get(name)
        if target is None and self._is_untied_head(name):
            self._new[name] = replace(info, name=name)
            changes[name] = _Change(whole=stored)
            return
        base = self._base_info(target, name, info.shape)
        resized = is_embedding_name(name) and base.shape[1:] == info.shape[1:]
        if base.shape != info.shape and not resized:
            raise self._mismatch(name, info.shape, base)
        changes[base.name] = _Change(whole=stored)

    def _is_announced(self, name: str) -> bool:
        module, _, leaf = name.rpartition(".")
        parts = module.split(".")
        saved = any(m in (".".join(parts[i:j]),) for m in self._lora.modules_to_save for i, j in _spans(parts))
        bias = leaf == "bias" and self._lora.bias != "none"
        # peft stores targeted and resized embeddings whole without announcing them.
        return saved or bias or is_embedding_name(name)

    def _is_untied_head(self, name: str) -> bool:
        return name.split(".")[-2:-1] == ["lm_head"] and bool(self._base.config.get("tie_word_embeddings"))

    def _add_factors(self, module: str, factors: Factors, located: Located, changes: dict[str, _Change]) -> None:
        a, b = self._pair(module, factors)
        shapes = f"A {a.shape} and B {b.shape}"
        rank = self._lora.rank_of(module)
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or a.shape[0] != rank:
            raise self._refusal(f"'{safe_name(module, 80)}' has {shapes}", f"A (r, in) and B (out, r) of rank {rank}")
        target = located.get(f"{module}.weight")
        base = self._base_info(target, f"{module}.weight", (b.shape[0], a.shape[1]))
        whole = changes.get(base.name, _Change()).whole
        transposed = self._is_transposed(module, factors, a, b, base)
        change = _Change(whole, a.name, b.name, self._lora.scale_of(module), transposed, factors.magnitude)
        self._check_magnitude(module, factors, b)
        changes[base.name] = change
        self._add_bias(module, factors, b, located, changes)

    def _pair(self, module: str, factors: Factors) -> tuple[TensorInfo, TensorInfo]:
        if factors.a is None or factors.b is None:
            missing = "A" if factors.a is None else "B"
            raise self._refusal(f"'{safe_name(module, 80)}' without its factor {missing}", "both factors")
        return self._adapter.tensors[factors.a], self._adapter.tensors[factors.b]

    def _base_info(self, target: str | None, name: str, shape: tuple[int, ...]) -> TensorInfo:
        if target is None:
            tied = name.endswith("lm_head.weight") and self._base.config.get("tie_word_embeddings")
            found = f"it changes '{safe_name(name, 80)}' of shape {shape}, and the base has no such tensor"
            found += " (its unembedding is tied to the embedding)" if tied else ""
            raise self._refusal(found, f"tensors of '{safe_name(self._base.label)}' such as {self._examples()}")
        return self._base.tensors[target]

    def _examples(self) -> str:
        shown = [i for i in self._base.tensors.values() if len(i.shape) == 2][:2]
        return " and ".join(f"'{safe_name(i.name, 80)}' {i.shape}" for i in shown) or "none"

    def _mismatch(self, name: str, shape: tuple[int, ...], base: TensorInfo) -> MalformedFile:
        found = f"its change of '{safe_name(name, 80)}' has shape {shape}"
        return self._refusal(found, f"the base's {base.shape} ('{safe_name(self._base.label)}')")

    def _is_transposed(self, module: str, factors: Factors, a: TensorInfo, b: TensorInfo, base: TensorInfo) -> bool:
        """Whether the product is added transposed: by shape, and for square matrices by what the layer is."""
        n_in, n_out = a.shape[1], b.shape[0]
        shape = base.shape
        if shape not in ((n_out, n_in), (n_in, n_out)) or (factors.embedding and shape != (n_in, n_out)):
            raise self._mismatch(f"{module}.weight", (n_out, n_in), base)
        if factors.embedding or n_in != n_out:
            return factors.embedding or shape == (n_in, n_out)
        if self._base.config.get("model_type") in _TRANSPOSED_FAMILIES:
            return module.rpartition(".")[2] not in _ORDINARY_MODULES
        return self._lora.transposed

    def _check_magnitude(self, module: str, factors: Factors, b: TensorInfo) -> None:
        if (factors.magnitude is not None) != self._lora.dora:
            found = f"'{safe_name(module, 80)}' {'without' if self._lora.dora else 'with'} magnitudes"
            raise self._refusal(found, f"use_dora {str(self._lora.dora).lower()} and tensors to agree")
        if factors.magnitude is not None and self._adapter.tensors[factors.magnitude].shape != (b.shape[0],):
            shape = self._adapter.tensors[factors.magnitude].shape
            raise self._refusal(f"'{safe_name(module, 80)}' has magnitudes {shape}", f"({b.shape[0]},)")

    def _add_bias(
        self, module: str, factors: Factors, b: TensorInfo, located: Located, changes: dict[str, _Change]
    ) -> None:
        if (factors.bias is not None) != (self._lora.lora_bias and not factors.embedding):
            found = f"'{safe_name(module, 80)}' {'without' if factors.bias is None else 'with'} a bias of factor B"
            raise self._refusal(found, f"lora_bias {str(self._lora.lora_bias).lower()} and tensors to agree")
        if factors.bias is None:
            return
        shape = self._adapter.tensors[factors.bias].shape
        base = self._base_info(located.get(f"{module}.bias"), f"{module}.bias", shape)
        if not shape == base.shape == (b.shape[0],):
            raise self._mismatch(f"{module}.bias", shape, base)
        before = changes.get(base.name, _Change())
        changes[base.name] = replace(before, bias=factors.bias, scale=self._lora.scale_of(module))

    # -- the merged description -------------------------------------------------------------------------------------

    def _merged_infos(self) -> Iterator[tuple[str, TensorInfo]]:
        everything = {**self._base.tensors, **self._new}
        for name in sorted(everything):
            info, change = everything[name], self._changes.get(name)
            if change is not None:
                stored = [self._adapter.tensors[part] for part in change.parts]
                own = info.n_bytes if change.whole is None else 0
                shape = info.shape if change.whole is None else self._adapter.tensors[change.whole].shape
                source = info if change.whole is None else self._adapter.tensors[change.whole]
                dtype = "F64" if source.dtype == "F64" else "F32"
                info = TensorInfo(name, dtype, shape, own + sum(part.n_bytes for part in stored))
            yield name, info

    def _merged_config(self) -> tuple[Mapping[str, Any], tuple[str, ...]]:
        """The base's config with the sizes that whole modules changed, and a sentence for each change."""
        config, notes = dict(self._base.config), []
        if self._new:
            config["tie_word_embeddings"] = False
            notes.append("the adapter stores its own unembedding: no longer tied to the embedding")
        before = {n: self._base.tensors[n].shape[0] for n in self._changes if n in self._base.tensors and is_embedding_name(n)}
        resized = {self._tensors[n].shape[0] for n, rows in before.items() if self._tensors[n].shape[0] != rows}
        if len(resized) > 1:
            raise self._refusal(f"embeddings of {sorted(resized)} rows", "one size of vocabulary")
        if resized:
            config["vocab_size"] = resized.pop()
            notes.append(f"the adapter stores a vocabulary of {config['vocab_size']} tokens instead of the base's")
        return MappingProxyType(config), tuple(notes)

    def _missing_targets(self, modules: Mapping[str, Factors]) -> tuple[str, ...]:
        targets = self._lora.targets or ()
        missing = [t for t in targets if not any(m == t or m.endswith(f".{t}") for m in modules)]
        return tuple(f"target module '{safe_name(t, 80)}' has no factors in this adapter" for t in missing)


def read_adapter_config(folder: Path) -> LoraConfig:
    """The checked config of an adapter folder.

    Raises:
        InputRefused: missing, broken, or not an adapter this reader merges.
    """
    return read_config(read_adapter_fields(folder), CONFIG_NAME)


def read_adapter_fields(folder: Path) -> dict[str, Any]:
    """The parsed `adapter_config.json`, not yet checked.

    Raises:
        InputRefused: missing or not a JSON object.
    """
    return parse_object(read_checked(folder / CONFIG_NAME), "adapter config", CONFIG_NAME)


def _spans(parts: list[str]) -> Iterator[tuple[int, int]]:
    return ((i, j) for i in range(len(parts)) for j in range(i + 1, len(parts) + 1))
