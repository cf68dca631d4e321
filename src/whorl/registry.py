"""Which methods exist: a lazy `"module:Class"` table, extended by entry points of the group `whorl.methods`.

Adding a built-in method is one line here; a plugin adds it in its own package metadata:

    [project.entry-points."whorl.methods"]
    my-method = "my_package.my_module:MyMethod"
"""

import difflib
from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from whorl.errors import UsageError
from whorl.method import Method, split_canonical
from whorl.pairs.method import PairMethod
from whorl.weights.method import WeightMethod

GROUP = "whorl.methods"

_BUILT_IN = {
    "std-vector": "whorl.weights.std_vector:StdVector",
    "clustering-vector": "whorl.weights.clustering_vector:ClusteringVector",
    "std-curves": "whorl.weights.std_curves:StdCurves",
    "head-spectra": "whorl.weights.head_spectra:HeadSpectra",
    "aligned-operators": "whorl.pairs.aligned_operators:AlignedOperators",
    "ucka": "whorl.pairs.ucka:Ucka",
    "invariant-terms": "whorl.pairs.invariant_terms:InvariantTerms",
    "weight-cosine": "whorl.pairs.weight_cosine:WeightCosine",
    "phi-u": "whorl.pairs.phi_u:PhiU",
    "phi-match": "whorl.pairs.phi_match:PhiMatch",
    "frame-p": "whorl.pairs.frame_p:FrameP",
}


def _plugins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def method_names() -> tuple[str, ...]:
    """Names of all methods, built-in first, plugins after, without importing any of them."""
    return (*_BUILT_IN, *sorted(set(_plugins()) - set(_BUILT_IN)))


def _load(name: str) -> type[Method]:
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        found = getattr(import_module(module), attribute)
    elif (point := _plugins().get(name)) is not None:
        found = point.load()
    else:
        near = difflib.get_close_matches(name, method_names(), n=1)
        hint = f" Did you mean '{near[0]}'?" if near else f" Known methods: {', '.join(method_names())}."
        raise UsageError(f"Unknown method '{name[:80]}'.{hint}")
    if not (isinstance(found, type) and issubclass(found, WeightMethod | PairMethod) and found.name == name):
        raise UsageError(f"Plugin '{name}' is not a WeightMethod or PairMethod of that name; ask its author.")
    return found


def method(text: str) -> Method:
    """The method of a short name (`std-vector`) or a canonical one (`clustering-vector@1(k=5)`).

    Raises:
        UsageError: unknown name, version or parameter; near misses are suggested.
    """
    name, version, parameters = split_canonical(text)
    kind = _load(name)
    if version is not None and version != kind.version:
        raise UsageError(f"Method '{name}' is at version {kind.version} here, not {version}.")
    return kind.from_parameters(parameters)


def resolve(methods: Iterable[str | Method] | None) -> tuple[Method, ...]:
    """Methods from names, instances or None (all, with defaults), without doubles, in the order given.

    Raises:
        UsageError: an unknown name, or none at all.
    """
    chosen = method_names() if methods is None else methods
    found = [m if isinstance(m, Method) else method(m) for m in chosen]
    unique = {m.canonical_name: m for m in found}
    if not unique:
        raise UsageError(f"No method chosen. Known methods: {', '.join(method_names())}.")
    return tuple(unique.values())


def weight_methods(methods: Iterable[str | Method] | None) -> tuple[WeightMethod, ...]:
    """Those of `methods` (None: of all) that fingerprint one model; see `resolve`.

    Raises:
        UsageError: an unknown name, or none that fingerprints.
    """
    found = tuple(m for m in resolve(methods) if isinstance(m, WeightMethod))
    if not found:
        raise UsageError("The methods asked for compare pairs of models; name one that fingerprints a single model.")
    return found


def pair_methods(methods: Iterable[str | Method] | None) -> tuple[PairMethod, ...]:
    """Those of `methods` (None: of all) that need the weights of both models; see `resolve`."""
    return tuple(m for m in resolve(methods) if isinstance(m, PairMethod))


def smallest_effect(canonical_name: str) -> float:
    """The smallest value of a method that matters, whatever its p-value."""
    return _load(split_canonical(canonical_name)[0]).smallest_effect
