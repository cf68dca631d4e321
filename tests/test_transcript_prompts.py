"""Prompt sets: deterministic, distinct, of the right length; users' own files."""

import json
import unicodedata

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whorl.errors import MalformedFile, NotEnoughEvidence, UsageError
from whorl.lab.tokenizer import tokenizer_files, train_tokenizer
from whorl.transcripts.prompts import chat, genes, prompt_set, read_prompts, short, uncond, web32t, web50, words
from whorl.transcripts.record import Message, Prompt, draws
from whorl.transcripts.splits import group_of

DOCUMENTS = [f"Document number {i} of a few, " + "with more and more text in it, " * (4 + i % 7) for i in range(60)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(DOCUMENTS, 300)


def all_sets(tokenizer):
    return {
        "web50": web50(DOCUMENTS),
        "web32t": web32t(tokenizer, DOCUMENTS),
        "genes": genes(DOCUMENTS, 40),
        "words": words(40),
        "short": short(),
    }


def test_prompts_of_a_set_are_distinct_groups_and_in_fixed_order(tokenizer):
    for name, prompts in all_sets(tokenizer).items():
        assert {prompt.prompt_set for prompt in prompts} == {name}
        assert len({prompt.id for prompt in prompts}) == len(prompts) >= 40
        assert len({group_of(prompt) for prompt in prompts}) == len(prompts)
    assert all_sets(tokenizer) == all_sets(tokenizer)
    assert web50(DOCUMENTS[::-1], 10) == web50(DOCUMENTS, 20)[:10]
    assert words(10, seed=1) != words(10) == words(20)[:10]


def test_lengths(tokenizer):
    assert {len(prompt.content) for prompt in web50(DOCUMENTS)} == {50}
    lengths = [len(prompt.content) for prompt in genes(DOCUMENTS, 60)]
    assert 20 <= min(lengths) < 35
    assert 85 < max(lengths) <= 100
    assert {len(prompt.content.split()) for prompt in words(300)} == set(range(8, 21))
    for prompt in web32t(tokenizer, DOCUMENTS):
        assert any(document.startswith(prompt.content) for document in DOCUMENTS)
        assert len(tokenizer.encode(prompt.content).ids) == 32
    cut = web32t(tokenizer, ["日本語の文章 number " * 40])[0].content
    assert "\ufffd" not in cut


def test_words_are_golden():
    """Frozen words, and a generator whose stream Python promises: prompts must not depend on the version."""
    assert words(1)[0].content == (
        "time those back network out define running argument options cannot expression item the allows"
    )


def test_documents_that_begin_alike_are_one(tokenizer):
    same = ["The same beginning of a text that goes on for long, and then differs " + str(i) * 60 for i in range(5)]
    assert len(web50(same)) == len(web32t(tokenizer, same)) == len(genes(same, 1)) == 1
    with pytest.raises(NotEnoughEvidence, match="'web50' gives 1 distinct prompts; 2 are needed"):
        web50(same, 2)
    with pytest.raises(NotEnoughEvidence, match="'web50' gives 0"):
        web50(["short"])


def test_a_tokenizer_may_be_a_folder(tokenizer, tmp_path):
    for name, data in tokenizer_files(tokenizer, 128).items():
        (tmp_path / name).write_bytes(data)
    assert web32t(tmp_path, DOCUMENTS, 5) == web32t(tokenizer, DOCUMENTS, 5)
    with pytest.raises(UsageError, match=r"no tokenizer.json"):
        web32t(tmp_path / "none", DOCUMENTS)


def test_asking_nothing_is_one_prompt_with_many_draws():
    prompts = uncond(30)
    assert (len(prompts), len({prompt.id for prompt in prompts}), prompts[0].content) == (30, 1, "")
    assert [draw.sample_index for draw in draws(prompts, 1)] == list(range(30))
    assert len({group_of(draw.prompt, draw.sample_index) for draw in draws(prompts, 1)}) == 30


CHATS = {
    "messages": [{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}]}],
    "conversations": [{"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]}],
    "instruction": [{"instruction": "hi", "input": "", "output": "ho"}],
    "prompt": [{"prompt": "hi"}, {"prompt": "hi"}],
}


@pytest.mark.parametrize("shape", CHATS)
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet", None])
def test_first_turns_of_common_shapes(tmp_path, shape, suffix):
    path = tmp_path / f"x{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(CHATS[shape]), "utf-8")
    elif suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in CHATS[shape]), "utf-8")
    elif suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(CHATS[shape]), path)
    assert chat(path if suffix else CHATS[shape]) == [Prompt("hi", "chat")]


def test_an_instruction_has_its_input():
    assert chat([{"instruction": "Sort.", "input": "b a"}])[0].content == "Sort.\n\nb a"


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"messages": []},
        {"messages": [{"role": "assistant", "content": "x"}]},
        {"prompt": " "},
        {"messages": ["x"]},
        {"prompt": 3},
        {"instruction": None},
    ],
)
def test_a_row_without_a_turn_is_named(row):
    with pytest.raises(MalformedFile, match="'chat: row 2': no first user turn"):
        chat([{"prompt": "x"}, row])


def test_sets_by_name(tmp_path):
    assert prompt_set("short", 5) == short(5)
    assert prompt_set("web50", 5, documents=DOCUMENTS) == web50(DOCUMENTS, 5)
    assert prompt_set("words", 3, seed=4) == words(3, 4)
    (tmp_path / "x.txt").write_text("a\nb\n", "utf-8")
    assert prompt_set(str(tmp_path / "x.txt"), 1) == [Prompt("a")]
    for name, n, source, message in (
        ("web5", None, {}, "no prompt set 'web5'. Did you mean 'web50'"),
        ("zzz", None, {}, "Known are web50"),
        ("web32t", 3, {}, "needs tokenizer: a tokenizer, or a local model's folder"),
        ("words", 3, {"documents": []}, "takes no documents"),
        ("words", 0, {}, "0 prompts were asked for"),
        ("uncond", 0, {}, "0 draws were asked for"),
        (str(tmp_path / "x.txt"), 3, {}, "3 prompts were asked for; '.*' has 2"),
    ):
        with pytest.raises(UsageError, match=message):
            prompt_set(name, n, **source)
    with pytest.raises(NotEnoughEvidence, match="'short' gives 66"):
        prompt_set("short", 1_000)


def test_files_of_users(tmp_path):
    (tmp_path / "x.txt").write_bytes("one \r\n\n zwei ü\nlast".encode())
    assert [prompt.content for prompt in read_prompts(tmp_path / "x.txt")] == ["one ", " zwei ü", "last"]
    rows = [{"prompt": "a", "group": "g"}, {"prompt": [{"role": "user", "content": "b"}]}]
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    assert read_prompts(tmp_path / "x.jsonl", "mine") == [
        Prompt("a", "mine", "g"),
        Prompt((Message("user", "b"),), "mine"),
    ]


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"prompt": 1},
        {"prompt": []},
        {"prompt": [{"role": "user"}]},
        {"prompt": "a", "group": 3},
        {"prompt": [{"role": 1, "content": "b"}]},
        {"prompt": "a", "x": 1},
    ],
)
def test_a_line_that_is_no_prompt_is_named(tmp_path, row):
    (tmp_path / "x.jsonl").write_text(json.dumps({"prompt": "a"}) + "\n" + json.dumps(row), "utf-8")
    with pytest.raises(MalformedFile, match=r"'x.jsonl: line 2'"):
        read_prompts(tmp_path / "x.jsonl")


def test_files_that_hold_no_prompts(tmp_path):
    (tmp_path / "x.txt").write_text("\n \n", "utf-8")
    with pytest.raises(UsageError, match="There are no prompts"):
        read_prompts(tmp_path / "x.txt")
    with pytest.raises(UsageError, match="There is no file of prompts"):
        read_prompts(tmp_path / "none.txt")
    (tmp_path / "x.md").touch()
    with pytest.raises(UsageError, match=r"expected .txt or .jsonl"):
        read_prompts(tmp_path / "x.md")


@settings(max_examples=40)
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=200), max_size=8))
def test_any_documents_give_prompts_or_too_few(documents):
    for build in (web50, genes):
        try:
            prompts = build(documents, 1)
        except NotEnoughEvidence:
            assert all(len(text) < 100 for text in documents) or build is web50
        else:
            assert any(text.startswith(prompts[0].content) for text in documents)


def test_short_questions_are_of_many_scripts():
    letters = {unicodedata.name(c).split()[0] for prompt in short() for c in prompt.content if c.isalpha()}
    assert letters >= {"LATIN", "GREEK", "CYRILLIC", "HEBREW", "ARABIC", "DEVANAGARI", "HIRAGANA", "HANGUL", "CJK"}
