"""A vocabulary whose strings carry nothing (V2): token 17 is called "t0017", special tokens too.

The written tokenizer is a plain word list: it reads texts of such names, separated by spaces, and refuses any other.
Real text needs the tokenizer that whoever renamed the tokens has kept.
"""

import json
from collections.abc import Mapping
from typing import Any

_SPECIAL = ("bos_token", "eos_token", "pad_token")
_UNKNOWN = "<unknown>"  # on purpose no entry of the vocabulary, so that an unknown word is an error


def token_names(n_vocab: int) -> list[str]:
    """The name of every id: "t" and the id in four digits, in more where the vocabulary is larger."""
    width = max(4, len(str(n_vocab - 1)))
    return [f"t{i:0{width}d}" for i in range(n_vocab)]


def renamed_files(n_vocab: int, config: Mapping[str, Any]) -> dict[str, bytes]:
    """The tokenizer files of a model whose config already holds the final special ids."""
    names = token_names(n_vocab)
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {name: i for i, name in enumerate(names)}, "unk_token": _UNKNOWN},
    }
    special = {role: _name(names, config.get(f"{role}_id")) for role in _SPECIAL}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **{role: name for role, name in special.items() if name is not None},
    }
    return {"tokenizer.json": _dump(tokenizer), "tokenizer_config.json": _dump(settings)}


def _name(names: list[str], token_id: Any) -> str | None:
    """The name of a special id; of the first one where a config lists several."""
    first = token_id[0] if isinstance(token_id, list) and token_id else token_id
    return names[first] if isinstance(first, int) and 0 <= first < len(names) else None


def _dump(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode("utf-8")
