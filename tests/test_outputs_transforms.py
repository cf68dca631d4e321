"""Text transforms: golden texts and laws; rewriting through a scripted sampler."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whorl.errors import UsageError
from whorl.outputs.transforms import (
    REWRITES,
    TRANSFORMS,
    markdown_only,
    no_special,
    no_special_ascii,
    rewrite,
    shuffle_letters,
    shuffle_words,
    transform,
)
from whorl.transcripts.record import Decoding, ModelId, Prompt, Template, Transcript

TEXT = """# A heading, with *stars*

1. First: **bold** and `code`
2. Second — naïve café, 3.14
    - nested item in 2024.

Some text here.
And more text here.

```python
x_y = 2 * 3
```
"""

GOLDEN = {
    "no_special": "A heading with stars First bold and code Second naïve café 14 nested item in Some text here And more "
    "text here python xy 2 3",
    "no_special_ascii": "A heading with stars First bold and code Second nave caf 14 nested item in Some text here And more "
    "text here python xy 2 3",
    "markdown_only": "# xxx *xxx*\n\n1. xxx **xxx** xxx `xxx`\n2. xxx\n    - xxx\n\nxxx\n\n```xxx\nxxx\n```\n",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name):
    assert transform(name, TEXT, "any") == GOLDEN[name]


def test_golden_shuffles():
    assert shuffle_words("the cat, sat on the mat", "key") == "cat on the the mat sat"
    assert shuffle_letters("the cat, sat on the mat", "key") == "tnostaeahcaetmtth"


@given(st.text(), st.text(max_size=5))
def test_shuffles_keep_what_they_shuffle(text, key):
    words, letters = no_special(text).split(), no_special(text).replace(" ", "")
    assert sorted(shuffle_words(text, key).split()) == sorted(words)
    assert sorted(shuffle_letters(text, key)) == sorted(letters)
    assert shuffle_words(text, key) == shuffle_words(text, key)


def test_keys_make_the_difference():
    text = " ".join(map(str, range(100)))
    assert shuffle_words(text, "a") != shuffle_words(text, "b")
    assert shuffle_letters(text, "a") != shuffle_letters(text, "b")


@given(st.text())
def test_no_special_keeps_words_only(text):
    for found in (no_special(text), no_special_ascii(text)):
        assert found == " ".join(found.split())
        assert not set(found) & set("!?.,:;*#_`\"'()[]{}<>-\n\t")
    assert no_special(no_special(text)) == no_special(text)
    assert no_special_ascii(text).isascii()


def test_other_scripts_survive():
    assert no_special("हिन्दी में, 日本語。 عربي!") == "हिन्दी में 日本語 عربي"
    assert no_special_ascii("日本語 abc") == "abc"


@given(st.text(alphabet=st.sampled_from("ab1*`#-. \n_")))
def test_markdown_holds_no_words(text):
    assert not re.search(r"[ab]", markdown_only(text))


@given(st.text(alphabet=st.sampled_from("ab1*`#-. \n")))
def test_markdown_is_idempotent(text):
    """Without underscores: beside a full stop they are marks, beside the `xxx` in its place a part of the word."""
    assert markdown_only(markdown_only(text)) == markdown_only(text)


def test_markdown_tells_marks_from_signs():
    assert markdown_only("snake_case and 2 * 3 and a-b #tag") == "xxx"
    assert markdown_only("*it* _it_ __bo__ ***both***") == "*xxx* _xxx_ __xxx__ ***xxx***"
    assert markdown_only("- item\n+ item\n12) item\n  * item") == "- xxx\n+ xxx\n12) xxx\n  * xxx"
    assert markdown_only("a\nb\n\nc\n    d\n    e") == "xxx\n\nxxx\n    xxx"


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("piece", ["1", "*", "_", "`", "#", " ", "\n", "1. ", "a_", "- "])
def test_hostile_texts_take_linear_time(name, piece):
    start = time.process_time()
    transform(name, piece * 100_000, "key")
    assert time.process_time() - start < 5


def test_unknown_names_are_refused():
    with pytest.raises(UsageError, match="No text transform 'x\\\\x1b'; there are no_special, "):
        transform("x\x1b", "", "")


class Shouting:
    """A sampler that answers with the last line of its prompt in capitals, and fails on one."""

    model = ModelId("rewriter", "abc123")
    template = Template()

    def sample(self, draws, decoding, randomness):
        for draw in reversed(draws):
            last = draw.prompt.content.splitlines()[-1]
            bad = "fail" in last
            yield Transcript(
                self.model,
                draw.prompt,
                self.template,
                decoding,
                "" if bad else last.upper(),
                error="Timeout" if bad else None,
            )


def said(text, i, **more):
    return Transcript(ModelId("author"), Prompt(f"prompt {i}"), Template(), Decoding(), text, logprobs=(-1.0,), **more)


def test_rewrite_keeps_the_author_and_records_the_rewriter():
    records = [said("one", 0), said("two", 1), said("one", 2), said("fail", 3), said("", 4, error="Timeout")]
    found = {record.prompt.content: record for record in rewrite(records, Shouting(), "paraphrase")}
    assert {key: record.response for key, record in found.items()} == {
        "prompt 0": "ONE",
        "prompt 1": "TWO",
        "prompt 2": "ONE",
        "prompt 3": "",
    }
    one = found["prompt 0"]
    assert one.model == ModelId("author")
    assert one.stream == "main|rewrite:paraphrase"
    assert one.id != records[0].id
    assert one.logprobs is None
    assert one.backend["rewrite"]["model"] == "rewriter"
    assert one.backend["rewrite"]["revision"] == "abc123"
    assert one.backend["rewrite"]["instruction"] == REWRITES["paraphrase"]
    assert not found["prompt 3"].ok


def test_unknown_rewrites_are_refused():
    with pytest.raises(UsageError, match="No rewrite 'sing'; there are paraphrase, translate, summarise"):
        list(rewrite([], Shouting(), "sing"))
