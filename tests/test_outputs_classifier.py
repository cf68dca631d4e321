"""The linear classifier against scikit-learn's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix, random_array
from sklearn.linear_model import LogisticRegression

from output_cases import sentences
from whorl.errors import NotComparable, NotEnoughEvidence
from whorl.outputs.classifier import choose_c, fit, solve
from whorl.outputs.features import CHAR_TFIDF, WORD_TFIDF, Ngrams, fit_space


def problem(n, f, k, seed, scale=1.0):
    rng = np.random.default_rng(seed)
    x = csr_matrix(scale * random_array((n, f), density=0.2, rng=rng, dtype=np.float64)).astype(np.float32)
    labels = (x @ rng.standard_normal((f, k)) + 0.3 * rng.standard_normal((n, k))).argmax(axis=1)
    labels[:k] = np.arange(k)
    return x, labels


@settings(max_examples=12, deadline=None)
@given(
    st.integers(12, 60), st.integers(3, 120), st.integers(2, 5), st.integers(0, 10**6), st.sampled_from([0.01, 1, 30])
)
def test_multinomial_is_scikit_learns(n, f, k, seed, c):
    x, labels = problem(n, f, k, seed)
    their_c = 2 * c if k == 2 else c  # their two-class fit has one row of weights, w, in place of w/2 and -w/2
    theirs = LogisticRegression(C=their_c, tol=1e-9, max_iter=20_000).fit(x.astype(np.float64), labels)
    ours = fit(x, labels, k, c, tolerance=1e-7)
    np.testing.assert_allclose(ours.log_probabilities(x), theirs.predict_log_proba(x), atol=2e-3)
    if k > 2:
        np.testing.assert_allclose(ours.weights, theirs.coef_, atol=2e-3)
        np.testing.assert_allclose(
            ours.bias - ours.bias.mean(), theirs.intercept_ - theirs.intercept_.mean(), atol=2e-3
        )


@settings(max_examples=6, deadline=None)
@given(
    st.integers(12, 60), st.integers(3, 120), st.integers(3, 5), st.integers(0, 10**6), st.sampled_from([0.01, 1, 30])
)
def test_one_vs_rest_is_k_problems_of_scikit_learn(n, f, k, seed, c):
    x, labels = problem(n, f, k, seed)
    ours = fit(x, labels, k, c, "one-vs-rest", tolerance=1e-7)
    p = []
    for i in range(k):
        theirs = LogisticRegression(C=c, tol=1e-9, max_iter=20_000).fit(x.astype(np.float64), labels == i)
        np.testing.assert_allclose(ours.weights[i], theirs.coef_[0], atol=3e-3)
        np.testing.assert_allclose(ours.bias[i], theirs.intercept_[0], atol=3e-3)
        p.append(theirs.predict_proba(x)[:, 1])
    expected = np.log(np.stack(p, axis=1) / np.sum(p, axis=0)[:, None])
    np.testing.assert_allclose(ours.log_probabilities(x), expected, atol=1e-2)


def real(setting, n=240):
    rng = np.random.default_rng(3)
    texts = sentences(rng, n, n_words=12)
    labels = np.arange(n) % 3
    texts = [
        text + (" however" if label and rng.random() < 0.3 * label else "")
        for text, label in zip(texts, labels, strict=True)
    ]
    return fit_space(setting, texts).transform(texts), labels


@pytest.mark.parametrize("setting", [CHAR_TFIDF, WORD_TFIDF, (Ngrams("word", 1, 2, "log-count"),)])
def test_default_tolerance_is_nearer_to_the_solution_than_theirs(setting):
    x, labels = real(setting)
    rows = x.astype(np.float64)
    exact = LogisticRegression(C=10, tol=1e-9, max_iter=20_000).fit(rows, labels).predict_log_proba(rows)
    theirs = LogisticRegression(C=10, max_iter=20_000).fit(rows, labels).predict_log_proba(rows)
    ours = fit(x, labels, 3, 10)
    assert np.abs(ours.log_probabilities(x) - exact).max() < np.abs(theirs - exact).max()
    assert ours.weights.sum(axis=0) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("kind", ["multinomial", "one-vs-rest"])
def test_a_start_changes_the_way_and_not_the_end(kind):
    x, labels = real(CHAR_TFIDF)
    rows = x.astype(np.float64)
    before = solve(rows, labels, 3, 0.1, kind)
    cold = solve(rows, labels, 3, 1.0, kind, tolerance=1e-6)
    warm = solve(rows, labels, 3, 1.0, kind, tolerance=1e-6, start=before)
    again = solve(rows, labels, 3, 1.0, kind, tolerance=1e-5, start=cold)
    assert again.n_steps == 0
    for found in (warm, again):
        np.testing.assert_allclose(found.linear(rows).weights, cold.linear(rows).weights, atol=1e-4)
        np.testing.assert_allclose(found.linear(rows).bias, cold.linear(rows).bias, atol=1e-4)


def test_scores_of_a_solution_are_those_of_its_weights():
    x, labels = real(WORD_TFIDF)
    rows = x.astype(np.float64)
    found = solve(rows, labels, 3, 1.0)
    linear = found.linear(rows)
    np.testing.assert_allclose(found.scores, rows @ linear.weights.T + linear.bias, atol=1e-5)


def test_log_probabilities_sum_to_one_and_stay_finite():
    x, labels = problem(40, 30, 3, 0, scale=100)
    for kind in ("multinomial", "one-vs-rest"):
        logs = fit(x, labels, 3, 1.0, kind).log_probabilities(x)
        assert logs.dtype == np.float32
        assert np.isfinite(logs).all()
        np.testing.assert_allclose(np.exp(logs).sum(axis=1), 1, atol=1e-4)


def test_rows_without_features_get_the_shares_of_the_classes():
    labels = np.array([0, 0, 0, 1])
    logs = fit(csr_matrix((4, 5), dtype=np.float32), labels, 2, 1.0).log_probabilities(
        csr_matrix((1, 5), dtype=np.float32)
    )
    np.testing.assert_allclose(np.exp(logs[0]), [0.75, 0.25], atol=1e-3)


def test_c_is_large_for_a_clear_signal_and_small_for_none():
    rng = np.random.default_rng(0)
    n = 300
    groups, labels = [f"g{i // 3}" for i in range(n)], np.arange(n) % 3
    clear = [f"{text} {word}" for text, word in zip(sentences(rng, n), ["alpha", "beta", "gamma"] * 100, strict=True)]
    none = sentences(rng, n)
    cs = [choose_c(fit_space(WORD_TFIDF, texts).transform(texts), labels, groups, 3) for texts in (clear, none)]
    assert cs == [10, 0.01]


def test_c_without_validation_groups_is_the_smallest():
    x, labels = real(WORD_TFIDF)
    assert choose_c(x, labels, ["one"] * len(labels), 3, (1.0, 0.1)) == 0.1
    assert choose_c(x, labels, ["one"] * len(labels), 3, (1.0,)) == 1.0


def test_refusals():
    x, labels = real(WORD_TFIDF)
    with pytest.raises(NotEnoughEvidence, match="at least two classes"):
        fit(x, np.zeros(len(labels), int), 3, 1.0)
    x.data[0] = np.nan
    with pytest.raises(NotComparable, match="NaN"):
        fit(x, labels, 3, 1.0)
