"""Rows of the MLP of one matched layer in a common frame: one row for each neuron, biases left out."""

import numpy as np
from numpy.typing import NDArray

from whorl.errors import NotComparable
from whorl.pairs.layer import MatchedLayer
from whorl.pairs.pair import Pair
from whorl.source import Floats

MIN_NEURONS = 16  # fewer live neurons say nothing about a layer (ours)


def require_dense_mlps(pair: Pair) -> None:
    """Refuse models whose neurons have no common list.

    Raises:
        NotComparable: one of the models has experts.
    """
    for model in (pair.a, pair.b):
        if model.shape.n_experts:
            raise NotComparable(f"{model.label} has {model.shape.n_experts} experts per layer; neurons need dense MLPs")


def up_rows(layer: MatchedLayer) -> tuple[Floats, Floats]:
    """Rows of up in A (f_a, d_a) and in B (f_b, d_a), both in A's frame, without the bias column.

    Raises:
        NotComparable: a side has experts.
    """
    if layer.mlp is None:
        raise NotComparable(f"layer {layer.a} or its partner {layer.b} has experts; neurons need dense MLPs")
    return _in_a(layer, layer.mlp[0].up, layer.mlp[1].up)


def gate_rows(layer: MatchedLayer) -> tuple[Floats, Floats]:
    """Rows of gate, as `up_rows`.

    Raises:
        NotComparable: a side has experts or no gate.
    """
    if layer.mlp is None:
        raise NotComparable(f"layer {layer.a} or its partner {layer.b} has experts; neurons need dense MLPs")
    gates = layer.mlp[0].gate, layer.mlp[1].gate
    if gates[0] is None or gates[1] is None:
        raise NotComparable("an MLP without a gate has one matching of neurons, and two are needed")
    return _in_a(layer, gates[0], gates[1])


def live(*matrices: Floats) -> NDArray[np.bool_]:
    """Which neurons have a row that is not all zero in each of the matrices (f, d)."""
    return np.asarray(np.logical_and.reduce([matrix.any(axis=1) for matrix in matrices]))


def _in_a(layer: MatchedLayer, a: Floats, b: Floats) -> tuple[Floats, Floats]:
    d_a = layer.r.shape[0]
    return a[:, :d_a], layer.reader_in_a(b)[:, :d_a]
