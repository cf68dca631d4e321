"""Bytes to hash: values with their lengths, so that no two different inputs share an encoding (spec 2.3).

    enc(text)   8-byte big-endian length + UTF-8 of its NFC form
    enc(bytes)  8-byte big-endian length + the bytes
    enc(list)   8-byte big-endian count + its items, encoded

What stands at a place is always of one kind, fixed by the tag that every hash begins with.
"""

import hashlib
import unicodedata
from collections.abc import Sequence
from typing import TypeAlias

Value: TypeAlias = "str | bytes | Sequence[Value]"


def enc(value: Value) -> bytes:
    """The bytes of a value."""
    if isinstance(value, str):
        value = unicodedata.normalize("NFC", value).encode("utf-8")
    if isinstance(value, bytes):
        return len(value).to_bytes(8, "big") + value
    return len(value).to_bytes(8, "big") + b"".join(enc(item) for item in value)


def sha256(*values: Value) -> bytes:
    """SHA-256 of the encoded values one after the other, 32 bytes."""
    return hashlib.sha256(b"".join(enc(value) for value in values)).digest()
