"""What an adapter does to a base, decided from names, shapes and configs before any value is read.

Every tensor of the adapter must find its place, or the adapter is refused: a partial merge would be another model.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from whorl._readers.adapter_config import LoraConfig, is_or_ends_with
from whorl._readers.adapter_names import Factors, SortedTensors, is_embedding_name, locate_all, sort_tensors
from whorl._readers.subject import Subject
from whorl.errors import MalformedFile, safe_name
from whorl.source import TensorInfo, TensorSource

_ADVICE = "Apply it to the base it was trained on, or ask its owner for the original adapter."

# Models of transformers whose attention and MLP matrices are stored (in, out); their heads are ordinary.
_TRANSPOSED_FAMILIES = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "jais")
_ORDINARY_MODULES = ("lm_head", "score", "classifier")


@dataclass(frozen=True)
class Change:
    """What happens to one tensor of the base: replace it, add to it, rescale it, in this order.

    Args:
        whole: Adapter tensor that stands in for the base's.
        a: Factor A, (r, in).
        b: Factor B, (out, r).
        bias: Bias of factor B, added to the bias of the layer.
        scale: s of W + s B A and of b + s b_B.
        transposed: Whether the product is added transposed.
        magnitude: DoRA magnitudes, one an output of the layer.
    """

    whole: str | None = None
    a: str | None = None
    b: str | None = None
    bias: str | None = None
    scale: float = 1.0
    transposed: bool = False
    magnitude: str | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """Adapter tensors this change reads, in a fixed order."""
        return tuple(p for p in (self.whole, self.a, self.b, self.bias, self.magnitude) if p is not None)


@dataclass(frozen=True)
class Plan:
    """The merged model without its values.

    Args:
        changes: Name in the merged model -> what happens to it.
        tensors: All tensors of the merged model; changed ones are F32 or F64 and count the bytes of all their parts.
        config: The base's config with what whole modules change in it.
        copies: Adapter tensor -> adapter tensor that must hold equal values.
        notes: Sentences for the reader of a result.
    """

    changes: Mapping[str, Change]
    tensors: Mapping[str, TensorInfo]
    config: Mapping[str, Any]
    copies: Mapping[str, str]
    notes: tuple[str, ...]


def make_plan(base: TensorSource, stored: Mapping[str, TensorInfo], lora: LoraConfig, subject: Subject) -> Plan:
    """Find the place of every adapter tensor.

    Args:
        base: The base; only its description is used.
        stored: Tensors of the adapter file.
        lora: The checked adapter config.
        subject: How messages call the adapter file.

    Raises:
        MalformedFile: ranks, shapes, targets or names fit neither each other nor the base.
        UnsafeFile: two readings are possible.
        UnsupportedFile: tensors of a variant that is not merged here.
    """
    names = sort_tensors(stored, subject)
    if not names.modules and not names.wholes:
        raise subject.malformed("no tensors", "factors or whole modules", _ADVICE)
    wanted = {*names.wholes, *(f"{m}.weight" for m in names.modules), *(f"{m}.bias" for m in names.modules)}
    planner = _Planner(base, stored, lora, subject, locate_all(base.tensors, wanted, subject))
    for module, factors in names.modules.items():
        planner.check_layer(module, factors)
    for name, part in names.wholes.items():
        planner.replace_whole(name, part)
    for module, factors in names.modules.items():
        planner.add_factors(module, factors)
    return planner.plan(names)


@dataclass
class _Planner:
    base: TensorSource
    stored: Mapping[str, TensorInfo]
    lora: LoraConfig
    subject: Subject
    located: Mapping[str, str]
    changes: dict[str, Change] = field(default_factory=dict)
    new: dict[str, TensorInfo] = field(default_factory=dict)

    def check_layer(self, module: str, factors: Factors) -> None:
        """Two factors of the stated rank, for a layer that the config targets and the base has."""
        if not self.lora.is_target(module):
            found = f"factors for '{safe_name(module, 80)}'"
            raise self._refusal(found, "factors for the target_modules of the adapter config only")
        a, b = self._checked_pair(module, factors)
        self._base_tensor(f"{module}.weight", (b.shape[0], a.shape[1]))

    def replace_whole(self, name: str, part: str) -> None:
        """A tensor stored whole: announced by the config, and of the base's shape but for a resized vocabulary."""
        info = self.stored[part]
        if not self._is_announced(name):
            found = f"tensor '{safe_name(name, 80)}' stored whole"
            raise self._refusal(found, "only what modules_to_save and bias of the adapter config announce")
        if name not in self.located and self._is_own_head(name):
            self.new[name] = replace(info, name=name)
            self.changes[name] = Change(whole=part)
            return
        base = self._base_tensor(name, info.shape)
        resized = is_embedding_name(name) and base.shape[1:] == info.shape[1:]
        if base.shape != info.shape and not resized:
            raise self._mismatch(name, info.shape, base)
        self.changes[base.name] = Change(whole=part)

    def add_factors(self, module: str, factors: Factors) -> None:
        """The factors of one layer; shapes and flags must agree."""
        a, b = self._checked_pair(module, factors)
        base = self._base_tensor(f"{module}.weight", (b.shape[0], a.shape[1]))
        before = self.changes.get(base.name, Change())
        shape = base.shape if before.whole is None else self.stored[before.whole].shape
        self._check_flags(module, factors, b.shape[0])
        self.changes[base.name] = replace(
            before,
            a=a.name,
            b=b.name,
            scale=self.lora.scale_of(module),
            transposed=self._is_transposed(module, factors, a, b, replace(base, shape=shape)),
            magnitude=factors.magnitude,
        )
        if factors.bias is not None:
            self._add_bias(module, factors.bias)

    def plan(self, names: SortedTensors) -> Plan:
        """The finished plan."""
        tensors = MappingProxyType(dict(self._merged_tensors()))
        copies = {copy: self._twin(copy, name, names) for copy, name in names.copies.items()}
        config, notes = self._merged_config(tensors)
        if names.n_idle:
            notes += (f"{names.n_idle} adapter tensors are unused originals of modules that it stores whole",)
        changes = MappingProxyType(self.changes)
        return Plan(changes, tensors, config, copies, (*self.lora.notes, *notes, *self._idle_targets(names.modules)))

    # -- checks ----------------------------------------------------------------------------------------------------

    def _is_announced(self, name: str) -> bool:
        words = name.split(".")
        modules = [".".join(words[:n]) for n in range(1, len(words))]
        # peft compares ends of names, not words: "norm" also means every "input_layernorm".
        saved = any(module.endswith(self.lora.modules_to_save) for module in modules)
        # peft also stores targeted and resized embeddings whole, without announcing them.
        return saved or is_embedding_name(name) or (words[-1] == "bias" and self.lora.bias != "none")

    def _is_own_head(self, name: str) -> bool:
        return name.split(".")[-2:-1] == ["lm_head"] and bool(self.base.config.get("tie_word_embeddings"))

    def _checked_pair(self, module: str, factors: Factors) -> tuple[TensorInfo, TensorInfo]:
        if factors.a is None or factors.b is None:
            missing = "A" if factors.a is None else "B"
            raise self._refusal(f"'{safe_name(module, 80)}' without its factor {missing}", "both factors")
        a, b, rank = self.stored[factors.a], self.stored[factors.b], self.lora.rank_of(module)
        matrices = len(a.shape) == len(b.shape) == 2
        if not matrices or a.shape[0] != rank or b.shape[1] != rank:
            found = f"'{safe_name(module, 80)}' has factors A {a.shape} and B {b.shape}"
            raise self._refusal(found, f"A (r, in) and B (out, r) of the rank {rank} that its config states")
        return a, b

    def _base_tensor(self, name: str, shape: tuple[int, ...]) -> TensorInfo:
        if name in self.located:
            return self.base.tensors[self.located[name]]
        own_head = name.split(".")[-2:-1] == ["lm_head"] and self.base.config.get("tie_word_embeddings")
        tied = ": its unembedding is tied to its embedding" if own_head else ""
        found = f"it changes '{safe_name(name, 80)}' of shape {shape}, which the base lacks{tied}"
        raise self._refusal(found, f"tensors of '{safe_name(self.base.label)}', such as {self._examples()}")

    def _examples(self) -> str:
        shown = [info for info in self.base.tensors.values() if len(info.shape) == 2][:3]
        return ", ".join(f"'{safe_name(info.name, 80)}' {info.shape}" for info in shown) or "none"

    def _is_transposed(self, module: str, factors: Factors, a: TensorInfo, b: TensorInfo, base: TensorInfo) -> bool:
        """Whether the product is added transposed: by shape, and for square matrices by the kind of layer."""
        n_in, n_out = a.shape[1], b.shape[0]
        fits = ((n_in, n_out),) if factors.embedding else ((n_out, n_in), (n_in, n_out))
        if base.shape not in fits:
            raise self._mismatch(f"{module}.weight", fits[0], base)
        if factors.embedding or n_in != n_out:
            return factors.embedding or base.shape == (n_in, n_out)
        if self.base.config.get("model_type") in _TRANSPOSED_FAMILIES:
            return module.rpartition(".")[2] not in _ORDINARY_MODULES
        return self.lora.transposed

    def _check_flags(self, module: str, factors: Factors, n_out: int) -> None:
        for flag, wanted, part in (
            ("use_dora", self.lora.dora, factors.magnitude),
            ("lora_bias", self.lora.lora_bias and not factors.embedding, factors.bias),
        ):
            if wanted != (part is not None):
                found = f"{flag} is {str(wanted).lower()} and '{safe_name(module, 80)}' says otherwise"
                raise self._refusal(found, "config and tensors to agree")
            if part is not None and self.stored[part].shape != (n_out,):
                raise self._refusal(f"'{safe_name(part, 80)}' has shape {self.stored[part].shape}", f"({n_out},)")

    def _add_bias(self, module: str, part: str) -> None:
        shape = self.stored[part].shape
        base = self._base_tensor(f"{module}.bias", shape)
        if base.shape != shape:
            raise self._mismatch(f"{module}.bias", shape, base)
        before = self.changes.get(base.name, Change())
        self.changes[base.name] = replace(before, bias=part, scale=self.lora.scale_of(module))

    def _twin(self, copy: str, name: str, names: SortedTensors) -> str:
        if name not in names.wholes:
            raise self._refusal(f"'{safe_name(copy, 80)}' without the tensor it copies", "both")
        return names.wholes[name]

    def _mismatch(self, name: str, shape: tuple[int, ...], base: TensorInfo) -> MalformedFile:
        found = f"it changes '{safe_name(name, 80)}' as {shape}"
        return self._refusal(found, f"the {base.shape} of '{safe_name(self.base.label)}'")

    def _refusal(self, found: str, expected: str) -> MalformedFile:
        return self.subject.malformed(found, expected, _ADVICE)

    # -- the merged description --------------------------------------------------------------------------------------

    def _merged_tensors(self) -> Iterator[tuple[str, TensorInfo]]:
        everything = {**self.base.tensors, **self.new}
        for name in sorted(everything):
            change = self.changes.get(name)
            yield name, everything[name] if change is None else self._merged_tensor(everything[name], change)

    def _merged_tensor(self, info: TensorInfo, change: Change) -> TensorInfo:
        start = info if change.whole is None else self.stored[change.whole]
        n_bytes = sum(self.stored[part].n_bytes for part in change.parts)
        n_bytes += info.n_bytes if change.whole is None else 0
        return TensorInfo(info.name, "F64" if start.dtype == "F64" else "F32", start.shape, n_bytes)

    def _merged_config(self, tensors: Mapping[str, TensorInfo]) -> tuple[Mapping[str, Any], tuple[str, ...]]:
        config: dict[str, Any] = dict(self.base.config)
        notes: tuple[str, ...] = ()
        if self.new:
            config["tie_word_embeddings"] = False
            notes += ("the adapter stores its own unembedding, which is no longer tied to the embedding",)
        old = self.base.tensors
        resized = {tensors[n].shape[0] for n in self.changes if n in old and tensors[n].shape != old[n].shape}
        if len(resized) > 1:
            raise self._refusal(f"embeddings of {sorted(resized)} rows", "one size of vocabulary")
        for n_vocab in resized:
            config["vocab_size"] = n_vocab
            notes += (f"the adapter stores embeddings of {n_vocab} tokens, another number than the base",)
        return MappingProxyType(config), notes

    def _idle_targets(self, modules: Mapping[str, Factors]) -> tuple[str, ...]:
        idle = [t for t in self.lora.targets or () if not any(is_or_ends_with(m, t) for m in modules)]
        return tuple(f"target module '{safe_name(target, 80)}' has no factors in this adapter" for target in idle)
