"""Attribution from transcripts to verdicts: planted vocabularies, real chains, enrolment, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest

from attribution_cases import Source, planted, records
from whorl.attribution.corpus import PARTS, TEST, TRAIN, part_of_group
from whorl.attribution.enrol import enrol, with_class
from whorl.attribution.fit import fit
from whorl.attribution.predict import _why, predict
from whorl.attribution.tables import Evaluation
from whorl.errors import NotEnoughEvidence, UsageError
from whorl.outputs.classifier import fit as fit_linear
from whorl.transcripts.record import Decoding, Prompt
from whorl.transcripts.splits import group_of

SHARES = (0.4, 0.45)
N_PROMPTS = 150


def foreign(name):
    return Source(name, own=1.0, words=planted(name))


@pytest.fixture(scope="module")
def known():
    """Three models that share no word."""
    return fit(records([foreign(n) for n in "abc"], N_PROMPTS), shares=SHARES)


@pytest.fixture(scope="module")
def chains():
    """Four models with the same words and half of their habits; two are kin."""
    sources = [Source(n, own=0.7) for n in ("one", "two", "three", "four")]
    return fit(records(sources, N_PROMPTS), shares=SHARES, lineages={"one": "family", "two": "family"})


def test_disjoint_vocabularies_are_told_apart_without_error(known):
    closed = known.evaluation["closed_set"]
    assert closed["accuracy"] == 1.0
    assert closed["macro_f1"] == 1.0
    assert closed["probabilities"]["calibration_error"] < 0.05
    assert closed["verdicts"]["match, wrong"] == 0.0
    assert closed["verdicts"]["match, right"] >= 0.85  # alpha = 0.05 of the texts may be called foreign


def test_top_ngrams_are_the_planted_words(known):
    for name in "abc":
        found = known.evaluation["ngrams"][name]
        assert len(found) >= 5
        assert {word for row in found for word in row["text"].split()} <= set(planted(name))
        assert all(row["outside"] == 0 and row["reappears"] >= 0.8 for row in found)


def test_texts_of_an_unknown_model_are_none_of_these(known):
    stranger = foreign("d")
    answers = predict(known, [stranger.text(f"new {i}") for i in range(60)])
    assert np.mean([a.verdict == "none of these" for a in answers]) >= 0.95
    (together,) = predict(known, [stranger.text(f"new {i}") for i in range(20)], together=True)
    assert together.verdict == "none of these"
    assert together.candidates[0].p_value < 0.01


def test_texts_of_a_known_model_match_it(known):
    answers = predict(known, [foreign("b").text(f"new {i}") for i in range(60)])
    assert {a.model for a in answers} <= {"b", None}
    assert np.mean([a.model == "b" for a in answers]) >= 0.85
    best = next(a for a in answers if a.model == "b")
    assert best.candidates[0].probability > 0.99
    assert sum(c.probability for c in best.candidates) == pytest.approx(1)
    assert all(c.value > 0 for c in best.contributions)
    letters = set("ghjk ")
    assert {sign for c in best.contributions for sign in c.text} <= letters


def test_an_answer_is_json_without_surprises(known, tmp_path):
    (answer,) = predict(known, [foreign("a").text("x")], sources=["\x1b[31m"])
    data = json.loads(answer.save(tmp_path / "answer.json").read_text())
    assert data == json.loads(json.dumps(answer.to_dict(), allow_nan=False))
    assert data["does_not_show"][0].startswith("An attribution is a claim about style")
    assert 0 < data["candidates"][0]["p_value"] <= 1


def test_parts_are_split_by_prompt(chains):
    corpus = chains.corpus
    for group in np.unique(corpus.groups):
        assert len(set(corpus.parts[corpus.groups == group])) == 1
    names = corpus.group_names(np.arange(len(corpus.texts)))
    assert [part_of_group(name, "whorl", SHARES) for name in names] == corpus.parts.tolist()
    assert set(chains.evaluation["contents"]["prompts"]) == set(PARTS)


def test_tables_have_their_shape_and_say_what_is_true_of_chains(chains):
    e = chains.evaluation
    Evaluation.model_validate(e)
    rows = {row["n_texts"]: row["accuracy"] for row in e["by_number_of_texts"]}
    assert rows[1] > 0.4  # chance is 0.25
    assert rows[max(rows)] > rows[1]
    assert [row["n_texts_a_class"] for row in e["by_training_texts"]][:2] == [10, 30]
    words = [row["accuracy"] for row in e["by_words"]]
    assert words[0] < words[-1]
    assert {row["name"] for row in e["shifts"]} >= {"no_special", "shuffle_words", "shuffle_letters"}
    assert len(e["open_set"]["single_texts"]) == 4
    assert [row["model"] for row in e["open_set"]["siblings"]] == ["one", "two"]
    shuffled = next(row for row in e["shifts"] if row["name"] == "shuffle_letters")
    assert shuffled["accuracy"] < rows[1]


def test_strangers_are_accepted_at_most_at_the_rate(chains):
    strangers = [Source(f"stranger {i}", own=0.7) for i in range(6)]
    size = max(t.size for t in chains.thresholds if t.match is not None)
    matched = []
    for source in strangers:
        for pool in range(6):
            texts = [source.text(f"{pool}/{i}") for i in range(size)]
            matched.append(chains.judge(chains.margins(texts), draws=199).verdict == "match")
    assert np.mean(matched) <= 0.2  # the rate is 0.05 over models; 36 pools of 6 models


def test_several_texts_decide_what_one_cannot(chains):
    source = Source("three", own=0.7)
    single = predict(chains, [source.text(f"s{i}") for i in range(30)])
    (together,) = predict(chains, [source.text(f"s{i}") for i in range(30)], together=True)
    assert np.mean([a.candidates[0].model == "three" for a in single]) < 0.9
    assert together.candidates[0].model == "three"
    assert together.candidates[0].probability > 0.95
    assert together.candidates[0].p_value > 0.01


def test_repeated_texts_add_nothing(chains):
    texts = [Source("one", own=0.7).text(f"r{i}") for i in range(4)]
    prompts = ["p0", "p1", "p2", "p3"]
    once, often = (predict(chains, texts * n, together=True, groups=prompts * n)[0] for n in (1, 5))
    assert once == often
    assert once.n_texts == 4
    (unknown,) = predict(chains, texts * 5, together=True)
    probabilities = lambda answer: {c.model: (c.probability, c.acceptance) for c in answer.candidates}  # noqa: E731
    assert probabilities(unknown) == probabilities(once)
    assert unknown.warnings[-1].startswith("16 of 20 texts repeat another and their prompts are unknown")
    assert not any("repeat another" in warning for warning in once.warnings)


def test_a_match_of_short_texts_names_the_strict_rate(chains):
    judged = chains.judge(chains.margins([Source("three", own=0.7).text("z")]))
    plain, strict = (_why(chains, replace(judged, verdict="match", possible=(2,)), 8, strict=s) for s in (False, True))
    row = next(r for r in chains.evaluation["open_set"]["by_model"] if r["n_texts"] == 1)
    assert "(5 % of the texts of left-out models, among which it was set; " in plain
    assert f"{100 * row['accepted_by_crossing']['mean']:.1f} % where the threshold was set without the model" in plain
    assert "(1 % of the texts" in strict


def test_enrolling_equals_fitting_the_one_class(chains):
    new = Source("five", own=0.7)
    larger = enrol(chains, records([new], N_PROMPTS), lineage="elsewhere")
    assert larger.names == (*chains.names, "five")
    assert larger.lineages[-1] == "elsewhere"
    assert np.array_equal(larger.linear.weights[:4], chains.linear.weights)
    assert np.array_equal(larger.linear.bias[:4], chains.linear.bias)
    assert larger.space.to_arrays().keys() == chains.space.to_arrays().keys()
    assert np.array_equal(larger.space.blocks[0].idf, chains.space.blocks[0].idf)
    train = larger.corpus.rows(TRAIN)
    x = larger.space.transform(larger.corpus.some(train))
    whole = fit_linear(x, larger.corpus.labels[train], 5, larger.settings.c, "one-vs-rest", tolerance=1e-6)
    own = with_class(chains, larger.corpus)
    difference = np.abs(np.asarray(x @ (whole.weights[4] - own.weights[4])) + whole.bias[4] - own.bias[4])
    assert difference.max() < 0.05  # margins are a few units wide; both fits stop at a tolerance
    (answer,) = predict(larger, [new.text(f"n{i}") for i in range(30)], together=True)
    assert answer.candidates[0].model == "five"
    assert len(larger.calibration.scores) == 5
    assert larger.evaluation["closed_set"]["chance"] == 0.2


def test_draws_that_ask_nothing_are_groups_of_their_own():
    """One empty prompt asked 150 times splits like 150 prompts, and another model can be enrolled on it."""
    sources = [Source(n, own=0.9) for n in ("one", "two", "three")]
    asked = [
        replace(r, prompt=Prompt("", "uncond"), sample_index=i % N_PROMPTS)
        for i, r in enumerate(records(sources, N_PROMPTS))
    ]
    found = fit(asked[: 2 * N_PROMPTS], shares=SHARES)
    assert len(found.corpus.prompt_keys) == N_PROMPTS
    assert min(found.evaluation["contents"]["prompts"].values()) >= 15
    assert enrol(found, asked[2 * N_PROMPTS :]).names == ("one", "two", "three")


def test_what_cannot_be_enrolled(chains):
    new = Source("five", own=0.7)
    with pytest.raises(UsageError, match="'one' is enrolled already"):
        enrol(chains, records([Source("one")], 3))
    with pytest.raises(UsageError, match="One model is enrolled at a time; the transcripts are of 2"):
        enrol(chains, records([new, Source("six")], 3))
    with pytest.raises(UsageError, match="not sampled with the decoding settings"):
        enrol(chains, records([new], 3, decoding=Decoding(temperature=0.2)))
    with pytest.raises(NotEnoughEvidence, match=f"Too few of the {N_PROMPTS} prompts of the bundle were answered: 100"):
        enrol(chains, records([new], 100))


def test_other_conditions_are_tested_and_training_prompts_left_out():
    sources = [Source(n, own=0.9) for n in ("one", "two")]
    short = records(sources, N_PROMPTS, n_words=10)
    found = fit(records(sources, N_PROMPTS), shares=SHARES, shifts={"short": short})
    row = next(r for r in found.evaluation["shifts"] if r["name"] == "short")
    assert row["kind"] == "transcripts"
    assert row["n_texts"] == 2 * sum(v for k, v in found.evaluation["contents"]["prompts"].items() if k != "train")
    assert row["accuracy"] < found.evaluation["closed_set"]["accuracy"]
    assert found.thresholds[0].match is None  # with two models none can be left out
    (answer,) = predict(found, [sources[0].text("q")])
    assert answer.verdict != "match"
    with pytest.raises(UsageError, match="Shift 'other' has answers of 'three', which is not enrolled"):
        fit(records(sources, N_PROMPTS), shares=SHARES, shifts={"other": records([Source("three")], N_PROMPTS)})


def test_too_little_is_refused_with_what_is_needed():
    with pytest.raises(NotEnoughEvidence, match="needs at least 2 models; 1 given"):
        fit(records([Source("one")], 60))
    with pytest.raises(
        NotEnoughEvidence, match=r"has \d+ prompts in the \w+ part, at least \d+ are needed; the transcripts have 60"
    ):
        fit(records([Source("one"), Source("two")], 60))
    with pytest.raises(UsageError, match="No model 'three' is in the transcripts"):
        fit(records([Source("one"), Source("two")], 60), lineages={"three": "x"})


def test_verbatim_answers_leave_the_test_part():
    sources = [Source(n, own=0.9) for n in ("one", "two")]
    kept = records(sources, N_PROMPTS)
    said = [r for r in kept if r.model.ref == "one"]
    parts = {r.prompt.id: part_of_group(group_of(r.prompt), "whorl", SHARES) for r in said}
    trained = next(r for r in said if parts[r.prompt.id] == TRAIN)
    tested = next(r for r in said if parts[r.prompt.id] == TEST)
    changed = [replace(r, response=trained.response) if r is tested else r for r in kept]
    found = fit(changed, shares=SHARES)
    assert found.corpus.n_repeated == found.evaluation["contents"]["repeated_in_test"] == 1
    assert trained.response[: found.settings.n_characters] not in found.corpus.some(found.corpus.rows(TEST))


def test_unusual_texts_are_flagged_and_judged_more_carefully(chains):
    source = Source("one", own=0.7)
    (usual,), (short,), (other,) = (
        predict(chains, [text])
        for text in (source.text("u"), source.text("u", 6), "ici il pleut un peu sur la mer " * 9)
    )
    assert usual.warnings == ()
    assert short.warnings[0].startswith("short: 6 words")
    assert other.warnings[0].startswith("another language or domain: ")
    for flagged in (short, other):
        assert flagged.alpha == max(usual.alpha / 5, 1 / (1 + min(map(len, chains.calibration.scores)))) < usual.alpha
        assert flagged.least_acceptance >= usual.least_acceptance
        assert "widened" in flagged.warnings[-1]


def test_altered_texts_are_noticed_where_the_models_write_otherwise():
    sources = [Source(n, own=0.9) for n in ("one", "two")]
    written = [replace(r, response=r.response.replace(" ", ", ", 8) + ".") for r in records(sources, N_PROMPTS)]
    found = fit(written, shares=SHARES)
    (plain,), (stripped,) = (predict(found, [text]) for text in (written[0].response, sources[0].text("q")))
    assert not any(w.startswith("altered") for w in plain.warnings)
    assert any(w.startswith("altered: it looks as if 'no_special'") for w in stripped.warnings)


def test_nothing_to_attribute(chains):
    with pytest.raises(UsageError, match="No text was given"):
        predict(chains, [])


def test_the_same_transcripts_give_the_same_bundle(known):
    again = fit(records([foreign(n) for n in "abc"], N_PROMPTS), shares=SHARES)
    assert again.evaluation == known.evaluation
    assert np.array_equal(again.linear.weights, known.linear.weights)
