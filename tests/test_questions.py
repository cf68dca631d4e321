"""Questions out of other people's data, and their types."""

import itertools
import json
import os
import subprocess
import sys
import unicodedata
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_set_server import DataSet, DataSetServer
from hub_server import commit_of
from whorl.errors import MalformedFile, NotEnoughEvidence, RemoteError, UnsafeFile, UsageError
from whorl.questions.docstrings import docstring_questions
from whorl.questions.reading import MAX_CHARACTERS, load_questions, read_questions
from whorl.questions.rows import QaData, QaRow
from whorl.questions.types import LANGUAGES, TYPES, question_type, types_of

SHARED = Path(os.environ.get("WHORL_SHARED", Path(__file__).parents[2] / "shared")) / "data"
GUANACO = "### Human: What is rain?### Assistant: Water that falls.### Human: Why?### Assistant: It is heavy."
LLAMA = "<s>[INST] What is rain? [/INST] Water that falls. </s><s>[INST] Why? [/INST] It is heavy. </s>"
SAID = ("What is rain?", "Water that falls.")


def turns(role, text, users, replies):
    said = [(users, "What is rain?"), (replies, "Water that falls."), (users, "Why?"), (replies, "It is heavy.")]
    return [{role: who, text: what} for who, what in said]


LAYOUTS = {
    "Alpaca": {"instruction": "What is rain?", "input": "", "output": "Water that falls."},
    "Alpaca with history": {
        "instruction": "What is rain?",
        "input": "",
        "output": "Water that falls.",
        "history": [["a", "b"]],
    },
    "Dolly": {"instruction": "What is rain?", "context": "", "response": "Water that falls.", "category": "qa"},
    "question, answer": {"id": 7, "question": "What is rain?", "answer": "Water that falls."},
    "prompt, response": {"prompt": "What is rain?", "response": "Water that falls."},
    "messages": {"prompt": "other", "messages": turns("role", "content", "user", "assistant")},
    "ShareGPT": {"id": "x", "conversations": turns("from", "value", "human", "gpt")},
    "OpenAssistant": {"messages": turns("role", "content", "prompter", "assistant")},
    "system first": {
        "messages": [{"role": "system", "content": "Be kind."}, *turns("role", "content", "user", "assistant")]
    },
    "two questions first": {
        "messages": [
            {"role": "user", "content": "What is rain?"},
            {"role": "user", "content": "Hello?"},
            {"role": "assistant", "content": "Water that falls."},
        ]
    },
    "Guanaco": {"text": GUANACO},
    "Guanaco for Llama 2": {"text": LLAMA},
}


def write(folder, rows, name="rows.json"):
    path = folder / name
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.write_text(lines if path.suffix == ".jsonl" else json.dumps(rows, ensure_ascii=False), "utf-8")
    return str(path)


# Reading


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.parquet"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_known_layouts_are_recognised_in_every_kind_of_file(tmp_path, layout, name):
    data = load_questions(write(tmp_path, [LAYOUTS[layout]], name))
    assert [(row.question, row.answer) for row in data.rows] == [SAID]
    assert data.name == name
    assert data.rows[0].id == ("line-1" if name.endswith("jsonl") else "row-1")


def test_an_input_follows_the_instruction_on_its_own_line(tmp_path):
    row = {"instruction": "Translate.", "input": "Good day", "output": "Guten Tag"}
    assert load_questions(write(tmp_path, [row])).rows[0].question == "Translate.\nGood day"


def test_named_columns_win_over_a_known_layout(tmp_path):
    path = write(tmp_path, [{"prompt": "p", "response": "r", "ask": "What?", "say": "That."}])
    assert load_questions(path, question="ask", answer="say").rows == (QaRow("row-1", "What?", "That."),)


def test_an_unknown_layout_lists_its_columns(tmp_path):
    path = write(tmp_path, [{"frage": "Was?", "antwort\x1b[31m": "Das."}])
    with pytest.raises(
        UsageError, match=r"'rows.json' has no known layout; its columns: frage, antwort\\x1b\[31m\. Name"
    ):
        load_questions(path)
    with pytest.raises(UsageError, match="has no columns 'q' and 'a'; its columns: frage"):
        load_questions(path, question="q", answer="a")
    with pytest.raises(UsageError, match="questions and of answers, or neither"):
        load_questions(path, question="frage")


def test_what_is_left_out_is_counted(tmp_path):
    composed, apart = unicodedata.normalize("NFC", "Où?"), unicodedata.normalize("NFD", "Où?")
    rows = [
        (" What? ", " That. "),
        ("What?", "Other."),
        ("", "x"),
        ("y", "  "),
        ("z", None),
        (composed, "a"),
        (apart, "b"),
    ]
    rows += [("long", "a" * (MAX_CHARACTERS - 3)), ("full", "a" * (MAX_CHARACTERS - 4))]
    path = write(tmp_path, [{"question": q, "answer": a} for q, a in rows], "rows.jsonl")
    loaded = read_questions(path)
    assert dict(loaded.dropped) == {"empty": 3, "repeated": 2, "long": 1}
    assert [row.id for row in loaded.data.rows] == ["line-1", "line-6", "line-9"]
    assert loaded.data.rows[0] == QaRow("line-1", "What?", "That.")
    assert load_questions(path).digest == loaded.data.digest


def test_conversations_without_a_reply_are_left_out(tmp_path):
    asked, told = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Hello."}
    rows = [[asked], [told], [], [told, asked], [asked, told]]
    loaded = read_questions(write(tmp_path, [{"messages": row} for row in rows]))
    assert (len(loaded.data), loaded.dropped["empty"]) == (1, 4)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ('[{"question": NaN, "answer": "a"}]', MalformedFile, "the number NaN; expected finite numbers"),
        ('[{"question": "a", "question": "b", "answer": "c"}]', UnsafeFile, "the key 'question' twice"),
        (
            '[{"question": 7, "answer": "a"}]',
            MalformedFile,
            "'rows.json: row 1': an integer in 'question'; expected a text",
        ),
        ('[{"question": "a", "answer": ["b"]}]', MalformedFile, "row 1': a list in 'answer'; expected a text"),
        ('[{"messages": "hello"}]', MalformedFile, "no list of turns in 'messages'"),
        ('[{"messages": ["hello"]}]', MalformedFile, "no list of turns in 'messages'"),
        ('[{"messages": [{"role": "user", "content": {"a": 1}}]}]', MalformedFile, "an object in 'content'"),
        ('{"question": "a"}', MalformedFile, "an object; expected a list of objects"),
        ('["a"]', MalformedFile, "row 1': a text; expected an object"),
        ('[{"question": "\\ud800", "answer": "a"}]', UnsafeFile, "half of a surrogate pair"),
        ("[" * 100, MalformedFile, "nested 100 deep"),
        ("[]", UsageError, "its columns: none"),
        ('[{"question": "", "answer": ""}]', NotEnoughEvidence, "has no question with an answer"),
    ],
)
def test_files_that_are_not_what_they_should_be(tmp_path, content, error, message):
    (tmp_path / "rows.json").write_text(content, "utf-8")
    with pytest.raises(error) as found:
        load_questions(str(tmp_path / "rows.json"))
    assert message in str(found.value)


@pytest.mark.parametrize("bad", ['{"question": "b", "answer": NaN}', '{"question": "b", "a": 1e999}', "[1]", "{"])
def test_a_bad_line_is_named(tmp_path, bad):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "a", "answer": "b"}\n\n' + bad + "\n", "utf-8")
    with pytest.raises(MalformedFile, match=r"rows\.jsonl: line 3"):
        load_questions(str(path))


def test_files_that_are_missing_or_of_another_kind(tmp_path):
    for name in ("rows.json", "rows.jsonl"):
        with pytest.raises(UsageError, match="There is no file"):
            load_questions(str(tmp_path / name))
    (tmp_path / "rows.xml").write_text("<a/>", "utf-8")
    with pytest.raises(UsageError, match="of no kind that is read"):
        load_questions(str(tmp_path / "rows.xml"))


def test_the_built_in_questions_have_no_columns():
    assert load_questions("docstrings") is docstring_questions()
    with pytest.raises(UsageError, match="no columns to name"):
        load_questions("docstrings", question="a", answer="b")


def test_progress_is_reported(tmp_path):
    seen = []
    path = write(tmp_path, [{"question": f"q{i}", "answer": "a"} for i in range(2_500)], "rows.jsonl")
    load_questions(path, progress=lambda *where: seen.append(where))
    assert seen == [("questions", 1_000, 0), ("questions", 2_000, 0)]


# The Hub


def test_the_hub_is_not_asked_offline_nor_for_one_column():
    with pytest.raises(UsageError, match="not offline"):
        load_questions("hf:org/name", offline=True)
    with pytest.raises(UsageError, match="names one column; name those of questions and of answers apart"):
        load_questions("hf:org/name::question")
    with pytest.raises(UsageError, match="names no data set"):
        load_questions("hf:name")


def test_the_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r'need datasets: pip install "whorl\[text\]"\.'):
        load_questions("hf:org/name")


ASK = """
import json, sys
from whorl._readers import hub_client
from whorl.errors import WhorlError
from whorl.questions.reading import read_questions
hub_client.RETRY_WAITS_S = (0.0,)
try:
    loaded = read_questions(sys.argv[1])
    print(json.dumps([loaded.data.name, [[r.id, r.question, r.answer] for r in loaded.data.rows], dict(loaded.dropped)]))
except WhorlError as error:
    print(json.dumps([type(error).__name__, str(error), None]))
"""


@pytest.mark.skipif(find_spec("datasets") is None, reason="needs the extra text")
def test_a_data_set_of_the_hub_is_read_at_a_pinned_commit(tmp_path):
    rows = [LAYOUTS["ShareGPT"], LAYOUTS["ShareGPT"]]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    with DataSetServer() as hub:
        hub.repos["org/chats"] = DataSet({"train.jsonl": content})
        env = os.environ | {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(tmp_path),
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": "",
        }

        def ask(ref):
            command = [sys.executable, "-W", "ignore", "-c", ASK, ref]
            done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=True)
            return json.loads(done.stdout)

        name, found, dropped = ask("hf:org/chats")
        assert name == f"hf:org/chats:default@{commit_of('main')}"
        assert found == [["row-1", *SAID]]
        assert dropped["repeated"] == 1
        assert ask("hf:org/missing")[0] in {UsageError.__name__, RemoteError.__name__}


# Real data


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared texts")
@pytest.mark.parametrize(("name", "n", "dropped"), [("alpaca_5000.json", 4998, 2), ("oasst_zh.json", 467, 299)])
def test_real_data(name, n, dropped):
    loaded = read_questions(str(SHARED / name))
    assert (len(loaded.data), sum(loaded.dropped.values())) == (n, dropped)
    assert len({row.question for row in loaded.data.rows}) == n
    assert types_of(loaded.data, 0).rule == "clusters"
    assert min(types_of(loaded.data, 0).counts.values()) > 0.1 * n


# Types


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("What is this, and how is it made?", "what"),
        ("HOW does it work?", "how"),
        ("Tell me why.", "why"),
        ("Show me a tree.", "how"),  # "how" within a word: the published rule
        ("Why is it so, whatever happens?", "what"),
        ("List three trees.", "other"),
        ("", "other"),
    ],
)
def test_the_published_rule(question, kind):
    assert question_type(question) == kind


@given(st.text())
def test_the_published_rule_on_any_text(text):
    lowered = unicodedata.normalize("NFC", text).lower()
    held = [word for word in ("what", "how", "why") if word in lowered]
    assert question_type(text) == (held[0] if held else "other")


@pytest.mark.parametrize(
    ("language", "what", "how", "why", "other"),
    [
        ("de", "Was ist das?", "Wie geht das?", "Warum ist das so?", "Erzähle etwas wieder."),
        ("es", "¿Qué es esto?", "¿Cómo se hace?", "¿Por qué es así?", "Escribe un poema."),
        ("fr", "Qu'est-ce que c'est ?", "Comment faire ?", "Pourquoi donc ?", "Écris un poème."),
        ("it", "Che cosa è?", "Come si fa?", "Perché è così?", "Scrivi una poesia."),
        ("pt", "O que é isto?", "Como se faz?", "Por que é assim?", "Escreva um poema."),
        ("ru", "Что это такое?", "Как это сделать?", "Почему это так?", "Напиши стихотворение."),
        ("ja", "これは何ですか", "どうやって作りますか", "なぜですか", "詩を書いてください"),
        ("zh", "这是什么", "这是怎么做的", "这是为什么", "写一首诗"),
    ],
)
def test_words_of_other_languages(language, what, how, why, other):
    asked = (what, how, why, other)
    assert tuple(question_type(text, ("en", language)) for text in asked) == TYPES
    assert tuple(question_type(text, (language,)) for text in asked) == TYPES
    apart = unicodedata.normalize("NFD", why)
    assert question_type(apart, (language,)) == "why"


def test_languages():
    assert question_type("What, y por qué?", ("es", "en")) == "why"
    assert question_type("What, y por qué?", ("en", "es")) == "what"
    with pytest.raises(UsageError, match=f"No words for language 'xx'; expected some of {', '.join(LANGUAGES)}"):
        question_type("a", ("xx",))


def rows_of(questions):
    return QaData("toy", tuple(QaRow(f"q{i}", q, f"answer {i}") for i, q in enumerate(questions)))


def test_clusters_replace_types_of_which_one_is_rare():
    words = [f"{kind} {i} of trees and rivers" for kind in ("what", "how", "why", "tell") for i in range(20)]
    assert types_of(rows_of(words)).rule == "words"
    assert types_of(rows_of(words)).counts == dict.fromkeys(TYPES, 20)
    rare = words + [f"what else {i} about {word}" for i in range(400) for word in ("seas", "music")]
    found = types_of(rows_of(rare), seed=3)
    assert found.rule == "clusters"
    assert set(found.counts) == {f"cluster-{i}" for i in range(4)}
    assert sum(found.counts.values()) == len(found.names) == len(rare)
    assert types_of(rows_of(rare), seed=3) == found


def test_clusters_find_topics():
    topics = [
        "sea ship sail wave port",
        "bread flour oven dough yeast",
        "chord violin tune song flute",
        "soil seed bed rose oak",
    ]
    topics = [sorted(topic.split()) for topic in topics]
    asked = [f"Say {a} {b} {c}" for topic in topics for a, b, c in itertools.combinations(topic, 3)]
    found = types_of(rows_of(asked), seed=0)
    topic = [next(n for n, t in enumerate(topics) if q.split()[1] in t) for q in asked]
    assert found.rule == "clusters"
    assert len(set(zip(topic, found.names, strict=True))) == 4  # each topic is one cluster


def test_too_few_questions_for_clusters():
    with pytest.raises(NotEnoughEvidence, match="'toy' has 300 questions, too few to tell types apart; at least 20"):
        types_of(rows_of(["!" * i for i in range(300)]))
