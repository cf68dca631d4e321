"""Names of adapter tensors: what peft stores under which name, and which tensor of the base each one means."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from whorl._readers.subject import Subject
from whorl.errors import safe_name

PREFIX = "base_model.model."
MAX_MODULE_CHARACTERS = 256
_MAX_PREFIXES = 20
_ADVICE = "Ask the owner of the adapter for the file that peft saved."

# Endings in peft's files -> field of `Factors`.
_FACTOR_ENDINGS = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_B.bias": "bias",
    ".lora_embedding_A": "embedding_a",
    ".lora_embedding_B": "embedding_b",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
}
_EMBEDDING_MODULES = frozenset(
    {"embed_tokens", "lm_head", "wte", "embed_in", "embed_out", "word_embeddings", "tok_embeddings", "output_layer"}
)


@dataclass(frozen=True)
class Factors:
    """Adapter tensors of one module, by their full names in the adapter file.

    Args:
        a: Factor A, (r, in).
        b: Factor B, (out, r).
        bias: Bias of factor B, (out,).
        magnitude: DoRA magnitudes, (out,).
        embedding: Whether the module is an embedding, whose A is (r, tokens) and B (width, r).
    """

    a: str | None = None
    b: str | None = None
    bias: str | None = None
    magnitude: str | None = None
    embedding: bool = False


@dataclass(frozen=True)
class SortedTensors:
    """All tensors of an adapter file; names without peft's prefix on the left, names in the file on the right.

    Args:
        modules: Module -> its factors.
        wholes: Tensor of the model -> the tensor that replaces it.
        copies: Second copy of a module stored whole -> the tensor of the model it copies.
        n_idle: Tensors that peft stores beside a module and never uses.
    """

    modules: Mapping[str, Factors]
    wholes: Mapping[str, str]
    copies: Mapping[str, str]
    n_idle: int


def sort_tensors(names: Iterable[str], subject: Subject) -> SortedTensors:
    """Sort the tensors of an adapter file by their role.

    Raises:
        MalformedFile: a name that peft does not store, or two names for one role.
    """
    modules: dict[str, Factors] = {}
    wholes: dict[str, str] = {}
    copies: dict[str, str] = {}
    n_idle = 0
    for stored in names:
        name = stored.removeprefix(PREFIX)
        if name == stored or len(name) > MAX_MODULE_CHARACTERS:
            raise subject.malformed(f"tensor '{safe_name(stored, 80)}'", f"names that begin with '{PREFIX}'", _ADVICE)
        ending = next((e for e in _FACTOR_ENDINGS if name.endswith(e)), None)
        if ending is not None:
            module = name.removesuffix(ending)
            modules[module] = _with(modules.get(module), _FACTOR_ENDINGS[ending], stored, subject)
        elif ".original_module." in name:
            n_idle += 1
        elif ".modules_to_save." in name:
            copies[stored] = name.replace(".modules_to_save.", ".", 1)
        else:
            _add_whole(wholes, name.replace(".base_layer.", ".", 1), stored, subject)
    return SortedTensors(modules, wholes, copies, n_idle)


def _with(factors: Factors | None, field: str, stored: str, subject: Subject) -> Factors:
    embedding, field = field.startswith("embedding_"), field.removeprefix("embedding_")
    factors = factors or Factors(embedding=embedding)
    mixed = field in ("a", "b") and factors.embedding != embedding and (factors.a or factors.b)
    if getattr(factors, field) is not None or mixed:
        raise subject.unsafe(f"a second tensor for the role of '{safe_name(stored, 80)}'", "one")
    changes: dict[str, Any] = {field: stored, "embedding": embedding or factors.embedding}
    return replace(factors, **changes)


def _add_whole(wholes: dict[str, str], name: str, stored: str, subject: Subject) -> None:
    if "lora_" in name or "token_adapter" in name:
        expected = "factors A and B, biases, magnitudes and whole modules"
        advice = "Merge the adapter with peft and give the merged folder."
        raise subject.unsupported(f"tensor '{safe_name(stored, 80)}'", expected, advice)
    if name in wholes:
        raise subject.unsafe(f"a second tensor for the role of '{safe_name(stored, 80)}'", "one")
    wholes[name] = stored


def is_embedding_name(name: str) -> bool:
    """Whether a tensor is an input or output embedding, by the name of its module."""
    return any(module in _EMBEDDING_MODULES for module in name.split(".")[-2:-1])


def locate_all(base: Collection[str], wanted: Collection[str], subject: Subject) -> dict[str, str]:
    """Tensor of the base for each wanted name, under one rule for all of them.

    An adapter trained on a model with a head says `transformer.h.0...` where the base's file says `h.0...`, and the
    reverse. So one prefix may be dropped from or put before every name; the rule that finds most is taken.

    Returns:
        Wanted name -> name in the base, without those that were not found.

    Raises:
        UnsafeFile: two rules find equally many and disagree.
    """
    found = [{w: rule(w) for w in wanted if rule(w) in base} for rule in _rules(base, wanted)]
    best = max(found, key=len)
    # The unchanged names come first and win a tie.
    if best is not found[0] and any(len(f) == len(best) and f != best for f in found):
        raise subject.unsafe("names that fit the base in two ways", "names of one model", _ADVICE)
    return best


def _rules(base: Collection[str], wanted: Collection[str]) -> list[Callable[[str], str]]:
    rules: list[Callable[[str], str]] = [str]
    rules += [_dropping(prefix) for prefix in sorted(_prefixes(wanted))]
    rules += [_adding(prefix) for prefix in sorted(_prefixes(base))]
    return rules


def _dropping(prefix: str) -> Callable[[str], str]:
    return lambda name: name.removeprefix(prefix)


def _adding(prefix: str) -> Callable[[str], str]:
    return lambda name: prefix + name


def _prefixes(names: Collection[str]) -> set[str]:
    """One and two leading words of the names, with their dots; few, because models have few top-level modules."""
    words = [name.split(".")[:2] for name in names]
    prefixes = {f"{w[0]}." for w in words} | {f"{w[0]}.{w[1]}." for w in words if len(w) > 1}
    return set(sorted(prefixes, key=len)[:_MAX_PREFIXES])
