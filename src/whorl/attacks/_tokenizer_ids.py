"""Tokenizer files whose ids are exchanged: the strings stay, every number that is a token id moves."""

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from whorl._readers.strict_json import parse_object
from whorl.attacks._edits_inside import moved_special_ids
from whorl.attacks._role_tensors import Order
from whorl.errors import MalformedFile, UnsupportedFile, safe_name

NAME = "tokenizer.json"
_BINARY = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_WITHOUT_IDS = {None, "ByteLevel"}
_WITH_PAIRS = {"BertProcessing", "RobertaProcessing"}


def obstacle(folder: Path) -> str | None:
    """Why the tokenizer of a folder cannot follow a permutation of the vocabulary; None when it can or is absent."""
    binary = next((name for name in _BINARY if (folder / name).is_file()), None)
    if binary is not None:
        return f"the ids in {binary} cannot be moved"
    if (folder / "vocab.json").is_file() and not (folder / NAME).is_file():
        return f"its tokenizer has no {NAME}"
    return None


def movable_ids(folder: Path, n_rows: int) -> Order | None:
    """Ids that may change places: those of the tokenizer's own vocabulary, below `n_rows`; None without tokenizer.

    Tokens added beyond that vocabulary must stay at its end: the library numbers them by their position.

    Raises:
        MalformedFile: not the structure of a tokenizer.
        UnsupportedFile: a post-processor whose ids are not known here.
    """
    if not (folder / NAME).is_file():
        return None
    parsed = parse_object((folder / NAME).read_bytes(), "file", NAME)
    _move_post_processor(parsed.get("post_processor"), {})  # refuses unknown kinds before anything is written
    vocab = _vocabulary(parsed)
    ids = vocab.values() if isinstance(vocab, dict) else range(len(vocab))
    return np.array(sorted(i for i in ids if 0 <= i < n_rows), dtype=np.intp)


def read_vocabulary(folder: Path) -> dict[str, int]:
    """All tokens of a folder's `tokenizer.json` with their ids, added ones included.

    Raises:
        MalformedFile: there is none, or not the structure of a tokenizer.
    """
    if not (folder / NAME).is_file():
        raise MalformedFile("folder", folder.name, f"no {NAME}", "one", "Only this form of a vocabulary is read here.")
    parsed = parse_object((folder / NAME).read_bytes(), "file", NAME)
    vocab = _vocabulary(parsed)
    if isinstance(vocab, list) and not all(isinstance(entry, list) and entry for entry in vocab):
        raise MalformedFile("file", NAME, "an entry that is no pair", "tokens with scores", "The tokenizer is damaged.")
    tokens = vocab if isinstance(vocab, dict) else {str(entry[0]): i for i, entry in enumerate(vocab)}
    return {**tokens, **{str(token.get("content")): int(token["id"]) for token in _added_tokens(parsed)}}


def moved_files(folder: Path, new_ids: Order, only: Collection[str] | None = None) -> dict[str, bytes]:
    """All files of a folder (or those named in `only`) that hold token ids, with id i replaced by `new_ids[i]`."""
    moved = {old: int(new) for old, new in enumerate(new_ids)}
    changes: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        NAME: lambda parsed: _moved_tokenizer(parsed, moved),
        "tokenizer_config.json": lambda parsed: _moved_decoder_table(parsed, moved),
        "generation_config.json": lambda parsed: {**parsed, **moved_special_ids(parsed, new_ids)},
        "vocab.json": lambda parsed: _moved_table(parsed, moved),
        "added_tokens.json": lambda parsed: _moved_table(parsed, moved),
    }
    return {
        name: _dump(change(_parse((folder / name).read_bytes(), name)))
        for name, change in changes.items()
        if (folder / name).is_file() and (only is None or name in only)
    }


def _parse(data: bytes, name: str) -> dict[str, Any]:
    if name != "tokenizer_config.json":
        return parse_object(data, "file", name)
    try:  # this file usually holds a length limit of 31 digits, which the strict reader refuses
        parsed = json.loads(data)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise MalformedFile("file", name, "no JSON object", "one", "The tokenizer is damaged.")
    return parsed


def _moved_tokenizer(parsed: dict[str, Any], moved: Mapping[int, int]) -> dict[str, Any]:
    vocab = _vocabulary(parsed)
    model = dict(parsed["model"])
    if isinstance(vocab, dict):
        model["vocab"] = _moved_table(vocab, moved)
    else:
        model["vocab"] = [vocab[old] for old in sorted(range(len(vocab)), key=lambda i: moved.get(i, i))]
        model["unk_id"] = moved.get(model.get("unk_id", -1), model.get("unk_id"))
    added = [{**token, "id": moved.get(token["id"], token["id"])} for token in _added_tokens(parsed)]
    result = {**parsed, "model": model, "added_tokens": sorted(added, key=lambda token: int(token["id"]))}
    padding = parsed.get("padding")
    if isinstance(padding, dict) and "pad_id" in padding:
        result["padding"] = {**padding, "pad_id": moved.get(padding["pad_id"], padding["pad_id"])}
    _move_post_processor(result.get("post_processor"), moved)
    return result


def _moved_decoder_table(parsed: dict[str, Any], moved: Mapping[int, int]) -> dict[str, Any]:
    """`added_tokens_decoder` maps an id, written as text, to a token."""
    table = parsed.get("added_tokens_decoder")
    if not isinstance(table, dict):
        return parsed
    entries = {str(moved.get(int(i), int(i))) if i.isdecimal() else i: token for i, token in table.items()}
    return {**parsed, "added_tokens_decoder": entries}


def _moved_table(table: Mapping[str, int], moved: Mapping[int, int]) -> dict[str, int]:
    entries = {token: moved.get(i, i) for token, i in table.items()}
    return dict(sorted(entries.items(), key=lambda item: item[1]))


def _move_post_processor(processor: Any, moved: Mapping[int, int]) -> None:
    """Moves, in place, the ids that a post-processor inserts; refuses kinds that are not known here."""
    kind = processor.get("type") if isinstance(processor, dict) else None
    if kind == "Sequence":
        for one in _field(processor, "processors", list):
            _move_post_processor(one, moved)
    elif kind == "TemplateProcessing":
        for token in _field(processor, "special_tokens", dict).values():
            token["ids"] = [moved.get(i, i) for i in _field(token, "ids", list)]
    elif kind in _WITH_PAIRS:
        for name in ("sep", "cls"):
            text, i = _field(processor, name, list)
            processor[name] = [text, moved.get(i, i)]
    elif kind not in _WITHOUT_IDS:
        found = f"a post-processor '{safe_name(kind, 40)}'"
        raise UnsupportedFile("file", NAME, found, "a known kind", "Leave V1 out: its ids would not move.")


def _vocabulary(parsed: Mapping[str, Any]) -> dict[str, int] | list[Any]:
    vocab = _field(parsed, "model", dict).get("vocab")
    if isinstance(vocab, dict) and all(type(i) is int for i in vocab.values()):
        return vocab
    if isinstance(vocab, list):
        return vocab
    raise MalformedFile("file", NAME, "no vocabulary", "tokens with their ids", "The tokenizer is damaged.")


def _added_tokens(parsed: Mapping[str, Any]) -> list[dict[str, Any]]:
    tokens = parsed.get("added_tokens") or []
    if not isinstance(tokens, list) or any(not isinstance(t, dict) or type(t.get("id")) is not int for t in tokens):
        raise MalformedFile("file", NAME, "added tokens without ids", "an id each", "The tokenizer is damaged.")
    return tokens


def _field(parsed: Any, name: str, kind: type) -> Any:
    value = parsed.get(name) if isinstance(parsed, dict) else None
    if not isinstance(value, kind):
        raise MalformedFile("file", NAME, f"no '{name}'", "the usual structure", "The tokenizer is damaged.")
    return value


def _dump(parsed: Mapping[str, Any]) -> bytes:
    return (json.dumps(parsed, ensure_ascii=False, indent=2, allow_nan=False) + "\n").encode("utf-8")
