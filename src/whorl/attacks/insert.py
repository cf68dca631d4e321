"""Inserted layers that do nothing (L1): their outputs are zero, so the residual stream passes them unchanged.

The rest of such a layer looks used: its values are those of the layer in front of it, in random order.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from whorl._readers.folder import open_local
from whorl.attacks._job import Job
from whorl.attacks._model_files import Array, Tensors
from whorl.attacks.layers import LAYER, arrange_layers, check_indices, depth
from whorl.canonical.layout import Layout
from whorl.canonical.model import CanonicalModel
from whorl.errors import UsageError

_WRITERS = {"o", "o.b", "down", "down.b"}


def run(job: Job, *, layers: Sequence[int]) -> None:
    """Insert one layer that does nothing right after each of `layers`, indices from 0."""
    source = open_local(job.model)
    try:
        layout = CanonicalModel(source).layout
    finally:
        source.close()
    tensors, config = job.read()
    made = insert_identity(tensors, config, layers, writer_names(layout), np.random.default_rng(job.seed))
    job.write(job.record("layers-inserted", random=True), *made)


def writer_names(layout: Layout) -> frozenset[str]:
    """Names, without prefix and layer number, of the tensors through which a layer writes.

    Raises:
        UsageError: norms after the residual sum, which change the stream even when nothing is added.
    """
    if layout.shape.norm_style == "post":
        raise UsageError("A layer of this model cannot do nothing: its norms come after the residual sum.")
    names = {one.name for plan in layout.parts for one in plan.stored if _WRITERS.issuperset(one.roles)}
    return frozenset(match["tail"] for match in map(LAYER.match, names) if match)


def insert_identity(
    tensors: Tensors,
    config: Mapping[str, Any],
    layers: Sequence[int],
    writers: frozenset[str],
    rng: np.random.Generator,
) -> tuple[dict[str, Array], dict[str, Any]]:
    """The deeper model, which computes what the given one does.

    Args:
        tensors: Model tensors by name.
        config: Its config.
        layers: Indices from 0; a new layer comes right after each of them.
        writers: From `writer_names`.
        rng: Orders the values of the new layers.

    Raises:
        UsageError: an index outside the model or twice.
    """
    n_layers = depth(tensors, config)
    check_indices(layers, n_layers)
    order = [i for layer in range(n_layers) for i in ([layer, layer] if layer in layers else [layer])]
    made, deeper = arrange_layers(tensors, config, order)
    new = {layer + number + 1 for number, layer in enumerate(sorted(layers))}
    for name in sorted(made):
        match = LAYER.match(name)
        if match is not None and int(match["index"]) in new:
            made[name] = np.zeros_like(made[name]) if match["tail"] in writers else _shuffled(made[name], rng)
    return made, deeper


def _shuffled(array: Array, rng: np.random.Generator) -> Array:
    mixed: Array = rng.permutation(array.ravel()).reshape(array.shape)
    return mixed
