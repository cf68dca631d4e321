"""A commitment to a key set: published and dated before release, derived again before anything is asked (spec 2.3).

The value covers everything that decides what is asked and what counts, with the salt, so that the small public file says
nothing of the keys. `units` are HashChain's own commitments, one a chain, by which one chain can be shown without the others.
The date is the owner's word until `where` it was published bears it out; what happens after the commitment (training data,
reveals) is not covered.
"""

import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from whorl._atomic import write_text
from whorl._readers import limits
from whorl._readers.local_files import read_checked
from whorl._readers.strict_json import parse_object
from whorl.errors import MalformedFile, UnsupportedFile, UsageError, safe_name
from whorl.transcripts.codec import first_fault
from whorl.triggers.encoding import Value, sha256
from whorl.triggers.keyset import Key, KeySet
from whorl.triggers.schemes import of
from whorl.triggers.schemes.hashchain import DECOY_UNIT, Chain, HashChain, rederive

SCHEMA = "whorl.commitment/1"
TAG = "whorl/keyset/1"
_SALT = re.compile(r"[0-9a-f]{64}")
_ADVICE = "Nothing can be concluded from this key set: use the one that was committed."
_Hex64 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Text = Annotated[str, Field(min_length=1, max_length=1000)]


@dataclass(frozen=True)
class Commitment:
    """What is published before release.

    Args:
        scheme: Canonical name.
        value: SHA-256 of the key set with its salt, 64 hex digits.
        pool: SHA-256 of the pool from which keys, near keys and decoys came, with the salt, 64 hex digits.
        n_units: Units that can be revealed one at a time; p-values are multiplied by it.
        units: HashChain: the commitment of each chain, 64 hex digits; else empty.
        dated: ISO date as declared by the owner, or None.
        where: Where it was published, in words, or None.
    """

    scheme: str
    value: str
    pool: str
    n_units: int
    units: tuple[str, ...] = ()
    dated: str | None = None
    where: str | None = None

    @property
    def schema(self) -> str:
        """Of the file."""
        return SCHEMA


def commit(keys: KeySet, dated: str | None = None, where: str | None = None) -> Commitment:
    """The commitment of a key set.

    Args:
        keys: The key set.
        dated: ISO date (2025-12-31) on which it is published, None for none.
        where: Where.

    Raises:
        UsageError: no ISO date, a text that is not in the normal form NFC (another spelling of it would have the same
            value), or HashChain answers that do not follow from the chain.
    """
    check_date(dated)
    if (fault := _fault(keys)) is not None:
        raise UsageError(f"The key set '{safe_name(keys.scheme)}' cannot be committed: {fault}.")
    units = _units(keys)
    return Commitment(keys.scheme, _value(keys, units), pool_digest(keys), keys.n_units, units, dated, where)


def check(keys: KeySet, commitment: Commitment) -> None:
    """Derive everything again.

    Raises:
        MalformedFile: any difference; the message holds "commitment invalid".
    """
    fault = _fault(keys)
    if fault is None:
        units = _units(keys)
        derived = Commitment(keys.scheme, _value(keys, units), pool_digest(keys), keys.n_units, units)
        names = ("scheme", "n_units", "units", "pool", "value")
        odd = [name for name in names if getattr(derived, name) != getattr(commitment, name)]
        fault = f"{', '.join(odd)} of the key set differ from what was committed" if odd else None
    if fault is not None:
        raise MalformedFile(
            "key set", keys.scheme, f"commitment invalid: {fault}", "the key set that was committed", _ADVICE
        )


def pool_digest(keys: KeySet) -> str:
    """SHA-256 over all drawn triggers with their answers in alphabetical order, which hides what is a key; 64 hex digits."""
    pool = sorted((key.trigger, *key.answers) for part in _parts(keys) for key in part)
    return sha256(TAG, "pool", bytes.fromhex(keys.salt), keys.scheme, str(keys.seed), pool).hex()


def _value(keys: KeySet, units: tuple[str, ...]) -> str:
    asking = [[name, *map(str, v if isinstance(v, tuple) else (v,))] for name, v in asdict(keys.asking).items()]
    parts: list[Value] = [[_member(key) for key in part] for part in _parts(keys)]
    salt = bytes.fromhex(keys.salt)
    return sha256(TAG, salt, keys.scheme, parts, asking, str(keys.seed), keys.answer_list, units).hex()


def _member(key: Key) -> Value:
    return [key.id, key.trigger, key.answers, str(key.unit)]


def _parts(keys: KeySet) -> tuple[tuple[Key, ...], ...]:
    return keys.keys, keys.near_train, keys.near_eval, keys.decoys


def _texts(keys: KeySet) -> Iterator[str]:
    yield from keys.answer_list
    for part in _parts(keys):
        for key in part:
            yield from (key.id, key.trigger, *key.answers)


def _units(keys: KeySet) -> tuple[str, ...]:
    return rederive(keys).commitments if isinstance(of(keys.scheme), HashChain) else ()


def _fault(keys: KeySet) -> str | None:
    """What makes a key set no commitable one, without looking at a commitment."""
    if not _SALT.fullmatch(keys.salt):
        return "its salt is not 32 bytes in hex"
    odd = next((text for text in _texts(keys) if not unicodedata.is_normalized("NFC", text)), None)
    if odd is not None:
        return f"the text '{safe_name(odd, 40)}' is not in the normal form NFC"
    try:
        if not isinstance(of(keys.scheme), HashChain):
            return None
        found = rederive(keys)
    except UsageError as error:
        return str(error).rstrip(".")
    units = [(f"chain {i}", chain, [k for k in keys.keys if k.unit == i]) for i, chain in enumerate(found.chains)]
    units.append((f"the {DECOY_UNIT} chain", found.decoys, list(keys.decoys)))
    return next((fault for name, chain, members in units if (fault := _odd_answer(name, chain, members))), None)


def _odd_answer(name: str, chain: Chain, members: list[Key]) -> str | None:
    odd = next((k for k, answer in zip(members, chain.answers, strict=True) if k.answers != (answer,)), None)
    return None if odd is None else f"the answer of '{safe_name(odd.id, 40)}' does not follow from {name}"


def check_date(text: str | None) -> None:
    """Refuse what is no ISO date.

    Raises:
        UsageError: says what a date looks like.
    """
    try:
        if text is not None and date.fromisoformat(text).isoformat() != text:
            raise ValueError
    except ValueError:
        raise UsageError(f"The date '{safe_name(text, 40)}' is none; expected one like 2025-12-31.") from None


# -- the public file -------------------------------------------------------------------------------------------------


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    schema_: Annotated[Literal["whorl.commitment/1"], Field(alias="schema")]
    scheme: _Text
    value: _Hex64
    pool: _Hex64
    n_units: Annotated[int, Field(ge=1, lt=10**6)]
    units: list[_Hex64]
    dated: _Text | None
    where: _Text | None


def to_fields(commitment: Commitment) -> dict[str, Any]:
    """JSON values."""
    return {"schema": SCHEMA, **asdict(commitment), "units": list(commitment.units)}


def write_commitment(path: Path, commitment: Commitment) -> Path:
    """Write the public file, atomically."""
    return write_text(path, json.dumps(to_fields(commitment), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_commitment(path: Path) -> Commitment:
    """Read the public file.

    Raises:
        MalformedFile: missing, not JSON, or a field is missing, unknown or of another kind.
        UnsafeFile: too large, or a key twice.
        UnsupportedFile: another schema.
    """
    values = parse_object(read_checked(path, "commitment", limits.MB), "commitment", path.name, max_bytes=limits.MB)
    if values.get("schema", SCHEMA) != SCHEMA:
        found = f"schema {safe_name(values['schema'], 40)}"
        raise UnsupportedFile("commitment", path.name, found, SCHEMA, "Update whorl.")
    try:
        line = _File.model_validate(values)
        check_date(line.dated)
    except ValidationError as error:
        raise MalformedFile("commitment", path.name, first_fault(error), SCHEMA, "Fetch it again.") from None
    except UsageError as error:
        raise MalformedFile("commitment", path.name, safe_name(error, 120), "an ISO date", "Fetch it again.") from None
    return Commitment(line.scheme, line.value, line.pool, line.n_units, tuple(line.units), line.dated, line.where)
