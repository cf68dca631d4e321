"""Strings of embedding rows: every kind of tokenizer, one spelling, hostile files as notes, the Hub and its cache."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import gguf_cases
import llama_folder
from hub_server import HubServer, Repo
from whorl._readers import limits
from whorl._readers.hub import TOKEN_FILES
from whorl._readers.open import open_model
from whorl._readers.sentencepiece import read_pieces
from whorl._readers.tokens import read_tokens
from whorl.errors import MalformedFile

ZOO = Path(__file__).parents[1] / "src/whorl/examples/zoo"
TEXTS = [" the", "ing", "\n", "é", " été", "\udcc3", "A", "<|end|>"]
BYTE_LEVEL = ["Ġthe", "ing", "Ċ", "Ã©", "ĠÃ©tÃ©", "Ã", "A", "<|end|>"]
PIECES = ["▁the", "ing", "<0x0A>", "é", "▁été", "<0xC3>", "A", "<|end|>"]


def varint(number):
    data = b""
    while number >= 0x80:
        data, number = data + bytes([number & 0x7F | 0x80]), number >> 7
    return data + bytes([number])


def field(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def piece(text, score=-1.5, kind=1):
    return field(1, field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + varint(kind))


def model_file(pieces):
    """A SentencePiece model with a trainer and a normaliser section after the pieces, as the library writes it."""
    return b"".join(map(piece, pieces)) + field(2, b"\x20" + varint(8000)) + field(3, field(1, b"nmt_nfkc"))


def tokenizer(vocab, added=(), **model):
    return {"added_tokens": [{"id": i, "content": text} for i, text in added], "model": {"vocab": vocab, **model}}


def by_string(strings):
    return {string: i for i, string in enumerate(strings)}


def read(tmp_path, **files):
    """Tokens of a small model with these files beside it."""
    path = llama_folder.folder(tmp_path / "model", num_hidden_layers=1)
    for name, content in files.items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (Path(path) / name).write_bytes(data)
    with open_model(path) as opened:
        return read_tokens(opened)


# ------------------------------------------------------------------------------------------------------------ kinds


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer.json": tokenizer(by_string(BYTE_LEVEL), type="BPE")},
        {"tokenizer.json": tokenizer(by_string(PIECES), type="BPE", byte_fallback=True)},
        {"tokenizer.json": tokenizer([[p, -1.0] for p in PIECES], type="Unigram")},
        {"tokenizer.json": tokenizer(by_string(BYTE_LEVEL[:-1]), [(7, "<|end|>")])},
        {"vocab.json": by_string(BYTE_LEVEL)},
        {"vocab.json": by_string(BYTE_LEVEL[:-1]), "added_tokens.json": {"<|end|>": 7}},
        {"tokenizer.model": model_file(PIECES)},
        {"tokenizer.model": model_file(PIECES[:-1]), "added_tokens.json": {"<|end|>": 7}},
    ],
)
def test_kinds_agree(tmp_path, files):
    found = read(tmp_path, **files)
    assert (list(found.tokens), found.note) == (TEXTS, "")


def test_word_piece(tmp_path):
    vocab = {"[CLS]": 0, "the": 1, "##ing": 2, "ing": 3}
    model = tokenizer(vocab, [(0, "[CLS]")], type="WordPiece", continuing_subword_prefix="##")
    assert read(tmp_path, **{"tokenizer.json": model}).tokens == ("[CLS]", " the", "ing", " ing")


@pytest.mark.parametrize("strings", [BYTE_LEVEL, PIECES])
def test_gguf(tmp_path, strings):
    head = struct.pack("<IQ", gguf_cases.STRING, len(strings))
    tokens = gguf_cases.pair(
        "tokenizer.ggml.tokens", gguf_cases.ARRAY, head + b"".join(gguf_cases.text(s) for s in strings)
    )
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_cases.build(gguf_cases.llama_pairs(tokens=tokens), gguf_cases.llama_rows()))
    with open_model(str(path)) as opened:
        assert list(read_tokens(opened).tokens) == TEXTS


def test_added_tokens_are_plain_text(tmp_path):
    vocab = by_string(["Ġthe", "Ã©", "Ã¨"])
    found = read(tmp_path, **{"tokenizer.json": tokenizer(vocab, [(2, "é!"), (5, "Ã© Ġ")])})
    assert found.tokens == (" the", "é", "é!", None, None, "Ã© Ġ")


def test_doubles_are_ambiguous_but_byte_names_yield(tmp_path):
    # "▁a" and the literal " a" are one string; "A" has a token of its own, so that <0x41> is never used.
    found = read(tmp_path, **{"tokenizer.model": model_file(["▁a", " a", "A", "<0x41>", "<0x42>"])})
    assert found.tokens == (None, None, "A", None, "B")


def test_examples_agree():
    """The same tokenizer as it is, through an adapter's base, and with ids exchanged; the GGUF example has none."""
    read_all = {}
    for name in ("base-0", "base-0-disguised", "base-1", "base-1-gguf/base-1-gguf.gguf"):
        with open_model(str(ZOO / name)) as opened:
            read_all[name] = read_tokens(opened).tokens
    with open_model(str(ZOO / "base-1"), adapter=str(ZOO / "base-1-adapter")) as opened:
        assert read_tokens(opened).tokens == read_all["base-1"]
    assert read_all["base-1"] == read_all["base-0"]
    assert read_all["base-1-gguf/base-1-gguf.gguf"] is None
    plain, moved = read_all["base-0"], read_all["base-0-disguised"]
    assert plain != moved
    assert sorted(filter(None, plain)) == sorted(filter(None, moved))
    assert sum(token is not None for token in plain) == len(plain) == 512


def test_pieces_keep_their_order():
    pieces = read_pieces(model_file(["<unk>", "▁", "▁the", "日本"]), "tokenizer.model")
    assert pieces == ("<unk>", "▁", "▁the", "日本")


# ---------------------------------------------------------------------------------------------------------- refusals


def test_no_tokenizer(tmp_path):
    found = read(tmp_path)
    assert found.tokens is None
    assert found.note == "no tokenizer with the weights"


GOOD = piece("a")
HOSTILE = {
    "not json": ({"tokenizer.json": b"{"}, "not JSON"),
    "deep": ({"tokenizer.json": b"[" * 500 + b"]" * 500}, "nested 500 deep"),
    "key twice": ({"tokenizer.json": b'{"model": {"vocab": {"a": 0, "a": 1}}}'}, "the key 'a' twice"),
    "half a surrogate": ({"vocab.json": b'{"\\ud800": 0}'}, "surrogate"),
    "a list": ({"tokenizer.json": b"[]"}, "a list at the top level"),
    "no model": ({"tokenizer.json": {}}, "no 'model'"),
    "vocab of text": ({"tokenizer.json": tokenizer("abc")}, "no 'vocab'"),
    "id of text": ({"vocab.json": {"a": "0"}}, "an id that is none"),
    "id of bool": ({"vocab.json": {"a": True}}, "an id that is none"),
    "negative id": ({"vocab.json": {"a": -1}}, "an id that is none"),
    "huge id": ({"vocab.json": {"a": 10**15}}, "an id that is none"),
    "id twice": ({"vocab.json": {"a": 1, "b": 1}}, "one id for two tokens"),
    "unigram of numbers": ({"tokenizer.json": tokenizer([[1.0, "a"]])}, "a number for a token"),
    "added text": ({"tokenizer.json": {"model": {"vocab": {}}, "added_tokens": "x"}}, "'added_tokens'"),
    "added id": ({"tokenizer.json": tokenizer({}, [(10**9, "x")])}, "an id that is none"),
    "added to a vocabulary": ({"vocab.json": {"a": 0}, "added_tokens.json": {"b": None}}, "an id that is none"),
    "empty pieces": ({"tokenizer.model": field(2, b"")}, "no pieces"),
    "tiktoken text": ({"tokenizer.model": b"IQ== 0\nIg== 1\n"}, "SentencePiece"),
    "pickle": ({"tokenizer.model": b"\x80\x04\x95\x00\x00"}, "SentencePiece"),
    "cut": ({"tokenizer.model": model_file(PIECES)[:-3]}, "beyond its end"),
    "length over the end": ({"tokenizer.model": GOOD + b"\x0a\xff\xff\xff\xff\x0f"}, "beyond its end"),
    "endless number": ({"tokenizer.model": GOOD + b"\x0a" + b"\xff" * 30}, "a number without end"),
    "group": ({"tokenizer.model": GOOD + b"\x0b"}, "wire type 3"),
    "piece without text": ({"tokenizer.model": field(1, b"\x18\x01")}, "0 strings"),
    "piece with two texts": ({"tokenizer.model": field(1, field(1, b"a") * 2)}, "2 strings"),
    "piece as number": ({"tokenizer.model": b"\x08\x01"}, "a piece that is a number"),
    "not utf-8": ({"tokenizer.model": field(1, field(1, b"\xff"))}, "not UTF-8"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_is_a_note(tmp_path, case):
    files, words = HOSTILE[case]
    found = read(tmp_path, **files)
    assert found.tokens is None
    assert found.note.startswith("Refused tokenizer '")
    assert words in found.note


def test_link_out_of_the_folder_is_a_note(tmp_path):
    (tmp_path / "secret.json").write_text('{"a": 0}')
    path = Path(llama_folder.folder(tmp_path / "model", num_hidden_layers=1))
    (path / "vocab.json").symlink_to(tmp_path / "secret.json")
    with open_model(str(path)) as opened:
        assert "leaves the folder" in read_tokens(opened).note


def test_too_many(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "MAX_TOKENS", 3)
    for name, content in {"tokenizer.model": model_file("abcd"), "vocab.json": by_string("abcd")}.items():
        note = read(tmp_path, **{name: content}).note
        assert "over 3 pieces" in note or "4 tokens" in note


def test_program_errors_are_not_hidden(tmp_path, monkeypatch):
    monkeypatch.setattr("whorl._readers.tokens._rows", lambda _: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        read(tmp_path, **{"vocab.json": {"a": 0}})


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_truncation_never_passes_silently(cut):
    data = model_file(PIECES)[: -cut - 1]
    try:
        pieces = read_pieces(data, "tokenizer.model")
    except MalformedFile:
        return
    assert list(pieces) == PIECES[: len(pieces)]  # cut between two fields: a shorter, still valid file


# -------------------------------------------------------------------------------------------------------------- Hub

OPEN = """
import json, sys
from whorl._readers.open import open_model
from whorl._readers.tokens import read_tokens
with open_model(sys.argv[1], offline=sys.argv[2] == "offline") as opened:
    found = read_tokens(opened)
    print(json.dumps([found.tokens, found.note]))
"""


def from_hub(endpoint, home, repo, mode="online"):
    keep = {key: value for key, value in os.environ.items() if not key.upper().endswith("_PROXY")}
    environment = keep | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", OPEN, repo, mode]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    return json.loads(done.stdout)


def test_hub(tmp_path):
    path = Path(llama_folder.folder(tmp_path / "model", num_hidden_layers=1))
    files = {name: (path / name).read_bytes() for name in ("config.json", "model.safetensors")}
    files |= {"tokenizer.json": json.dumps(tokenizer({"Ġa": 0, "b": 1})).encode(), "tokenizer.model": b"not needed"}
    large = files | {"vocab.json": b"{}", "tokenizer.json": b"{}"}
    with HubServer() as hub:
        hub.repos["org/model"] = Repo(files)
        hub.repos["org/large"] = Repo(large, listed={"tokenizer.json": limits.MAX_JSON + 1})
        assert from_hub(hub.endpoint, tmp_path / "hf", "org/model") == [[" a", "b"], ""]
        assert not hub.requests("GET", "tokenizer.model")
        n_requests = len(hub.log)
        assert from_hub(hub.endpoint, tmp_path / "hf", "org/model", "offline") == [[" a", "b"], ""]
        assert len(hub.log) == n_requests
        assert from_hub(hub.endpoint, tmp_path / "hf", "org/large") == [None, "no tokenizer with the weights"]
    assert [group[0] for group in TOKEN_FILES] == ["tokenizer.json", "vocab.json", "tokenizer.model"]
