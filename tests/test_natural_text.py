"""The text all models of a run share: prompts that are never trained on, and one list of windows in many orders."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whorl.errors import NotEnoughEvidence, UsageError
from whorl.lab.natural.config import Experiment
from whorl.lab.natural.text import (
    GROUP_CHARACTERS,
    PROMPT_CHARACTERS,
    _held_out,
    _windows,
    batches,
    prepare,
)
from whorl.lab.tokenizer import END

SMALL = {
    "windows": 64,
    "window_tokens": 16,
    "batch_size": 8,
    "batch_sizes": (8, 4, 16),
    "vocabulary": 300,
    "prompts": 20,
    "control_prompts": 20,
}


def document(i):
    return " ".join(map(str, np.random.default_rng(i).integers(10**8, 10**9, 60)))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Documents as lines: a piece each, since all of them are shorter than a piece."""
    path = tmp_path_factory.mktemp("text") / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": document(i)}) + "\n" for i in range(60)), "utf-8")
    return path


@pytest.fixture(scope="module")
def text(source):
    return prepare(Experiment(text=str(source), **SMALL))


# Windows


def test_every_model_sees_every_window_exactly_once_in_each_order(text):
    seen = []
    for seed in (0, 1, 1000):
        for batch_size in (8, 4, 16):
            found = batches(text, seed, batch_size)
            assert found.shape == (64 // batch_size, batch_size, 16)
            seen.append(found.reshape(64, 16))
    assert all(sorted(map(bytes, rows)) == sorted(map(bytes, text.windows)) for rows in seen)
    assert all(np.array_equal(seen[0], rows) for rows in seen[:3])  # the order does not depend on the batch size
    assert not np.array_equal(seen[0], seen[3])
    assert not np.array_equal(seen[0], text.windows)
    assert np.array_equal(batches(text, 1, 8), batches(text, 1, 8))


def test_windows_are_distinct_and_of_the_vocabulary(text):
    assert text.windows.shape == (64, 16)
    assert len(np.unique(text.windows, axis=0)) == 64
    assert 0 <= text.windows.min() <= text.windows.max() < 300


def test_windows_stay_distinct_over_several_passes(source):
    many = prepare(Experiment(text=str(source), **{**SMALL, "windows": 6400}))
    assert many.n_passes > 2
    assert len(np.unique(many.windows, axis=0)) == 6400
    few = prepare(Experiment(text=str(source), **SMALL))
    assert np.array_equal(many.windows[:64], few.windows)


@given(n_tokens=st.sampled_from([8, 16, 128]), n_passes=st.integers(1, 6), extra=st.integers(0, 9))
def test_each_pass_starts_elsewhere_and_covers_the_text(n_tokens, n_passes, extra):
    tokens = np.arange(2 * n_tokens + extra, dtype=np.int64)
    windows = _windows(tokens, n_passes, n_tokens)
    assert windows.shape == (n_passes, n_tokens)
    assert (np.diff(windows, axis=1) == 1).all()  # each is a stretch of the text
    assert len(set(windows[:, 0].tolist())) == n_passes


def test_a_text_of_less_than_two_windows_is_refused():
    with pytest.raises(UsageError, match="The text has 31 training tokens; at least 32 are needed"):
        _windows(np.arange(31), 4, 16)


# Prompts


def test_prompts_are_held_out_as_documents(source, text):
    assert len(text.prompts) == 20
    assert all(len(prompt) == PROMPT_CHARACTERS for prompt in text.prompts)
    documents = [document(i) for i in range(60)]
    held_out = [d for d in documents if d[:PROMPT_CHARACTERS] in text.prompts]
    assert len(held_out) == 20
    nearly_all = prepare(Experiment(text=str(source), **{**SMALL, "windows": 2048, "window_tokens": 8}))
    assert 0.99 < nearly_all.n_passes < 1
    trained = nearly_all.tokenizer.decode(nearly_all.windows.flatten().tolist(), skip_special_tokens=False)
    there = trained.split(END)
    assert not any(d in trained or d[:PROMPT_CHARACTERS] in trained for d in held_out)
    assert there[:-1] == [d for d in documents if d not in held_out][: len(there) - 1]
    assert len(there) == 40


def test_which_documents_are_held_out_does_not_depend_on_their_order(source, text, tmp_path):
    (tmp_path / "turned.jsonl").write_text("".join(source.read_text("utf-8").splitlines(keepends=True)[::-1]), "utf-8")
    turned = prepare(Experiment(text=str(tmp_path / "turned.jsonl"), **SMALL))
    assert turned.prompts == text.prompts
    assert turned.digest != text.digest


def test_prompts_that_begin_alike_count_once():
    alike = [f"  ONE  beginning that is longer than forty characters, {i}".ljust(60, ".") for i in range(30)]
    spaced = ["one beginning  that is longer than Forty characters and then goes on"]
    others = [f"{i} another document that is long enough to be a prompt".ljust(60, "!") for i in range(30)]
    found = _held_out((*alike, *spaced, *others, "short"), 100)
    groups = [" ".join(piece.split()).casefold()[:GROUP_CHARACTERS] for piece in found]
    assert len(groups) == len(set(groups)) == 31
    assert sum("beginning" in piece for piece in found) == 1
    assert "short" not in found


def test_too_few_prompts_are_said(source):
    with pytest.raises(
        NotEnoughEvidence, match=r"'documents\.jsonl:text' gives 60 distinct prompts of 50 .* 80 are asked"
    ):
        prepare(Experiment(text=str(source), **{**SMALL, "prompts": 80}))


# Sources


def test_texts_are_found_by_name_ending_or_folder(source, text, tmp_path, monkeypatch):
    (tmp_path / "story.txt").write_text("\n\n".join(document(i) * 8 for i in range(60)), "utf-8")
    assert prepare(Experiment(text=str(tmp_path / "story.txt"), **SMALL)).name == "story.txt"
    assert text.name == "documents.jsonl:text"
    assert prepare(Experiment(text=f"{source}:text", **SMALL)).digest == text.digest
    (tmp_path / "topics").mkdir()  # a folder does not take the place of a text with a name
    monkeypatch.chdir(tmp_path)
    assert prepare(Experiment(text="topics", **SMALL)).name == "topics"
    with pytest.raises(UsageError, match="Unknown text 'wikipedia'"):
        prepare(Experiment(text="wikipedia", **SMALL))
    with pytest.raises(UsageError, match="names no data set; expected hf:org/name"):
        prepare(Experiment(text="hf:wikipedia", **SMALL))
