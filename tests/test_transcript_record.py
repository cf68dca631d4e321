"""Ids and seeds that never change, splits by group, and the balanced table."""

import hashlib
import pickle
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transcript_cases import FULL, plain, prompts
from whorl.errors import MalformedFile, NotEnoughEvidence, UsageError
from whorl.transcripts.answers import answers
from whorl.transcripts.record import (
    UNKNOWN_DECODING,
    Decoding,
    Draw,
    Message,
    ModelId,
    Prompt,
    Template,
    Transcript,
    draw_seed,
    draws,
)
from whorl.transcripts.splits import PARTS, bucket_digest, group_of, part_of, require_disjoint


def test_ids_are_golden():
    """They name answers on disks and in caches everywhere: a change here is a new schema."""
    prompt = Prompt("Wie heißt du?")
    record = Transcript(ModelId("org/model", "rev", "F32"), prompt, Template(), Decoding(), "x")
    assert prompt.id == hashlib.sha256('["text","Wie heißt du?"]'.encode()).hexdigest()[:16]
    assert prompt.id == "269bf3ee5d6a0c11"
    assert Prompt((Message("user", "Wie heißt du?"),)).id == "2af28cd88eb61b96"
    assert record.model.key == "9a11478815be5cf8"
    assert Decoding().digest[:16] == "e5b7397cead35689"
    assert Template().digest[:16] == "76d15f8f0dfa372d"
    assert record.id == "f0166b069f0b08f0ac320bd58043db2cd62f92baeb4bf40b3c1c27a38bb3c45b"
    assert draw_seed(0, "main", record.model.key, Draw(prompt)) == 619277199974938530


def test_id_follows_what_was_asked_and_nothing_else():
    for change in (
        {"model": ModelId("other", "c" * 40, "BF16")},
        {"prompt": Prompt("other")},
        {"sample_index": 4},
        {"stream": "main"},
        {"decoding": Decoding()},
        {"template": Template()},
    ):
        assert replace(FULL, **change).id != FULL.id
    same = {"response": "", "time": None, "backend": {}, "error": "E", "prompt": replace(FULL.prompt, group=None)}
    assert replace(FULL, **same, model=replace(FULL.model, reported=None)).id == FULL.id
    assert pickle.loads(pickle.dumps(FULL)) == FULL  # noqa: S301 - our own bytes


def test_whole_numbers_give_the_digest_of_floats():
    assert Decoding(temperature=1, top_p=1).digest == Decoding().digest


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; expected a number from 0."),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": True}, "temperature is True"),
        ({"top_p": 0}, "top_p is 0; expected a number above 0, at most 1."),
        ({"top_k": 1.5}, "top_k is 1.5; expected a whole number from 0."),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; expected a whole number from 1."),
        ({"min_p": "a lot"}, "min_p is a lot"),
        ({"greedy": 1}, "greedy is 1; expected true or false."),
        ({"stop": "x"}, "stop is x; expected texts"),
        ({"stop": ("",)}, "expected texts that are not empty"),
    ],
)
def test_impossible_decoding_is_refused(setting, message):
    with pytest.raises(UsageError, match=message):
        Decoding(**setting)


def test_unknown_decoding_is_not_known():
    assert not UNKNOWN_DECODING.known
    assert Decoding(top_p="provider-default").known


def test_half_of_a_surrogate_pair_is_repaired_in_answers_and_refused_in_prompts():
    assert replace(FULL, response="a\ud800b\ud83d\ude00").response == "a\ufffdb\U0001f600"
    with pytest.raises(UsageError, match="half of a surrogate pair"):
        Prompt("\udc00")


@given(st.integers(0, 2**64), st.text(max_size=5), st.integers(0, 9))
def test_seeds_have_63_bits_and_models_do_not_share_them(base, stream, index):
    draw = Draw(Prompt("x"), index)
    seeds = [draw_seed(base, stream, key, draw) for key in ("a", "b", None)]
    assert len(set(seeds)) == 3
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seeds[0] == draw_seed(base, stream, "a", Draw(Prompt("x", "other set", "group"), index))


def test_a_prompt_listed_again_continues_its_draws():
    a, b = Prompt("a"), Prompt("b")
    assert [(d.prompt.content, d.sample_index) for d in draws([a, b, a], 2)] == [
        ("a", 0), ("a", 1), ("b", 0), ("b", 1), ("a", 2), ("a", 3),
    ]  # fmt: skip


def test_groups():
    assert group_of(Prompt("The  SAME\nstart of forty characters or more, then a")) == group_of(
        Prompt((Message("system", "s"), Message("user", "the same start of forty characters or MORE, then b")))
    )
    assert group_of(Prompt("x", group="document")) == "document"
    nothing = Prompt("", "uncond")
    assert nothing.unconditional
    assert len({group_of(nothing, draw) for draw in range(50)}) == 50
    assert group_of(Prompt("x"), 1) == group_of(Prompt("x"), 2)


def test_splits_are_shares_of_buckets_and_survive_new_prompts():
    parts = [part_of(str(i)) for i in range(5_000)]
    assert [round(parts.count(part) / 5_000, 2) for part in PARTS] == pytest.approx([0.8, 0.1, 0.1], abs=0.015)
    assert [part_of(group) for group in "efg"] == ["train", "validation", "train"]
    assert {part_of(str(i), shares=(0.0, 0.0)) for i in range(50)} == {"test"}
    assert {part_of(str(i), shares=(0.0, 1.0)) for i in range(50)} == {"validation"}
    assert [part_of(str(i), "other salt") for i in range(50)] != parts[:50]
    with pytest.raises(UsageError, match="at most 1 together"):
        part_of("a", shares=(0.9, 0.2))


def test_bucket_digest_follows_salt_and_groups():
    assert bucket_digest(["a", "b"]) == bucket_digest(["b", "a", "a"])
    assert len({bucket_digest(["a"]), bucket_digest(["b"]), bucket_digest(["a"], "salt")}) == 3


def test_a_prompt_in_two_splits_is_named():
    require_disjoint({"train": ["a", "a"], "test": ["b"]})
    with pytest.raises(UsageError, match="1 prompts are in two splits, b among them"):
        require_disjoint({"train": ["a", "b"], "test": ["b"]})


def test_table_is_the_same_in_any_order():
    records = plain(n_draws=3)
    table = answers(records)
    assert (table.models, len(table.prompts), table.n_draws) == (("a", "b"), 20, 3)
    assert answers(records[::-1]) == table
    at = [prompt.content for prompt in table.prompts].index("4: what is the number 4?")
    assert table.texts[1][at] == ("b says 4 0", "b says 4 1", "b says 4 2")
    assert table.groups[at] == group_of(table.prompts[at])
    assert table.of(["b"]).only([at]).texts == ((("b says 4 0", "b says 4 1", "b says 4 2"),),)
    assert answers(records, n_draws=2).dropped == {"a": 20, "b": 20}


def test_failures_are_counted_and_left_out():
    records = plain(n_prompts=40)
    failed = replace(records[0], error="Timeout", response="", decoding=UNKNOWN_DECODING)
    table = answers([failed, *records[1:]])
    assert (len(table.prompts), table.dropped) == (39, {"a": 1, "b": 1})
    again = replace(records[0], error="Timeout")
    assert len(answers([again, again, *records]).prompts) == 40


def test_too_little_coverage_names_the_model():
    records = plain(n_prompts=40)
    with pytest.raises(NotEnoughEvidence, match=r"Only 37 of 40 prompts.*at least 95% are needed. 'a' answered 37"):
        answers(records[3:])
    assert len(answers(records[3:], min_coverage=0.9).prompts) == 37
    with pytest.raises(NotEnoughEvidence, match="with 2 draws"):
        answers(records, n_draws=2)
    with pytest.raises(NotEnoughEvidence, match="Only 0 of 40"):
        answers([replace(record, error="E") for record in records])


def test_what_cannot_be_one_table_is_refused():
    records = plain()
    with pytest.raises(UsageError, match="No transcripts"):
        answers([])
    with pytest.raises(MalformedFile, match="the same answer twice"):
        answers([*records, records[0]])
    twin = replace(records[0], model=ModelId("a", "other revision"))
    with pytest.raises(UsageError, match="Two models are called 'a'"):
        answers([*records, twin])
    with pytest.raises(UsageError, match="0 draws"):
        answers(records, n_draws=0)


@pytest.mark.parametrize("other", [UNKNOWN_DECODING, Decoding(temperature=0.5)])
def test_mixed_decoding_needs_a_word(other):
    records = [*plain(["a"]), *plain(["b"], decoding=other)]
    with pytest.raises(UsageError, match=r"Mixed decoding: 'a' and 'b'.*--mixed-decoding"):
        answers(records)
    assert answers(records, mixed_decoding=True).models == ("a", "b")


def test_draws_without_a_prompt_are_rows_and_groups():
    nothing = Prompt("", "uncond")
    records = [replace(r, prompt=nothing) for r in plain(n_prompts=1, n_draws=40)]
    table = answers(records)
    assert (len(table.prompts), table.n_draws, len(set(table.groups))) == (40, 1, 40)
    assert table.texts[0][7] == ("a says 0 7",)
    pairs = answers(records, n_draws=2)
    assert (len(pairs.prompts), pairs.n_draws) == (20, 2)
    assert pairs.texts[0][7] == ("a says 0 14", "a says 0 15")
    mixed = answers([*records, *plain(n_draws=2)])
    assert (len(mixed.prompts), mixed.n_draws) == (40, 2)
    failed = [replace(r, error="E") if r.sample_index == 5 and r.model.ref == "a" else r for r in records]
    assert len(answers(failed).prompts) == 39


def test_prompts_of_the_helper_are_distinct():
    assert len({prompt.id for prompt in prompts(20)}) == 20
