"""n-gram features against scikit-learn's vectorisers, and their written form."""

import io
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

from whorl.errors import UsageError
from whorl.lab.tokenizer import train_tokenizer
from whorl.outputs.features import (
    ATTRIBUTION,
    CHAR_TFIDF,
    SUBWORD_COUNTS,
    WORD_TFIDF,
    FeatureSpace,
    Ngrams,
    count,
    fit_space,
    weighted,
)

TEXTS = [
    "The cat sat on the mat, and the cat slept.",
    "Die Katze saß auf der Matte – 猫が寝ている。",
    "def f(x):\n    return x ** 2  # no words here",
    "The mat sat on the cat!",
    "",
    "a",
]
text_lists = st.lists(st.text(max_size=30), min_size=1, max_size=8)


def grams(low, high):
    """The analyzer of scikit-learn without its changes to white space."""
    return lambda text: [text[i : i + n] for n in range(low, high + 1) for i in range(len(text) - n + 1)]


def words(low, high):
    def of(text):
        found = re.findall(r"\w+|[^\w\s]", text)
        return [" ".join(found[i : i + n]) for n in range(low, high + 1) for i in range(len(found) - n + 1)]

    return of


def columns_of(space, names):
    place = {name: i for i, name in enumerate(space.names())}
    return [place[name] for name in names]


@pytest.mark.parametrize(("setting", "analyzer"), [(CHAR_TFIDF, grams(1, 4)), (WORD_TFIDF, words(1, 2))])
@pytest.mark.parametrize("min_df", [1, 2])
def test_tfidf_is_that_of_scikit_learn(setting, analyzer, min_df):
    setting = (Ngrams(setting[0].analyzer, setting[0].low, setting[0].high, min_df=min_df),)
    theirs = TfidfVectorizer(analyzer=analyzer, sublinear_tf=True, min_df=min_df).fit(TEXTS)
    ours = fit_space(setting, TEXTS)
    new = [*TEXTS, "A cat 寝 on zzz", "unseen: qqq", "cat"]
    names = theirs.get_feature_names_out()
    assert ours.n_features == len(names)
    found = ours.transform(new)
    assert found.dtype == np.float32
    assert found.has_sorted_indices
    np.testing.assert_allclose(found.toarray()[:, columns_of(ours, names)], theirs.transform(new).toarray(), atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(text_lists, text_lists, st.integers(1, 3))
def test_counts_are_those_of_scikit_learn(train, new, high):
    ours = fit_space([Ngrams("char", 1, high, "log-count")], train)
    if not any(train):
        assert ours.n_features == 0
        assert ours.transform(new).shape == (len(new), 0)
        return
    theirs = CountVectorizer(analyzer=grams(1, high)).fit(train)
    names = theirs.get_feature_names_out()
    found = ours.transform(new).toarray()[:, columns_of(ours, names)]
    np.testing.assert_allclose(found, np.log1p(theirs.transform(new).toarray()), atol=1e-6)


@pytest.mark.parametrize("setting", [CHAR_TFIDF, WORD_TFIDF, ATTRIBUTION, (Ngrams("char", 2, 3, max_features=20),)])
def test_counting_once_equals_fitting_on_the_training_part(setting):
    train, test = np.array([0, 2, 3]), [1, 4, 5]
    space = fit_space(setting, [TEXTS[i] for i in train])
    counts = count(setting, TEXTS)
    names = [name for one in counts for name in one.vocabulary.names(one.settings.analyzer)]
    once = weighted(counts, train).toarray()
    kept = np.flatnonzero(once[train].any(axis=0))
    assert [names[i] for i in kept] == list(space.names())
    assert (once.any(axis=0) <= np.isin(np.arange(len(names)), kept)).all()
    np.testing.assert_allclose(once[test][:, kept], space.transform([TEXTS[i] for i in test]).toarray(), atol=1e-7)


def test_subwords_are_the_tokens():
    tokenizer = train_tokenizer(["the cat sat on the mat " * 20], 280)
    space = fit_space(SUBWORD_COUNTS, TEXTS, tokenizer)
    found = space.transform(TEXTS).toarray()
    for text, row in zip(TEXTS, found, strict=True):
        tokens = tokenizer.encode(text).tokens
        assert np.expm1(row).sum() == pytest.approx(len(tokens), rel=1e-5)
        for token in set(tokens):
            assert np.expm1(row[space.names().index(token)]) == pytest.approx(tokens.count(token), rel=1e-5)


def test_subwords_need_a_tokenizer():
    with pytest.raises(UsageError, match="need the tokenizer"):
        fit_space(SUBWORD_COUNTS, TEXTS)


def test_chunks_do_not_show(monkeypatch):
    whole = [count(setting, TEXTS * 3) for setting in (CHAR_TFIDF, WORD_TFIDF)]
    space = fit_space(ATTRIBUTION, TEXTS[:3])
    rows = space.transform(TEXTS)
    monkeypatch.setattr("whorl.outputs.features.UNITS_AT_ONCE", 20)
    for before, setting in zip(whole, (CHAR_TFIDF, WORD_TFIDF), strict=True):
        (one,), (other,) = before, count(setting, TEXTS * 3)
        assert one.vocabulary.units == other.vocabulary.units
        np.testing.assert_array_equal(one.vocabulary.codes, other.vocabulary.codes)
        assert (one.table != other.table).nnz == 0
        assert other.table.has_sorted_indices
    assert (space.transform(TEXTS) != rows).nnz == 0
    assert space.transform([]).shape == (0, space.n_features)


def test_most_frequent_features_are_kept():
    space = fit_space([Ngrams("word", 1, 1, max_features=2)], ["b b b c c a", "c c a"])
    assert space.names() == ("b", "c")


def test_case_and_punctuation_are_style():
    names = fit_space(WORD_TFIDF, ["Yes, yes."]).names()
    assert names == (",", ".", "Yes", "yes", ", yes", "Yes ,", "yes .")


def test_too_long_n_grams_are_refused():
    with pytest.raises(UsageError, match="too many to tell apart"):
        fit_space([Ngrams("char", 1, 12)], ["".join(map(chr, range(33, 120)))])


@pytest.mark.parametrize(("low", "high"), [(0, 2), (3, 2)])
def test_lengths_are_checked(low, high):
    with pytest.raises(UsageError, match="1 <= low <= high"):
        Ngrams("char", low, high)


@settings(max_examples=40, deadline=None)
@given(text_lists, text_lists)
def test_arrays_round_trip(train, new):
    space = fit_space(ATTRIBUTION, train)
    file = io.BytesIO()
    np.savez(file, **space.to_arrays())
    file.seek(0)
    again = FeatureSpace.from_arrays(dict(np.load(file, allow_pickle=False)))
    assert again.names() == space.names()
    assert (again.transform(new) != space.transform(new)).nnz == 0


def test_arrays_hold_the_tokenizer_and_lone_surrogates():
    tokenizer = train_tokenizer(["the cat sat on the mat " * 20], 280)
    texts = ["the cat \ud800", "the mat"]
    space = fit_space((*SUBWORD_COUNTS, *CHAR_TFIDF), texts, tokenizer)
    again = FeatureSpace.from_arrays(space.to_arrays())
    assert again.names() == space.names()
    assert "\ud800" in again.names()
    assert (again.transform(texts) != space.transform(texts)).nnz == 0


@pytest.mark.parametrize(
    "spoil",
    [
        lambda arrays: arrays.pop("0.idf"),
        lambda arrays: arrays.update({"0.idf": arrays["0.idf"][:-1]}),
        lambda arrays: arrays.update({"0.idf": arrays["0.idf"] * np.float32("nan")}),
        lambda arrays: arrays.update({"0.codes": arrays["0.codes"][::-1]}),
        lambda arrays: arrays.update({"0.codes": arrays["0.codes"] + 10**9}),
        lambda arrays: arrays.update({"0.offsets": arrays["0.offsets"] + 1}),
        lambda arrays: arrays.update({"settings": np.frombuffer(b"{", np.uint8)}),
    ],
)
def test_spoilt_arrays_are_refused(spoil):
    arrays = fit_space(CHAR_TFIDF, TEXTS).to_arrays()
    spoil(arrays)
    with pytest.raises(UsageError, match="no feature space"):
        FeatureSpace.from_arrays(arrays)
