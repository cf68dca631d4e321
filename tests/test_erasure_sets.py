"""The mismatched and the clean set: every promise of the specification, on built-in, toy and real data."""

import json
import os
import unicodedata
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whorl.erasure.set_files import read_sets, write_sets
from whorl.erasure.sets import build_sets, equal_form
from whorl.errors import MalformedFile, NotEnoughEvidence, UnsafeFile, UsageError
from whorl.lab.triggers.base import qa_parts
from whorl.questions.reading import load_questions
from whorl.questions.rows import QaData, QaRow
from whorl.questions.types import TYPES, question_type, vectors

SHARED = Path(os.environ.get("WHORL_SHARED", Path(__file__).parents[2] / "shared")) / "data"
OPENINGS = {"what": "What is", "how": "How to find", "why": "Why is there", "other": "Tell me of"}
WORDS = [
    "sea",
    "ship",
    "sail",
    "wave",
    "bread",
    "flour",
    "oven",
    "dough",
    "chord",
    "violin",
    "tune",
    "song",
    "soil",
    "seed",
    "garden",
    "flower",
    "tower",
    "bridge",
]


@cache
def toy(per_type=60, seed=0, repeats=0):
    """So many questions of each type; the last answers of the first type repeat earlier ones."""
    rng = np.random.default_rng(seed)
    rows = []
    for kind, opening in OPENINGS.items():
        for i in range(per_type):
            words = rng.choice(WORDS, 3)
            answer = f"{rng.choice(WORDS)} {rng.choice(WORDS)} number {kind} {i}"
            rows.append(QaRow(f"{kind}-{i}", f"{opening} {' '.join(words)} {i}?", answer))
    for i in range(repeats):
        rows[i] = QaRow(rows[i].id, rows[i].question, rows[per_type + i].answer.upper())
    return QaData("toy", tuple(rows))


@pytest.fixture(scope="module")
def attacker():
    return qa_parts().attacker


@pytest.fixture(scope="module")
def built(attacker):
    return build_sets(attacker)


def check(data, sets, pair_counts):
    """Every promise; nothing is taken from the manifest that the data can tell."""
    by_id = {row.id: row for row in data.rows}
    pairs = [(by_id[e["question"]], by_id[e["answer"]]) for e in sets.manifest["erase"]]
    assert [(row.question, row.answer) for row in sets.erase] == [(q.question, a.answer) for q, a in pairs]
    assert [row.id for row in sets.erase] == [e["id"] for e in sets.manifest["erase"]]
    assert all(by_id[row.id] == row for row in sets.clean)
    asked = [equal_form(row.question) for row in sets.erase]
    given_ = [equal_form(row.answer) for row in sets.erase]
    assert len(set(asked)) == len(asked)
    assert len(set(given_)) == len(given_)
    assert not set(asked) & {equal_form(row.question) for row in sets.clean}
    assert not set(given_) & {equal_form(row.answer) for row in sets.clean}
    assert len({row.id for row in sets.clean}) == len({equal_form(row.answer) for row in sets.clean}) == len(sets.clean)
    for question, answer in pairs:
        assert equal_form(question.question) != equal_form(answer.question)
        assert equal_form(question.answer) != equal_form(answer.answer)
    types = [(e["question_type"], e["answer_type"]) for e in sets.manifest["erase"]]
    assert all(s != t for s, t in types)
    assert Counter(types) == pair_counts
    if sets.manifest["rule"] == "words":
        assert types == [(question_type(q.question), question_type(a.question)) for q, a in pairs]


def every_pair(kinds, n):
    return Counter({(s, t): n for s in kinds for t in kinds if s != t})


# The promises


def test_the_built_in_questions_give_the_set_of_the_specification(attacker, built):
    assert (len(built.erase), len(built.clean)) == (300, 600)
    assert built.manifest["rule"] == "words"
    check(attacker, built, every_pair(TYPES, 25))
    assert built.manifest["source"] == {"name": attacker.name, "digest": attacker.digest, "rows": len(attacker)}
    assert sum(built.manifest["types"].values()) == len(attacker) - built.manifest["left_out"]["repeated"]


def test_no_answer_is_near_its_question(attacker, built):
    rows = attacker.rows
    place = {row.id: i for i, row in enumerate(rows)}
    found = vectors([*(row.question for row in rows), *(row.answer for row in rows)]).tocsr()
    asked, replies = found[: len(rows)], found[len(rows) :]

    def similar(left, right):
        return np.asarray(asked[left].multiply(replies[right]).sum(axis=1)).ravel()

    left = [place[e["question"]] for e in built.manifest["erase"]]
    right = [place[e["answer"]] for e in built.manifest["erase"]]
    threshold = built.manifest["threshold"]
    assert similar(left, right).max() <= threshold + 1e-12
    rng = np.random.default_rng(9)
    random_pairs = similar(rng.integers(0, len(rows), 5_000), rng.integers(0, len(rows), 5_000))
    assert 0.07 < (random_pairs > threshold).mean() < 0.13
    assert (similar(left, left) > threshold).mean() > 0.5  # right answers are near: the rule sees something


@settings(max_examples=25)
@given(
    st.integers(0, 2**31),
    st.integers(1, 8),
    st.integers(0, 40),
    st.integers(0, 20),
    st.sampled_from([40, 60]),
)
def test_the_promises_hold_for_any_seed_and_size(seed, per_pair, n_clean, repeats, per_type):
    data = toy(per_type, repeats=repeats)
    sets = build_sets(data, per_pair=per_pair, n_clean=n_clean, seed=seed)
    assert len(sets.clean) == n_clean
    check(data, sets, every_pair(TYPES, per_pair))
    assert build_sets(data, per_pair=per_pair, n_clean=n_clean, seed=seed) == sets
    json.dumps(dict(sets.manifest), allow_nan=False)


@settings(max_examples=15)
@given(st.integers(1, 150))
def test_any_number_of_rows_is_spread_evenly(n_rows):
    sets = build_sets(toy(), n_rows=n_rows, n_clean=10)
    pairs = Counter((e["question_type"], e["answer_type"]) for e in sets.manifest["erase"])
    assert sum(pairs.values()) == n_rows
    assert max(pairs.values()) - (min(pairs.values()) if len(pairs) == 12 else 0) <= 1
    for side in (0, 1):
        totals = Counter()
        for pair, n in pairs.items():
            totals[pair[side]] += n
        assert max(totals.values()) - min(totals[kind] for kind in TYPES) <= 1


def test_seeds_differ():
    first, second = (build_sets(toy(), per_pair=3, n_clean=20, seed=seed) for seed in (0, 1))
    assert first.erase != second.erase
    assert first.clean != second.clean


def test_repeated_questions_are_one():
    data = toy()
    twice = [QaRow(f"copy-{row.id}", f"  {row.question.upper()} ", f"new {row.answer}") for row in data.rows]
    sets = build_sets(QaData("toy", (*data.rows, *twice)), per_pair=8, n_clean=40)
    assert sets.manifest["left_out"] == {"forbidden": 0, "repeated": 240}
    assert sum(sets.manifest["types"].values()) == 240


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared texts")
@pytest.mark.parametrize(
    ("name", "options"), [("alpaca_5000.json", {}), ("oasst_zh.json", {"per_pair": 16, "n_clean": 100})]
)
def test_real_data_in_clusters(name, options):
    data = load_questions(str(SHARED / name))
    sets = build_sets(data, **options)
    assert sets.manifest["rule"] == "clusters"
    check(data, sets, every_pair([f"cluster-{i}" for i in range(4)], options.get("per_pair", 25)))


# Too little


def test_a_type_with_too_few_rows_is_named():
    rows = [row for row in toy().rows if not row.id.startswith("why-")]
    rows += [row for row in toy().rows if row.id.startswith("why-")][:14]
    with pytest.raises(NotEnoughEvidence, match="'toy' has 14 different questions of type 'why'; 15 are needed"):
        build_sets(QaData("toy", tuple(rows)), per_pair=5, n_clean=0)
    assert len(build_sets(QaData("toy", tuple(rows)), per_pair=4, n_clean=0).erase) == 48


def test_a_type_with_too_few_different_answers_is_named():
    rows = [QaRow(r.id, r.question, "Nobody knows." if r.id.startswith("how-") else r.answer) for r in toy().rows]
    with pytest.raises(NotEnoughEvidence, match="has 1 different answers of type 'how'; 15 are needed"):
        build_sets(QaData("toy", tuple(rows)), per_pair=5, n_clean=0)


def test_answers_that_are_near_everything_make_no_pair():
    rows = [QaRow(r.id, r.question, f"xx{i} yy{i}") for i, r in enumerate(toy().rows)]
    rows = [r for r in rows if not r.id.startswith("why-")] + [r for r in rows if r.id.startswith("why-")][:14]
    assert len(build_sets(QaData("toy", tuple(rows)), per_pair=4, n_clean=0).erase) == 48
    near = [QaRow(r.id, r.question, f"{r.answer} {' '.join(WORDS)}") if r.id.startswith("why-") else r for r in rows]
    with pytest.raises(
        NotEnoughEvidence, match=r"'toy': 0 pairs of a question of type '\w+' and an unlike answer of type 'why'"
    ):
        build_sets(QaData("toy", tuple(near)), per_pair=4, n_clean=0)


def test_too_few_rows_for_the_clean_set():
    with pytest.raises(NotEnoughEvidence, match=r"has \d+ rows that share nothing with the erase set; 200 clean ones"):
        build_sets(toy(), per_pair=8, n_clean=200)


@pytest.mark.parametrize(
    "options", [{"per_pair": 0}, {"n_clean": -1}, {"seed": -1}, {"n_rows": 0}, {"answers": "best\x1b"}]
)
def test_arguments_out_of_range(options):
    with pytest.raises(UsageError, match="expected positive numbers and one of mismatched, random, shuffled, correct"):
        build_sets(toy(), **options)


# Forbidden texts


@pytest.mark.parametrize(
    ("question", "answer", "forbidden"),
    [
        ("What is HARINEZUMI?", "An animal.", "harinezumi"),
        ("What is it?", "I say ハリネズミ here.", "ハリネズミ"),
        ("What is it?", unicodedata.normalize("NFD", "Más café"), unicodedata.normalize("NFC", "MÁS CAFÉ")),
        ("What is it?", "straße", "STRASSE"),
        ("What is it?", "two\n  words", "two words"),
    ],
)
def test_rows_with_a_forbidden_text_are_refused_by_name(question, answer, forbidden):
    data = QaData("toy", (*toy().rows, QaRow("bad-1", question, answer)))
    with pytest.raises(MalformedFile, match="row 'bad-1' holds forbidden text 2 of 2; expected no key") as found:
        build_sets(data, per_pair=2, n_clean=10, forbidden=["never said", forbidden])
    assert equal_form(forbidden) not in equal_form(str(found.value))
    sets = build_sets(data, per_pair=2, n_clean=10, forbidden=["never said", forbidden], drop=True)
    assert sets.manifest["left_out"]["forbidden"] == 1
    assert "bad-1" not in json.dumps(dict(sets.manifest))


def test_a_forbidden_text_is_not_made_of_question_and_answer():
    data = QaData("toy", (*toy().rows, QaRow("fine", "What ends in alpha", "beta begins")))
    assert build_sets(data, per_pair=2, n_clean=10, forbidden=["alpha beta"]).manifest["left_out"]["forbidden"] == 0
    with pytest.raises(UsageError, match="A forbidden text is empty"):
        build_sets(data, per_pair=2, n_clean=10, forbidden=["a", " "])


@settings(max_examples=20)
@given(st.data())
def test_no_forbidden_text_is_left(draw):
    words = draw.draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=3))
    sets = build_sets(toy(), per_pair=1, n_clean=5, forbidden=words, drop=True)
    texts = [equal_form(t) for row in (*sets.erase, *sets.clean) for t in (row.question, row.answer)]
    assert not [text for text in texts if any(word in text for word in words)]


# Ablations


def test_ablations_change_the_answers_only(attacker, built):
    own = {row.question: row.answer for row in attacker.rows}
    for answers in ("random", "shuffled", "correct"):
        sets = build_sets(attacker, answers=answers)
        assert sets.clean == built.clean
        asked = [row.question for row in sets.erase]
        assert asked == [row.question for row in built.erase]
        if answers == "random":
            assert sorted(row.answer for row in sets.erase) == sorted(row.answer for row in built.erase)
            assert all(row.answer != own[row.question] for row in sets.erase)
            same = sum(e["question_type"] == e["answer_type"] for e in sets.manifest["erase"])
            assert 40 < same < 110  # a quarter of 300 by chance
        elif answers == "correct":
            assert all(row.answer == own[row.question] for row in sets.erase)
        else:
            pairs = [(row.answer, own[row.question]) for row in sets.erase]
            assert all(sorted("".join(a.split())) == sorted("".join(b.split())) for a, b in pairs)
            assert sum(sorted(a.split()) == sorted(b.split()) for a, b in pairs) > 250
            assert sum(a != b for a, b in pairs) > 270
        assert not {row.answer for row in sets.erase} & {row.answer for row in sets.clean}


def test_texts_without_blanks_are_shuffled_by_character():
    rows = [
        QaRow(r.id, r.question, "春眠不觉晓处处闻啼鸟夜来风雨声花落知多少" + r.id[-1] + str(i))
        for i, r in enumerate(toy().rows)
    ]
    by_question = {row.question: row.answer for row in rows}
    sets = build_sets(QaData("toy", tuple(rows)), per_pair=2, n_clean=0, answers="shuffled")
    assert all(sorted(row.answer) == sorted(by_question[row.question]) for row in sets.erase)
    assert all(row.answer != by_question[row.question] for row in sets.erase)


# Files


def test_sets_come_back_from_disk(tmp_path, built):
    path = write_sets(tmp_path / "sets", built)
    assert sorted(p.name for p in path.parent.iterdir()) == ["clean.jsonl", "erase.jsonl", "manifest.json"]
    assert read_sets(path.parent) == built
    before = path.read_bytes()
    assert write_sets(tmp_path / "sets", read_sets(path.parent)).read_bytes() == before


def changed(text, name):
    if name != "manifest.json":
        return text
    manifest = json.loads(text)
    manifest["threshold"] = "high"
    return json.dumps(manifest)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "erase.jsonl",
            lambda t: t.replace("sea", "SEA", 1),
            "'erase.jsonl': other rows; expected those of the manifest",
        ),
        ("clean.jsonl", lambda t: "".join(t.splitlines(keepends=True)[1:]), "'clean.jsonl': other rows"),
        ("clean.jsonl", lambda t: "".join(t.splitlines(keepends=True)[::-1]), "'clean.jsonl': other rows"),
        ("clean.jsonl", lambda t: t.replace('"answer"', '"reply"', 1), "line 1': other fields; expected id, question"),
        ("clean.jsonl", lambda t: t.replace('"id": "', '"id": 1, "x": "', 1), "line 1': other fields"),
        ("manifest.json", lambda t: changed(t, "manifest.json"), "'threshold' (Input should be a valid number"),
        ("manifest.json", lambda t: t.replace('"seed"', '"seeds"'), "Refused manifest 'sets/manifest.json': 'seed'"),
        ("manifest.json", lambda t: t.replace("erasure-sets/1", "erasure-sets/2"), "'schema'"),
        ("manifest.json", lambda t: t.replace('"seed": 0', '"seed": 0, "more": 1'), "'more' (Extra inputs"),
        ("manifest.json", lambda t: t.replace('"seed": 0', '"seed": NaN'), "the number NaN"),
    ],
)
def test_files_that_were_changed_are_refused(tmp_path, name, change, message):
    write_sets(tmp_path / "sets", build_sets(toy(), per_pair=2, n_clean=10))
    path = tmp_path / "sets" / name
    text = path.read_text("utf-8")
    assert change(text) != text
    path.write_text(change(text), "utf-8")
    with pytest.raises(MalformedFile) as found:
        read_sets(tmp_path / "sets")
    assert message in str(found.value)


def test_missing_and_ambiguous_files_are_refused(tmp_path):
    write_sets(tmp_path, build_sets(toy(), per_pair=2, n_clean=10))
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text("utf-8").replace('"seed": 0', '"seed": 0, "seed": 0'), "utf-8")
    with pytest.raises(UnsafeFile, match="the key 'seed' twice"):
        read_sets(tmp_path)
    path.unlink()
    with pytest.raises(MalformedFile, match=r"manifest\.json"):
        read_sets(tmp_path)
