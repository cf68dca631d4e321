"""phi-match: agreement of two matchings, with and without disguise; its p never decides."""

import dataclasses

import numpy as np
import pytest

import pair_cases
from neuron_layers import conclude, disguised, layer, layers_of, mlp, noisy, pair, reordered, rotation
from whorl.errors import NotComparable
from whorl.linalg.permutation_tests import spearman
from whorl.pairs.pair import Pair
from whorl.pairs.phi_match import PhiMatch
from whorl.pairs.run import compare_pair

METHOD = PhiMatch()


def children(noise, seed=0, n_layers=4, **sizes):
    """Noisy children with neurons in another order."""
    rng = np.random.default_rng(seed)
    parents = [mlp(rng, **sizes) for _ in range(n_layers)]
    return [
        layer(part, reordered(noisy(part, noise, rng), rng.permutation(len(part.up))), index=i)
        for i, part in enumerate(parents)
    ]


def test_a_reordered_copy_is_found():
    outcome = conclude(METHOD, children(0.0))
    assert outcome.value == outcome.variants["spearman"] == 1.0
    assert outcome.why == "gate and up choose one partner for 192 of 192 neurons in 4 matched layers"
    assert outcome.warnings == ()


def test_the_p_is_nominal_and_cannot_decide():
    (test,) = conclude(METHOD, children(0.0)).tests
    assert test.kind == "nominal"
    assert test.p_value < 1e-200


def test_noisier_children_are_further_away_and_unrelated_models_at_one_in_f():
    values = [conclude(METHOD, children(noise)).value for noise in (0.1, 1.5, 2.5, 100.0)]
    assert values == sorted(values, reverse=True)
    assert values[0] == 1.0
    rng = np.random.default_rng(5)
    unrelated = conclude(METHOD, [layer(mlp(rng), mlp(rng), index=i) for i in range(40)])
    assert 0.3 / 48 < unrelated.value < 2.0 / 48
    assert unrelated.tests[0].p_value > 0.01


def test_the_share_sees_partial_agreement_better_than_spearman():
    """Separation from unrelated pairs in units of their spread, over 20 noisy children each."""
    found = {}
    for noise in (2.5, 100.0):
        outcomes = [conclude(METHOD, children(noise, seed)) for seed in range(20)]
        found[noise] = np.array([[o.value, o.variants["spearman"]] for o in outcomes])
    gap = (found[2.5].mean(axis=0) - found[100.0].mean(axis=0)) / found[100.0].std(axis=0)
    assert gap[0] > 3 * gap[1]


def test_traits_shared_by_gate_and_up_couple_unrelated_models():
    """Why the p is nominal: where neurons come in six kinds, both matchings stay inside a kind, without any kinship."""
    rng = np.random.default_rng(0)
    kind = 10 * np.eye(32)[np.arange(48) // 8]
    layers = []
    for index in range(4):
        sides = [dataclasses.replace(m, gate=m.gate + kind, up=m.up + kind) for m in (mlp(rng), mlp(rng))]
        layers.append(layer(*(reordered(side, rng.permutation(48)) for side in sides), index=index))
    outcome = conclude(METHOD, layers)
    assert outcome.value == pytest.approx(1 / 8, abs=0.05)
    assert outcome.tests[0].p_value < 1e-6


def test_reordering_either_model_changes_no_share():
    """Spearman depends on the order in which the second model stores its neurons, so it is only a variant."""
    rng = np.random.default_rng(1)
    plain = children(2.0)
    moved_a = [layer(reordered(x.mlp[0], rng.permutation(48)), x.mlp[1], index=x.a) for x in plain]
    moved_b = [layer(x.mlp[0], reordered(x.mlp[1], rng.permutation(48)), index=x.a) for x in plain]
    swapped = [layer(x.mlp[1], x.mlp[0], index=x.a) for x in plain]
    outcomes = [conclude(METHOD, layers) for layers in (plain, moved_a, moved_b, swapped)]
    assert 0.2 < outcomes[0].value < 0.9
    assert len({o.value for o in outcomes}) == 1
    assert outcomes[0].variants["spearman"] != outcomes[2].variants["spearman"]


@pytest.mark.parametrize("seed", range(3))
def test_other_widths_count_the_narrower_model(seed):
    """A child whose neurons were pruned to two thirds, or split and extended."""
    rng = np.random.default_rng(seed)
    a = mlp(rng)
    kept = reordered(noisy(a, 0.1, rng), rng.permutation(48)[:32])
    models = pair(None, {"intermediate_size": 32})
    pruned, grown = (conclude(METHOD, [x], models) for x in (layer(a, kept), layer(kept, a)))
    assert pruned.value == grown.value == 1.0
    assert "for 32 of 32 neurons" in pruned.why
    assert pruned.warnings == ("MLP widths 48 and 32 differ; the neurons of the narrower model are counted",)


def test_the_frame_is_undone():
    r = rotation(32)
    a = mlp(np.random.default_rng(0))
    b = dataclasses.replace(a, gate=a.gate @ r, up=a.up @ r)
    assert conclude(METHOD, [layer(a, b, r)]).value == 1.0
    assert conclude(METHOD, [layer(a, b)]).value < 0.2


@pytest.mark.parametrize(
    "edits", [("R1",), ("R2",), ("N1",), ("M1",), ("M2",), ("R1", "R2", "R3", "N1", "A1", "M1", "M2")]
)
def test_no_disguise_of_known_tokens_hides_anything(edits):
    models = disguised(edits)
    assert conclude(METHOD, layers_of(models), models).value == 1.0


def test_dead_neurons_of_either_matrix_are_left_out():
    (x,) = children(0.0, n_layers=1)
    gate, up = x.mlp[0].gate.copy(), x.mlp[0].up.copy()
    gate[:4] = 0
    up[4:10] = 0
    outcome = conclude(METHOD, [layer(dataclasses.replace(x.mlp[0], gate=gate, up=up), x.mlp[1])])
    assert outcome.value == 1.0
    assert "38 of 38" in outcome.why
    assert outcome.warnings == ("10 neurons with a row of zeros were left out",)


def test_wide_layers_say_that_candidates_were_weighed():
    outcome = conclude(PhiMatch(neighbours=8, dense_rows=32), children(0.2))
    assert outcome.value == 1.0
    assert outcome.warnings == ("in layers of more than 32 neurons only the 8 nearest of each were weighed",)


def test_observed_partners_are_permutations():
    found = METHOD.observe(children(2.0)[0])
    for name in ("partner", "partner_up"):
        assert sorted(found[name]) == list(range(48))
    assert spearman(found["partner"], found["partner_up"]) < 1.0


def test_through_the_real_frame():
    """A child under every edit that must be survived, and a stranger."""
    parent = pair_cases.weights()
    b, tokens = pair_cases.disguised(pair_cases.child(parent, 0.2), *pair_cases.MUST)
    outcomes = []
    for other, strings in ((b, tokens), (pair_cases.model(pair_cases.weights(1)), pair_cases.TOKENS)):
        both = Pair(pair_cases.model(parent), other, (pair_cases.TOKENS, strings))
        outcomes.append(compare_pair(both, [METHOD]).outcomes[METHOD.canonical_name])
    assert outcomes[0].value > 0.9
    assert outcomes[1].value < 0.1


def test_refusals():
    rng = np.random.default_rng(0)
    with pytest.raises(NotComparable, match="without a gate"):
        METHOD.observe(layer(mlp(rng), mlp(rng, gated=False)))
    with pytest.raises(NotComparable, match="experts"):
        METHOD.observe(dataclasses.replace(layer(mlp(rng), mlp(rng)), mlp=None))
    with pytest.raises(NotComparable, match="degenerate: no matched layer"):
        conclude(METHOD, [layer(mlp(rng, 8), mlp(rng, 8))])
    bad = mlp(rng)
    bad.gate[3, 0] = np.inf
    with pytest.raises(NotComparable, match="gate of layer 0 is not finite"):
        METHOD.observe(layer(mlp(rng), bad))
    with pytest.raises(NotComparable, match="2 experts per layer"):
        METHOD.check(pair_cases.pair(pair_cases.experts(pair_cases.weights()), pair_cases.model(pair_cases.weights())))
