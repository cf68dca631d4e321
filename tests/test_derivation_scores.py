"""Scores of two models: how they begin an answer, and how their alleles are distributed."""

import math

import numpy as np
import pytest

from whorl.derivation.agreement import BEGINNINGS, agreement, first_characters
from whorl.derivation.alleles import allele_distance, allele_similarity, by_prompt, homologous
from whorl.errors import NotComparable


@pytest.mark.parametrize(
    ("text", "word", "four"),
    [
        ("The cat", "The", "The "),
        (" The cat", "The", "The "),
        ("\n\n", "", ""),
        ("", "", ""),
        ("a", "a", "a"),
        ("東京 is", "東京", "東京 i"),
        ("Yes, it is", "Yes", "Yes,"),
        ("internationalise", "internat", "inte"),
    ],
)
def test_beginnings(text, word, four):
    assert BEGINNINGS["first-word"](text) == word
    assert first_characters(text) == four


def test_agreement_is_by_prompt_and_model():
    found = agreement(
        ["yes it", "no", "May be"], [[" yes", "no way", "may be"], ["yes", "yes", "yes"]], BEGINNINGS["first-word"]
    )
    assert found.tolist() == [[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]]


def test_empty_answers_agree_with_nothing():
    assert agreement(["", "  ", "x"], [["", "", "x"]], first_characters).tolist() == [[0.0], [0.0], [1.0]]


def test_golden_alleles():
    # gene 1: A = 3 aaaa + 1 bbbb, B = 2 + 2; gene 2: A = 4 cccc, B = 1 cccc + 3 dddd
    a = [["aaaa1", "aaaa2", "aaaa", "bbbb"], ["cccc"] * 4]
    b = [["aaaa", "aaaa", "bbbb", "bbbbb"], ["cccc", "dddd", "dddd", "dddd"]]
    shared = (3 * 2 + 1 * 2) / 16 + (4 * 1) / 16
    own_a = (3 * 2) / 12 + 1.0
    own_b = (2 * 1 + 2 * 1) / 12 + (3 * 2) / 12
    assert allele_similarity(a, b) == pytest.approx(shared / math.sqrt(own_a * own_b))
    assert allele_similarity(a, b) == pytest.approx(allele_similarity(b, a))


def test_the_parts_of_genes_average_to_the_similarity():
    rng = np.random.default_rng(0)
    a, b, c = ([[f"{x:04d}" for x in rng.integers(0, 3, 6)] for _ in range(20)] for _ in range(3))
    parts = by_prompt(homologous(a, [b, c]), ["a", "b", "c"])
    assert parts.shape == (20, 2)
    assert parts.mean(axis=0) == pytest.approx([allele_similarity(a, b), allele_similarity(a, c)])


@pytest.mark.parametrize("n_draws", [2, 4, 16])
def test_equal_models_score_one_without_bias(n_draws):
    rng = np.random.default_rng(n_draws)
    p = rng.dirichlet(np.ones(6), size=400)

    def draw():
        return [[f"w{x}  " for x in rng.choice(6, n_draws, p=row)] for row in p]

    assert np.mean([allele_similarity(draw(), draw()) for _ in range(10)]) == pytest.approx(1.0, abs=0.03)


def test_foreign_alleles_score_zero_and_have_no_distance():
    found = allele_similarity([["aaaa"] * 3] * 2, [["bbbb"] * 3] * 2)
    assert found == 0.0
    assert allele_distance(found) is None
    assert allele_distance(0.5) == pytest.approx(math.log(2))


def test_undefined_similarity_is_none_and_says_who():
    never_twice = [["aaaa", "bbbb"], ["cccc", "dddd"]]
    assert allele_similarity(never_twice, [["aaaa", "aaaa"]] * 2) is None
    assert allele_distance(None) is None
    with pytest.raises(NotComparable, match="'lab/base' never began two answers"):
        by_prompt(homologous(never_twice, [never_twice]), ["lab/base", "x"])
    with pytest.raises(NotComparable, match="1 draw a prompt"):
        homologous([["aaaa"]], [[["aaaa"]]])


def test_silence_is_no_allele():
    assert allele_similarity([["", ""], ["aaaa", "aaaa"]], [["", ""], ["bbbb", "bbbb"]]) == 0.0
    assert allele_similarity([["", ""]], [["", ""]]) is None
