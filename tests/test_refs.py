"""References: every spelling users type, and the law that the canonical spelling reads back."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whorl.errors import UsageError
from whorl.refs import ModelRef, local_path, parse_ref, with_revision, without_query

COMMIT = "0123456789abcdef0123456789abcdef01234567"

SPELLINGS = [
    ("./folder", ModelRef(path="./folder")),
    ("../folder", ModelRef(path="../folder")),
    ("/abs/folder", ModelRef(path="/abs/folder")),
    ("~/x y", ModelRef(path="~/x y")),
    ("./a@b", ModelRef(path="./a@b")),
    ("./model.gguf", ModelRef(path="./model.gguf")),
    ("model.gguf", ModelRef(path="./model.gguf")),
    ("model.safetensors", ModelRef(path="./model.safetensors")),
    ("org/name", ModelRef(repo="org/name")),
    ("org/name@v1.0", ModelRef(repo="org/name", revision="v1.0")),
    (f"org/name@{COMMIT}", ModelRef(repo="org/name", revision=COMMIT)),
    ("org/name@refs/pr/3", ModelRef(repo="org/name", revision="refs/pr/3")),
    ("org/name@refs%2Fpr%2F3", ModelRef(repo="org/name", revision="refs/pr/3")),
    ("org/name@feature%2Fx", ModelRef(repo="org/name", revision="feature/x")),
    ("org/name@v1%2Bcpu", ModelRef(repo="org/name", revision="v1+cpu")),
    ("hf://org/name", ModelRef(repo="org/name")),
    ("hf://org/name@rev", ModelRef(repo="org/name", revision="rev")),
    ("hf://org/model.gguf", ModelRef(repo="org/model.gguf")),
    ("hf://models/org/name@rev", ModelRef(repo="org/name", revision="rev")),
    ("hf://gpt2", ModelRef(repo="gpt2")),
    ("gpt2", ModelRef(repo="gpt2")),
    ("gpt2@refs/pr/3", ModelRef(repo="gpt2", revision="refs/pr/3")),
    ("gpt2@a%2Fb", ModelRef(repo="gpt2", revision="a/b")),
    ("https://huggingface.co/org/name", ModelRef(repo="org/name")),
    ("https://huggingface.co/org/name?library=x#top", ModelRef(repo="org/name")),
    ("https://hf.co/org/name/tree/rev", ModelRef(repo="org/name", revision="rev")),
    ("huggingface.co/org/name/tree/refs%2Fpr%2F3", ModelRef(repo="org/name", revision="refs/pr/3")),
    ("https://huggingface.co/gpt2/tree/main", ModelRef(repo="gpt2", revision="main")),
    ("./base+./lora", ModelRef(path="./base", adapter=ModelRef(path="./lora"))),
    ("org/name@v1+./lora", ModelRef(repo="org/name", revision="v1", adapter=ModelRef(path="./lora"))),
    (
        "gpt2+hf://org/lora@main",
        ModelRef(repo="gpt2", adapter=ModelRef(repo="org/lora", revision="main")),
    ),
]

REFUSED = [
    ("", "empty"),
    (" org/name", "blanks"),
    ("org/name\x1b[31m", r"control character U\+001B"),
    ("./a\u202eb", r"control character U\+202E"),
    ("org/na\x00me", "U\\+0000"),
    ("./" + "x" * 5000, "5002 characters"),
    ("org/" + "n" * 97, "names no repository"),
    ("org/../name", "not 'org/name'"),
    ("org/..", "names no repository"),
    ("..name/x", None),  # begins with a dot: a path
    ("org/na..me", "names no repository"),
    ("a/b/c", "local path starts with"),
    ("org/name@", "Empty revision"),
    ("gpt2@", "no branch, tag or commit"),
    ("org/name@a..b", "no branch, tag or commit"),
    ("org/name@-x", "no branch, tag or commit"),
    ("org/name@" + "r" * 256, "no branch, tag or commit"),
    ("org/name@a%00b", "no branch, tag or commit"),
    ("org/name@..%2F..%2Fx", "no branch, tag or commit"),
    ("org/name@branch/file.txt", "%2F for a slash"),
    ("gpt2@branch/file.txt", "%2F for a slash"),
    ("hf://org/name/file.txt", "inside a repository"),
    ("https://huggingface.co/org/name/blob/main/model.safetensors", "inside a repository"),
    ("https://huggingface.co/org/name/discussions/3", "route"),
    ("https://huggingface.co/org", "not a model's address"),
    ("https://evil.example/org/name", "Unrecognized host"),
    ("https://user:secret@huggingface.co/org/name", "user name or password"),
    ("https://[huggingface.co/org/name", "is no address"),
    ("file:///etc/passwd", "not an address"),
    ("datasets/org/name", "not 'org/name'"),
    ("hf://datasets/org/name", "is a dataset"),
    ("gallery:llama", "a stored fingerprint without weights"),
    ("a+b+c", "more than one"),
    ("+b", "empty side"),
    ("a+", "empty side"),
    ("dir/model.gguf", "'./dir/model.gguf' for the local files or 'hf://dir/model.gguf'"),
]


@pytest.mark.parametrize(("text", "expected"), SPELLINGS)
def test_spelling(text, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_ref(text) == expected
    assert parse_ref(str(expected)) == expected


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_refused_spelling(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if message is None:
        assert parse_ref(text).path == text
        return
    with pytest.raises(UsageError, match=message) as caught:
        parse_ref(text)
    assert str(caught.value).isprintable()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("text", ["org/name", "gpt2"])
def test_repository_name_that_is_also_a_folder_shows_both_spellings(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / text).mkdir(parents=True)
    with pytest.raises(UsageError, match=f"'./{text}' for the local files or 'hf://{text}' for the Hub"):
        parse_ref(text)
    assert parse_ref(f"./{text}").path == f"./{text}"
    assert parse_ref(f"hf://{text}").repo == text


def test_path_with_a_plus_is_one_path_when_only_that_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a+b").mkdir()
    assert parse_ref("./a+b") == ModelRef(path="./a+b")
    (tmp_path / "a").mkdir()
    with pytest.raises(UsageError, match="--adapter"):
        parse_ref("./a+b")


def test_adapter_given_apart_may_hold_a_plus():
    ref = parse_ref("./a+b", adapter="./c+d")
    assert (ref.path, ref.adapter.path) == ("./a+b", "./c+d")


def test_revision_beside_the_reference():
    assert with_revision(parse_ref("org/name"), "v2").revision == "v2"
    assert with_revision(parse_ref("org/name@v2"), "v2").revision == "v2"
    assert with_revision(parse_ref("./x"), None).path == "./x"
    with pytest.raises(UsageError, match="names a revision already"):
        with_revision(parse_ref("org/name@v1"), "v2")
    with pytest.raises(UsageError, match="belongs to a Hub repository"):
        with_revision(parse_ref("./x"), "v2")
    with pytest.raises(UsageError, match="no branch"):
        with_revision(parse_ref("org/name"), "../x")


@pytest.mark.parametrize(
    "fields",
    [{}, {"path": "./a", "repo": "b"}, {"repo": "../x"}, {"repo": "a/b/c"}, {"repo": "a", "revision": "../../x"}],
)
def test_a_reference_built_by_hand_is_checked_too(fields):
    with pytest.raises(UsageError):
        ModelRef(**fields)


def test_an_adapter_carries_no_adapter():
    with pytest.raises(UsageError, match="second adapter"):
        ModelRef(repo="a", adapter=ModelRef(repo="b", adapter=ModelRef(repo="c")))


def test_home_and_query():
    assert local_path("~/x") == Path("~/x").expanduser()
    assert str(local_path("~no-such-user-here/x")) == "~no-such-user-here/x"
    assert without_query("https://hf.co/a/b?token=s#x") == "https://hf.co/a/b"
    assert without_query("./a#b?c") == "./a#b?c"


names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,10}[a-z0-9]", fullmatch=True).filter(
    lambda n: "--" not in n and ".." not in n and not n.endswith((".git", ".gguf", "-.git"))
)
revisions = st.one_of(
    st.none(),
    st.sampled_from(
        ["main", "refs/pr/12", "refs/convert/parquet", COMMIT, "a+b", "x/y+z/w", "refs/convert/a+b", "refs/x"]
    ),
    st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,8}(/[a-z][a-z0-9+_-]{0,5}){0,2}", fullmatch=True).filter(
        lambda r: ".." not in r and not any(p.endswith((".", ".lock")) for p in r.split("/"))
    ),
)
hub_refs = st.builds(
    lambda org, name, rev: ModelRef(repo=f"{org}/{name}" if org else name, revision=rev),
    st.one_of(st.none(), names.filter(lambda n: not n.endswith(".safetensors"))),
    names,
    revisions,
).filter(lambda r: not r.repo.startswith(("dataset", "space", "model", "kernel", "bucket", "hf.co", "huggingface")))
path_refs = st.builds(
    lambda start, rest: ModelRef(path=start + rest),
    st.sampled_from(["./", "../", "/", "~/", "."]),
    st.text(
        st.characters(exclude_categories=["C", "Z"], exclude_characters="+\u200e\u200f\u061c"), min_size=1, max_size=20
    ),
)
single_refs = st.one_of(hub_refs, path_refs)


@given(base=single_refs, adapter=st.one_of(st.none(), single_refs))
def test_canonical_spelling_reads_back(base, adapter):
    ref = ModelRef(base.path, base.repo, base.revision, adapter)
    assert parse_ref(str(ref)) == ref


def assert_reads_back_or_is_refused(text):
    refs = []
    with contextlib.suppress(UsageError):
        refs.append(parse_ref(text))
    for ref in refs:
        assert parse_ref(str(ref)) == ref


@given(st.text(max_size=60))
def test_noise_is_a_reference_that_reads_back_or_a_usage_error(text):
    assert_reads_back_or_is_refused(text)


PIECES = [
    "a",
    "b1",
    "/",
    "@",
    "%2F",
    "%",
    "+",
    ".",
    "..",
    "hf://",
    "https://hf.co/",
    ":",
    "refs/pr/3",
    "tree",
    "#",
    "?",
    "x.gguf",
]


@given(st.lists(st.sampled_from(PIECES), max_size=8))
def test_reference_like_noise_reads_back_or_is_a_usage_error(parts):
    assert_reads_back_or_is_refused("".join(parts))
