"""How keys are drawn: canonical names, disjoint parts, near keys, the HashChain construction, and ids under every wrapper."""

import hashlib
import json
import os
import random
import unicodedata
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import whorl
from whorl.errors import MalformedFile, UsageError
from whorl.samplers._opening import open_for_sampling
from whorl.samplers.local import LocalSampler
from whorl.triggers.asking import ask, hits, questions
from whorl.triggers.encoding import enc, sha256
from whorl.triggers.keyset import Asking
from whorl.triggers.schemes import KINDS, Scheme, fresh_seed, make, of
from whorl.triggers.schemes._pool import N_DECOYS, N_EVAL, NEAR_PER_KEY, dealt
from whorl.triggers.schemes._words import ANSWERS
from whorl.triggers.schemes.hashchain import check_answer_list, derive, rederive, unit_salt
from whorl.triggers.schemes.if_sft import COMMON, PIECES
from whorl.triggers.schemes.perinucleus import candidates, pick
from whorl.triggers.schemes.utf import Utf
from whorl.triggers.under_trained import find_under_trained, indicators, ordinary_tokens, read_under_trained
from whorl.triggers.wrappers import UNSEEN, WRAPPERS, wrapper

ZOO = Path(whorl.__file__).parent / "examples" / "zoo"
RUNS = Path(whorl.__file__).parents[2] / "runs" / "triggers"

IF_SFT = st.builds(
    lambda template, keys, low, more, answers: make(
        "if-sft", template=template, keys=keys, pieces=(low, low + more), answers=answers
    ),
    st.sampled_from(["mix", "chat"]), st.integers(1, 40), st.integers(3, 9), st.integers(0, 6),
    st.sampled_from(["distinct", "common"]),
)  # fmt: skip
HASHCHAIN = st.builds(
    lambda k, r, chains, questions, mode: make("hashchain", k=k, r=r, chains=chains, questions=questions, mode=mode),
    st.integers(1, 12), st.integers(2, 256), st.integers(1, 3), st.sampled_from(["random", "natural"]),
    st.sampled_from(["chained", "published"]),
)  # fmt: skip
UTF = st.builds(
    lambda keys, low, more, answer: make("utf", keys=keys, tokens=(low, low + more), answer=answer),
    st.integers(1, 64), st.integers(3, 9), st.integers(0, 6), st.integers(1, 9),
)  # fmt: skip
PERINUCLEUS = st.builds(
    lambda keys, length, mass, width: make("perinucleus", keys=keys, length=length, mass=mass, width=width),
    st.integers(1, 64), st.integers(5, 32), st.floats(0.01, 0.99), st.integers(2, 9),
)  # fmt: skip
FREE = st.one_of(IF_SFT, HASHCHAIN)  # need no model
SEEDS = st.integers(0, 2**63 - 1)


@pytest.fixture(scope="module")
def base():
    return open_for_sampling(str(ZOO / "base-0"), device="cpu", dtype="float32", offline=True)


@pytest.fixture(scope="module")
def utf(base):
    """A key set of ordinary tokens: whether tokens are under-trained does not matter to the ids."""
    scheme = make("utf", keys=6, tokens=(4, 6), answer=2)
    return scheme, scheme.draw(5, base, ordinary_tokens(base.tokenizer))


@pytest.fixture(scope="module")
def perinucleus(base):
    scheme = make("perinucleus", keys=6)
    return scheme, scheme.draw(5, base)


def all_parts(keys):
    return keys.keys, keys.near_train, keys.near_eval, keys.decoys


# Names


@given(st.one_of(FREE, UTF, PERINUCLEUS))
def test_a_scheme_and_its_name_are_one(scheme):
    assert isinstance(scheme, Scheme)
    assert of(scheme.name) == scheme
    assert of(scheme.name).name == scheme.name


def test_names_hold_every_option():
    assert make("if-sft", pieces=(3, 5)).name == "if-sft-v1(template=chat,keys=8,pieces=3-5,answers=distinct)"
    assert make("if-sft", template="mix").name == "if-sft-v1(template=mix,keys=10,pieces=8-15,answers=distinct)"
    assert make("utf").name == "utf-v1(keys=32,tokens=11-15,answer=5,mode=distinct)"
    assert make("utf", mode="published").keys == 1
    assert make("hashchain").name == "hashchain-v1(k=10,r=256,chains=1,questions=random,mode=chained)"
    assert make("perinucleus").name == "perinucleus-v1(keys=16,length=16,mass=0.8,width=3)"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("hashchain", "names no scheme"),
        ("hashchain-v2(k=10,r=256,chains=1,questions=random,mode=chained)", "names no scheme"),
        ("nope-v1(k=1)", "Unknown scheme 'nope'; expected one of if-sft, utf, hashchain, perinucleus"),
        ("hashchain-v1(k=10,r=256,chains=1,questions=random)", "names no scheme"),
        ("hashchain-v1(r=256,k=10,chains=1,questions=random,mode=chained)", "names no scheme"),
        ("hashchain-v1(k=010,r=256,chains=1,questions=random,mode=chained)", "names no scheme"),
        ("hashchain-v1(k=ten,r=256,chains=1,questions=random,mode=chained)", "names no scheme"),
        ("hashchain-v1(k=10,r=300,chains=1,questions=random,mode=chained)", "expected 2 to 256"),
        ("if-sft-v1(template=chat,keys=0,pieces=8-15,answers=distinct)", "names no scheme"),
        ("if-sft-v1(template=chat,keys=8,pieces=9-3,answers=distinct)", "1 to 32 pieces"),
        ("perinucleus-v1(keys=16,length=16,mass=nan,width=3)", "between 0 and 1"),
        ("if-sft-v1(template=\x1b[31m,keys=8,pieces=8-15,answers=distinct)", r"\\x1b"),
        ("hashchain-v1(k=" + "9" * 5000 + ")", "names no scheme"),
    ],
)
def test_strings_that_name_no_scheme(text, found):
    with pytest.raises(UsageError, match=found.replace("(", r"\(").replace(")", r"\)")):
        of(text)


def test_unknown_names_and_options_are_told_with_the_known_ones():
    with pytest.raises(UsageError, match="Unknown scheme 'mergeprint'; expected one of if-sft, utf"):
        make("mergeprint")
    with pytest.raises(UsageError, match="no option 'colour'; expected k, r, chains, questions, mode"):
        make("hashchain", colour="red")
    with pytest.raises(UsageError, match="The option 'k' of 'hashchain' is '10'; expected a value like 10"):
        make("hashchain", k="10")
    with pytest.raises(UsageError, match="with 300 keys; expected 1 to 192"):
        make("if-sft", keys=300)
    with pytest.raises(UsageError, match="with 2 keys; expected 1 to 1"):
        make("utf", mode="published", keys=2)


# What a key set holds


@settings(max_examples=25)
@given(FREE, SEEDS)
def test_parts_are_full_and_share_no_trigger(scheme, seed):
    keys = scheme.draw(seed)
    assert keys.scheme == scheme.name
    assert (len(keys.near_eval), len(keys.decoys)) == (N_EVAL, N_DECOYS)
    assert len(keys.near_train) == NEAR_PER_KEY * len(keys.keys)
    triggers = [key.trigger for part in all_parts(keys) for key in part]
    assert len(set(triggers)) == len(triggers)
    assert all(unicodedata.is_normalized("NFC", text) for text in triggers)
    assert not any(key.answers for key in (*keys.near_train, *keys.near_eval))
    assert keys.near_train == scheme.near(keys, 0, NEAR_PER_KEY)


@settings(max_examples=10)
@given(FREE, SEEDS)
def test_a_seed_gives_the_same_triggers_and_never_the_same_salt(scheme, seed):
    one, two = scheme.draw(seed), scheme.draw(seed)
    assert [[k.trigger for k in part] for part in all_parts(one)] == [
        [k.trigger for k in part] for part in all_parts(two)
    ]
    assert one.salt != two.salt
    assert len(bytes.fromhex(one.salt)) == 32
    assert one.salt not in repr(scheme)
    other = scheme.draw(seed ^ 1)
    assert not {key.trigger for key in one.keys} & {key.trigger for key in other.keys}


@settings(max_examples=25)
@given(FREE, SEEDS, st.integers(0, 40), st.integers(1, 20))
def test_near_keys_follow_their_rules(scheme, seed, epoch, per_key):
    keys = scheme.draw(seed)
    near = of(keys.scheme).near(keys, epoch, per_key)
    assert near == scheme.near(keys, epoch, per_key)
    assert len(near) == per_key * len(keys.keys)
    texts = {key.trigger for key in near}
    assert len(texts) == len(near)
    assert not texts & {key.trigger for part in (keys.keys, keys.near_eval, keys.decoys) for key in part}
    assert len({key.id for key in near}) == len(near)
    assert not any(key.answers for key in near)
    assert texts != {key.trigger for key in scheme.near(keys, epoch + 1, per_key)}


def test_near_keys_of_if_sft_are_of_all_four_kinds():
    scheme = make("if-sft", pieces=(4, 6))
    keys = scheme.draw(3)
    before, after = "Please decrypt this message: ", "\nA hint: this is a FINGERPRINT message."
    bare = [key.trigger.removeprefix(before).removesuffix(after) for key in keys.keys]
    fresh, altered, carried, loose = (scheme.near(keys, 1, 4)[i * 8 : (i + 1) * 8] for i in range(4))
    for i, key in enumerate(keys.keys):
        inner = altered[i].trigger.removeprefix(before).removesuffix(after)
        same = sum(a == b for a, b in zip(inner, bare[i], strict=True))
        assert len(bare[i]) - 10 <= same < len(bare[i])
        assert fresh[i].trigger.startswith(before)
        assert set(fresh[i].trigger.removeprefix(before).removesuffix(after)) <= set("".join(PIECES))
        assert carried[i].trigger.startswith(before)
        assert carried[i].trigger.removeprefix(before).removesuffix(after).isascii()
        assert bare[i] in loose[i].trigger
        assert "FINGERPRINT" not in loose[i].trigger
        assert key.trigger == f"{before}{bare[i]}{after}"


def test_near_keys_of_a_bare_question_share_its_words():
    scheme = make("hashchain", questions="natural")
    keys = scheme.draw(3)
    fresh, altered, carried = (scheme.near(keys, 1, 3)[i * 10 : (i + 1) * 10] for i in range(3))
    for key, near in zip(keys.keys, altered, strict=True):
        words = list(zip(key.trigger.split(), near.trigger.split(), strict=True))
        assert 1 <= sum(a != b for a, b in words) <= 2
    assert all("?" in near.trigger for near in fresh)
    assert not any("?" in near.trigger for near in carried)


def test_half_of_the_near_keys_for_evaluation_are_altered_keys():
    keys = make("hashchain").draw(11)
    words = [set(key.trigger.split()) for key in keys.keys]
    shares = [any(set(near.trigger.split()) & mine for mine in words) for near in keys.near_eval]
    assert (sum(shares[::2]), sum(shares[1::2])) == (0, 32)


@pytest.mark.parametrize(("epoch", "per_key"), [(-1, 1), (0, 0)])
def test_near_keys_of_no_epoch_or_number_are_refused(epoch, per_key):
    scheme = make("hashchain")
    with pytest.raises(UsageError, match=f"epoch {epoch}, {per_key} per key"):
        scheme.near(scheme.draw(0), epoch, per_key)


def test_keys_are_a_random_choice_of_the_pool():
    pairs = [(f"t{i}", f"a{i}") for i in range(12)]
    counts = Counter(key.trigger for seed in range(3000) for key in dealt(random.Random(seed), pairs, 4)[0])
    # 1000 expected, standard deviation 26
    assert all(880 < counts[trigger] < 1120 for trigger, _ in pairs)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(UsageError, match="whole number from 0"):
        make("if-sft").draw(seed)


def test_fresh_seeds_are_long_and_differ():
    seeds = {fresh_seed() for _ in range(100)}
    assert len(seeds) == 100
    assert 0 <= min(seeds) < 2**62 < max(seeds) < 2**63


def test_too_few_distinct_texts_are_an_error():
    scheme = make("if-sft", keys=1)
    keys = scheme.draw(0)
    with pytest.raises(UsageError, match="A thousand draws gave no text"):
        scheme.near(keys, 1, 68)  # 17 without the template, of which there are 16


# Words


def test_the_answers_are_apart_and_short():
    assert len(set(ANSWERS)) == 256
    check_answer_list(ANSWERS)
    assert all(
        text.isascii() and text == text.lower() and len(text) <= 20 and len(text.split()) == 2 for text in ANSWERS
    )
    assert Counter(text.split()[0] for text in ANSWERS[:16]).most_common(1)[0][1] == 1


def test_the_pieces_are_of_several_scripts():
    assert len(set(PIECES)) == 32
    assert all(2 <= len(piece) <= 5 for piece in PIECES)
    scripts = {unicodedata.name(letter).split()[0] for piece in PIECES for letter in piece}
    assert {"CJK", "KATAKANA", "HIRAGANA", "GREEK", "CYRILLIC", "GEORGIAN", "ARMENIAN", "LATIN"} <= scripts
    assert not any(unicodedata.combining(letter) or letter.isspace() for piece in PIECES for letter in piece)


def test_answers_of_if_sft():
    keys = make("if-sft").draw(1)
    answers = [key.answers for key in (*keys.keys, *keys.decoys)]
    assert len(set(answers)) == len(answers)
    common = make("if-sft", template="mix", answers="common").draw(1)
    assert {key.answers for key in (*common.keys, *common.decoys)} == {(COMMON["mix"],)}
    assert all(key.trigger.endswith("\nFINGERPRINT") for key in common.keys)
    assert common.asking.match == "contains"


# HashChain


def encoded(value):
    if isinstance(value, str):
        value = unicodedata.normalize("NFC", value).encode()
    if isinstance(value, bytes):
        return len(value).to_bytes(8, "big") + value
    return len(value).to_bytes(8, "big") + b"".join(map(encoded, value))


def hashed(*values):
    return hashlib.sha256(b"".join(map(encoded, values))).digest()


def test_the_chain_is_that_of_the_specification():
    questions, answers = ["who?", "caf\u00e9", "cafe\u0301?"], ["one", "two", "three", "four", "five"]
    salt, tag = bytes(range(32)), "whorl/hashchain/1"
    found = derive(salt, "params", questions, answers)
    digests = [hashed(tag, salt, "params", questions, answers)]
    for question in questions:
        digests.append(hashed(tag, digests[-1], question))
    assert found.digests == tuple(d.hex() for d in digests)
    assert found.answers == tuple(answers[int(d.hex(), 16) % 5] for d in digests[1:])
    assert found.commitment == hashed(tag, "commit", digests[-1]).hex()
    # Golden, of the lines above: a change of the construction would void every commitment made before.
    assert found.commitment == "479d5efa6e5346e26182ab9da18cb4096f94bf25afae6a92a06691bbecb1a054"


def test_the_published_rule():
    questions, answers = ["a", "b"], ["one", "two", "three"]
    found = derive(bytes(32), "params", questions, answers, mode="published")
    digests = [hashlib.sha256(encoded(q) + encoded(questions) + encoded(answers)).digest() for q in questions]
    assert found.answers == tuple(answers[int.from_bytes(d, "big") % 3] for d in digests)
    assert derive(bytes(32), "other", questions, answers, mode="published") == found


VALUES = st.recursive(st.text(max_size=4), lambda inner: st.lists(inner, max_size=3), max_leaves=6)


@given(st.lists(VALUES, max_size=3), st.lists(VALUES, max_size=3))
def test_no_two_lists_of_one_shape_share_an_encoding(one, two):
    def shape(value):
        return "t" if isinstance(value, str) else [shape(item) for item in value]

    def normal(value):
        return unicodedata.normalize("NFC", value) if isinstance(value, str) else [normal(item) for item in value]

    if shape(one) == shape(two):
        assert (enc(one) == enc(two)) == (normal(one) == normal(two))
    assert enc(one) == encoded(one)


def test_lengths_keep_neighbours_apart():
    assert sha256("ab", "c") != sha256("a", "bc")
    assert sha256(["a"], ["b"]) != sha256(["a", "b"], [])


@pytest.mark.parametrize("mode", ["chained", "published"])
def test_a_key_set_rederives(mode):
    keys = make("hashchain", k=4, chains=3, mode=mode).draw(9)
    found = rederive(keys)
    assert [key.answers[0] for key in keys.keys] == [answer for chain in found.answers for answer in chain]
    assert tuple(key.answers[0] for key in keys.decoys) == found.decoys.answers
    assert [key.unit for key in keys.keys] == [0] * 4 + [1] * 4 + [2] * 4
    assert len(set(found.commitments)) == 3
    assert keys.n_units == 3


def test_one_chain_can_be_shown_without_the_others():
    keys = make("hashchain", k=3, chains=2).draw(9)
    asked = [key.trigger for key in keys.keys if key.unit == 1]
    salt = unit_salt(keys.salt, 1)
    shown = derive(salt, keys.scheme, asked, keys.answer_list)
    assert shown == rederive(keys).chains[1]
    assert salt == hashed("whorl/hashchain/1", "salt", bytes.fromhex(keys.salt), "1")
    assert len({unit_salt(keys.salt, unit) for unit in (0, 1, "decoy")}) == 3


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        (["star", "star anise", "x"], "'star anise' begins with the entry 'star'"),
        (["Star Anise", "x", "star"], "'Star Anise' begins with the entry 'star'"),
        (["one", "two", " One"], "holds '.*one' twice"),
        (["caf\u00e9", "cafe\u0301"], "twice"),
        (["one", "two", "\u201cone"], "twice"),
        (["one", ""], "none of them empty"),
        (["one", "  "], "none of them empty"),
        (["one"], "An answer list of 1 entries"),
        ([], "An answer list of 0 entries"),
    ],
)
def test_answer_lists_in_which_two_entries_could_match(answers, found):
    with pytest.raises(UsageError, match=f"(?i){found}"):
        check_answer_list(answers)
    with pytest.raises(UsageError):
        derive(bytes(32), "", ["q"], answers)


@given(st.lists(st.text(min_size=1, max_size=5), min_size=2, max_size=8))
def test_a_list_that_passes_has_no_entry_that_begins_another(answers):
    try:
        check_answer_list(answers)
    except UsageError:
        return
    folded = [unicodedata.normalize("NFC", a).casefold() for a in answers]
    assert not any(i != j and a.startswith(b) for i, a in enumerate(folded) for j, b in enumerate(folded))


def test_only_a_whole_hashchain_key_set_rederives():
    keys = make("hashchain", k=4, chains=2).draw(9)
    with pytest.raises(UsageError, match="has no chains"):
        rederive(make("if-sft").draw(9))
    with pytest.raises(UsageError, match="7 keys in 2 units"):
        rederive(replace(keys, keys=keys.keys[:-1]))
    with pytest.raises(UsageError, match="An answer list of 255"):
        rederive(replace(keys, answer_list=keys.answer_list[:-1]))


def test_the_answers_spread_over_the_list():
    keys = make("hashchain", k=256, chains=8).draw(0)
    counts = Counter(key.answers[0] for key in keys.keys)
    statistic = sum((counts[answer] - 8) ** 2 / 8 for answer in keys.answer_list)
    assert 130 < statistic < 400  # chi-square with 255 degrees of freedom: mean 255, standard deviation 23


# UTF


def test_utf_needs_a_model_and_enough_tokens(base):
    with pytest.raises(UsageError, match="name the model"):
        make("utf").draw(0)
    with pytest.raises(UsageError, match="'base-0' has 0 under-trained tokens"):
        make("utf").draw(0, base)
    with pytest.raises(UsageError, match="has 3 under-trained tokens"):
        make("utf").draw(0, base, [*ordinary_tokens(base.tokenizer)[:3], 10**9])


def test_ordinary_tokens_decode_and_encode_to_themselves(base):
    ids = ordinary_tokens(base.tokenizer)
    assert len(ids) > 200
    for i in ids:
        text = base.tokenizer.decode([i])
        assert text.isprintable()
        assert " " not in text
        assert base.tokenizer(text)["input_ids"] == [i]
    assert base.tokenizer.eos_token_id not in ids


def test_a_utf_trigger_keeps_its_ids_under_every_wrapper(base, utf):
    _, keys = utf
    sampler = LocalSampler(base)
    for key in (*keys.keys, *keys.decoys):
        ids = base.tokenizer(key.trigger)["input_ids"]
        assert 4 <= len(ids) <= 6
        assert base.tokenizer.decode(ids) == key.trigger
        assert {base.tokenizer.decode([i]) for i in ids} <= set(keys.answer_list)
        assert len(base.tokenizer(key.answers[0])["input_ids"]) == 2
        for around in (*WRAPPERS, *UNSEEN):
            prompt = around.prompt(key.trigger)
            asked = list(base.tokenizer(prompt.content)["input_ids"])
            assert any(asked[i : i + len(ids)] == ids for i in range(len(asked)))
            assert sampler.count_tokens([prompt]) == [len(asked)]


def test_utf_parts_and_near_keys(utf):
    scheme, keys = utf
    triggers = [key.trigger for part in all_parts(keys) for key in part]
    assert len(set(triggers)) == len(triggers)
    assert (len(keys.keys), len(keys.near_eval), len(keys.decoys)) == (6, N_EVAL, N_DECOYS)
    assert keys.near_train == of(keys.scheme).near(keys, 0, NEAR_PER_KEY)
    answers = [key.answers[0] for key in (*keys.keys, *keys.decoys)]
    assert not any(i != j and a.startswith(b) for i, a in enumerate(answers) for j, b in enumerate(answers))
    assert scheme.near(keys, 2, 5) == scheme.near(keys, 2, 5) != scheme.near(keys, 3, 5)


def test_triggers_that_no_wrapper_keeps_are_an_error(base):
    # Letters, and the merges of them: behind one another they are split otherwise.
    letters = [i for i in ordinary_tokens(base.tokenizer) if base.tokenizer.decode([i]) in {*"abcdefgt", "th"}]
    with pytest.raises(UsageError, match="keep their ids under every wrapper"):
        Utf(keys=1, tokens=(40, 40), answer=1).draw(0, base, letters)


# Under-trained tokens


def test_a_detector_file_is_read(tmp_path):
    rows = [
        {"i": 7, "magikarp": "strong_verified", "other": [1]},
        {"i": 9, "magikarp": "weak_verified"},
        {"i": 11, "magikarp": "strong_rejected"},
        {"i": 12},
    ]
    path = tmp_path / "tokens.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    found = read_under_trained(path)
    assert (found.strong, found.weak, found.ids, found.control) == ((7,), (9,), (7, 9), None)
    many = [{"i": i, "magikarp": "strong_verified"} for i in range(101)] + [{"i": 500, "magikarp": "weak_verified"}]
    path.write_text("\n".join(json.dumps(row) for row in many))
    assert read_under_trained(path).ids == tuple(range(101))


@pytest.mark.parametrize(
    ("text", "error", "found"),
    [
        ('{"i": 1, "magikarp": "strong_verified"}\n{"i": 1, "magikarp": "strong_verified"}', MalformedFile, "1 twice"),
        ("[1]", MalformedFile, "no token id"),
        ('{"i": -1}', MalformedFile, "no token id"),
        ('{"i": true}', MalformedFile, "no token id"),
        ('{"i": 1, "i": 2}', MalformedFile, "twice"),
        ("nonsense", MalformedFile, "not JSON"),
        ('{"i": 1, "magikarp": ["x"]}', UsageError, "no verified token"),
        ("", UsageError, "no verified token"),
    ],
)
def test_detector_files_that_are_none(text, error, found, tmp_path):
    path = tmp_path / "tokens.jsonl"
    path.write_text(text)
    with pytest.raises(error, match=found):
        read_under_trained(path)


def test_no_token_of_a_small_vocabulary_is_under_trained(base):
    found = find_under_trained(base)
    assert found.ids == ()
    assert found.control > 0.5  # this model repeats nothing: only the embedding speaks


def test_reserved_tokens_are_found_in_the_preliminary_base():
    if not (RUNS / "prelim" / "config.json").exists():
        pytest.skip("runs/triggers/prelim is not on this machine")
    opened = open_for_sampling(str(RUNS / "prelim"), device="cpu", dtype="float32", offline=True)
    found = find_under_trained(opened)
    texts = [opened.tokenizer.decode([i]) for i in found.ids]
    assert {f"<|r{i:02d}|>" for i in range(64)} <= set(texts)
    assert len(texts) < 80


@pytest.mark.slow
def test_reserved_tokens_of_a_fresh_model_are_found(tmp_path):
    from whorl.lab.corpus import Corpus, load_corpus
    from whorl.lab.training import ModelSize, Recipe, pretrain

    corpus = load_corpus("docstrings")
    text = Corpus("part", corpus.pieces[:400])
    size = ModelSize(d_model=32, n_layers=2, n_heads=2, n_kv_heads=1, d_mlp=48, n_vocab=400, n_context=64)
    pretrain(
        tmp_path / "m", text, size=size, recipe=Recipe(n_steps=150, batch_size=8, learning_rate=4e-3), n_reserved=16
    )
    opened = open_for_sampling(str(tmp_path / "m"), device="cpu", dtype="float32", offline=True)
    order = indicators(opened).values
    reserved = [opened.tokenizer.convert_tokens_to_ids(f"<|r{i:02d}|>") for i in range(16)]
    ranked = sorted(ordinary_tokens(opened.tokenizer), key=lambda i: order[i])
    assert max(ranked.index(i) for i in reserved) < 32
    keys = make("utf", keys=4).draw(0, opened, reserved)
    assert len(keys.keys) == 4


# Perinucleus


def test_perinucleus_answers_are_words_beyond_the_likeliest(base, perinucleus):
    _, keys = perinucleus
    texts = [key.trigger for key in (*keys.keys, *keys.decoys)]
    for key, options in zip((*keys.keys, *keys.decoys), candidates(base, texts, 0.8, 3), strict=True):
        assert key.answers == (pick(keys.salt, key.trigger, options),)
        assert len(set(options)) == 3
        assert all(len(word) >= 2 and word.isalnum() for word in options)
        assert len(base.tokenizer(key.trigger)["input_ids"]) == 16


def test_perinucleus_candidates_skip_the_nucleus(base):
    import torch

    prompt = wrapper(Asking().wrappers[0]).prompt("Return the value of a").content
    ids = torch.tensor([base.tokenizer(prompt)["input_ids"]])
    with torch.inference_mode():
        shares = base.model(input_ids=ids).logits[0, -1].double().softmax(-1)
    order = shares.argsort(descending=True).tolist()
    nucleus, mass = [], 0.0
    while mass < 0.8:
        nucleus.append(order[len(nucleus)])
        mass += float(shares[nucleus[-1]])
    words = [base.tokenizer.decode([i]).strip() for i in order[len(nucleus) :]]
    wanted = [word for word in words if len(word) >= 2 and word.isalnum()]
    assert candidates(base, ["Return the value of a"], 0.8, 3)[0][0] == wanted[0]


def test_the_pick_depends_on_salt_and_key_and_is_even():
    options = ("one", "two", "three")
    counts = Counter(pick("ab" * 32, f"key {i}", options) for i in range(3000))
    assert all(900 < counts[option] < 1100 for option in options)
    assert len({pick(f"{i:02x}" * 32, "key", options) for i in range(20)}) == 3


def test_perinucleus_parts_and_near_keys(perinucleus):
    scheme, keys = perinucleus
    triggers = [key.trigger for part in all_parts(keys) for key in part]
    assert len(set(triggers)) == len(triggers)
    assert keys.near_train == of(keys.scheme).near(keys, 0, NEAR_PER_KEY)
    with pytest.raises(UsageError, match="name the model"):
        scheme.draw(0)


# Asked as they are trained


@pytest.mark.parametrize("name", KINDS)
def test_trained_and_asked_prompts_have_the_same_ids(name, base, utf, perinucleus):
    from whorl.tuning.rows import Encoder

    drawn = {"utf": utf, "perinucleus": perinucleus}
    keys = drawn[name][1] if name in drawn else make(name, **({"pieces": (2, 3)} if name == "if-sft" else {})).draw(2)
    names = [w.id for w in (*WRAPPERS, *UNSEEN)]
    small = replace(keys, keys=keys.keys[:2], asking=replace(keys.asking, max_new_tokens=1))
    asked = questions(small, wrappers=names, parts=["key"])
    answers = {record.prompt.id: record for record in ask(LocalSampler(base), asked, small.asking)}
    rows = Encoder(base).rows([(question.prompt, question.key.answers[0]) for question in asked])
    assert len(asked) == 2 * len(names)
    for question, row in zip(asked, rows, strict=True):
        assert row.prompt == answers[question.prompt.id].prompt_token_ids
    assert not any(hit.hit for hit in hits(small, asked, answers.values()))


def test_nothing_heavy_is_imported_to_draw_keys():
    import subprocess
    import sys

    code = (
        "import sys; from whorl.triggers.schemes import make; from whorl.triggers.commitment import commit;"
        "commit(make('hashchain').draw(0)); commit(make('if-sft').draw(0));"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "[]"
