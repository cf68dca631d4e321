"""Error rates of the test of derivation under its own nulls, and golden values of its parts."""

from itertools import pairwise

import numpy as np
import pytest

from whorl.derivation.levels import closest, levels, rank_p
from whorl.derivation.power import controls_needed, more_planted, power
from whorl.derivation.signflip import mcnemar_p, sign_flip_p
from whorl.multiple import holm

N_RUNS = 500
LOW, HIGH = 0.032, 0.070  # binomial 95 % band of 0.05 in 500 runs


def rate(p_values):
    return float(np.mean(np.asarray(p_values) <= 0.05))


def names(clusters):
    return [str(c) for c in clusters]


def test_golden_mcnemar_of_the_specification():
    assert mcnemar_p(31, 12) == pytest.approx(0.0027, abs=5e-5)
    assert mcnemar_p(0, 0) == mcnemar_p(0, 7) == 1.0
    assert mcnemar_p(3, 0) == 0.125


def test_golden_sign_flips():
    ones = np.ones((5, 1))
    assert sign_flip_p(ones, 0 * ones, names(range(5))) == pytest.approx(2**-5)  # .031 with 5 clusters
    assert sign_flip_p(ones, 0 * ones, names(range(5)), delta=1.0) == pytest.approx(1.0)
    assert sign_flip_p(ones, 0 * ones, ["one"] * 5) == pytest.approx(0.5)  # a single cluster
    many = np.ones((60, 1))
    assert sign_flip_p(many, 0 * many, names(range(60)), b=99) == pytest.approx(0.01)  # never 0


def test_all_flips_and_random_flips_agree_with_mcnemar():
    suspect, control = np.zeros((500, 1)), np.zeros((500, 1))
    suspect[:31], control[31:43] = 1.0, 1.0
    p = sign_flip_p(suspect, control, names(range(500)), b=9_999, seed=1)
    assert p[0, 0] == pytest.approx(mcnemar_p(31, 12), abs=0.002)
    few = names(np.minimum(np.arange(500), 12))  # 13 clusters: all flips
    assert sign_flip_p(suspect, control, few)[0, 0] * 2**13 == pytest.approx(
        round(sign_flip_p(suspect, control, few)[0, 0] * 2**13)
    )


def test_refuses_what_is_not_finite():
    with pytest.raises(ValueError, match="finite"):
        sign_flip_p(np.full((12, 1), np.nan), np.zeros((12, 1)), names(range(12)))


def test_p_prompt_under_its_null():
    """B and C agree with A equally often, with correlation inside clusters of prompts."""
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(40), 5)
    p_values = []
    for run in range(N_RUNS):
        ease = rng.beta(2, 2, 40)[clusters]
        lean = rng.normal(0.0, 0.15, (40, 2))[clusters]  # a template suits one model or the other
        agrees = (rng.random((200, 2)) < np.clip(ease[:, None] + lean, 0, 1)).astype(float)
        p_values.append(sign_flip_p(agrees[:, :1], agrees[:, 1:], names(clusters), b=199, seed=run)[0, 0])
    assert LOW <= rate(p_values) <= HIGH


def test_p_prompt_under_its_null_at_the_border_of_delta():
    """B agrees with A exactly delta more often than C: the shifted flips hold for many clusters."""
    rng = np.random.default_rng(1)
    p_values = []
    for run in range(N_RUNS):
        u = rng.random(300)
        suspect, control = (
            (u < 0.4).astype(float),
            (np.where(rng.random(300) < 0.5, u, rng.random(300)) < 0.38).astype(float),
        )
        p_values.append(
            sign_flip_p(suspect[:, None], control[:, None], names(range(300)), delta=0.02, b=199, seed=run)[0, 0]
        )
    assert rate(p_values) <= HIGH


def test_prompts_taken_as_independent_would_break_the_rate():
    """The harness can fail: without clusters the same null is rejected far too often."""
    rng = np.random.default_rng(2)
    p_values = []
    for run in range(200):
        lean = np.repeat(rng.normal(0.0, 0.3, (20, 2)), 10, axis=0)
        agrees = (rng.random((200, 2)) < 0.5 + lean).astype(float)
        p_values.append(sign_flip_p(agrees[:, :1], agrees[:, 1:], names(range(200)), b=199, seed=run)[0, 0])
    assert rate(p_values) > 0.1


def test_p_model_is_uniform_when_suspect_and_controls_are_exchangeable():
    rng = np.random.default_rng(3)
    p_values = []
    for run in range(N_RUNS):
        rates = rng.beta(5, 10, 20)  # models differ in how often they agree with A
        agrees = (rng.random((400, 20)) < rates).astype(float)
        found = levels(agrees[:, :1], agrees[:, 1:], names(range(400)), names(range(19)), delta=0.02, b=19, seed=run)
        p_values.append(found[0].p_model)
    counts = np.bincount(np.round(np.array(p_values) * 20).astype(int), minlength=21)[1:]
    assert LOW <= rate(p_values) <= HIGH
    assert ((counts - 25) ** 2 / 25).sum() < 43.8  # chi-squared, 19 degrees of freedom, .999


def test_p_model_counts_lineages_not_models():
    rng = np.random.default_rng(4)
    suspects, controls = rng.random((50, 1)) + 0.5, rng.random((50, 8))
    apart = levels(suspects, controls, names(range(50)), names(range(8)), delta=0.0, b=19, seed=0)[0]
    kin = levels(suspects, controls, names(range(50)), ["x"] * 7 + ["y"], delta=0.0, b=19, seed=0)[0]
    assert apart.p_model == pytest.approx(1 / 9)
    assert kin.p_model == pytest.approx(1 / 3)
    assert closest(np.array([1.0, 3.0, 2.0]), ["x", "y", "x"]).tolist() == [2.0, 3.0]
    assert rank_p(2.0, np.array([1.0, 2.0, 3.0])) == pytest.approx(0.75)  # a tie counts


def test_more_agreement_gives_smaller_p_at_every_level():
    rng = np.random.default_rng(5)
    base = (rng.random((200, 1)) < 0.3).astype(float)
    controls = (rng.random((200, 19)) < 0.3).astype(float)
    better = np.concatenate([np.where(np.arange(200)[:, None] < k, 1.0, base) for k in (0, 40, 80, 120)], axis=1)
    found = levels(better, controls, names(range(200)), names(range(19)), delta=0.02, b=999, seed=0)
    for low, high in pairwise(found):
        assert high.p_prompt <= low.p_prompt
        assert high.p_model <= low.p_model
        assert high.effect > low.effect
    assert (found[-1].p_prompt, found[-1].p_model) == pytest.approx((0.001, 0.05))
    assert found[-1].stands_out(0.05, 0.05, 0.02)
    assert not found[0].stands_out(0.05, 0.05, 0.02)


def test_a_trifling_difference_has_no_size_however_many_prompts():
    n = 20_000
    suspect, controls = np.zeros((n, 1)), np.zeros((n, 19))
    suspect[: n // 100] = 1.0  # 1 % more agreement than every control, on 200 prompts
    groups = names(np.arange(n) // 10)
    found = levels(suspect, controls, groups, names(range(19)), delta=0.0, b=999, seed=0)[0]
    assert (found.p_prompt, found.p_model) == pytest.approx((0.001, 0.05))
    assert not found.stands_out(0.05, 0.05, 0.02)
    assert levels(suspect, controls, groups, names(range(19)), delta=0.02, b=999, seed=0)[0].p_prompt > 0.9


def test_same_seed_same_p():
    rng = np.random.default_rng(6)
    x, y = rng.random((60, 2)), rng.random((60, 3))
    first, again, other = (sign_flip_p(x, y, names(range(60)), b=199, seed=s) for s in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_power_needs_29_of_29():
    assert power(29, 29).enough
    assert power(29, 29).lower == pytest.approx(0.05 ** (1 / 29))
    assert not power(28, 28).enough
    assert not power(29, 30).enough
    assert power(45, 46).enough
    assert power(0, 5).lower == 0.0
    assert (more_planted(0, 0), more_planted(20, 20), more_planted(29, 30)) == (29, 9, 16)


def test_controls_needed():
    assert (controls_needed(0.05), controls_needed(0.01), controls_needed(0.05 / 3)) == (19, 99, 59)


def test_golden_holm():
    assert holm([0.01, 0.04, 0.03], 3) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.01], 4) == pytest.approx([0.04])
    assert holm([0.6, 0.9], 2) == [1.0, 1.0]
