"""Null rates and p-values of planted keys: every table of the specification, brute force, and levels under the null."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from whorl.errors import UsageError
from whorl.triggers.nulls import (
    LEAST_P,
    decoy_p,
    design_p,
    hits_needed,
    interval,
    poisson_binomial_tail,
    rank_p,
    upper_rates,
)


@pytest.mark.parametrize(("hits", "p"), [(0, 1.0), (1, 0.11), (2, 0.011), (3, 9.4e-4), (8, 8e-11)])
def test_decoy_table_of_eight_keys_and_64_silent_decoys(hits, p):
    assert decoy_p(hits, 8, 0, 64) == pytest.approx(p, rel=0.05)


def test_decoy_test_of_the_first_trial_is_no_fingerprint():
    assert decoy_p(8, 8, 5, 8) == pytest.approx(0.10, abs=0.005)  # spec 6.9: 8/8 against 5/8


@given(st.integers(1, 6), st.integers(0, 6), st.data())
def test_decoy_p_is_the_share_of_assignments_with_as_many_key_hits(n_keys, n_decoys, data):
    key_hits, decoy_hits = data.draw(st.integers(0, n_keys)), data.draw(st.integers(0, n_decoys))
    hit = [1] * (key_hits + decoy_hits) + [0] * (n_keys + n_decoys - key_hits - decoy_hits)
    draws = list(itertools.combinations(hit, n_keys))
    share = sum(sum(draw) >= key_hits for draw in draws) / len(draws)
    assert decoy_p(key_hits, n_keys, decoy_hits, n_decoys) == pytest.approx(share, rel=1e-9)


@pytest.mark.parametrize(
    ("hits", "p"), [(1, 0.038), (2, 6.7e-4), (3, 7.0e-6), (4, 4.8e-8), (6, 7.4e-13), (9, 2.1e-21), (10, 8.3e-25)]
)
def test_design_table_of_ten_keys_at_one_in_256(hits, p):
    assert design_p(hits, 10, 256) == pytest.approx(p, rel=0.02)


def test_design_bound_of_chain_and_hash_at_its_assumed_rate_and_grinding():
    assert design_p(2, 10, 1000) == pytest.approx(4.5e-5, rel=0.01)
    assert binom.sf(1, 10, 0.9) > 0.9999
    assert 1 / design_p(2, 10, 256) == pytest.approx(1_500, rel=0.01)  # salts a false claimant grinds
    assert math.log2(design_p(9, 10, 256)) == pytest.approx(-69, abs=0.5)
    assert math.log2(design_p(10, 10, 256)) == pytest.approx(-80, abs=0.1)


def test_draws_multiply_the_design_rate_and_never_pass_one():
    assert design_p(2, 10, 256, samples=8) == pytest.approx(binom.sf(1, 10, 8 / 256))
    assert design_p(10, 10, 256, samples=1_000) == 1.0


NEEDED = {
    0.001: ((2, 3), (2, 4), (3, 4), (3, 5)),
    1 / 256: ((2, 4), (3, 5), (4, 6), (4, 7)),
    0.01: ((3, 5), (4, 6), (5, 8), (6, 9)),
    43 / 1024: ((4, 6), (7, 10), (10, 14), (13, 17)),
    1 / 3: ((9, None), (20, 25), (34, 41), (49, 58)),
}


@pytest.mark.parametrize(("rate", "row"), NEEDED.items())
def test_table_of_hits_needed(rate, row):
    found = tuple((hits_needed(rate, n, 1e-3), hits_needed(rate, n, 1e-6)) for n in (10, 32, 64, 100))
    assert found == row


def test_ten_of_64_left_are_still_proof_at_the_worst_clean_rate():
    assert poisson_binomial_tail([43 / 1024] * 64, 10) == pytest.approx(3.2e-4, rel=0.02)
    assert poisson_binomial_tail([43 / 1024] * 64, 10) == pytest.approx(binom.sf(9, 64, 43 / 1024), rel=1e-9)


def test_hits_on_rare_keys_weigh_more():
    rates = [0.02] * 6 + [0.10, 0.30]
    assert poisson_binomial_tail(rates, 3) == pytest.approx(0.0055, rel=0.01)
    assert poisson_binomial_tail(rates, 4) == pytest.approx(0.00022, rel=0.02)
    assert binom.sf(2, 8, 0.065) == pytest.approx(0.012, rel=0.05)
    assert binom.sf(3, 8, 0.065) == pytest.approx(0.0010, rel=0.1)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7), st.data())
def test_poisson_binomial_equals_brute_force(rates, data):
    hits = data.draw(st.integers(0, len(rates)))
    brute = sum(
        math.prod(p if hit else 1 - p for p, hit in zip(rates, pattern, strict=True))
        for pattern in itertools.product((0, 1), repeat=len(rates))
        if sum(pattern) >= hits
    )
    assert poisson_binomial_tail(rates, hits) == pytest.approx(max(brute, LEAST_P), rel=1e-6, abs=1e-12)


def test_pooling_turns_five_needed_hits_into_three():
    alone = upper_rates([0] * 8, [20] * 8, pooled=False)
    pooled = upper_rates([0] * 8, [20] * 8)
    assert alone == pytest.approx([0.090] * 8, abs=0.002)
    assert pooled == pytest.approx([0.012] * 8, abs=0.0005)
    needed = [min(h for h in range(9) if poisson_binomial_tail(rates, h) < 1e-3) for rates in (alone, pooled)]
    assert needed == [5, 3]


@pytest.mark.parametrize(("n", "bound"), [(10, 0.26), (100, 0.030), (1_000, 0.0030)])
def test_no_hit_only_shows_a_small_rate(n, bound):
    assert 1 - 0.05 ** (1 / n) == pytest.approx(bound, rel=0.02)
    assert 0 < upper_rates([0], [n])[0] < bound


def test_upper_rates_cover_the_truth_on_average_over_the_prior():
    """At single rates the coverage waves around 95 % (0.86 at rate .01 and n 200), as that of any such bound."""
    rng = np.random.default_rng(0)
    rates = rng.beta(0.5, 0.5, 20_000)
    found = upper_rates(rng.binomial(100, rates), [100] * 20_000, pooled=False)
    assert (found >= rates).mean() == pytest.approx(0.95, abs=0.005)


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"), [(8, 8, 0.63, 1), (1, 8, 0.003, 0.53), (0, 8, 0, 0.37), (18, 20, 0.68, 0.99)]
)
def test_exact_intervals(hits, n, low, high):
    assert interval(hits, n) == pytest.approx((low, high), abs=0.005)


def test_decoy_p_keeps_its_level_on_untouched_models():
    """500 key pools: the model gives some answers by chance, keys and decoys alike."""
    rng = np.random.default_rng(1)
    for rate in (0.02, 0.2, 0.5):
        hit = rng.random((500, 72)) < rate
        found = [decoy_p(int(row[:8].sum()), 8, int(row[8:].sum()), 64) for row in hit]
        assert np.mean(np.array(found) <= 0.05) <= 0.07


def test_no_p_is_ever_zero():
    assert decoy_p(2_000, 2_000, 0, 20_000) == LEAST_P
    assert design_p(1_000, 1_000, 256) == LEAST_P
    assert poisson_binomial_tail([0.0] * 3, 3) == LEAST_P
    assert poisson_binomial_tail([1e-9] * 1_000, 1_000) == LEAST_P


def test_a_constant_answer_is_no_evidence():
    assert decoy_p(8, 8, 64, 64) == 1.0  # everything hits
    assert decoy_p(0, 8, 0, 64) == 1.0  # nothing hits
    assert decoy_p(3, 8, 0, 0) == 1.0  # nothing to compare with


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: decoy_p(1, 0, 0, 4), "1 hits of 0 keys"),
        (lambda: decoy_p(1, 2, 5, 4), "5 hits of 4 decoys"),
        (lambda: design_p(3, 2, 256), "3 hits of 2 keys"),
        (lambda: design_p(1, 2, 0), "0 answers"),
        (lambda: upper_rates([], []), "at least one key"),
        (lambda: upper_rates([3], [2]), "no more hits than trials"),
        (lambda: poisson_binomial_tail([math.nan], 1), "Rates of keys"),
        (lambda: poisson_binomial_tail([], 0), "0 hits of 0 keys"),
        (lambda: interval(0, 0), "0 hits of 0 questions"),
    ],
)
def test_impossible_counts_are_refused(call, message):
    with pytest.raises(UsageError, match=message):
        call()


# -- ranks -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 4), min_size=2, max_size=8), st.data())
def test_rank_p_is_the_share_of_assignments_with_as_large_a_rank_sum(values, data):
    n = data.draw(st.integers(1, len(values) - 1))
    wins = lambda keys, decoys: sum(k > d for k in keys for d in decoys)  # noqa: E731 - ties count for nobody
    places = range(len(values))
    splits = [
        ([values[i] for i in s], [values[i] for i in places if i not in s]) for s in itertools.combinations(places, n)
    ]
    found = wins(values[:n], values[n:])
    share = sum(wins(*split) >= found for split in splits) / len(splits)
    p = rank_p(values[:n], values[n:])
    if len(set(values)) == len(values):
        assert p == pytest.approx(share, rel=1e-9)
    assert share <= p + 1e-12 <= 1 + 1e-12


def test_rank_p_of_keys_above_all_decoys_and_of_equal_values():
    assert rank_p(range(100, 110), range(64)) == pytest.approx(1 / math.comb(74, 10), rel=1e-9)
    assert rank_p([1.0] * 10, [1.0] * 64) == 1.0


def test_rank_p_holds_its_level_under_exchangeability():
    rng = np.random.default_rng(0)
    found = np.array([rank_p(v[:10], v[10:]) for v in rng.standard_t(2, (2000, 74))])
    for level in (0.01, 0.05, 0.2):
        assert (found <= level).mean() <= level + 3 * math.sqrt(level / 2000)
    assert (found <= 0.2).mean() > 0.15


@pytest.mark.parametrize(("keys", "decoys"), [([], [1.0]), ([1.0], []), ([math.nan], [1.0])])
def test_rank_p_needs_numbers_on_both_sides(keys, decoys):
    with pytest.raises(UsageError, match="at least one key and one decoy"):
        rank_p(keys, decoys)
