"""frame-p: both bounds against random rotations, and what the statistic sees and does not see."""

from math import factorial, log

import numpy as np
import pytest

import pair_cases
from neuron_layers import FramedPair, conclude, disguised, pair, procrustes, rotation
from whorl.errors import NotComparable
from whorl.linalg.permutation_tests import SMALLEST_P
from whorl.pairs.frame import Frame
from whorl.pairs.frame_p import FrameP, guaranteed_log_p, nominal_log_p, signed_permutation_share
from whorl.pairs.pair import Pair
from whorl.pairs.run import compare_pair

METHOD = FrameP()


def with_frame(models, r, *, rung=1, n_tokens=64):
    return FramedPair(models, Frame(r, rung, n_tokens, None, (), "made for this test"))


def signed_permutation(n, seed=0):
    rng = np.random.default_rng(seed)
    return np.eye(n)[rng.permutation(n)] * rng.choice([-1.0, 1.0], n)


# ---------------------------------------------------------------- the statistic


def test_signed_permutations_have_share_one():
    assert signed_permutation_share(signed_permutation(40)) == 1.0


@pytest.mark.parametrize(("n", "mean", "spread"), [(256, 0.1836, 0.003), (512, 0.1385, 0.002)])
def test_share_of_random_rotations(n, mean, spread):
    """The figures of the module docstring."""
    assert np.mean([signed_permutation_share(rotation(n, s)) for s in range(3)]) == pytest.approx(mean, abs=spread)


def test_share_does_not_see_signed_permutations_of_either_side():
    u = rotation(30)
    moved = signed_permutation(30, 1) @ u @ signed_permutation(30, 2)
    assert signed_permutation_share(moved) == pytest.approx(signed_permutation_share(u), abs=1e-12)


# ---------------------------------------------------------------- the bounds


def test_bounds_golden():
    """p = 1 and p = 1e-6 where MDIR's rate and the log-Sobolev bound reach them."""
    for n, r in ((256, 0.203), (1024, 0.114), (4096, 0.0625)):
        assert abs(nominal_log_p(r, n)) < 0.005 * n * n * r * r
        assert nominal_log_p(r * 1.01, n) < 0.0
    for n, r in ((256, 0.409), (1024, 0.228), (4096, 0.125)):
        assert guaranteed_log_p(r + 0.0005, n) < log(1e-6) < guaranteed_log_p(r - 0.0005, n)
    assert nominal_log_p(0.07, 4096) / log(10) == pytest.approx(-3598.7, abs=0.1)


def test_bounds_by_hand():
    count = log(factorial(20)) + 20 * log(2)
    assert guaranteed_log_p(1.0, 20) == min(0.0, count - 20 * 18 / 8)
    assert nominal_log_p(0.5, 20) == pytest.approx(min(0.0, count - 400 * 0.125))
    assert guaranteed_log_p(0.9, 64) == pytest.approx(log(factorial(64)) + 64 * log(2) - 64 * 62 * 0.81 / 8)
    assert nominal_log_p(0.9, 64) == nominal_log_p(0.5, 64)
    assert guaranteed_log_p(0.9, 64, centred=True) == pytest.approx(
        log(factorial(64)) + 64 * log(2) - 64 * 61 * (0.9 - 1 / 64) ** 2 / 8
    )


def test_bounds_are_conservative_under_random_rotations():
    """500 random rotations of 24 dimensions; the concentration itself, without the union, is checked below."""
    shares = [signed_permutation_share(rotation(24, seed)) for seed in range(500)]
    for bound in (guaranteed_log_p, nominal_log_p):
        assert np.mean([bound(r, 24) <= log(0.05) for r in shares]) <= 0.070


def test_concentration_of_one_fixed_permutation():
    """P(<U, P> / n >= t) <= exp(-n (n-2) t^2 / 8), what the union bound multiplies, where it can be seen by drawing."""
    n = 8
    values = np.array([np.trace(rotation(n, seed)) / n for seed in range(2000)])
    for t in (0.1, 0.2, 0.3, 0.4):
        assert (values >= t).mean() <= np.exp(-n * (n - 2) * t * t / 8)


def test_concentration_with_a_fixed_direction():
    """Centred rows: the rotation moves n - 1 dimensions and the constant one adds at most 1 / n."""
    n = 8
    basis = np.linalg.qr(np.column_stack([np.ones(n), np.random.default_rng(0).standard_normal((n, n - 1))]))[0]
    fixed = np.outer(basis[:, 0], basis[:, 0])
    inside = [basis[:, 1:] @ rotation(n - 1, seed) @ basis[:, 1:].T for seed in range(2000)]
    values = np.array([np.trace(fixed + u) / n for u in inside])
    for t in (0.1, 0.2, 0.3):
        assert (values >= t + 1 / n).mean() <= np.exp(-n * (n - 3) * t * t / 8)


def test_closer_to_a_permutation_is_less_likely():
    for bound in (guaranteed_log_p, nominal_log_p):
        values = [bound(r, 128) for r in (0.1, 0.3, 0.45, 0.5)]
        assert values == sorted(values, reverse=True)


# ---------------------------------------------------------------- the method


def test_a_copy():
    outcome = conclude(METHOD, [], with_frame(pair(), np.eye(32)))
    assert outcome.value == 1.0
    assert [t.kind for t in outcome.tests] == ["bound", "nominal"]
    assert outcome.tests[0].p_value == pytest.approx(np.exp(guaranteed_log_p(1.0, 32)))
    assert outcome.variants["log10_p_guaranteed"] == pytest.approx(guaranteed_log_p(1.0, 32) / log(10))
    assert "privileged dimensions" in outcome.warnings[0]


def test_a_wide_copy_is_printed_with_the_smallest_p_and_its_logarithm():
    outcome = conclude(METHOD, [], with_frame(pair(*[{"hidden_size": 512}] * 2), np.eye(512), n_tokens=5000))
    assert outcome.tests[0].p_value == pytest.approx(SMALLEST_P)
    assert outcome.variants["log10_p_guaranteed"] < -12_000
    assert len(outcome.warnings) == 1


def test_noisier_frames_are_further_away():
    values = []
    for noise in (0.01, 0.1, 0.3, 10.0):
        u, _, vt = np.linalg.svd(signed_permutation(64) + noise * np.random.default_rng(0).standard_normal((64, 64)))
        values.append(conclude(METHOD, [], with_frame(pair(*[{"hidden_size": 64}] * 2), u @ vt)).value)
    assert values == sorted(values, reverse=True)
    assert values[0] > 0.99
    assert values[-1] < 0.4


@pytest.mark.parametrize("edits", [("R1",), ("R1", "R3", "N1", "A1", "A3", "M1", "M2")])
def test_a_permuted_residual_stream_is_found(edits):
    models = disguised(edits, hidden_size=64, vocab_size=256)
    outcome = conclude(METHOD, [], with_frame(models, procrustes(models.a, models.b), n_tokens=256))
    assert outcome.value == pytest.approx(1.0, abs=1e-6)
    assert outcome.tests[0].p_value < 1e-6


def test_a_rotated_residual_stream_is_at_the_null_and_the_warning_says_so():
    models = disguised(("R2",), hidden_size=64, vocab_size=256)
    outcome = conclude(METHOD, [], with_frame(models, procrustes(models.a, models.b), n_tokens=256))
    assert outcome.value == pytest.approx(signed_permutation_share(rotation(64)), abs=0.03)
    assert outcome.tests[0].p_value == outcome.tests[1].p_value == 1.0
    assert "a high p is no evidence of independence" in outcome.warnings[1]


def test_through_the_real_frame():
    """Child, permuted child, rotated child and stranger, with tokens as the only thing shared."""
    parent = pair_cases.weights()
    found = {}
    for name, edits in (("plain", ()), ("permuted", ("R1", "V1")), ("rotated", ("R2",))):
        b, tokens = pair_cases.disguised(pair_cases.child(parent, 0.05), *edits)
        both = Pair(pair_cases.model(parent), b, (pair_cases.TOKENS, tokens))
        found[name] = compare_pair(both, [METHOD]).outcomes[METHOD.canonical_name]
    assert min(found["plain"].value, found["permuted"].value) > 0.97
    assert found["permuted"].tests[0].p_value < 1e-6
    assert found["rotated"].value < 0.4
    stranger = Pair(pair_cases.model(parent), pair_cases.model(pair_cases.weights(1)), (pair_cases.TOKENS,) * 2)
    assert "does not come from tokens" in compare_pair(stranger, [METHOD]).outcomes[METHOD.canonical_name]


def test_refusals():
    METHOD.check(with_frame(pair(), np.eye(32)))
    with pytest.raises(NotComparable, match="residual widths 32 and 64 differ"):
        METHOD.check(with_frame(pair(None, {"hidden_size": 64}), np.eye(32)))
    with pytest.raises(NotComparable, match="equal strings: made for this test"):
        METHOD.check(with_frame(pair(), np.eye(32), rung=2))
    with pytest.raises(NotComparable, match="31 shared tokens do not determine a rotation of 32 dimensions"):
        METHOD.check(with_frame(pair(), np.eye(32), n_tokens=31))
    with pytest.raises(NotComparable, match="not finite"):
        conclude(METHOD, [], with_frame(pair(), np.full((32, 32), np.nan)))
    assert METHOD.observe(None) == {}
