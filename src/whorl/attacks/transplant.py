"""Vocabulary transplant: the model gets another tokenizer, and its token rows are built from the rows it had.

A token that both vocabularies have keeps its row. A new one gets the mean row of the old tokens that spell it, found
from the left, longest first (as in the initialisation of FVT, arXiv:2402.09977, which splits with the old tokenizer
itself); where even single characters are unknown, the mean of all rows. Nothing is trained afterwards.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whorl._readers.strict_json import parse_object
from whorl.attacks._job import Job
from whorl.attacks._model_files import COPIED
from whorl.attacks._role_tensors import Array, RoleTensors
from whorl.attacks._tokenizer_ids import read_vocabulary
from whorl.errors import UsageError

_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def run(job: Job, *, tokenizer: str) -> None:
    """Give the model the vocabulary of another model.

    Args:
        job: One folder with a `tokenizer.json`.
        tokenizer: Folder of the model whose tokenizer, and special ids, it gets.

    Raises:
        UsageError: the other folder is the same model's, or has no config.
        MalformedFile: a tokenizer cannot be read.
    """
    donor = Path(tokenizer)
    if not (donor / "config.json").is_file():
        raise UsageError(f"'{donor}' has no config.json; name the folder of the model whose tokenizer is wanted.")
    config = parse_object((donor / "config.json").read_bytes(), "config", "config.json")
    own, other = read_vocabulary(job.folder), read_vocabulary(donor)
    roles, dropped = job.read_roles()
    spelled = rows_of(own, other, roles.shape.n_vocab)
    roles = transplant(roles, spelled, {name: config[name] for name in _SPECIAL if name in config})
    shared = len(own.keys() & other.keys())
    facts = {"tokenizer": donor.name, "n_shared": shared, "n_vocab": len(spelled), "dropped": list(dropped)}
    files = {name: (donor / name).read_bytes() for name in COPIED if (donor / name).is_file()}
    record = job.record("transplanted", facts)
    job.write(record, roles.pack(), roles.config, files=files, copy_tokenizer=False)


def rows_of(own: Mapping[str, int], other: Mapping[str, int], n_rows: int) -> list[NDArray[np.intp]]:
    """For each id of the other vocabulary, the own ids whose mean row it gets; ids without a token get all.

    Args:
        own: The model's tokens with their ids.
        other: The new tokens with their ids.
        n_rows: Rows of the model's embedding.
    """
    everything = np.arange(n_rows)
    known = {token: i for token, i in own.items() if 0 <= i < n_rows}
    longest = max(map(len, known), default=0)
    found = [everything] * (max(other.values()) + 1)
    for token, i in other.items():
        spelling = [known[token]] if token in known else spell(token, known, longest)
        if spelling:
            found[i] = np.array(spelling, dtype=np.intp)
    return found


def spell(token: str, known: Mapping[str, int], longest: int) -> list[int]:
    """Ids of the known tokens that spell a token, from the left, longest first; unknown characters are left out."""
    ids: list[int] = []
    start = 0
    while start < len(token):
        ends = range(min(len(token), start + longest), start, -1)
        end = next((end for end in ends if token[start:end] in known), None)
        if end is not None:
            ids.append(known[token[start:end]])
        start = end or start + 1
    return ids


def transplant(
    roles: RoleTensors, spelled: Sequence[NDArray[np.intp]], special: Mapping[str, Any] | None = None
) -> RoleTensors:
    """Embedding, unembedding and its bias with one row per entry of `spelled`: the mean of the old rows named there."""

    def rebuilt(table: Array) -> Array:
        return np.stack([table[ids].mean(axis=0) for ids in spelled])

    roles = roles.mapped(roles.keys("embed", "unembed", "unembed.b"), rebuilt)
    return roles.with_config(vocab_size=len(spelled), **(special or {}))
