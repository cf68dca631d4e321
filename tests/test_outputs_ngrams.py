"""Characteristic n-grams: planted ones are found, chance ones are not shown."""

import numpy as np
import pytest

from output_cases import COMMON, planted, same_source, sentences, table
from whorl.errors import NotEnoughEvidence, UsageError
from whorl.lab.tokenizer import train_tokenizer
from whorl.outputs.classifier import fit
from whorl.outputs.features import ATTRIBUTION, fit_space
from whorl.outputs.ngrams import _log_odds, characteristic, contributions


@pytest.mark.parametrize("model", ["alpha", "beta", "gamma"])
def test_planted_words_come_first(model):
    answers = planted(n_prompts=120)
    found = characteristic(answers, model, n_bootstraps=20)
    assert found[0].text == model
    assert found[0].reappears == 1
    assert found[0].outside == 0
    texts = answers.texts[answers.models.index(model)]
    assert found[0].inside == pytest.approx(1_000 * np.mean([model in text[0].split() for text in texts]))
    assert [ngram.z for ngram in found] == sorted((ngram.z for ngram in found), reverse=True)
    assert all(ngram.log_odds > 0 and ngram.reappears >= 0.8 for ngram in found)
    assert all(other not in ngram.text for other in {"alpha", "beta", "gamma"} - {model} for ngram in found)


def test_characters_and_subwords():
    answers = planted(n_prompts=80)
    by_character = characteristic(answers, "gamma", analyzer="char", n_bootstraps=10)
    assert {"gam", "amma"} <= {ngram.text for ngram in by_character}
    tokenizer = train_tokenizer([text for rows in answers.texts for (text,) in rows], 330)
    by_token = characteristic(answers, "gamma", analyzer="subword", n_bootstraps=10, tokenizer=tokenizer)
    assert "gamma" in by_token[0].text


def test_equal_sources_show_hardly_anything():
    shown = [len(characteristic(same_source(seed, n_prompts=80), "model-0", n_bootstraps=20)) for seed in range(5)]
    assert np.mean(shown) < 6  # of 20


def test_words_of_one_prompt_group_do_not_reappear():
    """A hundred texts about one thing are one group: its word is frequent, but not characteristic."""
    rng = np.random.default_rng(0)
    texts = {name: sentences(rng, 100) for name in ("a", "b")}
    texts["a"] = [f"{text} zebra zebra" if i < 20 else text for i, text in enumerate(texts["a"])]
    together = table(texts, ["one" if i < 20 else f"g{i}" for i in range(100)])
    apart = table(texts)
    assert "zebra" in {ngram.text for ngram in characteristic(apart, "a")}
    assert "zebra" not in {ngram.text for ngram in characteristic(together, "a")}


def test_log_odds_by_hand():
    odds, z = _log_odds(np.array([[8.0, 2.0]]), np.array([[1.0, 9.0]]), np.array([1.0, 1.0]))
    assert odds[0, 0] == pytest.approx(np.log(9 / 3) - np.log(2 / 10))
    assert z[0, 0] == pytest.approx(odds[0, 0] / (1 / 9 + 1 / 2) ** 0.5)
    assert odds[0, 1] == pytest.approx(-odds[0, 0])


def test_order_of_models_and_prompts_does_not_matter():
    answers = planted()
    found = characteristic(answers, "beta", n_bootstraps=10)
    order = np.random.default_rng(0).permutation(60)
    for other in (answers.of(("gamma", "beta", "alpha")), answers.only(order)):
        again = characteristic(other, "beta", n_bootstraps=10)
        assert [ngram.text for ngram in again] == [ngram.text for ngram in found]


def test_contributions_add_up_to_the_score():
    answers = planted()
    texts = [text for rows in answers.texts for (text,) in rows]
    labels = np.repeat(np.arange(3), 60)
    space = fit_space(ATTRIBUTION, texts)
    x = space.transform(texts)
    linear = fit(x, labels, 3, 10.0)
    text = next(text for text in texts[:60] if "alpha" in text)
    everything = contributions(space, linear, text, 0, n=10**6)
    score = (space.transform([text]) @ linear.weights.T)[0, 0]
    assert sum(one.value for one in everything) == pytest.approx(score, abs=1e-4)
    few = contributions(space, linear, text, 0, n=5)
    assert "alpha" in {one.text for one in few}
    assert [one.value for one in few] == sorted((one.value for one in few), reverse=True)
    assert min(abs(one.value) for one in few) == sorted(abs(one.value) for one in everything)[-5]
    assert contributions(space, linear, "☃", 0) == ()


def test_refusals():
    with pytest.raises(UsageError, match="'delta' must be one of at least two models"):
        characteristic(planted(), "delta")
    with pytest.raises(NotEnoughEvidence, match="One prompt group"):
        characteristic(table({"a": ["x y"] * 5, "b": ["y z"] * 5}, ["one"] * 5), "a")
    with pytest.raises(NotEnoughEvidence, match="5 texts"):
        characteristic(table({"a": ["x", "y"], "b": ["y", "z"]}), "a")
    assert len(COMMON) == len(set(COMMON))
