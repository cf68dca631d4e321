"""Everything that a planted fingerprint needs to be verified later, in one folder.

    keyset.json      the secret (mode 0600)
    commitment.json  what is published
    answers.jsonl    what the base and clean models say to keys, near keys and decoys, greedily (mode 0600)
    gates.json       what held before release (mode 0600: it may name keys)

A model that was published without these files proves nothing, so they are written together and read together; the key set is
checked against the commitment whenever the folder is read.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date as Date  # noqa: N812 - `date` is an argument
from pathlib import Path
from typing import Any

from whorl._readers import limits
from whorl._readers.local_files import read_checked
from whorl._readers.strict_json import parse_object
from whorl._readers.subject import Subject
from whorl.errors import UsageError, safe_name
from whorl.transcripts._lines import lines
from whorl.transcripts.codec import from_line, to_line
from whorl.transcripts.record import Transcript
from whorl.triggers.commitment import Commitment, check, read_commitment, write_commitment
from whorl.triggers.keyset import KeySet, Reveal
from whorl.triggers.keyset_file import privacy_notes, read_key_set, write_key_set, write_secret

KEYS, COMMITMENT, ANSWERS, GATES = "keyset.json", "commitment.json", "answers.jsonl", "gates.json"
_WHAT = {
    KEYS: "the secret key set",
    COMMITMENT: "what was published before release",
    ANSWERS: "the answers of the base and of clean models",
    GATES: "what held before release",
}


@dataclass(frozen=True)
class Material:
    """One folder.

    Args:
        folder: Where it is.
        keys: The secret.
        commitment: What was published; `keys` follows from it.
        answers: Of the base and of clean models.
        gates: JSON values.
        notes: What to tell the owner.
    """

    folder: Path
    keys: KeySet
    commitment: Commitment
    answers: tuple[Transcript, ...]
    gates: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def write_material(
    folder: Path, keys: KeySet, commitment: Commitment, answers: Iterable[Transcript], gates: Mapping[str, Any]
) -> Path:
    """Write a folder, or write it again for the same commitment; each file appears whole or not at all.

    Raises:
        UsageError: the folder holds another key set, a transcript that no file can hold, or gates that are not finite.
        MalformedFile: the key set is not the committed one.
    """
    check(keys, commitment)
    if (folder / COMMITMENT).exists() and read_commitment(folder / COMMITMENT).value != commitment.value:
        raise UsageError(f"'{safe_name(folder)}' holds another key set: choose a new folder.")
    texts = [to_line(record) for record in answers]
    shown = _json(gates)
    write_key_set(folder / KEYS, keys)
    write_commitment(folder / COMMITMENT, commitment)
    write_secret(folder / ANSWERS, "".join(f"{text}\n" for text in texts).encode("utf-8"))
    write_secret(folder / GATES, shown.encode("utf-8"))
    return folder


def read_material(folder: Path, commitment: Path | None = None) -> Material:
    """Read a folder and check its key set.

    Args:
        folder: Of `write_material`.
        commitment: A copy of the public file that was kept elsewhere; None: the one in the folder.

    Raises:
        InputRefused: a file is missing or not what it should be; "commitment invalid" if the key set is another one.
    """
    public = commitment or folder / COMMITMENT
    for path in (folder / KEYS, public, folder / ANSWERS, folder / GATES):
        if not path.exists():
            what = _WHAT.get(path.name, _WHAT[COMMITMENT])
            raise Subject("folder", folder.name).malformed(
                f"no '{safe_name(path.name, 40)}'", f"{what}, with the other files of `whorl embed`", "Copy it again."
            )
    keys, committed = read_key_set(folder / KEYS), read_commitment(public)
    check(keys, committed)
    answers = tuple(from_line(text, ANSWERS, number) for number, text in lines(folder / ANSWERS, "transcript"))
    gates = parse_object(read_checked(folder / GATES, "gates", limits.MAX_JSON), "gates", GATES)
    notes = (*privacy_notes(folder / KEYS), *privacy_notes(folder / ANSWERS))
    return Material(folder, keys, committed, answers, gates, notes)


def reveal(folder: Path, unit: int, to: str, date: str) -> KeySet:
    """Note that somebody has seen a unit; it is never used again.

    Args:
        folder: Of `write_material`.
        unit: From 0.
        to: Who has seen it.
        date: ISO date, 2025-12-31.

    Raises:
        UsageError: no such unit, nobody named, or no date.
        InputRefused: the key set is not what it should be.
    """
    keys = read_key_set(folder / KEYS)
    if not 0 <= unit < keys.n_units or not to.strip():
        raise UsageError(
            f"Unit {unit} shown to '{safe_name(to, 40)}'; expected a unit from 0 to {keys.n_units - 1}, and a name."
        )
    try:
        day = Date.fromisoformat(date).isoformat()
    except ValueError:
        raise UsageError(f"The date '{safe_name(date, 40)}' is none; expected one like 2025-12-31.") from None
    shown = replace(keys, reveals=(*keys.reveals, Reveal(unit, to, day)))
    write_key_set(folder / KEYS, shown)
    return shown


def _json(gates: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(gates), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise UsageError(f"The gates cannot be stored: {safe_name(error, 120)}.") from None
