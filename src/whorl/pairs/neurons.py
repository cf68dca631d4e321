"""Rows of the MLP of one matched layer in a common frame: one row for each neuron, biases left out."""

import numpy as np
from numpy.typing import NDArray

from whorl.canonical.roles import Mlp
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
        NotComparable: a side has experts, or a value is NaN or infinite.
    """
    a, b = _dense(layer)
    return _in_a(layer, a.up, b.up, "up")


def gate_rows(layer: MatchedLayer) -> tuple[Floats, Floats]:
    """Rows of gate, as `up_rows`.

    Raises:
        NotComparable: a side has experts or no gate, or a value is NaN or infinite.
    """
    a, b = _dense(layer)
    if a.gate is None or b.gate is None:
        raise NotComparable("an MLP without a gate gives one matching of neurons; two are needed")
    return _in_a(layer, a.gate, b.gate, "gate")


def live(*matrices: Floats) -> NDArray[np.bool_]:
    """Which neurons have a row that is not all zero in each of the matrices (f, d)."""
    return np.asarray(np.logical_and.reduce([matrix.any(axis=1) for matrix in matrices]))


def _dense(layer: MatchedLayer) -> tuple[Mlp, Mlp]:
    if layer.mlp is None:
        raise NotComparable(f"layer {layer.a} or its partner {layer.b} has experts; neurons need dense MLPs")
    return layer.mlp


def _in_a(layer: MatchedLayer, a: Floats, b: Floats, role: str) -> tuple[Floats, Floats]:
    for matrix, index in ((a, layer.a), (b, layer.b)):
        if not np.isfinite(matrix).all():
            raise NotComparable(f"degenerate: {role} of layer {index} is not finite")
    d_a = layer.r.shape[0]
    return a[:, :d_a], layer.reader_in_a(b)[:, :d_a]
