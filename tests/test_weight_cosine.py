"""The raw baseline: its value against whole-tensor arithmetic, and how little it takes to move it."""

import numpy as np
import pytest

from pair_cases import MUST, child, compare, edited_pair, model, pair, weights
from whorl.errors import NotComparable
from whorl.pairs import weight_cosine
from whorl.pairs.weight_cosine import WeightCosine
from whorl.registry import method


def cosine(x, y):
    return float((x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y))


@pytest.mark.parametrize("at_once", [1, 1000, 10**9])
def test_golden(at_once, monkeypatch):
    monkeypatch.setattr(weight_cosine, "_VALUES_AT_ONCE", at_once)
    one, other = weights(), child(weights(), 0.5)
    inside = [n for n in one if "layers." in n and one[n].ndim == 2]
    outcome = compare(WeightCosine(), pair(model(one), model(other)))
    assert len(inside) == 21
    assert outcome.value == pytest.approx(np.mean([cosine(one[n], other[n]) for n in inside]), rel=1e-12)
    flat = [np.concatenate([t[n].reshape(-1) for n in one]) for t in (one, other)]
    assert outcome.variants["pooled"] == pytest.approx(cosine(*flat), rel=1e-12)
    name = "model.embed_tokens.weight"
    assert outcome.variants["embedding"] == pytest.approx(cosine(one[name], other[name]), rel=1e-12)
    assert outcome.why.startswith("mean cosine of 21 matrices")


def test_direction():
    near, far = (compare(WeightCosine(), edited_pair(noise=noise)).value for noise in (0.05, 0.5))
    a, b = model(weights()), model(weights(9))
    stranger = compare(WeightCosine(), pair(a, b)).value
    assert compare(WeightCosine(), pair(a, a)).value == pytest.approx(1.0, abs=1e-12)
    assert 1.0 > near > 0.99 > far > 0.5
    assert abs(stranger) < 0.05
    assert compare(WeightCosine(), pair(b, a)).value == pytest.approx(stranger, abs=1e-12)


@pytest.mark.parametrize("edit", MUST)
def test_almost_every_edit_moves_it(edit):
    value = compare(WeightCosine(), edited_pair(edit)).value
    if edit in {"R3", "V1"}:  # one scale for all writers; rows of the embedding only
        assert value == pytest.approx(1.0, abs=1e-9)
    else:
        assert value < 0.8


def test_a_permutation_of_the_residual_stream_takes_it_to_a_strangers_value():
    assert abs(compare(WeightCosine(), edited_pair("R1")).value) < 0.05


def test_other_shapes_are_left_out_and_none_is_a_refusal():
    wide = {"intermediate_size": 128}
    outcome = compare(WeightCosine(), pair(model(weights()), model(weights(**wide), **wide)))
    assert outcome.why.startswith("mean cosine of 12 matrices")
    narrow = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    with pytest.raises(NotComparable, match="one name and one shape"):
        compare(WeightCosine(), pair(model(weights()), model(weights(**narrow), **narrow)))


def test_zero_matrices_are_left_out():
    dead = weights()
    dead["model.layers.0.self_attn.q_proj.weight"][:] = 0.0
    outcome = compare(WeightCosine(), pair(model(weights()), model(dead)))
    assert outcome.value == pytest.approx(1.0, abs=1e-12)
    assert outcome.warnings == ("1 matrices are zero in one model and left out",)
    for name in dead:
        dead[name][:] = 0.0 if dead[name].ndim == 2 else dead[name]
    with pytest.raises(NotComparable, match="degenerate"):
        compare(WeightCosine(), pair(model(weights()), model(dead)))


def test_registered():
    assert method("weight-cosine") == WeightCosine()
    assert WeightCosine().canonical_name == "weight-cosine@1()"
