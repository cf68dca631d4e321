"""A commitment holds for its key set and for no other."""

import json
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whorl.errors import InputRefused, MalformedFile, UnsafeFile, UnsupportedFile, UsageError
from whorl.triggers.commitment import check, commit, pool_digest, read_commitment, write_commitment
from whorl.triggers.keyset import Asking, Key, Regularisers, Reveal
from whorl.triggers.schemes import make
from whorl.triggers.schemes.hashchain import rederive

CHAIN = make("hashchain", k=4, chains=2).draw(3)
PLAIN = make("if-sft").draw(3)


def other_salt(keys):
    return replace(keys, salt=keys.salt[:-1] + ("0" if keys.salt[-1] != "0" else "1"))


def first_changed(keys, part="keys", **changes):
    first, *rest = getattr(keys, part)
    return replace(keys, **{part: (replace(first, **changes), *rest)})


def swapped(keys, part="keys"):
    first, second, *rest = getattr(keys, part)
    return replace(keys, **{part: (second, first, *rest)})


CHANGES = {
    "salt": other_salt,
    "question": lambda k: first_changed(k, trigger=k.keys[0].trigger + "?"),
    "answer": lambda k: first_changed(k, answers=("other words",)),
    "further answer": lambda k: first_changed(k, answers=(*k.keys[0].answers, "other words")),
    "order": swapped,
    "id": lambda k: first_changed(k, id="key-999"),
    "unit": lambda k: first_changed(k, unit=1 - k.keys[0].unit),
    "a key less": lambda k: replace(k, keys=k.keys[:-1]),
    "a key more": lambda k: replace(k, keys=(*k.keys, Key("key-999", "new", ("x y",)))),
    "decoy question": lambda k: first_changed(k, "decoys", trigger="another decoy"),
    "decoy answer": lambda k: first_changed(k, "decoys", answers=("other words",)),
    "decoy order": lambda k: swapped(k, "decoys"),
    "a decoy less": lambda k: replace(k, decoys=k.decoys[:-1]),
    "near key": lambda k: first_changed(k, "near_eval", trigger="another look-alike"),
    "near key in training": lambda k: first_changed(k, "near_train", trigger="another look-alike"),
    "near key order": lambda k: swapped(k, "near_eval"),
    "from one part to another": lambda k: replace(
        k, near_eval=k.near_eval[1:], near_train=(*k.near_train, k.near_eval[0])
    ),
    "match rule": lambda k: replace(k, asking=replace(k.asking, match="contains")),
    "case": lambda k: replace(k, asking=replace(k.asking, fold_case=True)),
    "tokens": lambda k: replace(k, asking=replace(k.asking, max_new_tokens=25)),
    "samples": lambda k: replace(k, asking=replace(k.asking, samples=1)),
    "temperature": lambda k: replace(k, asking=replace(k.asking, temperature=0.71)),
    "wrappers": lambda k: replace(k, asking=replace(k.asking, wrappers=k.asking.wrappers[::-1])),
    "seed": lambda k: replace(k, seed=k.seed + 1),
    "scheme": lambda k: replace(k, scheme=make("hashchain").name),
    "unknown scheme": lambda k: replace(k, scheme="hashchain-v9(k=1)"),
}
CHAIN_CHANGES = {
    "list": lambda k: replace(k, answer_list=("other words", *k.answer_list[1:])),
    "list order": lambda k: replace(k, answer_list=(k.answer_list[1], k.answer_list[0], *k.answer_list[2:])),
    "list shorter": lambda k: replace(k, answer_list=k.answer_list[:-1]),
    "chain order": lambda k: replace(k, keys=tuple(replace(key, unit=1 - key.unit) for key in k.keys[4:] + k.keys[:4])),
}
CASES = [
    *((keys, name, change) for keys in (CHAIN, PLAIN) for name, change in CHANGES.items()),
    *((CHAIN, name, change) for name, change in CHAIN_CHANGES.items()),
]


@pytest.mark.parametrize("name", ["if-sft", "hashchain"])
def test_what_was_committed_is_valid(name):
    keys = make(name).draw(5)
    check(keys, commit(keys))
    check(keys, commit(keys, "2025-12-31", "a note in the Gazette"))


@pytest.mark.parametrize(
    ("keys", "change"), [case[::2] for case in CASES], ids=[f"{k.scheme[:6]} {name}" for k, name, _ in CASES]
)
def test_any_change_makes_it_invalid(keys, change):
    with pytest.raises(MalformedFile, match="commitment invalid") as refusal:
        check(change(keys), commit(keys))
    assert keys.salt not in str(refusal.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"reveals": (Reveal(0, "a court", "2025-12-31"),)},
        {"regularisers": Regularisers("docstrings", "sha256:0", ("a",))},
    ],
)
def test_what_happens_later_leaves_it_valid(changes):
    check(replace(CHAIN, **changes), commit(CHAIN))


@pytest.mark.parametrize(
    "changes",
    [
        {"scheme": PLAIN.scheme},
        {"value": "0" * 64},
        {"pool": "0" * 64},
        {"n_units": 1},
        {"units": ()},
        {"units": ("0" * 64, "1" * 64)},
    ],
)
def test_a_commitment_to_something_else_is_invalid(changes):
    with pytest.raises(MalformedFile, match=f"commitment invalid: {next(iter(changes))} of the key set differ"):
        check(CHAIN, replace(commit(CHAIN), **changes))


@given(st.sampled_from(range(256)), st.data())
@settings(max_examples=30)
def test_one_letter_of_the_answer_list_or_a_question(place, data):
    letter = data.draw(st.sampled_from("abcdefghijklmnopqrstuvwxyz"))
    old = CHAIN.answer_list[place]
    if old[0] != letter:
        changed = (*CHAIN.answer_list[:place], letter + old[1:], *CHAIN.answer_list[place + 1 :])
        with pytest.raises(MalformedFile, match="commitment invalid"):
            check(replace(CHAIN, answer_list=changed), commit(CHAIN))
    key = CHAIN.keys[place % 8]
    at = place % len(key.trigger)
    if key.trigger[at] != letter:
        members = [
            replace(k, trigger=k.trigger[:at] + letter + k.trigger[at + 1 :]) if k == key else k for k in CHAIN.keys
        ]
        with pytest.raises(MalformedFile, match="commitment invalid"):
            check(replace(CHAIN, keys=tuple(members)), commit(CHAIN))


def test_an_answer_list_in_which_two_entries_match_is_refused_by_name():
    words = ("silver", "silver falcon", *CHAIN.answer_list[2:])
    with pytest.raises(MalformedFile, match=r"commitment invalid: .*'silver falcon' begins with the entry 'silver'"):
        check(replace(CHAIN, answer_list=words), commit(CHAIN))
    with pytest.raises(UsageError, match=r"cannot be committed: .*'silver falcon' begins with the entry 'silver'"):
        commit(replace(CHAIN, answer_list=words))
    twice = (CHAIN.answer_list[1], *CHAIN.answer_list[1:])
    with pytest.raises(MalformedFile, match="commitment invalid: The answer list holds 'brisk harbor' twice"):
        check(replace(CHAIN, answer_list=twice), commit(CHAIN))


def test_answers_that_do_not_follow_from_the_chain_are_never_committed():
    with pytest.raises(UsageError, match="the answer of 'key-000' does not follow from chain 0"):
        commit(first_changed(CHAIN, answers=("other words",)))
    with pytest.raises(UsageError, match="the answer of 'decoy-000' does not follow from the decoy chain"):
        commit(first_changed(CHAIN, "decoys", answers=("other words",)))


def test_texts_of_another_normal_form_are_refused():
    # NFC and NFD of a text have one hash; asked they are two prompts.
    trigger = unicodedata.normalize("NFD", "caf\u00e9")
    with pytest.raises(UsageError, match="normal form NFC"):
        commit(first_changed(PLAIN, trigger=trigger))
    keys = first_changed(PLAIN, trigger="caf\u00e9")
    with pytest.raises(MalformedFile, match=r"commitment invalid: the text 'cafe.*normal form NFC"):
        check(first_changed(PLAIN, trigger=trigger), commit(keys))


@pytest.mark.parametrize("salt", ["", "00", "g" * 64, "A" * 64])
def test_a_salt_that_is_none(salt):
    with pytest.raises(UsageError, match="salt is not 32 bytes in hex"):
        commit(replace(PLAIN, salt=salt))


@pytest.mark.parametrize("dated", ["2025-02-30", "31.12.2025", "20251231", "", "2025-12-31T00:00:00"])
def test_dates_that_are_none(dated):
    with pytest.raises(UsageError, match="expected one like 2025-12-31"):
        commit(PLAIN, dated)


def test_units_are_those_of_the_chains():
    found = commit(CHAIN)
    assert found.units == rederive(CHAIN).commitments
    assert (found.n_units, found.scheme) == (2, CHAIN.scheme)
    assert commit(PLAIN).units == ()


def test_the_public_part_says_nothing_of_the_keys():
    text = json.dumps([commit(k).__dict__ for k in (CHAIN, PLAIN)])
    secrets = [k.salt for k in (CHAIN, PLAIN)] + [key.trigger for k in (CHAIN, PLAIN) for key in k.keys]
    assert not any(secret in text for secret in secrets)
    again = make("if-sft").draw(3)  # the same keys with another salt
    assert again.keys == PLAIN.keys
    assert commit(again).value != commit(PLAIN).value
    assert pool_digest(again) != pool_digest(PLAIN)


def test_the_pool_hides_which_are_keys():
    members = (*PLAIN.decoys[:8], *PLAIN.keys, *PLAIN.decoys[8:])
    dealt = replace(PLAIN, keys=members[:8], decoys=members[8:])
    assert pool_digest(dealt) == pool_digest(PLAIN)
    assert commit(dealt).value != commit(PLAIN).value


# The file


@pytest.mark.parametrize("made", [commit(CHAIN, "2025-12-31", "\u00e4 place"), commit(PLAIN)])
def test_a_written_commitment_reads_back(made, tmp_path):
    assert read_commitment(write_commitment(tmp_path / "c.json", made)) == made
    assert (tmp_path / "c.json").stat().st_mode & 0o777 == 0o644


def edited(**changes):
    values = json.loads(json.dumps(fields())) | changes
    return json.dumps({k: v for k, v in values.items() if v is not ...}).encode()


def fields():
    from whorl.triggers.commitment import to_fields

    return to_fields(commit(CHAIN, "2025-12-31"))


@pytest.mark.parametrize(
    ("data", "error", "found"),
    [
        (b"", MalformedFile, "0 bytes"),
        (b"[]", MalformedFile, "a list at the top level"),
        (edited(schema="whorl.commitment/2"), UnsupportedFile, "schema whorl.commitment/2"),
        (edited(extra=1), MalformedFile, "field 'extra'"),
        (edited(units=...), MalformedFile, "field 'units'"),
        (edited(schema=...), MalformedFile, "field 'schema'"),
        (edited(value="0" * 63), MalformedFile, "field 'value'"),
        (edited(value=1), MalformedFile, "field 'value'"),
        (edited(n_units=0), MalformedFile, "field 'n_units'"),
        (edited(n_units=True), MalformedFile, "field 'n_units'"),
        (edited(dated="2025-13-01"), MalformedFile, "2025-13-01"),
        (edited(where=""), MalformedFile, "field 'where'"),
        (b'{"schema": "whorl.commitment/1", "schema": 1}', UnsafeFile, "'schema' twice"),
        (b'{"where": "' + b"x" * 1_000_001 + b'"}', UnsafeFile, "at most"),
    ],
)
def test_files_that_are_no_commitment(data, error, found, tmp_path):
    path = tmp_path / "commitment.json"
    path.write_bytes(data)
    with pytest.raises(error, match=found):
        read_commitment(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputRefused, match=r"commitment 'none.json'"):
        read_commitment(tmp_path / "none.json")


def test_asking_is_covered_field_by_field():
    assert {"wrappers", "match", "fold_case", "max_new_tokens", "samples", "temperature"} == set(vars(Asking()))
