"""Kernels, MMD, classifier and permutation p-values of the identity test, against their plain definitions."""

import itertools
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from identity_cases import Speaker, record
from whorl.errors import NotComparable, UsageError
from whorl.identity.classifier import Classifier, _fit_matrix, _folds, _products, ngram_features
from whorl.identity.draws import PromptDraws
from whorl.identity.first_word import FirstWord, first_word
from whorl.identity.kernel import Characters, agreements, code_points, hamming_kernel
from whorl.identity.length import Length
from whorl.identity.mmd import centred, squared_mmd
from whorl.identity.permutation import p_value, permute, relabellings

TEXTS = st.lists(st.text("ab c\0\U0001f600", max_size=12), min_size=2, max_size=7)


def prompt_draws(texts, n_reference, prompt=0):
    return PromptDraws(f"{prompt}", f"g{prompt}", tuple(record(t, prompt, i) for i, t in enumerate(texts)), n_reference)


def drawn(speaker, other, seed, n=5, m=5, n_words=6, m_words=6):
    """Two speakers' draws for every prompt."""
    rng = np.random.default_rng(seed)
    return [
        prompt_draws(
            [speaker.text(rng, j, n_words) for _ in range(n)] + [other.text(rng, j, m_words) for _ in range(m)], n, j
        )
        for j in range(len(speaker.words))
    ]


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.integers(1, 14), st.sampled_from([1, 40, 1 << 19]))
def test_hamming_kernel_equals_its_definition_in_blocks_of_any_size(texts, limit, block_bytes):
    cut = [text[:limit] for text in texts]
    n = len(texts)
    longest = max(map(len, cut))
    share = np.zeros(longest)
    for place in range(longest):
        pairs = [(x, y) for x, y in itertools.combinations(cut, 2) if min(len(x), len(y)) > place]
        share[place] = np.mean([x[place] == y[place] for x, y in pairs]) if pairs else 0.0
    scale = np.mean([len(text) for text in cut]) or 1.0
    expected = [[sum((x[i] == y[i]) - share[i] for i in range(min(len(x), len(y)))) / scale for y in cut] for x in cut]
    found = hamming_kernel(texts, limit)
    assert (agreements(*code_points(cut), block_bytes) == agreements(*code_points(cut))).all()
    off = ~np.eye(n, dtype=bool)
    np.testing.assert_allclose(found[off], np.array(expected)[off], atol=1e-12)


def test_agreements_of_more_than_255_kinds_of_characters_and_places():
    texts = ["".join(chr(1000 + (i * k) % 400) for i in range(600)) for k in (1, 1, 3)]
    found = agreements(*code_points(texts))
    assert found.tolist()[0] == [600, 600, sum(a == b for a, b in zip(texts[0], texts[2], strict=True))]


def test_kernel_refuses_what_does_not_fit_the_memory():
    with pytest.raises(UsageError, match=r"3 draws of one prompt need .* use fewer draws a prompt and more prompts"):
        hamming_kernel(["a", "b", "c"], memory_bytes=1000)


def test_padding_is_neutral_and_texts_are_cut():
    assert np.allclose(hamming_kernel(["ab", "ab", "abxyz"], 2), 0.0)  # equal after the cut: nothing varies
    assert hamming_kernel(["", ""]).tolist() == [[0.0, 0.0], [0.0, 0.0]]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 5), st.integers(2, 5), st.integers(0, 2**31))
def test_squared_mmd_equals_its_definition(n, m, seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n + m, 3))
    matrix = values @ values.T + 5.0
    z = np.zeros(n + m, dtype=np.int8)
    z[rng.permutation(n + m)[:n]] = 1
    x, y = matrix[np.ix_(z == 1, z == 1)], matrix[np.ix_(z == 0, z == 0)]
    expected = (x.sum() - np.trace(x)) / (n * (n - 1)) + (y.sum() - np.trace(y)) / (m * (m - 1))
    expected -= 2 * matrix[np.ix_(z == 1, z == 0)].mean()
    assert squared_mmd(centred(matrix), z[None, :], n)[0] == pytest.approx(expected)


def test_large_and_small_kernels_agree():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(300, 20))
    matrix = centred(values @ values.T)
    labels = relabellings(150, 150, 20, (0,))
    exact = [
        float(
            z @ matrix @ z / (150 * 149) + (1 - z) @ matrix @ (1 - z) / (150 * 149) - 2 * z @ matrix @ (1 - z) / 150**2
        )
        for z in labels.astype(float)
    ]
    np.testing.assert_allclose(squared_mmd(matrix, labels, 150), exact, atol=1e-5 * np.abs(matrix).max())


def test_relabellings_are_uniform_and_keep_the_observed_one_first():
    labels = relabellings(2, 2, 12_000, (3,))
    assert labels[0].tolist() == [1, 1, 0, 0]
    assert (labels.sum(axis=1) == 2).all()
    _, counts = np.unique(labels[1:], axis=0, return_counts=True)
    assert len(counts) == 6
    assert np.abs(counts - 2000).max() < 5 * np.sqrt(2000)


@pytest.mark.parametrize(
    ("text", "word"),
    [("  The cat", "The"), ("", ""), ("!?", "!"), ("\n\n", ""), ("internationally", "internat"), ("das ist", "das")],
)
def test_first_word(text, word):
    assert first_word(text) == word


def test_p_value_counts_itself_and_ties_and_refuses_what_is_not_finite():
    assert p_value(np.array([3.0, 1.0, 2.0, 2.5])) == 0.25
    assert p_value(np.array([3.0, 3.0, 2.0, 3.0 - 1e-9])) == 0.75
    with pytest.raises(NotComparable, match="not a finite number"):
        p_value(np.array([np.nan, 1.0]))


def test_classifier_is_trained_again_for_every_relabelling():
    speaker, other = Speaker(1, 6), Speaker(2, 6)
    prompts = drawn(speaker, other, 0, 4, 3)
    labels = [relabellings(4, 3, 3, (5, j)) for j in range(6)]
    found = Classifier().accuracies(prompts, labels)
    of = np.repeat(np.arange(6), 7)
    products = _products([t for p in prompts for t in p.equal_spans()], of)
    folds = _folds(prompts)[of]
    for row in range(4):
        z = np.concatenate([label[row] for label in labels]).astype(float)
        y = z - 4 / 7
        for j in range(6):
            test, train = np.flatnonzero(of == j), np.flatnonzero(folds != folds[7 * j])
            alphas = np.linalg.solve(products[np.ix_(train, train)] + np.eye(len(train)), y[train])
            scores = products[np.ix_(test, train)] @ alphas
            right = [(scores[z[test] == 1] > 0).mean(), (scores[z[test] == 0] < 0).mean()]
            assert found[row, j] == pytest.approx(np.mean(right))


def test_classifier_never_trains_on_the_group_it_scores():
    prompts = [
        PromptDraws(f"{j}", f"g{j // 2}", p.records, 4)
        for j, p in enumerate(drawn(Speaker(1, 8), Speaker(2, 8), 0, 4, 4))
    ]
    of = np.repeat(np.arange(8), 8)
    fit = _fit_matrix(_products([t for p in prompts for t in p.texts], of), _folds(prompts)[of])
    groups = of // 2
    assert not fit[groups[:, None] == groups[None, :]].any()
    assert fit.any()
    with pytest.raises(NotComparable, match="one group"):
        _folds(prompts[:2])


def test_ngram_features_see_n_grams_and_nothing_in_an_empty_text():
    assert not ngram_features("").any()
    assert np.linalg.norm(ngram_features("hello")) == pytest.approx(1.0)
    assert (
        ngram_features("abcabc") @ ngram_features("cabcab") > 0.8 > ngram_features("abcabc") @ ngram_features("xyzxyz")
    )


def test_the_main_p_value_under_its_null():
    """statistics.md 12: 500 runs, rejections at .05 within .032-.070."""
    assert 0.032 <= null_rates([Characters()], seed=1)["mmd"] <= 0.070


@pytest.mark.slow
def test_every_p_value_under_its_null():
    """Statistics with many ties may be below."""
    rates = null_rates([Characters(), FirstWord(), Length(), Classifier()], seed=2)
    assert 0.032 <= rates["length"] <= 0.070
    assert 0.032 <= rates["max-t"] <= 0.070
    assert max(rates.values()) <= 0.070


def null_rates(statistics, seed, runs=500):
    """Share of runs with p <= .05 where both sides are one speaker."""
    found = dict.fromkeys((*(s.name for s in statistics), "max-t"), 0)
    for run in range(runs):
        speaker = Speaker(run, 10)
        permuted = permute(drawn(speaker, speaker, (seed, run), 3, 4), statistics, b=99, seed=run)
        assert not permuted.missing
        for name in permuted.names:
            found[name] += permuted.p_value(name) <= 0.05
        found["max-t"] += p_value(permuted.max_t([name for name in permuted.names if name != "length"])) <= 0.05
    return {name: count / runs for name, count in found.items()}


def test_equal_content_of_different_length_fires_the_length_test_only():
    """A server that stops after half the words: the content test keeps its level, whatever the places of agreement."""
    fired = {"length": 0, "mmd": 0, "first-word": 0}
    for run in range(100):
        speaker = Speaker(run, 10, concentration=0.05)  # openings agree much more often than ends
        permuted = permute(
            drawn(speaker, speaker, (2, run), 4, 4, 8, 4), [Characters(), FirstWord(), Length()], 99, run
        )
        for name in fired:
            fired[name] += permuted.p_value(name) <= 0.05
    assert fired["length"] == 100
    assert fired["mmd"] <= 12  # 5 % of 100 is 5; 12 is beyond the 99.5 % point
    assert fired["first-word"] <= 12


def test_a_server_that_cuts_answers_is_found_by_the_length_test_only():
    fired = {"length": 0, "mmd": 0, "classifier": 0, "max-t": 0}
    for run in range(40):
        speaker = Speaker(run, 10)
        prompts = [
            PromptDraws(
                p.prompt_id,
                p.group,
                tuple(replace(r, response=r.response[: 20 if i > 3 else None]) for i, r in enumerate(p.records)),
                4,
            )
            for p in drawn(speaker, speaker, (3, run), 4, 4, 8, 8)
        ]
        permuted = permute(prompts, [Characters(), FirstWord(), Classifier(), Length()], 99, run)
        for name in ("length", "mmd", "classifier"):
            fired[name] += permuted.p_value(name) <= 0.05
        fired["max-t"] += p_value(permuted.max_t([n for n in permuted.names if n != "length"])) <= 0.05
    assert fired["length"] == 40
    assert max(fired["mmd"], fired["classifier"], fired["max-t"]) <= 6  # 5 % of 40 is 2; 6 is beyond the 99 % point


def test_a_stronger_difference_gives_a_larger_statistic_everywhere():
    speaker = Speaker(1, 12)
    other = speaker.styled(1)
    values = []
    for share in (0.0, 0.6, 1.0):
        permuted = permute(
            drawn(speaker, speaker.toward(other, share), 5, 10, 10), [Characters(), FirstWord(), Classifier()], 99
        )
        values.append([permuted.value(name) for name in permuted.names])
    assert (np.diff(np.array(values), axis=0) > 0).all()


def test_constant_answers_have_no_p():
    same = [prompt_draws(["yes"] * 6, 3, j) for j in range(12)]
    permuted = permute(same, [Characters(), FirstWord(), Length(), Classifier()], 99)
    assert permuted.names == ()
    assert permuted.missing["mmd"] == "it does not vary between answers"
    assert permuted.missing["classifier"] == "all answers to each prompt are alike"
    one_odd = [prompt_draws(["yes", "yes", "yes", "no"], 2, j) for j in range(12)]
    assert permute(one_odd, [FirstWord()], 99).missing["first-word"] == "it is the same under every relabelling"


def test_same_seed_same_p_and_inputs_untouched():
    prompts = drawn(Speaker(1, 10), Speaker(1, 10), 3)
    first, again, other = (permute(prompts, [Characters(), Length()], 299, seed) for seed in (0, 0, 1))
    assert first.totals.tobytes() == again.totals.tobytes()
    assert first.totals[:, 0].tolist() == other.totals[:, 0].tolist()
    assert first.totals.tobytes() != other.totals.tobytes()


def test_default_size_takes_well_under_a_second_of_processor_time():
    speaker = Speaker(3, 25)
    prompts = drawn(speaker, speaker, 0, 10, 10, 60, 60)
    start = time.process_time()
    permute(prompts, [Characters()])
    assert time.process_time() - start < 1.5  # about 0.4 s; the rest is for slow machines
