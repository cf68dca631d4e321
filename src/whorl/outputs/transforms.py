"""Changes of a text that take part of its style away (arXiv 2502.12150; outputs.md 3.3).

What still tells models apart after a change did not live in what the change took: order of words, words, or layout.
Every change is a function of the text and the key of its record alone, so a run can be repeated.
"""

import hashlib
import random
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from types import MappingProxyType

from whorl.errors import UsageError, safe_name
from whorl.samplers.seam import Randomness, Sampler
from whorl.transcripts.record import Decoding, Draw, Prompt, Transcript

TextTransform = Callable[[str, str], str]
"""Of a text and the key of its record."""

PLACEHOLDER = "xxx"

_NUMBERED = re.compile(r"(?<!\d)\d+\.")  # the look-behind keeps long runs of digits linear
_NOT_ASCII_WORD = re.compile(r"[^a-zA-Z0-9\s]")
_LINE_START = re.compile(r"[^\S\n]*(?:(?:#{1,6}|[-*+]|\d+[.)])(?=\s|$)[^\S\n]*)*")
_INLINE = re.compile(
    r"(`+"  # code
    r"|\*{1,3}(?=\S)|(?<=\S)\*{1,3}"  # bold and italic touch a word; in `2 * 3` nothing does
    r"|(?<!\w)_{1,3}(?=\S)|(?<=\S)_{1,3}(?!\w))"  # underscores inside a word are part of it
)
_TEXT = re.compile(r"\S(?:.*\S)?", re.DOTALL)


def no_special(text: str) -> str:
    """Without numbering (digits before a full stop) and without anything but letters, their marks, digits and blanks.

    The paper keeps ASCII only; we keep the letters of every script, and the combining marks that belong to them.
    """
    unnumbered = _NUMBERED.sub("", text)
    dropped = {ord(sign): None for sign in set(unnumbered) if not _is_word(sign)}
    return " ".join(unnumbered.translate(dropped).split())


def _is_word(sign: str) -> bool:
    return sign.isalnum() or sign.isspace() or unicodedata.category(sign).startswith("M")


def no_special_ascii(text: str) -> str:
    """`no_special` as in the paper: letters outside ASCII are dropped, too."""
    return " ".join(_NOT_ASCII_WORD.sub("", _NUMBERED.sub("", text)).split())


def shuffle_words(text: str, key: str) -> str:
    """The words of `no_special` in random order."""
    return " ".join(_shuffled(no_special(text).split(), f"shuffle_words\0{key}"))


def shuffle_letters(text: str, key: str) -> str:
    """All characters of `no_special` but blanks, in random order."""
    return "".join(_shuffled([sign for sign in no_special(text) if not sign.isspace()], f"shuffle_letters\0{key}"))


def _shuffled(pieces: list[str], seed: str) -> list[str]:
    digest = hashlib.sha256(seed.encode("utf-8", "surrogatepass")).digest()
    return random.Random(digest).sample(pieces, len(pieces))


def markdown_only(text: str) -> str:
    """Marks of headings, lists, bold, italic and code with their indentation; each run of other text becomes `xxx`.

    Equal neighbouring lines of mere text are merged.
    """
    lines = [_marks(line) for line in text.split("\n")]
    merged = (
        [line] if line.strip() == PLACEHOLDER else list(same)  # a run of text counts once, blank lines all
        for line, same in groupby(lines)
    )
    return "\n".join(line for run in merged for line in run)


def _marks(line: str) -> str:
    found = _LINE_START.match(line)
    start = found[0] if found else ""
    pieces = _INLINE.split(line[len(start) :])  # text, mark, text, mark, ..., text
    return start + "".join(piece if i % 2 else _TEXT.sub(PLACEHOLDER, piece) for i, piece in enumerate(pieces))


TRANSFORMS: Mapping[str, TextTransform] = MappingProxyType(
    {
        "no_special": lambda text, _: no_special(text),
        "no_special_ascii": lambda text, _: no_special_ascii(text),
        "shuffle_words": shuffle_words,
        "shuffle_letters": shuffle_letters,
        "markdown_only": lambda text, _: markdown_only(text),
    }
)


def transform(name: str, text: str, key: str) -> str:
    """A text changed by one of `TRANSFORMS`.

    Args:
        name: Which one.
        text: The text.
        key: Of its record; seeds what is random.

    Raises:
        UsageError: there is no such transform.
    """
    if name not in TRANSFORMS:
        raise UsageError(f"No text transform '{safe_name(name)}'; there are {', '.join(TRANSFORMS)}.")
    return TRANSFORMS[name](text, key)


REWRITES: Mapping[str, str] = MappingProxyType(
    {
        "paraphrase": "Paraphrase the text below. Keep its meaning, language and approximate length. Answer with the new "
        "text only.",
        "translate": "Translate the text below into Chinese. Answer with the translation only.",
        "summarise": "Summarise the text below in one paragraph, in its own language. Answer with the summary only.",
    }
)
"""Kind -> instruction, followed by an empty line and the text (wording ours; the paper's is not published in full)."""
REWRITE_DECODING = Decoding(temperature=0.0, greedy=True, max_new_tokens=1_024)


def rewrite(
    records: Iterable[Transcript], sampler: Sampler, kind: str, decoding: Decoding = REWRITE_DECODING
) -> Iterator[Transcript]:
    """Answers rewritten by another model: `rewrite:<kind>`.

    The records stay those of their model; `backend.rewrite` holds kind, rewriter, revision and instruction, and the stream
    says so, which gives them ids of their own. Equal answers are rewritten once.

    Args:
        records: Answers; errors are left out.
        sampler: The rewriter.
        kind: A key of `REWRITES`.
        decoding: Of the rewriter; greedy by default.

    Raises:
        UsageError: no such kind.
        RemoteError: see `Sampler.sample`.
    """
    if kind not in REWRITES:
        raise UsageError(f"No rewrite '{safe_name(kind)}'; there are {', '.join(REWRITES)}.")
    waiting: dict[str, list[Transcript]] = defaultdict(list)
    draws: dict[str, Draw] = {}
    for record in records:
        if record.ok:
            prompt = Prompt(f"{REWRITES[kind]}\n\n{record.response}", f"rewrite:{kind}")
            waiting[prompt.id].append(record)
            draws[prompt.id] = Draw(prompt)
    for answer in sampler.sample(list(draws.values()), decoding, Randomness()):
        said_by = {"model": answer.model.ref, "revision": answer.model.revision, "reported": answer.model.reported}
        how = {"kind": kind, "instruction": REWRITES[kind], "decoding": answer.decoding.digest, **said_by}
        for record in waiting[answer.prompt.id]:
            yield _rewritten(record, answer, how)


def _rewritten(record: Transcript, answer: Transcript, how: Mapping[str, str | None]) -> Transcript:
    return replace(
        record,
        response=answer.response,
        stream=f"{record.stream}|rewrite:{how['kind']}",
        finish=answer.finish,
        error=answer.error,
        backend={**record.backend, "rewrite": dict(how)},
        response_token_ids=None,  # these belonged to the text that was rewritten
        logprobs=None,
        logprobs_kind=None,
        top_logprobs=None,
    )
