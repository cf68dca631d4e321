"""phi-u: its p-values under their own null, what it sees, and what it cannot see."""

import dataclasses
from functools import cache
from math import comb, exp, factorial, log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import poisson, spearmanr

import pair_cases
from neuron_layers import conclude, disguised, layer, layers_of, mlp, noisy, pair, reordered, rotation
from whorl.errors import NotComparable
from whorl.linalg.matching import assign, match_rows
from whorl.linalg.permutation_tests import (
    SMALLEST_P,
    fixed_points_p,
    p_from_log,
    spearman,
    spearman_log_p,
    spearman_nominal_log_p,
)
from whorl.pairs.pair import Pair
from whorl.pairs.phi_u import PhiU, independent_layers
from whorl.pairs.run import compare_pair

METHOD = PhiU()
EXACT, BOUND, NOMINAL = range(3)

# ---------------------------------------------------------------- p-values of permutations


def test_fixed_points_golden():
    # 3 things: 2 permutations without a fixed point, 3 with one, none with two, 1 with three
    assert [fixed_points_p(k, [3]) for k in range(4)] == pytest.approx([1, 4 / 6, 1 / 6, 1 / 6])
    assert fixed_points_p(7, [7]) == pytest.approx(1 / factorial(7), rel=1e-12)
    assert fixed_points_p(6, [3, 3]) == pytest.approx(1 / 36, rel=1e-12)
    assert fixed_points_p(0, [3]) == 1.0


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_fixed_points_against_counting(size):
    derangements = [1, 0, 1, 2, 9, 44, 265, 1854, 14833, 133496]
    counts = [comb(size, k) * derangements[size - k] for k in range(size + 1)]
    for k in range(1, size + 1):
        assert fixed_points_p(k, [size]) == pytest.approx(sum(counts[k:]) / factorial(size), rel=1e-12)


def test_fixed_points_of_many_layers_are_poisson_with_accurate_tails():
    for k in (20, 60, 150):
        assert fixed_points_p(k, [4096] * 32) == pytest.approx(poisson.sf(k - 1, 32), rel=1e-9)
    assert fixed_points_p(4096 * 32, [4096] * 32) == SMALLEST_P
    assert fixed_points_p(150, [4096] * 32) < 1e-40  # far below what any number of draws could show


def test_spearman_is_that_of_scipy():
    rng = np.random.default_rng(0)
    one, other = rng.permutation(50), rng.permutation(50) * 3.0
    assert spearman(one, other) == pytest.approx(spearmanr(one, other).statistic, abs=1e-12)
    assert spearman(one, one) == 1.0
    assert spearman(one, -one) == -1.0


def test_spearman_bound_golden():
    assert spearman_log_p([0.5], [384]) == pytest.approx(-25.1724, abs=1e-3)
    assert spearman_log_p([1.0], [64]) == pytest.approx(-20.283, abs=1e-2)
    assert spearman_log_p([0.3] * 6, [64] * 6) == pytest.approx(-8.784, abs=1e-3)
    assert spearman_log_p([-0.2, 0.1], [64, 64]) == 0.0
    assert spearman_nominal_log_p([0.0], [100]) == pytest.approx(log(0.5))


def test_spearman_bound_holds_for_every_permutation_of_seven():
    from itertools import permutations

    rhos = np.array([spearman(p, range(7)) for p in permutations(range(7))])
    for rho in np.unique(rhos.round(12)):
        assert (rhos >= rho - 1e-9).mean() <= exp(spearman_log_p([rho], [7])) + 1e-12


@settings(max_examples=30, deadline=None)
@given(rho=st.floats(0.01, 0.9), size=st.integers(16, 400), layers=st.integers(1, 8))
def test_spearman_bound_is_above_the_normal_tail_and_falls(rho, size, layers):
    bound = spearman_log_p([rho] * layers, [size] * layers)
    assert bound >= -layers * (size - 1) * rho**2 / 2  # the exponent of the normal tail
    assert spearman_log_p([rho * 1.1] * layers, [size] * layers) <= bound


def test_p_from_log_is_never_zero_and_never_a_nan():
    assert p_from_log(-1e6) == pytest.approx(SMALLEST_P)
    assert p_from_log(3.0) == 1.0
    with pytest.raises(NotComparable, match="not a number"):
        p_from_log(float("nan"))


# ---------------------------------------------------------------- its own null (statistics.md 12)

RUNS, SIZES = 500, [24, 24]
NEURONS = SIZES[0]
LEVEL = fixed_points_p(5, SIZES) + 1e-12  # 0.0527: counts cannot reach 0.05 itself
BAND = (0.032, 0.070)


@cache
def null_partners(match, make_rows):
    """(runs, layers, neurons): matchings of unrelated rows."""
    rng = np.random.default_rng(1)
    return np.array([[match(make_rows(rng), make_rows(rng), rng) for _ in SIZES] for _ in range(RUNS)])


def share_of_small_exact_p(match, make_rows):
    fixed = (null_partners(match, make_rows) == np.arange(NEURONS)).sum(axis=(1, 2))
    return np.mean([fixed_points_p(int(n), SIZES) <= LEVEL for n in fixed])


def plain_rows(rng):
    return rng.standard_normal((NEURONS, 8))


def tied_rows(rng):
    """Many equal rows, as pruned, split or copied neurons have; in random order, so the null holds."""
    return rng.permutation(np.eye(8).repeat(3, axis=0))


def by_match_rows(a, b, rng):
    return match_rows(a, b, rng).partners


def by_candidates(a, b, rng):
    """The sparse route: two neighbours each, so the completing edges are used often."""
    return match_rows(a, b, rng, neighbours=2, dense_rows=4).partners


def by_plain_assignment(a, b, rng):
    """What equal footing forbids: ties resolved by row number."""
    return assign(-(a @ b.T))[1]


@pytest.mark.parametrize(
    ("match", "rows"),
    [
        (by_match_rows, plain_rows),
        (by_match_rows, tied_rows),
        (by_candidates, tied_rows),
        pytest.param(by_candidates, plain_rows, marks=pytest.mark.slow),
    ],
)
def test_the_exact_p_under_its_own_null(match, rows):
    assert BAND[0] <= share_of_small_exact_p(match, rows) <= BAND[1]


def test_bound_and_nominal_p_under_their_own_null():
    partners = null_partners(by_match_rows, plain_rows)
    rhos = [[spearman(p, np.arange(NEURONS)) for p in run] for run in partners]
    assert np.mean([spearman_log_p(run, SIZES) <= log(0.05) for run in rhos]) <= BAND[1]
    assert np.mean([spearman_nominal_log_p(run, SIZES) <= log(0.05) for run in rhos]) <= 0.08


def test_the_harness_fails_a_matching_that_looks_at_row_numbers():
    assert BAND[0] <= share_of_small_exact_p(by_plain_assignment, plain_rows) <= BAND[1]
    assert share_of_small_exact_p(by_plain_assignment, tied_rows) > 2 * BAND[1]


def test_unrelated_layers_through_the_method():
    """The whole method with its own shuffles: 200 unrelated pairs."""
    rng, models = np.random.default_rng(2), pair()
    p_values = []
    for _ in range(200):
        layers = [layer(mlp(rng, n, 8), mlp(rng, n, 8), index=i) for i, n in enumerate(SIZES)]
        p_values.append([t.p_value for t in conclude(METHOD, layers, models).tests])
    exact, bound, _ = (np.array(p_values) <= LEVEL).mean(axis=0)
    assert 0.01 <= exact <= 0.10  # mean 10.5 of 200, sd 3
    assert bound <= 0.05


# ---------------------------------------------------------------- what it sees


def child_layers(noise, seed=0, n_layers=4, **sizes):
    rng = np.random.default_rng(seed)
    parents = [mlp(rng, **sizes) for _ in range(n_layers)]
    return [layer(part, noisy(part, noise, rng), index=i) for i, part in enumerate(parents)]


def test_a_model_against_itself():
    outcome = conclude(METHOD, child_layers(0.0))
    assert outcome.value == outcome.variants["in_place"] == 1.0
    assert [t.kind for t in outcome.tests] == ["exact", "bound", "nominal"]
    assert outcome.tests[EXACT].p_value < 1e-60  # one of the layers, whose matchings are all the identity
    assert outcome.tests[BOUND].p_value < 1e-15
    assert outcome.why == "192 of 192 neurons in 4 matched layers are in place"
    assert outcome.warnings == ()


def test_noisier_children_are_further_away():
    outcomes = [conclude(METHOD, child_layers(noise)) for noise in (0.1, 1.5, 3.0, 100.0)]
    assert [o.value for o in outcomes] == sorted((o.value for o in outcomes), reverse=True)
    assert [o.tests[EXACT].p_value for o in outcomes] == sorted(o.tests[EXACT].p_value for o in outcomes)
    assert outcomes[0].value == 1.0
    assert abs(outcomes[3].value) < 0.3


def test_few_true_partners_show_in_fixed_points_before_spearman():
    exact, bound, _ = (t.p_value for t in conclude(METHOD, child_layers(3.0)).tests)
    assert exact < 1e-6
    assert exact < bound


def test_reordered_neurons_hide_everything_and_the_warning_says_so():
    rng = np.random.default_rng(0)
    layers = [layer(part, reordered(part, rng.permutation(48)), index=i) for i, part in enumerate([mlp(rng)] * 4)]
    outcome = conclude(METHOD, layers)
    assert outcome.tests[EXACT].p_value > 0.01
    assert "a high p is no evidence of independence" in outcome.warnings[0]


def test_the_order_of_the_pair_does_not_matter():
    forward = child_layers(2.0)
    back = [layer(x.mlp[1], x.mlp[0], index=x.a) for x in forward]
    one, other = conclude(METHOD, forward), conclude(METHOD, back)
    assert one.value == pytest.approx(other.value, abs=1e-12)
    assert one.tests == other.tests


def test_the_frame_is_undone():
    r = rotation(32)
    rng = np.random.default_rng(0)
    a = mlp(rng)
    b = dataclasses.replace(a, gate=a.gate @ r, up=a.up @ r)
    assert conclude(METHOD, [layer(a, b, r)]).value == 1.0
    assert abs(conclude(METHOD, [layer(a, b)]).value) < 0.5


def test_a_narrower_residual_stream_is_compared_where_the_frames_overlap():
    rng = np.random.default_rng(0)
    r = rotation(32)[:, :24]
    a = mlp(rng)
    b = dataclasses.replace(mlp(rng, width=24), gate=a.gate @ r, up=a.up @ r)
    assert conclude(METHOD, [layer(a, b, r)]).value == 1.0


def test_biases_take_no_part():
    rng = np.random.default_rng(0)
    a = mlp(rng, bias=True)
    up = a.up.copy()
    up[:, -1] = 1e6 * rng.standard_normal(48)
    assert conclude(METHOD, [layer(a, dataclasses.replace(a, up=up))]).value == 1.0


def test_signs_count_only_without_a_gate():
    rng = np.random.default_rng(0)
    for gated in (True, False):
        a = mlp(rng, gated=gated)
        b = dataclasses.replace(a, up=-a.up)
        assert (conclude(METHOD, [layer(a, b)]).value == 1.0) == gated


@pytest.mark.parametrize(
    "edits", [("R1",), ("R2",), ("N1",), ("M2",), ("R1", "R2", "R3", "N1", "A1", "A3", "A4", "M2")]
)
def test_disguises_that_keep_the_order_of_neurons_hide_nothing(edits):
    models = disguised(edits)
    assert conclude(METHOD, layers_of(models), models).value == 1.0


def test_a_disguise_that_reorders_neurons_hides_everything():
    models = disguised(("M1",))
    outcome = conclude(METHOD, layers_of(models), models)
    assert abs(outcome.value) < 0.2
    assert outcome.tests[EXACT].p_value > 0.01


def test_through_the_real_frame():
    """A child in another frame, the same child with reordered neurons, and a stranger."""
    parent = pair_cases.weights()
    edits = [e for e in pair_cases.MUST if e != "M1"]
    found = []
    for moved in (edits, pair_cases.MUST):
        b, tokens = pair_cases.disguised(pair_cases.child(parent, 0.2), *moved)
        both = Pair(pair_cases.model(parent), b, (pair_cases.TOKENS, tokens))
        found.append(compare_pair(both, [METHOD]).outcomes[METHOD.canonical_name])
    stranger = Pair(pair_cases.model(parent), pair_cases.model(pair_cases.weights(1)), (pair_cases.TOKENS,) * 2)
    found.append(compare_pair(stranger, [METHOD]).outcomes[METHOD.canonical_name])
    assert found[0].value > 0.9
    assert found[0].tests[EXACT].p_value < 1e-100
    assert max(abs(o.value) for o in found[1:]) < 0.3
    assert min(o.tests[EXACT].p_value for o in found[1:]) > 0.01


# ---------------------------------------------------------------- dead neurons and refusals


def test_dead_neurons_are_left_out_and_counted():
    (x,) = child_layers(0.1, n_layers=1)
    up_a, up_b = x.mlp[0].up.copy(), x.mlp[1].up.copy()
    up_a[:5] = 0
    up_b[3:9] = 0
    a, b = dataclasses.replace(x.mlp[0], up=up_a), dataclasses.replace(x.mlp[1], up=up_b)
    outcome = conclude(METHOD, [layer(a, b)])
    assert outcome.value == 1.0
    assert "39 of 39 neurons" in outcome.why
    assert outcome.warnings == ("9 neurons with a row of zeros were left out",)


def test_a_layer_with_few_live_neurons_is_left_out():
    layers = child_layers(0.1, n_layers=2)
    up = layers[1].mlp[0].up.copy()
    up[15:] = 0
    layers[1] = layer(dataclasses.replace(layers[1].mlp[0], up=up), layers[1].mlp[1], index=1)
    outcome = conclude(METHOD, layers)
    assert "in 1 matched layers" in outcome.why
    assert "1 layers with fewer than 16 live neurons were left out" in outcome.warnings
    with pytest.raises(NotComparable, match="degenerate: no matched layer has 16 neurons"):
        conclude(METHOD, layers[1:])


def test_wide_layers_say_that_candidates_were_weighed():
    outcome = conclude(PhiU(neighbours=8, dense_rows=32), child_layers(0.5))
    assert outcome.value == 1.0
    assert outcome.warnings == ("in layers of more than 32 neurons only the 8 nearest of each were weighed",)


def test_refusals():
    METHOD.check(pair())
    with pytest.raises(NotComparable, match="2 experts per layer"):
        METHOD.check(pair_cases.pair(pair_cases.experts(pair_cases.weights()), pair_cases.model(pair_cases.weights())))
    with pytest.raises(NotComparable, match="MLP widths 48 and 56 differ"):
        METHOD.check(pair(None, {"intermediate_size": 56}))
    rng = np.random.default_rng(0)
    with pytest.raises(NotComparable, match="48 and 40 neurons"):
        METHOD.observe(layer(mlp(rng), mlp(rng, 40)))
    with pytest.raises(NotComparable, match="experts"):
        METHOD.observe(dataclasses.replace(layer(mlp(rng), mlp(rng)), mlp=None))
    bad = mlp(rng)
    bad.up[0, 0] = np.nan
    with pytest.raises(NotComparable, match="up of layer 0 is not finite"):
        METHOD.observe(layer(mlp(rng), bad))


def test_layers_that_are_copies_count_once():
    """Tied layers share one random matching: eight times its luck is no evidence."""
    rng = np.random.default_rng(4)
    rejected = 0
    for _ in range(500):
        partner = rng.permutation(40).astype(float)
        assert independent_layers([partner] * 8) == [0]
        rejected += fixed_points_p(int((partner == np.arange(40)).sum()), [40]) <= 0.05
    assert rejected / 500 <= 0.070
    apart = [rng.permutation(40).astype(float) for _ in range(8)]
    assert independent_layers(apart) == list(range(8))
    assert independent_layers([np.arange(40.0), np.arange(30.0), np.arange(40.0)]) == [0, 1]
