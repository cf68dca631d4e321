"""Structured pruning layer by layer, after LLM-Pruner (arXiv:2305.11627): whole heads and whole MLP neurons go.

A structure is a key/value group with its query heads, or a neuron with its gate. Its importance is a sum over all its
weights (section 3.2):

    l1       |w|
    l2       w^2
    taylor   |w dL/dw|, L the loss on a few windows of text: what a change of the weight costs, to first order
    random   a uniform number, one a structure

The first and last layers stay whole. Structures are set to zero, not cut out: the config of a model holds one width for all
layers, and zeros in whatever reads and writes a structure give the same function. LLM-Pruner rounds down in each layer (5 %
of 4 heads is none); here the share is one of all chosen layers together: each loses equally many, and what is left over goes
where the next structure matters least beside the mean of its layer (ours). Nothing is trained afterwards.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from whorl.attacks._role_tensors import Array, Order, RoleTensors, load_roles
from whorl.canonical.model import CanonicalModel
from whorl.errors import UsageError, safe_name

IMPORTANCES = ("l1", "l2", "random", "taylor")
FIRST, LAST = 4, 2  # layers kept whole at either end: 4 to 30 of 32 are pruned
SHALLOW = 12  # below so many layers the same shares of the depth stay whole, rounded up (ours)
N_WINDOWS, WINDOW = 10, 64  # of text for "taylor", as in LLM-Pruner's released code


@dataclass(frozen=True)
class Importance:
    """Importance of every structure of a model, 0 or above.

    Args:
        groups: One array of shape (key/value groups,) a layer.
        neurons: One array of shape (d_mlp,) a layer.
    """

    groups: Sequence[Array]
    neurons: Sequence[Array]


def prune_blocks(roles: RoleTensors, importance: Importance, share: float) -> tuple[RoleTensors, dict[str, Any]]:
    """Set a share of the heads and of the neurons of the inner layers to zero.

    Args:
        roles: A dense model.
        importance: Of its structures.
        share: Share of either kind in the inner layers, in [0, 1), rounded to a whole number of structures.

    Returns:
        The model, and which layers were pruned (from, up to) and how many structures went.

    Raises:
        UsageError: share out of range.
    """
    if not 0.0 <= share < 1.0:
        raise UsageError(f"The pruned share is {share}; expected a number from 0 up to, not including, 1.")
    layers = inner_layers(roles.shape.n_layers)
    groups = least_important([importance.groups[layer] for layer in layers], share)
    neurons = least_important([importance.neurons[layer] for layer in layers], share)
    for layer, gone_groups, gone_neurons in zip(layers, groups, neurons, strict=True):
        roles = _without_neurons(_without_groups(roles, layer, gone_groups), layer, gone_neurons)
    counts = {"groups_pruned": sum(map(len, groups)), "neurons_pruned": sum(map(len, neurons))}
    return roles, {"layers": [layers.start, layers.stop], **counts}


def inner_layers(n_layers: int) -> range:
    """The layers that are pruned: without the first 4 and last 2, or these shares of 32 in a shallow model."""
    if n_layers >= SHALLOW:
        return range(FIRST, n_layers - LAST)
    return range(math.ceil(n_layers * FIRST / 32), n_layers - math.ceil(n_layers * LAST / 32))


def least_important(values: Sequence[Array], share: float) -> list[Order]:
    """Indices of the least important structures of each layer, ascending; at least one of a layer stays.

    Args:
        values: Importance of the structures of each layer, equally many.
        share: Share of all of them that goes, rounded to a whole number.
    """
    if not values:
        return []
    table = np.stack(values)  # (layers, structures)
    n_layers, n = table.shape
    order = np.argsort(table, axis=1, kind="stable")
    each, over = divmod(min(round(share * table.size), n_layers * (n - 1)), n_layers)
    following = np.take_along_axis(table, order[:, each : each + 1], axis=1)[:, 0]
    means = table.mean(axis=1)
    one_more = np.argsort(following / np.where(means > 0, means, 1.0), kind="stable")[:over]
    counts = each + np.isin(np.arange(n_layers), one_more)
    return [np.sort(row[:count]) for row, count in zip(order, counts, strict=True)]


def sums(weights: RoleTensors) -> Importance:
    """Importance of the structures from that of their weights.

    Raises:
        UsageError: a model with experts.
    """
    shape = weights.shape
    if shape.n_experts:
        raise UsageError(f"Blocks of this {shape.family} model cannot be pruned: experts are no neurons of one MLP.")
    layers = range(shape.n_layers)
    return Importance([_by_group(weights, layer) for layer in layers], [_by_neuron(weights, layer) for layer in layers])


def magnitudes(roles: RoleTensors, power: int) -> Importance:
    """Sums of |w|^power.

    Raises:
        UsageError: as for `sums`.
    """
    return sums(roles.mapped(list(roles.tensors), lambda array: np.abs(array) ** power))


def lots(roles: RoleTensors, rng: np.random.Generator) -> Importance:
    """A uniform number for each structure.

    Raises:
        UsageError: as for `sums`.
    """
    found = sums(roles)
    return Importance([rng.random(v.shape) for v in found.groups], [rng.random(v.shape) for v in found.neurons])


def taylor(folder: Path, roles: RoleTensors, text: str, n_threads: int = 1) -> Importance:
    """Sums of |w dL/dw|, L the mean next-token loss on the first windows of a text (needs the extra `lab`).

    Args:
        folder: The model with its tokenizer.
        roles: The same model.
        text: A text of the lab ("docstrings", "topics", "code") or a file.
        n_threads: Threads of torch.

    Raises:
        UsageError: the extra is missing, the text is unknown or too short, parameters have other names than the tensors on
            disk, or as for `sums`.
        InputRefused: the model is no complete folder of a family that transformers knows.
    """
    from whorl.testing import MemorySource

    gradients = _gradients(folder, text, n_threads)
    names = roles.pack()
    missing = sorted(set(names) - set(gradients))
    if missing:
        raise UsageError(
            f"Taylor importance of this {roles.shape.family} model is not possible: transformers has no parameter "
            f"'{safe_name(missing[0])}'."
        )
    slopes = load_roles(CanonicalModel(MemorySource({name: gradients[name] for name in names}, roles.config)))
    return sums(roles.with_tensors({key: np.abs(array * slopes.tensors[key]) for key, array in roles.tensors.items()}))


def _gradients(folder: Path, text: str, n_threads: int) -> dict[str, Array]:
    """dL/dw by parameter name."""
    from whorl.lab._llama import laboratory
    from whorl.lab._loop import next_token_loss
    from whorl.lab.corpus import load_corpus
    from whorl.samplers._opening import open_for_sampling

    opened = open_for_sampling(str(folder.resolve()), device="cpu", dtype="float32", offline=True)
    pieces = opened.tokenizer(list(load_corpus(text).train), add_special_tokens=False, verbose=False)["input_ids"]
    windows = [ids[:WINDOW] for ids in pieces if len(ids) >= WINDOW][:N_WINDOWS]
    if not windows:
        raise UsageError(f"The text has no piece of {WINDOW} tokens; choose a longer one.")
    with laboratory(n_threads, seed=0):
        next_token_loss(opened.model, np.array(windows, np.int64)).backward()
    return {name: p.grad.numpy() for name, p in opened.model.named_parameters() if p.grad is not None}


def _by_group(weights: RoleTensors, layer: int) -> Array:
    """Sum over the weights of a key/value group and its query heads, shape (G,)."""
    n_groups = weights.shape.n_kv_heads
    rows = [weights.tensors[key] for key in weights.keys("q", "k", "v", layer=layer)]
    columns = [weights.tensors[key].T for key in weights.keys("o", layer=layer)]
    total: Array = np.sum([array.reshape(n_groups, -1).sum(axis=1) for array in rows + columns], axis=0)
    return total


def _by_neuron(weights: RoleTensors, layer: int) -> Array:
    """Sum over the weights of a neuron, shape (d_mlp,)."""
    rows = [weights.tensors[key] for key in weights.keys("gate", "up", layer=layer)]
    columns = [weights.tensors[key].T for key in weights.keys("down", layer=layer)]
    total: Array = np.sum([array.sum(axis=1) for array in rows + columns], axis=0)
    return total


def _without_groups(roles: RoleTensors, layer: int, gone: Order) -> RoleTensors:
    d_head, rep = roles.shape.d_head, roles.shape.n_heads // roles.shape.n_kv_heads
    groups = (gone[:, None] * d_head + np.arange(d_head)).ravel()
    heads = (gone[:, None] * rep * d_head + np.arange(rep * d_head)).ravel()
    roles = _zeroed(roles, roles.keys("k", "k.b", "v", "v.b", layer=layer), groups)
    roles = _zeroed(roles, roles.keys("q", "q.b", layer=layer), heads)
    return _zeroed(roles, roles.keys("o", layer=layer), heads, columns=True)


def _without_neurons(roles: RoleTensors, layer: int, gone: Order) -> RoleTensors:
    roles = _zeroed(roles, roles.keys("gate", "gate.b", "up", "up.b", layer=layer), gone)
    return _zeroed(roles, roles.keys("down", layer=layer), gone, columns=True)


def _zeroed(roles: RoleTensors, keys: Sequence[Any], places: Order, *, columns: bool = False) -> RoleTensors:
    """A copy with rows or columns of some tensors set to zero."""

    def zeroed(array: Array) -> Array:
        result = array.copy()
        result[(slice(None), places) if columns else places] = 0.0
        return result

    return roles.mapped(keys, zeroed)
