"""Temperature, conformal p-values, pooling and thresholds on numbers whose law is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whorl.attribution.conformal import Rule, p_values, pooled_p_value, verdict
from whorl.attribution.evaluation import accuracy_over_prompts, binomial_interval, cut_words
from whorl.attribution.pooling import distinct, draw_pools, fit_gamma, independent, pool, pools
from whorl.attribution.strangers import accepted, auroc, false_acceptance, interval, threshold
from whorl.attribution.temperature import fit_temperature, log_probabilities, quality
from whorl.attribution.typicality import typical

RUNS = 500
BAND = (0.032, 0.070)  # binomial 95 % band of a rate of 0.05 in 500 runs


def drawn_labels(log_p, rng):
    """Labels that follow the probabilities exactly."""
    return (np.exp(log_p).cumsum(axis=1) < rng.random(len(log_p))[:, None]).sum(axis=1)


@pytest.mark.parametrize("known", [0.5, 1.0, 3.0])
def test_temperature_finds_the_one_that_labels_were_drawn_with(known):
    rng = np.random.default_rng(1)
    margins = rng.normal(0, 2, (20_000, 4))
    labels = drawn_labels(log_probabilities(margins, known), rng)
    found = fit_temperature(margins, labels)
    assert found == pytest.approx(known, rel=0.05)
    right = quality(log_probabilities(margins, found), labels)
    wrong = quality(log_probabilities(margins, 4 * known), labels)
    assert right.calibration_error < 0.015 < wrong.calibration_error
    assert right.log_loss < wrong.log_loss
    assert right.brier < wrong.brier


def test_quality_of_certain_and_of_even_answers():
    labels = np.array([0, 1, 0, 1])
    certain = quality(np.log(np.array([[1, 1e-300]] * 4)), labels)
    assert (certain.accuracy, certain.calibration_error, certain.brier) == (0.5, 0.5, 1.0)
    even = quality(np.log(np.full((4, 2), 0.5)), labels)
    assert even.log_loss == pytest.approx(np.log(2))
    assert (even.brier, len(even.bins), even.bins[0].n) == (0.5, 1, 4)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30), st.floats(-5, 5))
def test_p_value_is_the_count_it_says(own, score):
    own = np.sort(np.array(own))
    expected = (1 + sum(s >= score for s in own)) / (len(own) + 1)
    assert p_values(np.array([[score]]), [own])[0, 0] == expected
    assert pooled_p_value(np.array([score]), own, np.random.default_rng(0)) == expected


@pytest.mark.parametrize(("size", "n"), [(1, 19), (4, 19), (16, 40), (64, 30)])
def test_p_values_are_valid_for_texts_of_the_class(size, n):
    rng = np.random.default_rng(size)
    p = [pooled_p_value(x[:size], np.sort(x[size:]), rng, 199) for x in rng.gamma(1, size=(RUNS, size + n))]
    assert BAND[0] <= np.mean(np.array(p) <= 0.05) <= BAND[1]
    assert min(p) > 0


def test_p_values_see_texts_of_another_law():
    rng = np.random.default_rng(0)
    own = np.sort(rng.normal(0, 1, 40))
    p = [pooled_p_value(rng.normal(1, 1, 16), own, rng, 199) for _ in range(60)]
    assert np.mean(np.array(p) <= 0.05) > 0.9


def test_equal_scores_are_no_evidence():
    same = np.full(30, 1.7)
    assert pooled_p_value(same[:8], same, np.random.default_rng(0), 99) == 1.0


RULE = Rule(alpha=0.05, match=0.0, lineage=0.0)


@pytest.mark.parametrize(
    ("p", "score", "rule", "expected"),
    [
        ((0.4, 0.01), 1.0, RULE, ("match", (0,))),
        ((0.4, 0.01), -1.0, RULE, ("undecided", (0,))),
        ((0.4, 0.5), 1.0, RULE, ("undecided", (1, 0))),
        ((0.05, 0.01), 1.0, RULE, ("none of these", ())),
        ((0.4, 0.01), 1.0, Rule(0.05, None, None), ("undecided", (0,))),
    ],
)
def test_verdicts(p, score, rule, expected):
    assert verdict(np.array(p), np.array([score, score]), rule) == expected


EVEN = np.array([0.5, 0.5])


def test_pooling_follows_the_formula():
    log_p = np.log(np.array([[0.8, 0.2], [0.6, 0.4]]))
    prior, train = np.array([0.3, 0.7]), np.array([0.25, 0.75])
    scores = np.log(prior) + 0.5 * (log_p - np.log(train)).sum(axis=0)
    expected = np.exp(scores) / np.exp(scores).sum()
    assert np.exp(pool(log_p, prior, train, 0.5)) == pytest.approx(expected)
    assert np.exp(pool(log_p[:1], EVEN, EVEN, 0.1)) == pytest.approx([0.8, 0.2])


def test_a_text_counts_once():
    assert distinct(["a", "b", "a", "c", "b"]).tolist() == [0, 1, 3]


def test_a_prompt_group_counts_once_and_unknown_prompts_each():
    assert independent(["p", None, "q", "p", None, 0]).tolist() == [0, 1, 2, 4, 5]


def test_stock_answers_do_not_make_a_models_own_texts_look_foreign():
    """30 % of a model's answers are one of four easy ones: calibration and source must both hold them as often as it says them."""
    rng, m, n = np.random.default_rng(4), 32, 100
    rejected = []
    for _ in range(300):
        scores = rng.normal(1, 0.5, m + n)
        texts = np.arange(m + n)
        stock = rng.random(m + n) < 0.3
        texts[stock] = -rng.integers(1, 5, stock.sum())
        scores[stock] = 0.01 * texts[stock]
        counted = (independent(range(m)), distinct(texts[:m].tolist()))
        rejected.append([pooled_p_value(scores[rows], np.sort(scores[m:]), rng, 199) <= 0.05 for rows in counted])
    own, repeats_left_out = np.mean(rejected, axis=0)
    assert own <= 0.08
    assert repeats_left_out > 0.12


def shared_topic(rng, n_groups, size, strength):
    """Margins of texts that share a disturbance with the others of their class: what makes a plain product overconfident."""
    labels = np.repeat([0, 1], n_groups * size)
    signal = np.where(labels == 0, 0.4, -0.4) + strength * np.repeat(rng.normal(size=2), n_groups * size)
    margin = signal + rng.normal(size=len(labels))
    return log_probabilities(np.stack([margin, -margin], axis=1), 1.0), labels


def test_gamma_is_at_most_one_and_small_for_texts_that_share_their_errors():
    rng = np.random.default_rng(3)
    independent, labels = shared_topic(rng, 40, 4, 0.0)
    overconfident = independent * 3.0  # each text says three times as much as it knows
    overconfident -= np.log(np.exp(overconfident).sum(axis=1, keepdims=True))
    plain, less = (fit_gamma(x, labels, np.random.default_rng(0)) for x in (independent, overconfident))
    assert 0 < less < plain <= 1
    assert less < 0.6
    members, classes = draw_pools(labels, 16, np.random.default_rng(1))
    losses = [
        -pools(overconfident[members], EVEN, EVEN, g)[np.arange(len(classes)), classes].mean() for g in (less, 1.0)
    ]
    assert losses[0] < losses[1]


def test_pools_hold_different_texts_of_one_class():
    labels = np.repeat([0, 1, 2], [40, 40, 7])
    members, classes = draw_pools(labels, 8, np.random.default_rng(0), 20)
    assert set(classes) == {0, 1}
    assert all(len(set(row)) == 8 for row in members.tolist())
    assert (labels[members] == classes[:, None]).all()
    assert len(draw_pools(labels, 64, np.random.default_rng(0))[1]) == 0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(-4, 4), min_size=1, max_size=12), min_size=1, max_size=5), st.floats(0, 0.5))
def test_threshold_keeps_strangers_at_the_rate_and_no_lower_one_would(samples, rate):
    samples = [np.array(x, float) for x in samples]
    least = threshold(samples, rate)
    mean = lambda t: np.mean([accepted(x, t) for x in samples])  # noqa: E731
    assert mean(least) <= rate + 1e-9
    lower = [v for x in samples for v in x if v < least]
    assert not lower or mean(max(lower)) > rate - 1e-9


def test_no_stranger_no_threshold():
    assert threshold([], 0.05) is None
    assert accepted(np.array([1.0, 2.0]), None) == 0.0


def test_auroc_and_false_acceptance():
    strangers, members = np.arange(10.0), np.arange(10.0) + 5
    assert auroc(members, strangers) == np.mean([(m > s) + 0.5 * (m == s) for m in members for s in strangers])
    assert auroc(members, members) == 0.5
    assert false_acceptance(members, strangers) == 0.5
    assert false_acceptance(members, strangers - 100) == 0.0


def test_interval_over_models_needs_three_that_differ():
    assert interval([0.1, 0.3]) is None
    assert interval([0.0, 0.0, 0.0]) is None
    low, high = interval([0.0, 0.1, 0.2])
    assert low == 0.0
    assert high == pytest.approx(0.1 + 4.303 * 0.1 / np.sqrt(3), rel=1e-3)


def test_typical_is_measured_by_the_class_itself():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 500)
    margins = np.stack([np.where(labels == 0, -1, -5) + rng.normal(0, 0.1, 1000), rng.normal(3, 2, 1000)], axis=1)
    usual = typical(margins, labels)
    assert usual.mean == pytest.approx([-1, 3], abs=0.2)
    assert usual.acceptance(np.array([[[-1.0, -50.0]], [[-3.0, -50.0]]])) == pytest.approx([0, -20], abs=1.5)


def test_accuracy_interval_is_over_prompts_not_texts():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 50)
    right = np.repeat(rng.random(20) < 0.6, 50)  # all answers to a prompt share their fate
    low, high = accuracy_over_prompts(right, groups, 0)["interval"]
    single = accuracy_over_prompts(right, np.arange(1000), 0)["interval"]
    assert high - low > 4 * (single[1] - single[0])
    assert accuracy_over_prompts(np.ones(100, bool), np.repeat(np.arange(20), 5), 0)["interval"] == [
        0.025 ** (1 / 20),
        1.0,
    ]


def test_binomial_interval_has_its_known_ends():
    assert binomial_interval(0.9, 20) == pytest.approx((0.683, 0.988), abs=1e-3)
    assert binomial_interval(1.0, 29)[0] == pytest.approx(0.025 ** (1 / 29))


def test_cutting_words_keeps_white_space():
    assert cut_words(" one\n two  three ", 2) == " one\n two"
    assert cut_words("one", 5) == "one"
