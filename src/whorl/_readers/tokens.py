"""Which string each embedding row stands for, from whatever tokenizer lies beside the weights.

Read are, the first that is there: the vocabulary of a GGUF file, `tokenizer.json`, `vocab.json`, `tokenizer.model`;
the last two with `added_tokens.json`. No tokenizer code runs and nothing is tokenised. A tokenizer is an aid: one
that cannot be read gives no strings and a note, and the weights are compared without it.

Strings are brought to one spelling, so that equal tokens of two kinds of tokenizer are equal: the text itself, with
its leading space, bytes that are no UTF-8 as lone surrogates (Python's `surrogateescape`).

    byte-level BPE    "Ġthe"             256 letters stand for the 256 bytes (GPT-2)
    SentencePiece     "▁the", "<0x0A>"   a sign for the space, and names for single bytes
    WordPiece         "the", "##ing"     a space is understood where no sign says otherwise
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from whorl._readers import limits, strict_json
from whorl._readers.adapter import AdapterSource
from whorl._readers.folder import FolderSource
from whorl._readers.gguf_file import GgufSource
from whorl._readers.local_files import LocalFolder
from whorl._readers.open import OpenedModel
from whorl._readers.sentencepiece import read_pieces
from whorl._readers.subject import Subject
from whorl.errors import InputRefused
from whorl.source import TensorSource

TOKENIZER_NAME, VOCABULARY_NAME, PIECES_NAME = "tokenizer.json", "vocab.json", "tokenizer.model"
ADDED_NAME = "added_tokens.json"

_ESCAPED = "surrogateescape"
_BYTE_NAME = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_BYTE_LEVEL_SHARE = 0.9  # of tokens in byte letters; special tokens may hold others (ours)

Strings = dict[int, str]
"""String by id."""


@dataclass(frozen=True)
class TokensRead:
    """The strings of a model's embedding rows.

    Args:
        tokens: String of each row by id; None for an id without token and where two ids have one string. The
            embedding may have more rows, or fewer. None as a whole when nothing could be read.
        note: Why nothing could be read; "" when it could.
    """

    tokens: tuple[str | None, ...] | None
    note: str = ""


@dataclass(frozen=True)
class _Vocabulary:
    """Strings as stored: of the vocabulary in the tokenizer's own spelling, and added ones as plain text."""

    strings: Strings
    added: Strings
    continued: str = ""


def read_tokens(opened: OpenedModel) -> TokensRead:
    """Strings of the embedding rows of an open model; of a model with an adapter those of its base.

    A tokenizer that breaks a rule is no error: `note` holds the refusal.
    """
    try:
        found = _vocabulary(_bare(opened.source))
        return TokensRead(None, "no tokenizer with the weights") if found is None else TokensRead(_rows(found))
    except InputRefused as refusal:
        return TokensRead(None, str(refusal))


def _bare(source: TensorSource) -> TensorSource:
    while isinstance(source, AdapterSource):
        source = source.base
    return source


def _vocabulary(source: TensorSource) -> _Vocabulary | None:
    if isinstance(source, GgufSource):
        return None if source.tokens is None else _from_gguf(source.tokens, source.label)
    return _from_folder(source.folder) if isinstance(source, FolderSource) else None


# -- what is stored --------------------------------------------------------------------------------------------------


def _from_gguf(tokens: Sequence[bytes], label: str) -> _Vocabulary:
    _check_count(len(tokens), Subject("file", label))
    return _Vocabulary({i: token.decode("utf-8", _ESCAPED) for i, token in enumerate(tokens)}, {})


def _from_folder(folder: LocalFolder) -> _Vocabulary | None:
    if TOKENIZER_NAME in folder:
        return _from_tokenizer(_object(folder, TOKENIZER_NAME), Subject("tokenizer", TOKENIZER_NAME))
    added = _by_id(_object(folder, ADDED_NAME), Subject("tokenizer", ADDED_NAME)) if ADDED_NAME in folder else {}
    if VOCABULARY_NAME in folder:
        return _Vocabulary(_by_id(_object(folder, VOCABULARY_NAME), Subject("tokenizer", VOCABULARY_NAME)), added)
    if PIECES_NAME in folder:
        pieces = read_pieces(folder.file(PIECES_NAME, "tokenizer").read_all(limits.MAX_JSON), PIECES_NAME)
        return _Vocabulary(dict(enumerate(pieces)), added)
    return None


def _object(folder: LocalFolder, name: str) -> dict[str, Any]:
    text = folder.file(name, "tokenizer").read_all(limits.MAX_JSON)
    return strict_json.parse_object(text, "tokenizer", name)


def _from_tokenizer(parsed: Mapping[str, Any], subject: Subject) -> _Vocabulary:
    """`tokenizer.json`: a table of strings (BPE, WordPiece, WordLevel) or a list of (string, score) (Unigram)."""
    model = parsed.get("model")
    if not isinstance(model, dict):
        raise subject.malformed("no 'model'", "an object 'model'")
    listed = model.get("vocab")
    if isinstance(listed, dict):
        strings = _by_id(listed, subject)
    elif isinstance(listed, list):
        _check_count(len(listed), subject)
        strings = {i: _text(row[0] if isinstance(row, list) and row else row, subject) for i, row in enumerate(listed)}
    else:
        raise subject.malformed("no 'vocab'", "a table or a list of tokens")
    sign = model.get("continuing_subword_prefix") if model.get("type") == "WordPiece" else None
    return _Vocabulary(strings, _added(parsed.get("added_tokens"), subject), sign if isinstance(sign, str) else "")


def _added(listed: Any, subject: Subject) -> Strings:
    entries = [] if listed is None else listed
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise subject.malformed("'added_tokens' in another form", "a list of objects")
    return {_id(entry.get("id"), subject): _text(entry.get("content"), subject) for entry in entries}


def _by_id(table: Mapping[str, Any], subject: Subject) -> Strings:
    _check_count(len(table), subject)
    strings = {_id(number, subject): string for string, number in table.items()}
    if len(strings) != len(table):
        raise subject.unsafe("one id for two tokens", "each id once")
    return strings


def _id(value: Any, subject: Subject) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < limits.MAX_TOKENS:
        raise subject.malformed("an id that is none", f"whole numbers from 0 to {limits.MAX_TOKENS - 1}")
    return value


def _text(value: Any, subject: Subject) -> str:
    if not isinstance(value, str):
        raise subject.malformed(f"{strict_json.kind_of(value)} for a token", "a text")
    return value


def _check_count(n_tokens: int, subject: Subject) -> None:
    if n_tokens > limits.MAX_TOKENS:
        raise subject.unsafe(f"{n_tokens} tokens", f"at most {limits.MAX_TOKENS}")


# -- one spelling ----------------------------------------------------------------------------------------------------


def _rows(found: _Vocabulary) -> tuple[str | None, ...]:
    """Strings in one spelling by id, None where there is none or it is not the only one."""
    own = {i: string for i, string in found.strings.items() if i not in found.added}
    plain, by_name = _spelled(own, found.continued)
    plain |= found.added
    taken = set(plain.values())
    # A name for a byte whose character has a token of its own is never used by the tokenizer: not ambiguous.
    plain |= {i: string for i, string in by_name.items() if string not in taken}
    seen = Counter(plain.values())
    rows: list[str | None] = [None] * (max(found.strings | found.added, default=-1) + 1)
    for i, string in plain.items():
        rows[i] = string if string and seen[string] == 1 else None
    return tuple(rows)


def _spelled(strings: Strings, continued: str) -> tuple[Strings, Strings]:
    """Strings as text; those written as the name of a byte apart."""
    if continued:
        return {i: _joined(string, continued) for i, string in strings.items()}, {}
    if _is_byte_level(strings.values()):
        return {i: _from_letters(string) for i, string in strings.items()}, {}
    named = {i: match for i, string in strings.items() if (match := _BYTE_NAME.fullmatch(string))}
    by_name = {i: bytes([int(match[1], 16)]).decode("utf-8", _ESCAPED) for i, match in named.items()}
    return {i: string.replace("▁", " ") for i, string in strings.items() if i not in named}, by_name


def _joined(string: str, continued: str) -> str:
    return string.removeprefix(continued) if string.startswith(continued) else f" {string}"


def _is_byte_level(strings: Iterable[str]) -> bool:
    """Told by the strings, since GGUF, `vocab.json` and `tokenizer.json` declare it in three ways or not at all."""
    listed = list(strings)
    n_letters = sum(all(letter in _BYTE_OF for letter in string) for string in listed)
    return n_letters >= _BYTE_LEVEL_SHARE * len(listed) and any("Ġ" in string for string in listed)


def _from_letters(string: str) -> str:
    if not all(letter in _BYTE_OF for letter in string):
        return string
    return bytes(_BYTE_OF[letter] for letter in string).decode("utf-8", _ESCAPED)


def _byte_letters() -> dict[str, int]:
    """GPT-2's letters: printable bytes of Latin-1 stand for themselves, the others follow from U+0100 in order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _byte_letters()
