"""`RoleTensors`: a whole model in memory, as float64 matrices by role, to be edited and packed again."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whorl.canonical.layout import Key, Layout, is_expert_role
from whorl.canonical.model import CanonicalModel
from whorl.canonical.roles import ModelShape
from whorl.errors import UsageError
from whorl.source import Floats

Array = Floats
Order = NDArray[np.intp]

ATTENTION_READERS = ("q", "k", "v")
MLP_READERS = ("gate", "up", "router", "shared_gate")
WRITERS = ("o", "down")


@dataclass(frozen=True)
class RoleTensors:
    """A model by roles.

    Args:
        layout: Where each role is on disk.
        tensors: (role, layer, routed expert) -> array, matrices (out, in); float64 when loaded.
        config: The config that belongs to these tensors.
    """

    layout: Layout
    tensors: Mapping[Key, Array]
    config: Mapping[str, Any]

    @property
    def shape(self) -> ModelShape:
        """Sizes and conventions."""
        return self.layout.shape

    def keys(self, *roles: str, layer: int | None = None) -> list[Key]:
        """Keys with one of these roles, of one layer when it is given."""
        return [key for key in self.tensors if key[0] in roles and (layer is None or key[1] == layer)]

    def has(self, role: str, layer: int | None = None) -> bool:
        """Whether some tensor has this role."""
        return bool(self.keys(role, layer=layer))

    def with_tensors(self, changed: Mapping[Key, Array]) -> "RoleTensors":
        """A copy with some tensors replaced or added."""
        return replace(self, tensors={**self.tensors, **changed})

    def mapped(self, keys: Iterable[Key], function: Callable[[Array], Array]) -> "RoleTensors":
        """A copy with `function` applied to some tensors."""
        return self.with_tensors({key: function(self.tensors[key]) for key in keys})

    def times(self, keys: Iterable[Key], factor: Array | float) -> "RoleTensors":
        """A copy with some tensors multiplied by `factor`, broadcast from the last axis."""
        return self.mapped(keys, lambda array: array * factor)

    def gains_times(self, keys: Iterable[Key], factor: Array | float) -> "RoleTensors":
        """A copy with some true gains multiplied by `factor`."""
        offset = self.shape.gain_offset
        return self.mapped(keys, lambda stored: (stored + offset) * factor - offset)

    def take(self, keys: Iterable[Key], order: Order, axis: int = 0) -> "RoleTensors":
        """A copy with rows (or, axis 1, columns) of some tensors in another order."""
        return self.mapped(keys, lambda array: np.take(array, order, axis=axis))

    def biases(self, keys: Iterable[Key]) -> list[Key]:
        """Keys of the biases that exist for these matrices or norms."""
        return [bias for bias in map(bias_of, keys) if bias in self.tensors]

    def with_config(self, **fields: Any) -> "RoleTensors":
        """A copy with some config fields changed."""
        return replace(self, config={**self.config, **fields})

    def untied(self) -> "RoleTensors":
        """A copy whose unembedding is a matrix of its own."""
        if not self.shape.tied:
            return self
        tensors = {**self.tensors, ("unembed", None, None): self.tensors["embed", None, None].copy()}
        copy = replace(self, layout=self.layout.untied(), tensors=tensors)
        return copy.with_config(tie_word_embeddings=False)

    def gain(self, key: Key) -> Array:
        """The true gain of a norm: the stored value, plus 1 for Gemma."""
        return self.tensors[key] + self.shape.gain_offset

    def pack(self) -> dict[str, Array]:
        """Tensors by their names on disk."""
        return {name: np.asarray(array, np.float64) for name, array in self.layout.pack(self.tensors).items()}


def load_roles(model: CanonicalModel) -> RoleTensors:
    """Read a model whole, in float64 (8 bytes per value, so meant for small models).

    Raises:
        MalformedFile: a value is NaN or infinite.
        UsageError: the language model is part of a multimodal file, whose other parts would be lost.
    """
    if "text_config" in model.source.config:
        raise UsageError(f"{model.label} is a multimodal model; edit its language model as a folder of its own.")
    tensors: dict[Key, Array] = {}
    for part in model.parts():
        for role, array in part.raw.items():
            tensors[role, part.layer, part.expert if is_expert_role(role) else None] = array.astype(np.float64)
    tensors.update({(role, None, None): array.astype(np.float64) for role, array in model.outer_tensors().items()})
    order = [key for key, _ in model.layout.slots()]
    return RoleTensors(model.layout, {key: tensors[key] for key in order}, dict(model.source.config))


def sublayer_norms(roles: RoleTensors, layer: int) -> list[tuple[list[Key], list[Key]]]:
    """Per norm of one layer: the keys that hold it, and the matrices that read through it."""
    attention, mlp = roles.keys(*ATTENTION_READERS, layer=layer), roles.keys(*MLP_READERS, layer=layer)
    norm_attn, norm_mlp = roles.keys("norm_attn", layer=layer), roles.keys("norm_mlp", layer=layer)
    if roles.shape.single_norm:
        return [(norm_attn + norm_mlp, attention + mlp)]
    return [(norm, readers) for norm, readers in ((norm_attn, attention), (norm_mlp, mlp)) if norm]


def all_norms(roles: RoleTensors) -> list[tuple[list[Key], list[Key]]]:
    """As `sublayer_norms` for all layers; the final norm is included where the unembedding is a matrix of its own."""
    norms = [pair for layer in range(roles.shape.n_layers) for pair in sublayer_norms(roles, layer)]
    final = roles.keys("norm_final")
    return [*norms, (final, roles.keys("unembed"))] if final and roles.has("unembed") else norms


def bias_of(key: Key) -> Key:
    """Key of the bias that belongs to a matrix or norm."""
    return (f"{key[0]}.b", *key[1:])
