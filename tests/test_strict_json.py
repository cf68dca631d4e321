import json
import time

import hypothesis.strategies as st
import pytest
from hypothesis import given
from hypothesis import strategies as hs

from hostile_cases import JSON_CASES, Case
from whorl._readers import strict_json
from whorl.errors import InputRefused, MalformedFile, UnsafeFile

json_values = hs.recursive(
    hs.none()
    | hs.booleans()
    | hs.integers(-(10**19), 10**19)
    | hs.floats(allow_nan=False, allow_infinity=False)
    | hs.text(),
    lambda inner: hs.lists(inner, max_size=4) | hs.dictionaries(hs.text(), inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.parametrize("case", JSON_CASES, ids=str)
def test_table_of_cases(case: Case):
    if case.error is None:
        assert strict_json.parse_object(case.data, "config", "c.json") == json.loads(case.data)
        return
    with pytest.raises(case.error, match=case.pattern) as caught:
        strict_json.parse_object(case.data, "config", "c.json")
    assert type(caught.value) is case.error
    assert str(caught.value).startswith("Refused config 'c.json': ")


def test_numbers_that_only_python_writes():
    text = json.dumps({"a": [float("inf"), float("-inf"), float("nan")], "b": int(1e30), "c": int(1e308)})
    found = strict_json.parse_object(text.encode(), "config", "c.json", python_numbers=True)
    assert repr(found) == repr(json.loads(text))
    assert strict_json.parse(b'{"a":1e999}', "config", "c.json", python_numbers=True) == {"a": float("inf")}
    with pytest.raises(MalformedFile, match="more than 400 digits"):
        strict_json.parse(b'{"a":' + b"1" * 401 + b"}", "config", "c.json", python_numbers=True)


@given(json_values, st.booleans())
def test_what_json_writes_is_read_back(value, ascii_only):
    try:
        data = json.dumps(value, ensure_ascii=ascii_only).encode()
    except UnicodeEncodeError:  # a lone surrogate cannot be written as UTF-8
        return
    if ascii_only:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            with pytest.raises(UnsafeFile, match="surrogate"):
                strict_json.parse(data, "config", "c.json")
            return
    assert strict_json.parse(data, "config", "c.json") == value


@given(st.binary(max_size=200) | st.text(alphabet='{}[]",:0123456789-.eEnultrfas\\ud', max_size=80).map(str.encode))
def test_noise_raises_only_our_errors(data):
    try:
        value = strict_json.parse(data, "config", "c.json")
    except InputRefused:
        return
    assert json.loads(data) == value


def test_size_is_checked_first():
    with pytest.raises(UnsafeFile, match="at most 10 bytes"):
        strict_json.parse(b"[" * 11, "index", "i", max_bytes=10)


def test_number_of_values_is_bounded_before_they_are_made(monkeypatch):
    monkeypatch.setattr(strict_json.limits, "MAX_JSON_VALUES", 10)
    with pytest.raises(UnsafeFile, match="JSON values"):
        strict_json.parse(b"[" + b"0," * 11 + b"0]", "index", "i")


@pytest.mark.parametrize("data", [b'"' + b'\\"' * 500_000, b'"' * 1_000_001, b"[" * 1_000_000, b"\\" * 1_000_000])
def test_crafted_texts_cost_linear_time(data):
    start = time.perf_counter()
    with pytest.raises(InputRefused):
        strict_json.parse(data, "config", "c.json")
    assert time.perf_counter() - start < 3
