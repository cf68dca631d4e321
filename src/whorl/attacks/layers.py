"""Depth edits: drop layers (as ShortGPT, arXiv:2403.03853) or repeat a block (as SOLAR, arXiv:2312.15166)."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from whorl.attacks._job import Job
from whorl.attacks._model_files import Array, Tensors
from whorl.errors import UsageError

LAYER = re.compile(r"^(?P<head>(?:.*\.)?(?:layers|h|blocks)\.)(?P<index>\d+)(?P<tail>\..+)$")
_DEPTH_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_PER_LAYER_KEYS = ("layer_types", "no_rope_layers")
_INDEX_KEYS = ("mlp_only_layers",)


def run_drop(job: Job, *, layers: Sequence[int]) -> None:
    """Leave layers out; `layers` are indices from 0."""
    job.write(job.record("layers-dropped"), *drop_layers(*job.read(), layers))


def run_duplicate(job: Job, *, layers: Sequence[int]) -> None:
    """Repeat layers; neighbours among `layers`, indices from 0, are repeated as one block."""
    tensors, config = job.read()
    order = doubled_order(depth(tensors, config), layers)
    job.write(job.record("layers-duplicated"), *arrange_layers(tensors, config, order))


def doubled_order(n_layers: int, layers: Sequence[int]) -> list[int]:
    """All layers, with every run of neighbours among `layers` repeated right after itself: of 4, (1, 2) gives 0 1 2 1 2 3.

    Raises:
        UsageError: an index outside the model or twice, or none.
    """
    check_indices(layers, n_layers)
    order: list[int] = []
    block: list[int] = []
    for layer in range(n_layers):
        order.append(layer)
        block = [*block, layer] if layer in layers else []
        if block and layer + 1 not in layers:
            order += block
    return order


def check_indices(layers: Sequence[int], n_layers: int) -> None:
    """Refuse indices outside a model, doubled ones, and an empty list."""
    if not layers or len(set(layers)) != len(layers) or not all(0 <= i < n_layers for i in layers):
        raise UsageError(f"Layers {list(layers)}; expected different numbers from 0 to {n_layers - 1}.")


def drop_layers(
    tensors: Tensors, config: Mapping[str, Any], dropped: Sequence[int]
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Remove layers and number the others on.

    Args:
        tensors: Model tensors by name.
        config: Its config.
        dropped: Layer indices from 0, each once; at least one layer must stay.

    Returns:
        Tensors and config of the shallower model.

    Raises:
        UsageError: an index outside the model or twice, or no layer left.
    """
    n_layers = depth(tensors, config)
    wrong = [i for i in dropped if not 0 <= i < n_layers]
    if wrong or len(set(dropped)) != len(dropped):
        raise UsageError(f"Layers {list(dropped)} to drop; expected different numbers from 0 to {n_layers - 1}.")
    kept = [i for i in range(n_layers) if i not in set(dropped)]
    if not kept:
        raise UsageError("All layers would be dropped; keep at least one.")
    return arrange_layers(tensors, config, kept)


def duplicate_layers(
    tensors: Tensors, config: Mapping[str, Any], start: int, stop: int
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Repeat layers start .. stop-1 right after themselves.

    Args:
        tensors: Model tensors by name.
        config: Its config.
        start: First repeated layer, from 0.
        stop: One past the last repeated layer.

    Returns:
        Tensors and config of the deeper model, with stop - start more layers.

    Raises:
        UsageError: not 0 <= start < stop <= number of layers.
    """
    n_layers = depth(tensors, config)
    if not 0 <= start < stop <= n_layers:
        raise UsageError(f"Layers {start} to {stop} to repeat; expected 0 <= start < stop <= {n_layers}.")
    return arrange_layers(tensors, config, [*range(stop), *range(start, n_layers)])


def arrange_layers(
    tensors: Tensors, config: Mapping[str, Any], order: Sequence[int]
) -> tuple[dict[str, Array], dict[str, Any]]:
    """The model whose layer i is layer order[i] of this one; an index may appear several times or not at all.

    Raises:
        UsageError: an index outside the model, or an empty order.
    """
    n_layers = depth(tensors, config)
    if not order or not all(0 <= i < n_layers for i in order):
        raise UsageError(f"Layer order {list(order)}; expected numbers from 0 to {n_layers - 1}.")
    result: dict[str, Array] = {}
    for name, array in tensors.items():
        found = LAYER.match(name)
        if found is None:
            result[name] = array
            continue
        for new, old in enumerate(order):
            if old == int(found["index"]):
                result[f"{found['head']}{new}{found['tail']}"] = array
    return result, _rearranged(config, order)


def _rearranged(config: Mapping[str, Any], order: Sequence[int]) -> dict[str, Any]:
    result = dict(config)
    for key in _DEPTH_KEYS:
        if key in result:
            result[key] = len(order)
    for key in _PER_LAYER_KEYS:
        if isinstance(result.get(key), list):
            result[key] = [result[key][i] for i in order]
    for key in _INDEX_KEYS:
        if isinstance(result.get(key), list):
            result[key] = [new for new, old in enumerate(order) if old in result[key]]
    return result


def depth(tensors: Tensors, config: Mapping[str, Any]) -> int:
    """Number of layers, from the config and checked against the tensors.

    Raises:
        UsageError: they disagree, or one of them does not say.
    """
    found = {int(match["index"]) for match in map(LAYER.match, tensors) if match}
    keys = [key for key in _DEPTH_KEYS if key in config]
    if not keys or not found:
        raise UsageError("Layers cannot be counted: expected tensors named '...layers.0...' and a depth in the config.")
    n_layers = int(config[keys[0]])
    if found != set(range(n_layers)):
        raise UsageError(f"The config says {n_layers} layers, the tensors have numbers {min(found)} to {max(found)}.")
    return n_layers
