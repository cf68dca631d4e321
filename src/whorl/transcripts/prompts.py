"""Prompt sets: what all models of an analysis are asked, as text before any template.

Each set is a function of its source and a number, without hidden state, in a fixed order of which the first n are the set
of size n; all but `chat` and a user's own have prompts of distinct groups. Prompts are cut in characters, so that every
model gets the same string; only `web32t` cuts in tokens of one tokenizer, to reproduce arXiv:2502.12150. Documents are
taken in the order of their SHA-256: which of them become prompts then does not depend on the order of the source.
"""

import hashlib
import inspect
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from whorl._readers.subject import Subject
from whorl.errors import NotEnoughEvidence, UsageError, safe_name
from whorl.transcripts._lines import lines
from whorl.transcripts._questions import QUESTIONS
from whorl.transcripts._rows import ADVICE, table
from whorl.transcripts._words import WORDS
from whorl.transcripts.record import Message, Prompt
from whorl.transcripts.splits import GROUP_CHARACTERS, normalised_start

WEB_CHARACTERS = 50
WEB_TOKENS = 32
GENE_CHARACTERS = (20, 100)
N_GENES = 128
SENTENCE_WORDS = (8, 20)
_LONGEST_START = 4_096  # characters that certainly hold 32 tokens
_USERS = ("user", "human", "prompter")


def web50(documents: Sequence[str] | None = None, n: int | None = None) -> list[Prompt]:
    """First 50 characters of documents (protocol of arXiv:2504.14871); default: pieces of Python's docstrings.

    Raises:
        NotEnoughEvidence: fewer than n documents that long begin differently.
    """
    starts = (text[:WEB_CHARACTERS] for text in _ordered(documents) if len(text) >= WEB_CHARACTERS)
    return _first("web50", starts, n)


def web32t(tokenizer: Any, documents: Sequence[str] | None = None, n: int | None = None) -> list[Prompt]:
    """First 32 tokens of documents in one tokenizer (arXiv:2502.12150, base models, where it was each model's own).

    Args:
        tokenizer: A model folder with `tokenizer.json`, a `tokenizers.Tokenizer`, or a fast tokenizer of transformers.
        documents: Default: pieces of Python's docstrings.
        n: How many.

    Raises:
        NotEnoughEvidence: fewer than n documents that long begin differently.
    """
    coder = _tokenizer(tokenizer)

    def starts() -> Iterator[str]:
        for text in _ordered(documents):
            ids = coder.encode(text[:_LONGEST_START], add_special_tokens=False).ids
            if len(ids) >= WEB_TOKENS:
                yield coder.decode(ids[:WEB_TOKENS]).rstrip("\ufffd")  # the last token may end within a character

    return _first("web32t", starts(), n)


def _tokenizer(source: Any) -> Any:
    if isinstance(source, str | os.PathLike):
        from whorl.lab.tokenizer import load_tokenizer

        if not (Path(source) / "tokenizer.json").is_file():
            raise UsageError(f"There is no tokenizer.json in '{safe_name(source)}'.")
        return load_tokenizer(Path(source))
    return getattr(source, "backend_tokenizer", source)


def genes(documents: Sequence[str] | None = None, n: int = N_GENES) -> list[Prompt]:
    """Prefixes of 20 to 100 characters (arXiv:2404.04671 has 128), one a document, which also decides the length.

    Raises:
        NotEnoughEvidence: fewer than n documents begin differently within 20 characters.
    """
    low, high = GENE_CHARACTERS
    starts = (text[: low + _number(text) % (high - low + 1)] for text in _ordered(documents) if len(text) >= high)
    return _first("genes", starts, n, low)


def words(n: int = 500, seed: int = 0) -> list[Prompt]:
    """Sequences of 8 to 20 random words (after the random sentences of arXiv:2502.00706); the words are ours."""
    draw = random.Random(f"whorl words {seed}")
    low, high = SENTENCE_WORDS

    def sentences() -> Iterator[str]:
        while True:
            yield " ".join(
                WORDS[int(draw.random() * len(WORDS))] for _ in range(low + int(draw.random() * (high - low + 1)))
            )

    return _first("words", sentences(), n)


def short(n: int | None = None) -> list[Prompt]:
    """One-token questions in several languages and requests for random strings, our own.

    Raises:
        NotEnoughEvidence: more are asked for than there are.
    """
    return _first("short", iter(QUESTIONS), n)


def uncond(n: int = 1_024) -> list[Prompt]:
    """The beginning of text only, n times: one prompt whose n draws `whorl.transcripts.record.draws` numbers on.

    Each draw is a group of its own in splits, and a row of its own in `whorl.transcripts.answers.answers`.
    """
    if n < 1:
        raise UsageError(f"{n} draws were asked for; expected at least 1.")
    return [Prompt("", "uncond")] * n


def chat(rows: str | os.PathLike[str] | Iterable[Mapping[str, Any]], n: int | None = None) -> list[Prompt]:
    """First user turns of conversations (UltraChat in arXiv:2502.12150), in the order of the rows; repeated ones once.

    Args:
        rows: A `.json`, `.jsonl`, `.csv` or `.parquet` file, or rows: with "messages" or "conversations" (lists of
            turns), "instruction" with or without "input", or "prompt".
        n: How many; default: all.

    Raises:
        UsageError: no such file.
        MalformedFile: a row without a first user turn; names it.
        NotEnoughEvidence: fewer than n.
    """
    if isinstance(rows, str | os.PathLike):
        name, found = Path(rows).name, table(Path(rows))
    else:
        name, found = "chat", ((f"row {number}", row) for number, row in enumerate(rows, 1))
    turns = (_first_turn(row, Subject("table", f"{name}: {where}")) for where, row in found)
    return _first("chat", turns, n, distinct=lambda text: text)


def _first_turn(row: Mapping[str, Any], subject: Subject) -> str:
    turns = row.get("messages", row.get("conversations"))
    text = row.get("prompt")
    if isinstance(turns, list):
        said = (turn for turn in turns if isinstance(turn, Mapping) and turn.get("role", turn.get("from")) in _USERS)
        first: Mapping[str, Any] = next(said, {})
        text = first.get("content", first.get("value"))
    elif "instruction" in row:
        text = row["instruction"]
        if isinstance(text, str) and isinstance(row.get("input"), str) and row["input"]:
            text = f"{text}\n\n{row['input']}"
    if not isinstance(text, str) or not text.strip():
        raise subject.malformed("no first user turn", "messages, conversations, instruction or prompt", ADVICE)
    return text


def _ordered(documents: Sequence[str] | None) -> list[str]:
    if documents is None:
        from whorl.lab.corpus import load_corpus

        documents = load_corpus("docstrings").pieces
    return sorted(documents, key=_number)


def _number(text: str) -> int:
    """SHA-256 of a text as a number."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest(), "big")


def _first(
    name: str,
    texts: Iterator[str],
    n: int | None,
    n_characters: int = GROUP_CHARACTERS,
    distinct: Callable[[str], str] | None = None,
) -> list[Prompt]:
    """The first n prompts that differ in their first characters, or in what `distinct` says."""
    key = distinct or (lambda text: normalised_start(text, n_characters))
    if n is not None and n < 1:
        raise UsageError(f"{n} prompts were asked for; expected at least 1.")
    found: dict[str, Prompt] = {}
    for text in texts:
        found.setdefault(key(text), Prompt(text, name))
        if len(found) == n:
            break
    if not found or (n is not None and len(found) < n):
        raise NotEnoughEvidence(
            f"'{name}' gives {len(found)} distinct prompts; {n or 'some'} are needed. Use fewer, or more text."
        )
    return list(found.values())


def read_prompts(path: str | os.PathLike[str], name: str = "user") -> list[Prompt]:
    """A user's prompts: `.txt` with one a line, or `.jsonl` with a text, or an object, a line.

    Args:
        path: The file. Objects have "prompt" (a text, or turns with role and content) and perhaps "group". Blank lines of
            a text file are left out; white space within a line stays.
        name: Of the prompt set.

    Raises:
        UsageError: no such file, another kind of file, or no prompts in it.
        MalformedFile: a line that is no prompt; names it.
    """
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"There is no file of prompts '{safe_name(file)}'.")
    if file.suffix == ".txt":
        found = [Prompt(text, name) for _, text in lines(file, "prompts") if text.strip()]
    elif file.suffix == ".jsonl":
        found = [_prompt(row, name, Subject("prompts", f"{file.name}: {where}")) for where, row in table(file)]
    else:
        raise UsageError(f"'{safe_name(file)}' is no file of prompts: expected .txt or .jsonl.")
    if not found:
        raise UsageError(f"There are no prompts in '{safe_name(file)}'.")
    return found


def _prompt(row: Mapping[str, Any], name: str, subject: Subject) -> Prompt:
    content, group = row.get("prompt"), row.get("group")
    extra = row.keys() - {"prompt", "group"}
    if extra:
        raise subject.malformed(f"field '{safe_name(min(extra), 40)}'", "prompt and group", ADVICE)
    if isinstance(content, list) and content:
        turns = [turn for turn in content if isinstance(turn, dict) and turn.keys() == {"role", "content"}]
        if len(turns) == len(content) and all(isinstance(text, str) for turn in turns for text in turn.values()):
            content = tuple(Message(turn["role"], turn["content"]) for turn in turns)
    if not isinstance(content, str | tuple) or not (group is None or (isinstance(group, str) and group)):
        raise subject.malformed("no prompt", "a prompt as text or turns, and perhaps a group as text", ADVICE)
    return Prompt(content, name, group)


_SETS: Mapping[str, Callable[..., list[Prompt]]] = {
    "web50": web50,
    "web32t": web32t,
    "chat": chat,
    "uncond": uncond,
    "words": words,
    "genes": genes,
    "short": short,
}

_NEEDS = {"tokenizer": "a tokenizer, or a local model's folder", "rows": "rows of a data set (--rows FILE)"}


def prompt_set(name: str, n: int | None = None, **source: Any) -> list[Prompt]:
    """A prompt set by name.

    Args:
        name: "web50", "web32t", "chat", "uncond", "words", "genes" or "short"; or the path of a `.txt` or `.jsonl` file.
        n: How many; default: that of the set.
        source: What the set's function takes: `documents`, `tokenizer`, `rows`, `seed`.

    Raises:
        UsageError: no such set, or a source that it does not take or lacks.
        NotEnoughEvidence: fewer than n.
        InputRefused: a source file is not what it should be.
    """
    if name.endswith((".txt", ".jsonl")):
        found = read_prompts(name)
        if n is not None and not 1 <= n <= len(found):
            raise UsageError(f"{n} prompts were asked for; '{safe_name(name)}' has {len(found)}.")
        return found[:n]
    if name not in _SETS:
        near = get_close_matches(name, _SETS, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else f" Known are {', '.join(_SETS)}, and .txt or .jsonl files."
        raise UsageError(f"There is no prompt set '{safe_name(name, 40)}'.{hint}")
    given = source if n is None else source | {"n": n}
    takes = inspect.signature(_SETS[name]).parameters
    if foreign := sorted(set(given) - set(takes)):
        raise UsageError(f"The prompt set '{name}' takes no {' or '.join(foreign)}.")
    if lacking := [key for key, p in takes.items() if p.default is p.empty and key not in given]:
        raise UsageError(
            f"The prompt set '{name}' needs {' and '.join(lacking)}: {', '.join(_NEEDS[k] for k in lacking)}."
        )
    return _SETS[name](**given)
