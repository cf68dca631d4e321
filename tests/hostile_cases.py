"""The table of hostile, broken and odd-but-legal inputs. Numbers are the rows of the list of refusals in the docs.

Each case: a name, the bytes, the error class (None: accepted) and a pattern its message must match.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from whorl.errors import InputRefused, MalformedFile, UnsafeFile, UnsupportedFile
from whorl.testing import safetensors_bytes


@dataclass(frozen=True)
class Case:
    name: str
    data: bytes
    error: type[InputRefused] | None
    pattern: str = ""

    def __str__(self) -> str:
        return self.name


M, U, S = MalformedFile, UnsafeFile, UnsupportedFile


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8), **extra: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **extra}


def one(n_data: int = 8, **fields: Any) -> bytes:
    """A file with the one tensor `a`."""
    return safetensors_bytes({"a": entry(**fields)}, bytes(n_data))


def raw(text: str | bytes, n_data: int = 0) -> bytes:
    return safetensors_bytes(text if isinstance(text, bytes) else text.encode(), bytes(n_data))


def many(n_data: int, tensors: Mapping[str, Any]) -> bytes:
    return safetensors_bytes(tensors, bytes(n_data))


def raw_entry(shape: str = "[2]", offsets: str = "[0,8]", n_data: int = 8) -> bytes:
    return raw(f'{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}', n_data)


OK = '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
DEEP = "[" * 100_000 + "]" * 100_000
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
XET_POINTER = b"# xet version 0\nfilesize = 12\nhash = '00'\n"
PAGE = b"\n<!DOCTYPE html><html><head><title>Sign in</title></head></html>"

HEADER_CASES = (
    Case("1 empty file", b"", M, "0 bytes"),
    Case("1 seven bytes", b"\x02\0\0\0\0\0\0", M, "7 bytes"),
    Case("2 length past the end", (100).to_bytes(8, "little") + b"{}", M, "header of 100 bytes in a file of 10 bytes"),
    Case("3 length over the cap", (2**40).to_bytes(8, "little") + b"{}", U, "at most 100.0 MB"),
    Case("3 length all ones", b"\xff" * 8 + b"{}", U, "at most 100.0 MB"),
    Case("4 header of no bytes", bytes(8), M, "header of 0 bytes"),
    Case("4 blank header", raw("   "), M, "does not begin with"),
    Case("4 leading blank", raw(" " + OK, 8), M, "does not begin with"),
    Case("5 not UTF-8", raw(OK.encode().replace(b'"a"', b'"a\xffb"'), 8), M, "not UTF-8"),
    Case("5 overlong UTF-8", raw(OK.encode().replace(b'"a"', b'"a\xc0\x80"'), 8), M, "not UTF-8"),
    Case("5 byte-order mark", raw(b"\xef\xbb\xbf" + OK.encode(), 8), M, "does not begin with"),
    Case("5 UTF-16", raw(OK.encode("utf-16"), 8), M, "does not begin with"),
    Case("5 NUL padding", raw(OK + "\0\0", 8), M, "NUL"),
    Case("6 not JSON", raw("{nothing}"), M, "not JSON"),
    Case("6 two values", raw(OK + OK, 8), M, "not JSON"),
    Case("6 trailing comma", raw('{"a":{"dtype":"F32","shape":[2,],"data_offsets":[0,8]}}', 8), M, "not JSON"),
    Case("6 raw control character in a name", raw(OK.replace('"a"', '"a\x01"'), 8), M, "not JSON"),
    Case("6 nested four deep", raw('{"a":{"dtype":[[1]]}}'), M, "nested 4 deep"),
    Case("6 nested 100000 deep", raw(DEEP), M, "does not begin with"),
    Case("6 nested 100000 deep in an object", raw('{"a":' + DEEP + "}"), M, "nested 100001 deep"),
    Case("6 unclosed brackets", raw('{"a":' + "[" * 100_000), M, "nested 100001 deep"),
    Case("6 number of 5000 digits", raw_entry(offsets=f"[0,{'9' * 5000}]"), M, "more than 20 digits"),
    Case("6 many unclosed strings", raw('{"' + '\\"' * 200_000), M, "not JSON"),
    Case("7 list at the top", raw("[]"), M, "does not begin with"),
    Case("7 null at the top", raw("null"), M, "does not begin with"),
    Case("7 entry is a list", raw('{"a":["F32",[2],[0,8]]}', 8), M, "'a' is a list"),
    Case("7 entry is null", raw('{"a":null}'), M, "'a' is null"),
    Case("8 no dtype", raw('{"a":{"shape":[2],"data_offsets":[0,8]}}', 8), M, "fields data_offsets, shape"),
    Case("8 empty entry", raw('{"a":{}}'), M, "fields none"),
    Case("8 unknown field", one(note="x"), M, "data_offsets, dtype, note, shape"),
    Case("9 tensor twice", raw(OK[:-1] + "," + OK[1:], 8), U, "the key 'a' twice"),
    Case("9 tensor twice, escaped once", raw(OK[:-1] + "," + OK[1:].replace('"a"', '"\\u0061"'), 8), U, "'a' twice"),
    Case("9 field twice", raw(OK.replace('"shape":[2]', '"shape":[2],"shape":[2]'), 8), U, "the key 'shape' twice"),
    Case("9 metadata twice", raw('{"__metadata__":{},"__metadata__":{}}'), U, "twice"),
    Case("9 metadata key twice", raw('{"__metadata__":{"a":"1","a":"2"}}'), U, "the key 'a' twice"),
    Case("10 NaN in shape", raw_entry(shape="[NaN]"), M, "NaN"),
    Case("10 Infinity in offsets", raw_entry(offsets="[0,Infinity]"), M, "Infinity"),
    Case("10 1e999 in offsets", raw_entry(offsets="[0,1e999]"), M, "1e999"),
    Case("10 float in shape", raw_entry(shape="[2.0]"), M, "a number in shape"),
    Case("10 exponent in shape", raw_entry(shape="[2e0]"), M, "a number in shape"),
    Case("10 bool in shape", raw_entry(shape="[true,2]"), M, "a boolean in shape"),
    Case("10 text in shape", raw_entry(shape='["2"]'), M, "a text in shape"),
    Case("10 null in offsets", raw_entry(offsets="[null,8]"), M, "null in data_offsets"),
    Case("10 negative length", raw_entry(shape="[-2]"), M, "minus sign"),
    Case("10 negative zero", raw_entry(offsets="[-0,8]"), M, "minus sign"),
    Case("10 over 2^63", raw_entry(shape=f"[{2**63}]"), M, str(2**63)),
    Case("10 shape is an object", raw_entry(shape="{}"), M, "an object as shape"),
    Case("11 dtype is a number", one(dtype=32), M, "an integer as dtype"),
    Case("11 dtype is an object", one(dtype={"F32": None}), M, "an object as dtype"),
    Case("11 dtype unknown", one(dtype="F12"), S, "'F12'; expected one of F64, F32"),
    Case("11 dtype in small letters", one(dtype="f32"), S, "'f32'"),
    Case("12 product over 2^63", one(shape=(2**40, 2**40), offsets=(0, 0)), M, "fewer than 2.60 values"),
    Case("12 wraps to the right size", one(shape=(2**32, 2**32, 2), offsets=(0, 8)), M, "fewer than 2.60 values"),
    Case("12 overflow hidden by an empty axis", one(0, shape=(0, 2**62, 8), offsets=(0, 0)), M, "fewer than 2.60"),
    Case("12 half a byte", one(1, dtype="F4", shape=(3,), offsets=(0, 2)), M, "whole bytes"),
    Case("12 seventeen dimensions", one(shape=[1] * 16 + [2]), S, "17 dimensions"),
    Case("13 one offset", one(offsets=(8,)), M, "offsets"),
    Case("13 three offsets", one(offsets=(0, 4, 8)), M, "offsets"),
    Case("13 reversed offsets", one(offsets=(8, 0)), M, "offsets"),
    Case("14 too few bytes", one(offsets=(0, 4), n_data=4), M, "has 4 bytes; expected 8 for F32"),
    Case("14 too many bytes", one(offsets=(0, 12), n_data=12), M, "has 12 bytes; expected 8"),
    Case("14 scalar with no bytes", one(0, shape=(), offsets=(0, 0)), M, "has 0 bytes; expected 4"),
    Case("15 overlap", many(12, {"a": entry(), "b": entry(offsets=(4, 12))}), U, "'b' covers bytes 4-12, already used"),
    Case("15 same bytes twice", many(8, {"a": entry(), "b": entry()}), U, "already used by 'a'"),
    Case("15 empty tensor inside another", many(8, {"a": entry(), "b": entry(shape=(0,), offsets=(4, 4))}), U, "used"),
    Case("16 hole", many(20, {"a": entry(), "b": entry(offsets=(12, 20))}), U, "hole of 4 bytes before tensor 'b'"),
    Case("16 hole at the start", one(12, offsets=(4, 12)), U, "hole of 4 bytes"),
    Case("17 trailing byte", one(9), U, "1 byte after the last tensor"),
    Case("17 a zip behind", one() + b"PK\x03\x04", U, "4 bytes after the last tensor"),
    Case("17 data without tensors", raw("{}", 4), U, "4 bytes after"),
    Case("18 cut short by a byte", one(7), M, "of .* are present"),
    Case("18 no data at all", one(0), M, "of .* are present"),
    Case("18 offsets far outside", one(shape=(2**50,), offsets=(0, 2**52)), M, "are present; expected all"),
    Case("19 metadata is a list", raw('{"__metadata__":[]}'), M, "not text to text"),
    Case("19 metadata is null", raw('{"__metadata__":null}'), M, "not text to text"),
    Case("19 metadata holds a number", raw('{"__metadata__":{"a":1}}'), M, "not text to text"),
    Case("19 metadata over 1 MB", raw('{"__metadata__":{"a":"' + "x" * 1_000_001 + '"}}'), U, "at most 1000.0 kB"),
    Case("20 empty name", many(8, {"": entry()}), U, "without a name"),
    Case("20 name of 513 characters", many(8, {"n" * 513: entry()}), U, "513 characters"),
    Case("20 terminal escape", many(8, {"a\x1b[2J": entry()}), U, r"a\\x1b\[2J"),
    Case("20 newline", many(8, {"a\nb": entry()}), U, r"a\\nb"),
    Case("20 right-to-left override", many(8, {"a\u202eb": entry()}), U, r"a\\u202eb"),
    Case("20 zero-width space", many(8, {"a\u200bb": entry()}), U, r"a\\u200bb"),
    Case("20 lone surrogate", raw(OK.replace('"a"', '"\\ud800"'), 8), U, "surrogate"),
    Case("30 Git-LFS pointer", POINTER, M, "Git-LFS pointer.*git lfs pull"),
    Case("30 Xet pointer", XET_POINTER, M, "Xet pointer"),
    Case("30 web page", PAGE, M, "web page.*sign in"),
    Case("33 PyTorch zip", b"PK\x03\x04" + b"\x14" * 60, S, "zip archive or PyTorch pickle"),
    Case("33 bare pickle", b"\x80\x02}q\x01(X\x01\0\0\0aK\x01u.", S, "pickle, which can run code"),
    Case("33 GGUF", b"GGUF\x03\0\0\0" + bytes(40), S, "a GGUF file"),
    # Legal oddities
    Case("no tensors", raw("{}"), None),
    Case("scalar", one(4, shape=(), offsets=(0, 4)), None),
    Case("empty tensor", one(0, shape=(0, 7), offsets=(0, 0)), None),
    Case(
        "empty tensor between",
        many(16, {"a": entry(), "e": entry(shape=(0,), offsets=(8, 8)), "b": entry(offsets=(8, 16))}),
        None,
    ),
    Case("blanks behind the header", raw(OK + "    \n", 8), None),
    Case("data in another order than names", many(16, {"a": entry(offsets=(8, 16)), "b": entry()}), None),
    Case("name like a path", many(8, {"../../x": entry()}), None),
    Case("name in another script", many(8, {"слой.重み": entry()}), None),
    Case("escaped surrogate pair", raw(OK.replace('"a"', '"\\ud83d\\ude00"'), 8), None),
    Case("braces and quotes in metadata", raw(r'{"__metadata__":{"a":"[[[[{{{{\"---"}}'), None),
    Case("packed four-bit type", one(1, dtype="F4", shape=(2,), offsets=(0, 1)), None),
    Case("integers", one(16, dtype="I64", offsets=(0, 16)), None),
    Case("NaN in the data", safetensors_bytes(OK.encode(), b"\xff" * 8), None),
    Case("BOOL byte 255", safetensors_bytes({"a": entry("BOOL", [1], [0, 1])}, b"\xff"), None),
)


def index(weight_map: Any, metadata: Any = None) -> bytes:
    return json.dumps({"metadata": metadata or {}, "weight_map": weight_map}).encode()


BAD_SHARD_NAMES = (
    *(
        "",
        "../x.safetensors",
        "a/../../x.safetensors",
        "/etc/x.safetensors",
        "sub/x.safetensors",
        "..",
        "./x.safetensors",
    ),
    *(
        "..\\x.safetensors",
        "C:\\x.safetensors",
        "C:x.safetensors",
        "\\\\host\\share\\x.safetensors",
        "\\\\?\\x.safetensors",
    ),
    *(
        "x\0.safetensors",
        "x\n.safetensors",
        "x\u202e.safetensors",
        "con.safetensors",
        "NUL.safetensors",
        "com1.safetensors",
    ),
    *(
        "LPT\u00b9.safetensors",
        "aux .safetensors",
        "x.safetensors:stream.safetensors",
        "a?.safetensors",
        " x.safetensors",
    ),
    *("x.safetensors ", "x.safetensors.", "model.bin", "x.SAFETENSORS.pt", ".safetensors", "n" * 300 + ".safetensors"),
    "https://host/x.safetensors",
)

INDEX_CASES = (
    Case("22 a list", b"[]", M, "a list at the top level"),
    Case("22 empty", b"", M, "0 bytes"),
    Case("22 no weight_map", b'{"metadata":{}}', M, "no weight_map"),
    Case("22 weight_map is a list", index([["a", "x.safetensors"]]), M, "weight_map is a list"),
    Case("22 weight_map is empty", index({}), M, "an empty weight_map"),
    Case("22 shard is a number", index({"a": 1}), M, "'a' maps to an integer"),
    Case("22 shard is a list", index({"a": ["x.safetensors"]}), M, "'a' maps to a list"),
    Case("22 tensor twice", b'{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}', U, "the key 'a' twice"),
    Case("22 weight_map twice", b'{"weight_map":{"a":"x.safetensors"},"weight_map":{}}', U, "twice"),
    Case("20 tensor name with an escape", index({"a\x1b": "x.safetensors"}), U, r"a\\x1b"),
    *(Case(f"23 {name!r:.40}", index({"a": name}), U, "shard name") for name in BAD_SHARD_NAMES),
    Case("26 negative total_size", index({"a": "x.safetensors"}, {"total_size": -1}), M, "total_size"),
    Case("26 total_size is a text", index({"a": "x.safetensors"}, {"total_size": "8"}), M, "total_size"),
    Case("26 total_size is a boolean", index({"a": "x.safetensors"}, {"total_size": True}), M, "total_size"),
    Case("26 metadata is a list", b'{"metadata":[1],"weight_map":{"a":"x.safetensors"}}', M, "metadata is a list"),
    Case("29 shards that differ by case", index({"a": "x.safetensors", "b": "X.safetensors"}), U, "one file on some"),
    Case(
        "29 shards that differ by Unicode form",
        index({"a": "\u00e9.safetensors", "b": "e\u0301.safetensors"}),
        U,
        "one file",
    ),
    Case("30 web page", PAGE, M, "web page"),
    Case("30 Git-LFS pointer", POINTER, M, "Git-LFS pointer"),
    Case("41 NaN", b'{"metadata":{"total_size":NaN},"weight_map":{"a":"x.safetensors"}}', M, "NaN"),
    Case("plain", index({"a": "model-00001-of-00002.safetensors"}, {"total_size": 8}), None),
    Case("no metadata", b'{"weight_map":{"a":"x.safetensors"}}', None),
    Case("float total_size of old transformers", index({"a": "x.safetensors"}, {"total_size": 8.125}), None),
    Case("unknown metadata", index({"a": "x.safetensors"}, {"total_parameters": 2, "note": None}), None),
    Case("dots inside a shard name", index({"a": "model.v1..2.safetensors"}), None),
)

JSON_CASES = (
    Case("41 NaN", b'{"a":NaN}', M, "NaN"),
    Case("41 minus Infinity", b'{"a":-Infinity}', M, "-Infinity"),
    Case("41 float that overflows", b'{"a":1e400}', M, "1e400"),
    Case("41 key twice deep inside", b'{"a":[{"b":{"c":1,"c":1}}]}', U, "'c' twice"),
    Case("byte-order mark", b"\xef\xbb\xbf{}", M, "byte-order mark"),
    Case("UTF-16", '{"a":1}'.encode("utf-16"), M, "byte-order mark"),
    Case("UTF-16 without a mark", '{"a":1}'.encode("utf-16-le"), M, "NUL"),
    Case("NUL behind", b"{}\0", M, "NUL"),
    Case("nested 65 deep", b'{"a":' + b"[" * 64 + b"]" * 64 + b"}", M, "nested 65 deep"),
    Case("21 digits", b'{"a":' + b"1" * 21 + b"}", M, "20 digits"),
    Case("lone surrogate as value", b'{"a":["\\udfff"]}', U, "surrogate"),
    Case("comment", b'{"a":1 /* one */}', M, "not JSON"),
    Case("single quotes", b"{'a':1}", M, "not JSON"),
    Case("cut short", b'{"a":1,"b":', M, "not JSON"),
    Case("top level is a text", b'"a"', M, "a text at the top level"),
    Case("negative numbers", b'{"a":-1,"b":-0.5,"c":-0}', None),
    Case("exponents", b'{"a":1e-05,"b":1E6}', None),
    Case("nested 64 deep", b'{"a":' + b"[" * 63 + b"]" * 63 + b"}", None),
    Case("20 digits", b'{"a":' + b"1" * 20 + b"}", None),
    Case("brackets in texts", b'{"a":"' + b"[" * 1000 + b'\\\\"}', None),
    Case("blanks around", b" \r\n\t{} \n", None),
)
