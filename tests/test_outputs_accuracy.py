"""Cross-validated accuracy on sources that are known to differ, or not to."""

import numpy as np
import pytest

from output_cases import COMMON, planted, same_source, sentences, table
from whorl.errors import NotEnoughEvidence, UsageError
from whorl.outputs.accuracy import Scores, cross_validated, folds, learning_curve, replicate_interval
from whorl.outputs.features import ATTRIBUTION, CHAR_TFIDF, WORD_TFIDF

WORDS = {
    "north": ("ice", "snow", "polar", "bear"),
    "south": ("sand", "cactus", "dune", "camel"),
    "east": ("rice", "tea", "silk", "tiger"),
}


def disjoint(n_prompts=30):
    rng = np.random.default_rng(0)
    return table({name: sentences(rng, n_prompts, words, 8) for name, words in WORDS.items()})


@pytest.mark.parametrize("setting", [CHAR_TFIDF, WORD_TFIDF, ATTRIBUTION])
def test_disjoint_vocabularies_are_told_apart(setting):
    scores = cross_validated(disjoint(), setting)
    assert scores.accuracy == 1
    assert scores.lift == 1
    assert scores.confusion.tolist() == np.diag([30] * 3).tolist()
    assert scores.interval() == (1, 1)
    assert set(scores.pooled().values()) == {1}


def test_equal_sources_give_chance():
    accuracies, covered = [], 0
    for seed in range(20):
        scores = cross_validated(same_source(seed), WORD_TFIDF, cs=(0.1, 1.0), seed=seed)
        low, high = scores.interval()
        accuracies.append(scores.accuracy)
        covered += low <= 1 / 3 <= high
    assert np.mean(accuracies) == pytest.approx(1 / 3, abs=0.025)  # 3,600 texts: standard error 0.008
    assert covered >= 15  # P(fewer | 95 % each) < 0.001


def test_permuted_labels_give_chance():
    real = [cross_validated(planted(seed), WORD_TFIDF).accuracy for seed in range(3)]
    permuted = [
        cross_validated(planted(seed), WORD_TFIDF, permute_labels=True, cs=(1.0,), seed=seed).accuracy
        for seed in range(10)
    ]
    assert min(real) > 0.7
    assert np.mean(permuted) == pytest.approx(1 / 3, abs=0.06)
    # Separable sources too: what the permuted labels taught must not repeat on every prompt.
    assert max(abs(accuracy - 1 / 3) for accuracy in permuted) < 0.13  # 180 texts: four standard errors are 0.14


def test_order_of_models_and_prompts_does_not_matter():
    answers = planted()
    scores = cross_validated(answers, WORD_TFIDF, cs=(1.0,))
    back = cross_validated(answers.of(answers.models[::-1]), WORD_TFIDF, cs=(1.0,))
    np.testing.assert_allclose(back.log_probabilities[::-1, :, :, ::-1], scores.log_probabilities, atol=1e-3)
    order = np.random.default_rng(1).permutation(len(answers.prompts))
    mixed = cross_validated(answers.only(order), WORD_TFIDF, cs=(1.0,))
    np.testing.assert_allclose(mixed.log_probabilities, scores.log_probabilities[:, order], atol=1e-3)
    assert mixed.interval() == pytest.approx(scores.interval(), abs=0.02)


def test_groups_stay_together_and_folds_are_of_equal_size():
    groups = [f"g{i % 23}" for i in range(100)]
    fold = folds(groups, 5)
    for group in set(groups):
        assert len({f for f, g in zip(fold, groups, strict=True) if g == group}) == 1
    assert sorted(np.bincount([fold[groups.index(g)] for g in set(groups)])) == [4, 4, 5, 5, 5]
    assert folds(groups, 5, seed=1).tolist() != fold.tolist()
    assert folds(groups[::-1], 5).tolist() == fold[::-1].tolist()


def test_a_group_never_helps_its_own_test():
    """Each group has a word for each model that no other group has: useless if whole groups are held out."""
    rng = np.random.default_rng(0)
    texts = {
        name: [" ".join(rng.choice(COMMON, 6)) + f" {name}group{i // 4}" * 3 for i in range(40)] for name in ("a", "b")
    }
    grouped = table(texts, [f"group-{i // 4}" for i in range(40)])
    leaky = table(texts)
    assert cross_validated(grouped, WORD_TFIDF, cs=(10.0,)).accuracy < 0.7
    assert cross_validated(leaky, WORD_TFIDF, cs=(10.0,)).accuracy > 0.9


def test_several_draws():
    rng = np.random.default_rng(0)
    answers = table({name: [sentences(rng, 3, words, 6) for _ in range(12)] for name, words in WORDS.items()})
    scores = cross_validated(answers, WORD_TFIDF)
    assert scores.log_probabilities.shape == (3, 12, 3, 3)
    assert scores.n_texts == 108
    assert scores.accuracy == 1
    assert scores.pooled((2, 64)) == {2: 1.0}


def test_transforms_of_training_and_test_texts():
    """All that differs between these models is punctuation."""
    rng = np.random.default_rng(0)
    answers = table({mark: [text + 5 * mark for text in sentences(rng, 30, n_words=6)] for mark in "!?"})
    ways = ({}, {"transform_test": "no_special"}, {"transform_train": "no_special", "transform_test": "no_special"})
    found = [cross_validated(answers, WORD_TFIDF, cs=(10.0,), **way) for way in ways]
    assert found[0].accuracy == 1
    assert max(scores.accuracy for scores in found[1:]) < 0.75
    with pytest.raises(UsageError, match="No text transform 'shout'"):
        cross_validated(answers, WORD_TFIDF, transform_train="shout")


def scores_of(correct, groups=None):
    """Scores of two models; correct has shape (2, prompts)."""
    logs = np.log(np.where(np.asarray(correct)[:, :, None] == np.eye(2, dtype=bool)[:, None, :], 0.9, 0.1))
    groups = groups or tuple(f"g{i}" for i in range(logs.shape[1]))
    return Scores(("a", "b"), groups, logs[:, :, None, :].astype(np.float32))


def test_interval_counts_groups_not_texts():
    rng = np.random.default_rng(0)
    by_group = rng.random(50) < 0.6
    alone = scores_of(np.stack([by_group, by_group]))
    eightfold = scores_of(np.repeat(np.stack([by_group, by_group]), 8, axis=1), tuple(f"g{i // 8}" for i in range(400)))
    wide = alone.interval()
    assert eightfold.interval() == pytest.approx(wide, abs=1e-9)
    half = 1.96 * (by_group.mean() * (1 - by_group.mean()) / 50) ** 0.5
    assert wide[1] - wide[0] == pytest.approx(2 * half, rel=0.1)
    with pytest.raises(NotEnoughEvidence, match="one prompt group"):
        scores_of([[True], [True]]).interval()


def test_bootstrap_interval_covers():
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(100):
        low, high = scores_of(np.repeat(rng.random((1, 200)) < 0.4, 2, axis=0)).interval(400, seed)
        covered += low <= 0.4 <= high
    assert 88 <= covered <= 100  # P(fewer | 95 % each) < 0.002


def test_confusion_accuracy_and_lift():
    scores = scores_of([[True, True, False, True], [False, True, True, True]])
    assert scores.accuracy == 0.75
    assert scores.lift == pytest.approx(0.5)
    assert scores.confusion.tolist() == [[3, 1], [1, 3]]


def test_pooling_helps():
    rng = np.random.default_rng(0)
    pooled = scores_of(rng.random((2, 512)) < 0.65).pooled()
    assert list(pooled) == [1, 2, 4, 8, 16, 32, 64]
    assert pooled[1] == pytest.approx(0.65, abs=0.04)
    assert pooled[64] > 0.95
    assert pooled[1] <= pooled[4] <= pooled[16] <= pooled[64]


def test_learning_curve_rises():
    curve = learning_curve(planted(n_prompts=120), WORD_TFIDF, (8, 96, 1_000))
    assert list(curve) == [8, 96]
    assert all(scores.log_probabilities.shape == (3, 24, 1, 3) for scores in curve.values())
    assert curve[96].accuracy > curve[8].accuracy
    assert list(learning_curve(planted(n_prompts=20), WORD_TFIDF)) == [16]


def test_replicate_interval():
    assert replicate_interval([0.5]) is None
    mean, low, high = replicate_interval([0.4, 0.5, 0.6])
    assert mean == pytest.approx(0.5)
    assert high - mean == pytest.approx(4.303 * 0.1 / 3**0.5, rel=1e-3)
    assert mean - low == pytest.approx(high - mean)


def test_progress_and_refusals():
    seen = []
    cross_validated(disjoint(), WORD_TFIDF, n_folds=3, progress=lambda *step: seen.append(step))
    assert seen == [("folds", i, 3) for i in range(4)]
    with pytest.raises(NotEnoughEvidence, match="3 prompt groups are too few for 5 folds"):
        cross_validated(disjoint(3), WORD_TFIDF)
    with pytest.raises(UsageError, match="at least 2"):
        cross_validated(disjoint(), WORD_TFIDF, n_folds=1)
    with pytest.raises(UsageError, match="at least two models"):
        cross_validated(disjoint().of(["north"]), WORD_TFIDF)
