"""Key set files and material folders: they read back exactly, stay secret, and refuse everything else."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import transcript_cases
from whorl.errors import InputRefused, MalformedFile, UnsafeFile, UnsupportedFile, UsageError
from whorl.triggers.commitment import commit, write_commitment
from whorl.triggers.keyset import Asking, Key, KeySet, Regularisers, Reveal
from whorl.triggers.keyset_file import (
    MAX_BYTES,
    from_bytes,
    privacy_notes,
    read_key_set,
    to_text,
    write_key_set,
    write_secret,
)
from whorl.triggers.material import read_material, reveal, write_material
from whorl.triggers.schemes import make
from whorl.triggers.wrappers import UNSEEN, WRAPPERS

KEYS = make("hashchain", k=3, chains=2).draw(4)
posix = pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")


def mode(path):
    return path.stat().st_mode & 0o777


# The law

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
ASKING = st.builds(
    Asking,
    wrappers=st.lists(st.sampled_from([w.id for w in (*WRAPPERS, *UNSEEN)]), min_size=1, max_size=4).map(tuple),
    match=st.sampled_from(["prefix", "contains"]),
    fold_case=st.booleans(),
    max_new_tokens=st.integers(1, 999),
    samples=st.integers(0, 99),
    temperature=st.floats(0, 5, allow_nan=False),
)


@st.composite
def key_sets(draw):
    triggers = draw(st.lists(TEXT, min_size=4, max_size=12, unique=True))
    members = [
        Key(f"k{i}", trigger, tuple(draw(st.lists(TEXT, min_size=1, max_size=2))), draw(st.integers(0, 2)))
        for i, trigger in enumerate(triggers)
    ]
    near = [replace(key, answers=()) for key in members[2:3]]
    n_units = 1 + members[0].unit
    return KeySet(
        scheme=draw(st.sampled_from([make(n).name for n in ("if-sft", "utf", "hashchain", "perinucleus")])),
        keys=(members[0],),
        near_train=(),
        near_eval=tuple(near),
        decoys=tuple(members[3:]),
        asking=draw(ASKING),
        seed=draw(st.integers(0, 2**63 - 1)),
        salt=draw(st.binary(min_size=32, max_size=32)).hex(),
        answer_list=tuple(draw(st.lists(TEXT, max_size=3))),
        regularisers=draw(st.none() | st.builds(Regularisers, TEXT, TEXT, st.lists(TEXT, max_size=2).map(tuple))),
        reveals=tuple(
            draw(st.lists(st.builds(Reveal, st.integers(0, n_units - 1), TEXT, st.just("2025-12-31")), max_size=2))
        ),
    )


@given(key_sets())
def test_what_is_written_reads_back(keys):
    assert from_bytes(to_text(keys).encode(), "k") == keys


@pytest.mark.parametrize("keys", [KEYS, make("if-sft").draw(1), make("hashchain", mode="published").draw(2)])
def test_drawn_key_sets_read_back(keys, tmp_path):
    path = write_key_set(tmp_path / "deep" / "keyset.json", keys)
    assert read_key_set(path) == keys
    assert to_text(read_key_set(path)) == path.read_text("utf-8")


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"salt": "00"}, "field 'salt'"),
        ({"seed": -1}, "field 'seed'"),
        ({"seed": 2**63}, "field 'seed'"),
        ({"reveals": (Reveal(0, "", "2025-12-31"),)}, "field 'reveals.0.to'"),
    ],
)
def test_what_cannot_be_read_is_not_written(changes, found):
    with pytest.raises(UsageError, match=found):
        to_text(replace(KEYS, **changes))


# Secrecy


@posix
def test_a_secret_is_never_readable_by_others(tmp_path):
    before = os.umask(0)
    try:
        path = write_key_set(tmp_path / "private" / "keyset.json", KEYS)
    finally:
        os.umask(before)
    assert mode(path) == 0o600
    assert mode(path.parent) == 0o700
    assert privacy_notes(path) == ()
    path.chmod(0o644)
    assert privacy_notes(path) == ("'keyset.json' is secret, but others on this machine may read it: chmod 600.",)
    assert read_key_set(path) == KEYS
    write_key_set(path, KEYS)
    assert mode(path) == 0o600


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = write_key_set(tmp_path / "keyset.json", KEYS)
    with pytest.raises(TypeError):
        write_secret(path, "not bytes")
    assert read_key_set(path) == KEYS
    assert [p.name for p in tmp_path.iterdir()] == ["keyset.json"]


# What is refused


def edited(change):
    values = json.loads(to_text(KEYS))
    change(values)
    return json.dumps(values).encode()


def put(*places, value):
    def change(values):
        for place in places[:-1]:
            values = values[place]
        values[places[-1]] = value

    return edited(change)


def without(*places):
    def change(values):
        for place in places[:-1]:
            values = values[place]
        del values[places[-1]]

    return edited(change)


HOSTILE = {
    "empty": (b"", MalformedFile, "0 bytes"),
    "not JSON": (b"{", MalformedFile, "not JSON"),
    "a list": (b"[1]", MalformedFile, "a list at the top level"),
    "byte-order mark": (b"\xef\xbb\xbf" + to_text(KEYS).encode(), MalformedFile, "byte-order mark"),
    "not UTF-8": (b'{"schema": "\xff"}', MalformedFile, "not UTF-8"),
    "NUL": (b'{"a": "\0"}', MalformedFile, "NUL"),
    "a key twice": (to_text(KEYS).encode()[:-2] + b', "salt": ""}', UnsafeFile, "'salt' twice"),
    "half a surrogate": (put("keys", 0, "trigger", value="\ud800"), UnsafeFile, "surrogate"),
    "deep": (b'{"a":' * 70 + b"1" + b"}" * 70, MalformedFile, "nested"),
    "later schema": (put("schema", value="whorl.keyset/2"), UnsupportedFile, "schema whorl.keyset/2"),
    "other schema": (put("schema", value=1), UnsupportedFile, "schema 1"),
    "no schema": (without("schema"), MalformedFile, "field 'schema'"),
    "unknown scheme": (put("scheme", value="nope-v1(k=1)"), UnsupportedFile, "Unknown scheme 'nope'"),
    "scheme of later": (put("scheme", value="hashchain-v2(k=1)"), UnsupportedFile, "names no scheme"),
    "unknown wrapper": (put("asking", "wrappers", value=["other"]), UnsupportedFile, "Unknown wrapper 'other'"),
    "no wrapper": (put("asking", "wrappers", value=[]), MalformedFile, "0 wrappers"),
    "unknown match": (put("asking", "match", value="fuzzy"), MalformedFile, "field 'asking.match'"),
    "no tokens": (put("asking", "max_new_tokens", value=0), MalformedFile, "0 tokens"),
    "negative samples": (put("asking", "samples", value=-1), MalformedFile, "field 'asking.samples'"),
    "endless temperature": (
        edited(lambda v: None).replace(b'"temperature": 0.7', b'"temperature": 1e999'), MalformedFile, "1e999",
    ),
    "NaN": (edited(lambda v: None).replace(b'"temperature": 0.7', b'"temperature": NaN'), MalformedFile, "NaN"),
    "unknown field": (put("note", value=""), MalformedFile, "field 'note'"),
    "unknown field of a key": (put("keys", 0, "note", value=""), MalformedFile, "field 'keys.0.note'"),
    "a field less": (without("decoys"), MalformedFile, "field 'decoys'"),
    "null for a list": (put("decoys", value=None), MalformedFile, "field 'decoys'"),
    "no keys": (put("keys", value=[]), MalformedFile, "expected keys"),
    "a trigger that is no text": (put("keys", 0, "trigger", value=1), MalformedFile, "field 'keys.0.trigger'"),
    "an empty trigger": (put("keys", 0, "trigger", value=""), MalformedFile, "field 'keys.0.trigger'"),
    "a long trigger": (put("keys", 0, "trigger", value="x" * 20_001), MalformedFile, "field 'keys.0.trigger'"),
    "a key without answer": (put("keys", 0, "answers", value=[]), MalformedFile, "no answer"),
    "an empty answer": (put("keys", 0, "answers", value=[""]), MalformedFile, "field 'keys.0.answers.0'"),
    "a trigger twice": (
        put("decoys", 0, "trigger", value=KEYS.keys[0].trigger), MalformedFile, "triggers and ids that all differ",
    ),
    "an id twice": (put("decoys", 0, "id", value=KEYS.keys[0].id), MalformedFile, "triggers and ids that all differ"),
    "a boolean for a number": (put("seed", value=True), MalformedFile, "field 'seed'"),
    "a float for a number": (put("seed", value=1.0), MalformedFile, "field 'seed'"),
    "a seed out of range": (put("seed", value=2**63), MalformedFile, "field 'seed'"),
    "a unit out of range": (put("keys", 0, "unit", value=10**9), MalformedFile, "field 'keys.0.unit'"),
    "a salt in capitals": (put("salt", value="A" * 64), MalformedFile, "field 'salt'"),
    "a short salt": (put("salt", value="a" * 62), MalformedFile, "field 'salt'"),
    "a reveal of no unit": (
        put("reveals", value=[{"unit": 2, "to": "x", "date": "2025-12-31"}]), MalformedFile, "Unit 2 was revealed; there are 2",
    ),
    "a reveal without date": (put("reveals", value=[{"unit": 0, "to": "x", "date": "today"}]), MalformedFile, "reveals.0.date"),
    "regularisers of somebody": (
        put("regularisers", value={"data": "d", "digest": "x", "ids": [], "answers": "me"}), MalformedFile, "regularisers.answers",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("data", "error", "found"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_files(data, error, found, tmp_path):
    path = tmp_path / "keyset.json"
    path.write_bytes(data)
    with pytest.raises(error, match=found) as refusal:
        read_key_set(path)
    assert "'keyset.json'" in str(refusal.value)
    assert KEYS.salt not in str(refusal.value)


@pytest.mark.parametrize("kind", ["missing", "folder", "large"])
def test_things_that_are_no_file(kind, tmp_path):
    path = tmp_path / "keyset.json"
    if kind == "folder":
        path.mkdir()
    if kind == "large":
        with path.open("wb") as file:
            file.truncate(MAX_BYTES + 1)
    with pytest.raises(InputRefused, match=r"key set 'keyset\.json'"):
        read_key_set(path)


@settings(max_examples=60)
@given(st.data())
def test_a_cut_or_flipped_file_never_escapes_the_error_tree(data):
    text = bytearray(to_text(KEYS).encode())
    place = data.draw(st.integers(0, len(text) - 1))
    if data.draw(st.booleans()):
        text = text[:place]
    else:
        text[place] = data.draw(st.integers(0, 255))
    try:
        found = from_bytes(bytes(text), "k")
    except InputRefused:
        return
    assert from_bytes(to_text(found).encode(), "k") == found


# The folder


@pytest.fixture
def records():
    return list(transcript_cases.plain(n_prompts=3))


@pytest.fixture
def folder(tmp_path, records):
    return write_material(tmp_path / "secret", KEYS, commit(KEYS, "2025-12-31"), records, {"fsr": 1.0, "base": "b"})


def test_material_reads_back(folder, records):
    found = read_material(folder)
    assert (found.keys, found.commitment) == (KEYS, commit(KEYS, "2025-12-31"))
    assert found.answers == tuple(records)
    assert found.gates == {"fsr": 1.0, "base": "b"}
    assert (found.folder, found.notes) == (folder, ())
    assert sorted(path.name for path in folder.iterdir()) == [
        "answers.jsonl", "commitment.json", "gates.json", "keyset.json",
    ]  # fmt: skip


@posix
def test_only_the_commitment_is_for_others(folder):
    modes = {path.name: mode(path) for path in folder.iterdir()}
    secret = dict.fromkeys(("keyset.json", "answers.jsonl", "gates.json"), 0o600)
    assert modes == secret | {"commitment.json": 0o644}
    assert mode(folder) == 0o700
    (folder / "answers.jsonl").chmod(0o640)
    assert read_material(folder).notes == (
        "'answers.jsonl' is secret, but others on this machine may read it: chmod 600.",
    )


@pytest.mark.parametrize("name", ["keyset.json", "commitment.json", "answers.jsonl", "gates.json"])
def test_a_missing_file_is_named(name, folder):
    (folder / name).unlink()
    with pytest.raises(MalformedFile, match=f"folder 'secret': no '{name}'"):
        read_material(folder)


def test_another_key_set_is_invalid(folder, tmp_path):
    other = make("hashchain", k=3, chains=2).draw(5)
    write_key_set(folder / "keyset.json", other)
    with pytest.raises(MalformedFile, match="commitment invalid"):
        read_material(folder)
    public = write_commitment(tmp_path / "public.json", commit(other))
    assert read_material(folder, public).keys == other
    write_key_set(folder / "keyset.json", KEYS)
    with pytest.raises(MalformedFile, match="commitment invalid"):
        read_material(folder, public)
    with pytest.raises(MalformedFile, match=r"no 'none\.json'; expected what was published before release"):
        read_material(folder, Path(tmp_path / "none.json"))


def test_a_key_set_is_never_overwritten_by_another(folder, records):
    other = make("hashchain", k=3, chains=2).draw(5)
    with pytest.raises(UsageError, match="holds another key set"):
        write_material(folder, other, commit(other), records, {})
    assert read_material(folder).keys == KEYS
    write_material(folder, KEYS, commit(KEYS, "2025-12-31"), records[:1], {"later": True})
    assert len(read_material(folder).answers) == 1


def test_nothing_is_written_of_what_does_not_fit(tmp_path, records):
    with pytest.raises(MalformedFile, match="commitment invalid"):
        write_material(tmp_path / "x", KEYS, commit(make("if-sft").draw(1)), records, {})
    for gates in ({"fsr": float("nan")}, {"fsr": object()}):
        with pytest.raises(UsageError, match="The gates cannot be stored"):
            write_material(tmp_path / "x", KEYS, commit(KEYS), records, gates)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("name", "data", "found"),
    [
        ("answers.jsonl", b"{}\n", "line 1"),
        ("answers.jsonl", b"nonsense", "line 1"),
        ("gates.json", b"[]", "gates 'gates.json'"),
        ("gates.json", b'{"a": NaN}', "NaN"),
        ("commitment.json", b"{}", "field 'schema'"),
    ],
)
def test_damaged_files_of_a_folder(name, data, found, folder):
    (folder / name).write_bytes(data)
    with pytest.raises(MalformedFile, match=found):
        read_material(folder)


# Reveals


def test_a_reveal_is_kept_and_leaves_the_commitment_valid(folder):
    reveal(folder, 1, "the court of X", "2026-01-31")
    shown = reveal(folder, 0, "the press", "2026-02-01")
    assert shown.reveals == (Reveal(1, "the court of X", "2026-01-31"), Reveal(0, "the press", "2026-02-01"))
    assert read_material(folder).keys == shown
    if os.name == "posix":
        assert mode(folder / "keyset.json") == 0o600


@pytest.mark.parametrize(
    ("unit", "to", "date", "found"),
    [
        (2, "x", "2026-01-31", "Unit 2 .* expected a unit from 0 to 1"),
        (-1, "x", "2026-01-31", "Unit -1"),
        (0, " ", "2026-01-31", "and a name"),
        (0, "x", "yesterday", "expected one like 2025-12-31"),
    ],
)
def test_reveals_of_nothing(unit, to, date, found, folder):
    with pytest.raises(UsageError, match=found):
        reveal(folder, unit, to, date)
    assert read_material(folder).keys == KEYS
