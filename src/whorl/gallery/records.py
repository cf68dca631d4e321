"""Stored form of a fingerprint (compressed JSON), names of entries, and keys of matrices."""

import json
import re
import zlib
from typing import TYPE_CHECKING

from whorl._readers import limits
from whorl.errors import MalformedFile, UnsafeFile, UsageError, safe_name

if TYPE_CHECKING:
    from whorl.fingerprints import Fingerprint

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/@-]{0,199}")
MAX_LABELS = 50
MAX_LABEL_CHARACTERS = 100
MAX_NOTE_CHARACTERS = 10_000
MIN_MATRIX = 1024  # smaller tensors, norms and biases are often equal in unrelated models
_AGAIN = "Remove the entry and add the model again."


def encode(fingerprint: "Fingerprint") -> bytes:
    """Compressed JSON; zlib's checksum finds a damaged copy."""
    return zlib.compress(json.dumps(fingerprint.to_dict(), allow_nan=False, separators=(",", ":")).encode(), 6)


def decode(data: object, name: str) -> "Fingerprint":
    """The fingerprint of stored bytes, checked like a fingerprint file.

    Raises:
        InputRefused: damaged, larger than a fingerprint may be, or not a fingerprint.
    """
    from whorl._readers.strict_json import parse
    from whorl.fingerprints import Fingerprint

    return Fingerprint.from_dict(parse(unpacked(data, name), "fingerprint", name), name)


def unpacked(data: object, name: str) -> bytes:
    """The JSON text of stored bytes.

    Raises:
        InputRefused: damaged, or larger than a fingerprint may be.
    """
    if not isinstance(data, bytes):
        raise MalformedFile("fingerprint", name, "no bytes", "compressed JSON", _AGAIN)
    stream = zlib.decompressobj()
    try:
        text = stream.decompress(data, limits.MAX_FINGERPRINT_BYTES)
    except zlib.error as error:
        raise MalformedFile("fingerprint", name, f"damaged ({error})", "compressed JSON", _AGAIN) from error
    if not stream.eof and (stream.unconsumed_tail or len(text) >= limits.MAX_FINGERPRINT_BYTES):
        found, cap = f"more than {limits.MAX_FINGERPRINT_BYTES} bytes when unpacked", limits.MAX_FINGERPRINT_BYTES
        raise UnsafeFile("fingerprint", name, found, f"at most {cap} bytes", _AGAIN)
    if not stream.eof or stream.unused_data:
        raise MalformedFile("fingerprint", name, "cut short, or bytes after its end", "compressed JSON", _AGAIN)
    return text


def matrix_keys(fingerprint: "Fingerprint") -> tuple[int, ...]:
    """64 bits of the digest of every matrix that is large enough to be recognised, without doubles, sorted."""
    found = {
        int.from_bytes(bytes.fromhex(t.sha256)[:8], "big", signed=True)
        for t in fingerprint.tensors
        if len(t.shape) >= 2 and t.shape[0] * t.shape[1] >= MIN_MATRIX
    }
    return tuple(sorted(found))


def checked_name(name: str) -> str:
    """A name that `gallery:NAME` can carry.

    Raises:
        UsageError: other characters than letters, digits and ._/@-, or too long.
    """
    if not NAME.fullmatch(name):
        raise UsageError(
            f"'{safe_name(name)}' cannot be the name of an entry: 1 to 200 letters, digits and ._/@-, "
            "the first a letter or a digit."
        )
    return name


def name_for(fingerprint: "Fingerprint") -> str:
    """A name from the reference: the repository, or the last part of a path."""
    resolved = fingerprint.resolved
    is_hub = fingerprint.commit is not None and "+" not in resolved
    text = resolved.partition("@")[0] if is_hub else resolved.rstrip("/\\").replace("\\", "/").rpartition("/")[2]
    plain = re.sub(r"[^A-Za-z0-9._/@-]", "_", text).lstrip("._/@-")[:200]
    return plain or f"model-{fingerprint.weights_digest[:12]}"


def checked_remarks(labels: tuple[str, ...], note: str) -> None:
    """Labels and notes are shown: no control characters, and not without bound.

    Raises:
        UsageError: too many, too long, or with control characters.
    """
    from whorl.refs import control_character

    if len(labels) > MAX_LABELS or any(not 1 <= len(label) <= MAX_LABEL_CHARACTERS for label in labels):
        raise UsageError(f"At most {MAX_LABELS} labels of 1 to {MAX_LABEL_CHARACTERS} characters.")
    if len(note) > MAX_NOTE_CHARACTERS:
        raise UsageError(f"A note has at most {MAX_NOTE_CHARACTERS} characters, not {len(note)}.")
    if any(control_character(text) is not None for text in (*labels, note)):
        raise UsageError("A label or a note holds control characters.")
