"""Layer paths with restarts, and layer maps of models whose layers were dropped, repeated, reordered or put in idle."""

import itertools

import numpy as np
import pytest

from llama_folder import config, tensors
from whorl.attacks.layers import arrange_layers, duplicate_layers
from whorl.canonical.model import CanonicalModel
from whorl.errors import NotComparable, UsageError
from whorl.linalg.layers import align_layers, align_with_restarts
from whorl.lineage.layer_map import is_idle, match_layers
from whorl.testing import MemorySource

UP_SCALED = [0, 1, 2, 3, 4, 5, 2, 3, 4, 5, 6, 7]  # as SOLAR: all but the last two, then all but the first two


def scores(order, n_layers=8, noise=0.05, seed=0):
    s = noise * np.random.default_rng(seed).standard_normal((n_layers, len(order)))
    for j, i in enumerate(order):
        if i is not None:
            s[i, j] += 0.9
    return s


@pytest.mark.parametrize("order", [
    UP_SCALED, [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7], [0, 0, 1, 1, 2, 2, 3, 3], [0, 1, None, 2, 3, 4, 5, 6, 7],
    [0, 1, 4, 5, 6, 7], [5, 3, 1, 0, 2, 4, 7, 6], [0, 1, 2, 3, 3, 3, 4, 5, 6, 7],
])  # fmt: skip
def test_the_order_is_recovered(order):
    for seed in range(10):
        path = align_with_restarts(scores(order, seed=seed))
        assert [i for i, j in path.pairs if j is not None] == order
        unused = {i for i, j in path.pairs if j is None}
        assert unused == set(range(8)) - set(order)


def test_without_a_reason_to_go_back_the_path_is_the_monotone_one():
    for seed in range(10):
        s = scores([0, 1, 2, 4, 5, 7], seed=seed)
        assert set(align_with_restarts(s).matched) == set(align_layers(s).matched)


def value(used, s, gap, restart):
    """The definition, term by term."""
    total, last = 0.0, -1
    for j, i in enumerate(used):
        if i is None:
            total += gap
            continue
        total += s[i, j] + ((i - last - 1) * gap if i > last else -restart)
        last = i
    return total + (len(s) - 1 - last) * gap


def test_the_path_is_the_best_of_all():
    rng = np.random.default_rng(0)
    for _ in range(20):
        s = rng.standard_normal((3, 4))
        best = max(value(used, s, 0.1, 0.3) for used in itertools.product([None, 0, 1, 2], repeat=4))
        assert align_with_restarts(s, gap=0.1, restart=0.3).total == pytest.approx(best)


def test_bad_scores_are_refused():
    with pytest.raises(NotComparable, match="not finite: 1 of 4"):
        align_with_restarts(np.array([[1.0, np.nan], [0.0, 1.0]]))
    with pytest.raises(UsageError, match="restart at least 0"):
        align_with_restarts(np.eye(3), restart=-1.0)


def model(order=None, noise=0.0, seed=0):
    weights, facts = tensors(seed), config()
    if order is not None:
        weights, facts = arrange_layers(weights, facts, order)
    rng = np.random.default_rng(99)
    weights = {n: (w + noise * w.std() * rng.standard_normal(w.shape)).astype(np.float32) for n, w in weights.items()}
    return CanonicalModel(MemorySource(weights, facts))


@pytest.mark.parametrize("order", [UP_SCALED, [0, 1, 2, 5, 6, 7], [7, 1, 2, 3, 4, 5, 6, 0]])
def test_maps_of_rearranged_and_trained_models(order):
    base, made = model(), model(order, noise=0.5)
    found = match_layers(base, made)
    assert [i for i, j in found.pairs if j is not None] == order
    assert found.median > 0.8
    assert found.repeated(0) == ((2, 3, 4, 5) if order is UP_SCALED else ())
    back = match_layers(made, base)
    assert {(j, i) for i, j in back.matched} == set(found.matched)


def test_repeated_block_as_the_attack_makes_it():
    weights, facts = duplicate_layers(tensors(), config(), 2, 5)
    found = match_layers(model(), CanonicalModel(MemorySource(weights, facts)))
    assert found.repeated(0) == (2, 3, 4)
    assert not found.dropped
    assert not found.inserted


def test_unrelated_layers_have_no_partners():
    found = match_layers(model(), model(seed=1))
    assert not found.matched
    assert found.median == 0.0


def test_idle_layers():
    weights, facts = tensors(), config()
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        weights[f"model.layers.3.{name}.weight"] *= 0
    made = CanonicalModel(MemorySource(weights, facts))
    assert [is_idle(made, i) for i in (2, 3, 4)] == [False, True, False]
