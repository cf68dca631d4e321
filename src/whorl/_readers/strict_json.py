"""One strict JSON parser for every foreign JSON text: headers, indexes, configs, fingerprints.

Stricter than `json.loads`: a key twice, NaN or Infinity (also as 1e999), a byte-order mark, NUL padding, bytes that
are not UTF-8, lone surrogates, deep nesting and very long numbers are refused, and sizes are checked before objects
are made. Only configs may hold the numbers that Python writes beyond JSON, since Python wrote them.
"""

import json
import math
import re
from typing import Any

import numpy as np

from whorl._readers import limits
from whorl._readers.stand_ins import HEAD_BYTES, refuse_text_stand_in
from whorl._readers.subject import CRAFTED, DAMAGED, Subject, size_text
from whorl.errors import safe_name

# Possessive and with an optional end, so that it matches in linear time whatever the bytes are.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def parse(
    data: bytes,
    what: str,
    name: str,
    *,
    max_bytes: int = limits.MAX_JSON,
    max_depth: int = limits.MAX_JSON_DEPTH,
    unsigned: bool = False,
    python_numbers: bool = False,
) -> Any:
    """Parse one JSON text.

    Args:
        data: The whole text, UTF-8.
        what: Kind of thing for messages ("config", "index", ...).
        name: Its name for messages.
        max_bytes: Size cap.
        max_depth: Most nested arrays and objects, counting the outermost.
        unsigned: Whether a minus sign outside strings is refused (-0 is 0 to Python, a float to other readers).
        python_numbers: Whether NaN, Infinity and whole numbers of up to 400 digits pass, as Python's writers make
            them; whoever reads a field then checks its range.

    Returns:
        dict, list, str, int, float (finite unless `python_numbers`), bool or None.

    Raises:
        MalformedFile: not JSON, not UTF-8, a byte-order mark, NUL bytes, a number that is not finite or has more than
            20 digits, deeper than `max_depth`.
        UnsafeFile: over the caps; the same key twice in one object; a lone surrogate.
    """
    subject = Subject(what, name)
    if len(data) > max_bytes:
        raise subject.unsafe(size_text(len(data)), f"at most {size_text(max_bytes)}", DAMAGED)
    refuse_text_stand_in(data[:HEAD_BYTES], subject, "JSON")
    _check_bytes(data, subject)
    digits = limits.MAX_DIGITS_PYTHON if python_numbers else limits.MAX_DIGITS
    _check_structure(data, subject, max_depth, digits, unsigned=unsigned)
    value = _load(_decode(data, subject), subject, any_number=python_numbers)
    if _SURROGATE_ESCAPE.search(data):
        _refuse_lone_surrogates(value, subject)
    return value


def parse_object(
    data: bytes,
    what: str,
    name: str,
    *,
    max_bytes: int = limits.MAX_JSON,
    max_depth: int = limits.MAX_JSON_DEPTH,
    unsigned: bool = False,
    python_numbers: bool = False,
) -> dict[str, Any]:
    """`parse`, and refuse (`MalformedFile`) whatever is not one object with fields."""
    value = parse(
        data, what, name, max_bytes=max_bytes, max_depth=max_depth, unsigned=unsigned, python_numbers=python_numbers
    )
    if not isinstance(value, dict):
        raise Subject(what, name).malformed(f"{kind_of(value)} at the top level", "one JSON object")
    return value


def kind_of(value: Any) -> str:
    """The JSON kind of a parsed value, with article, for messages."""
    if value is None:
        return "null"
    kinds = {bool: "a boolean", int: "an integer", float: "a number", str: "a text", list: "a list", dict: "an object"}
    return kinds[type(value)]


def _check_bytes(data: bytes, subject: Subject) -> None:
    if not data:
        raise subject.malformed("nothing, 0 bytes", "JSON")
    if data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise subject.malformed("a byte-order mark", "JSON in plain UTF-8")
    if b"\0" in data:
        raise subject.malformed(f"a NUL byte at position {data.index(0)}", "JSON in plain UTF-8")


def _check_structure(data: bytes, subject: Subject, max_depth: int, max_digits: int, *, unsigned: bool) -> None:
    """Caps that must hold before `json.loads` makes objects; all are counted outside strings."""
    bare = _STRING.sub(b"", data)
    n_values = bare.count(b",") + bare.count(b"[") + bare.count(b"{")
    if n_values > limits.MAX_JSON_VALUES:
        raise subject.unsafe(f"{n_values} JSON values", f"at most {limits.MAX_JSON_VALUES}", DAMAGED)
    brackets = np.frombuffer(bare.translate(None, delete=_NOT_BRACKETS), np.uint8)
    steps = np.where((brackets == ord("[")) | (brackets == ord("{")), np.int8(1), np.int8(-1))
    depth = int(np.cumsum(steps, dtype=np.int32).max(initial=0))
    if depth > max_depth:
        raise subject.malformed(f"JSON nested {depth} deep", f"at most {max_depth}")
    if re.search(rb"[0-9]{%d}" % (max_digits + 1), bare):
        raise subject.malformed(f"a number of more than {max_digits} digits", "shorter numbers")
    if unsigned and b"-" in bare:
        raise subject.malformed("a minus sign", "no negative numbers")


def _decode(data: bytes, subject: Subject) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise subject.malformed(f"a byte that is not UTF-8 at position {error.start}", "JSON in UTF-8") from error


def _load(text: str, subject: Subject, *, any_number: bool) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) != len(pairs):
            raise subject.unsafe(f"the key '{_first_repeated(pairs)}' twice", "each key once", CRAFTED)
        return fields

    def finite(literal: str) -> float:
        number = float(literal)
        if not (any_number or math.isfinite(number)):
            raise subject.malformed(f"the number {safe_name(literal, 40)}", "finite numbers")
        return number

    try:
        return json.loads(text, object_pairs_hook=unique, parse_float=finite, parse_constant=finite)
    except json.JSONDecodeError as error:
        raise subject.malformed(f"not JSON ({error.msg} at character {error.pos})", "JSON") from error


def _first_repeated(pairs: list[tuple[str, Any]]) -> str:
    seen = set()
    for key, _ in pairs:
        if key in seen:
            return safe_name(key, 40)
        seen.add(key)
    return ""


def _refuse_lone_surrogates(value: Any, subject: Subject) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise subject.unsafe("half of a surrogate pair in a text", "valid Unicode", CRAFTED) from error
