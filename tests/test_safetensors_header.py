"""The header check and the single-file reader: table of cases, laws, agreement with the reference library, codecs."""

import contextlib
import hashlib
import io
import json
import os
import re
import time
from collections.abc import Callable

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from hostile_cases import HEADER_CASES, Case, entry, many
from whorl._readers import float_codecs, limits
from whorl._readers.local_files import LocalFile, read_exactly
from whorl._readers.safetensors_file import SafetensorsFile
from whorl._readers.safetensors_header import parse_header, read_header
from whorl._readers.subject import Subject
from whorl.errors import InputRefused, MalformedFile, UnsafeFile, UnsupportedFile
from whorl.source import TensorSource
from whorl.testing import MemorySource, encode_safetensors, safetensors_bytes

# What the reference parser accepts and we refuse; nothing else may differ.
STRICTER_THAN_REFERENCE = {
    *("4 leading blank", "7 entry is a list", "8 unknown field", "9 tensor twice", "9 tensor twice, escaped once"),
    "9 metadata key twice",
    *("12 seventeen dimensions", "12 overflow hidden by an empty axis", "19 metadata is null", "19 metadata over 1 MB"),
    *("20 empty name", "20 name of 513 characters", "20 terminal escape", "20 newline", "20 right-to-left override"),
    *("11 dtype is an object", "20 zero-width space"),
}


def read(data: bytes):
    return read_header(io.BytesIO(data), "m.safetensors")


@pytest.mark.parametrize("case", HEADER_CASES, ids=str)
def test_table_of_cases(case: Case):
    if case.error is None:
        read(case.data)
        return
    with pytest.raises(case.error, match=case.pattern) as caught:
        read(case.data)
    assert type(caught.value) is case.error
    assert str(caught.value).startswith("Refused file 'm.safetensors': ")
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()


def reference_accepts(data: bytes) -> bool:
    try:
        safetensors.deserialize(data)
    except safetensors.SafetensorError:
        return False
    return True


@pytest.mark.parametrize("case", HEADER_CASES, ids=str)
def test_agreement_with_the_reference_parser(case: Case):
    if case.error is None:
        assert_same_reading(case.data)
    else:
        assert reference_accepts(case.data) == (case.name in STRICTER_THAN_REFERENCE)


def assert_same_reading(data: bytes) -> None:
    """The reference parser sees the same names, types, shapes and bytes."""
    header = read(data)
    theirs = dict(safetensors.deserialize(data))
    assert theirs.keys() == header.tensors.keys()
    for name, info in header.tensors.items():
        begin, end = header.spans[name]
        assert (theirs[name]["dtype"], tuple(theirs[name]["shape"])) == (info.dtype, info.shape)
        assert bytes(theirs[name]["data"]) == data[begin:end]
        assert info.n_bytes == end - begin


# Laws

names = st.text(st.characters(categories=("L", "N", "P"), max_codepoint=0x4FF), min_size=1, max_size=12).filter(
    lambda name: name != "__metadata__" and name.isprintable()
)
dtypes = st.sampled_from(["<f8", "<f4", "<f2", "<i8", "<i4", "<u2", "u1", "?"])
arrays = st.builds(
    lambda dtype, shape, seed: np.random.default_rng(seed).integers(0, 2, shape).astype(dtype),
    dtypes,
    st.lists(st.integers(0, 4), max_size=3),
    st.integers(0, 9),
)
valid_tensors = st.dictionaries(names, arrays, min_size=1, max_size=4)


@given(
    valid_tensors,
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=5), st.text(st.characters(codec="utf-8"), max_size=5), max_size=2
    ),
)
def test_every_valid_file_reads_back_equal(tensors, metadata):
    ours, theirs = encode_safetensors(tensors, metadata=metadata), safetensors.numpy.save(tensors, metadata or None)
    for data in (ours, theirs):
        header = read(data)
        assert header.tensors.keys() == tensors.keys()
        assert list(header.tensors) == sorted(tensors)
        assert_same_reading(data)
        for name, array in tensors.items():
            begin, end = header.spans[name]
            assert header.tensors[name].shape == array.shape
            assert data[begin:end] == array.tobytes()
    assert dict(read(ours).metadata) == metadata


Mutation = Callable[[dict, bytes], bytes]


def breaks_entry(change: Callable[[dict], dict]) -> Mutation:
    """A mutation of the last tensor's entry."""

    def mutate(header: dict, data: bytes) -> bytes:
        name = list(header)[-1]
        return safetensors_bytes({**header, name: change(dict(header[name]))}, data)

    return mutate


def shifted(begin: int, end: int) -> Callable[[dict], dict]:
    return lambda e: {**e, "data_offsets": [max(0, e["data_offsets"][0] + begin), e["data_offsets"][1] + end]}


def twice(header: dict, data: bytes) -> bytes:
    name, fields = next(iter(header.items()))
    text = json.dumps(header)[:-1] + ", " + json.dumps({name: fields})[1:]
    return safetensors_bytes(text.encode(), data)


MUTATIONS: dict[str, Mutation] = {
    "byte after": lambda header, data: safetensors_bytes(header, data + b"\0"),
    "byte missing": lambda header, data: safetensors_bytes(header, data)[:-1],
    "hole before": breaks_entry(shifted(1, 1)),
    "one byte longer": breaks_entry(shifted(0, 1)),
    "offsets reversed": breaks_entry(lambda e: {**e, "data_offsets": [e["data_offsets"][1] + 1, e["data_offsets"][0]]}),
    "three offsets": breaks_entry(lambda e: {**e, "data_offsets": [*e["data_offsets"], 0]}),
    "unknown field": breaks_entry(lambda e: {**e, "x": 1}),
    "no shape": breaks_entry(lambda e: {k: v for k, v in e.items() if k != "shape"}),
    "no dtype": breaks_entry(lambda e: {k: v for k, v in e.items() if k != "dtype"}),
    "dtype unknown": breaks_entry(lambda e: {**e, "dtype": e["dtype"].lower()}),
    "shape doubled": breaks_entry(
        lambda e: {
            **e,
            "shape": [*e["shape"], 2],
            "dtype": "F32",
            "data_offsets": [e["data_offsets"][0], e["data_offsets"][1] + 3],
        }
    ),
    "negative axis": breaks_entry(lambda e: {**e, "shape": [*e["shape"], -1]}),
    "float axis": breaks_entry(lambda e: {**e, "shape": [*e["shape"], 1.0]}),
    "boolean axis": breaks_entry(lambda e: {**e, "shape": [*e["shape"], True]}),
    "huge axis": breaks_entry(lambda e: {**e, "shape": [*e["shape"], 2**62]}),
    "a name twice": twice,
    "metadata not text": lambda header, data: safetensors_bytes({"__metadata__": {"a": 1}, **header}, data),
    "empty name": lambda header, data: safetensors_bytes({"": entry(shape=[0], offsets=[0, 0]), **header}, data),
    "overlap": lambda header, data: safetensors_bytes({"~new": entry("U8", [1], [0, 1]), **header}, data),
    "leading blank": lambda header, data: safetensors_bytes(b" " + json.dumps(header).encode(), data),
    "NUL padding": lambda header, data: safetensors_bytes(json.dumps(header).encode() + b"\0", data),
    "length field one more": lambda header, data: lengthened(safetensors_bytes(header, data), 1),
    "length field one less": lambda header, data: lengthened(safetensors_bytes(header, data), -1),
}


def lengthened(data: bytes, by: int) -> bytes:
    return (int.from_bytes(data[:8], "little") + by).to_bytes(8, "little") + data[8:]


@given(valid_tensors, st.sampled_from(sorted(MUTATIONS)))
def test_one_broken_rule_is_refused(tensors, mutation):
    tensors = {**tensors, "zz": np.ones(3, np.float32)}  # something to break: no mutation meets only empty tensors
    whole = encode_safetensors(tensors)
    n_header = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + n_header]), whole[8 + n_header :]
    read(whole)
    broken = MUTATIONS[mutation](header, data)
    with pytest.raises(InputRefused, match=re.escape("Refused file 'm.safetensors'")):
        read(broken)


@given(st.binary(max_size=300))
def test_noise_raises_only_our_errors(data):
    with contextlib.suppress(InputRefused):
        read(data)


@given(valid_tensors, st.data())
@settings(max_examples=200)
def test_changed_bytes_are_refused_or_read_as_the_reference_reads_them(tensors, choice):
    data = bytearray(encode_safetensors(tensors))
    for _ in range(choice.draw(st.integers(1, 3))):
        data[choice.draw(st.integers(0, len(data) - 1))] = choice.draw(st.integers(0, 255))
    try:
        read(bytes(data))
    except InputRefused:
        return
    assert_same_reading(bytes(data))


def test_caps_hold_before_the_header_is_read():
    class NoHeader(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            assert size is not None
            assert 0 <= size <= 64
            return super().read(size)

    with pytest.raises(UnsafeFile, match=r"at most 25\.0 MB"):
        read_header(NoHeader((26_000_000).to_bytes(8, "little") + bytes(100)), "m", cap=limits.MAX_HEADER_REMOTE)


def test_too_many_tensors(monkeypatch):
    monkeypatch.setattr(limits, "MAX_TENSORS", 2)
    data = many(0, {name: entry(shape=[0], offsets=[0, 0]) for name in "abc"})
    with pytest.raises(UnsafeFile, match="3 tensors"):
        read(data)


def test_fifty_thousand_tensors_take_about_a_second():
    header, position = {}, 0
    for number in range(50_000):
        header[f"model.layers.{number % 100}.mlp.experts.{number}.up_proj.weight"] = entry(
            "BF16", [64, 32], [position, position + 4096]
        )
        position += 4096
    text = json.dumps(header).encode()
    start = time.process_time()
    checked = parse_header(text, 8 + len(text) + position, "m")
    assert len(checked.tensors) == 50_000
    assert time.process_time() - start < 5  # about 1 s; slack for shared machines


def test_header_digest_is_that_of_the_bytes_that_were_parsed():
    data = encode_safetensors({"a": np.zeros(2, np.float32)})
    assert read(data).sha256 == hashlib.sha256(data[:-8]).hexdigest()


# The file reader


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    return {
        "f32": rng.standard_normal((300, 500)).astype(np.float32),  # several read blocks
        "f64": rng.standard_normal((7, 5)),
        "f16": rng.standard_normal((7, 2, 3)).astype(np.float16),
        "scalar": np.float32(3.5).reshape(()),
        "empty": np.zeros((0, 4), np.float32),
        "mask": np.array([[True, False]]),
        "ids": np.arange(6, dtype=np.int64).reshape(3, 2),
    }


@pytest.fixture
def path(tmp_path, tensors):
    path = tmp_path / "m.safetensors"
    path.write_bytes(encode_safetensors(tensors))
    return path


def test_rows_of_every_float_type(path, tensors):
    source = SafetensorsFile(path)
    assert isinstance(source, TensorSource)
    for name in ("f32", "f64", "f16", "scalar", "empty", "mask"):
        values = source.rows(name)
        assert values.dtype == (np.float64 if name == "f64" else np.float32)
        assert values.shape == tensors[name].shape
        assert values.flags.writeable
        np.testing.assert_array_equal(values, tensors[name])


@given(st.integers(0, 300), st.integers(0, 300))
def test_row_blocks_are_parts_of_the_whole(tmp_path_factory, first, second):
    array = np.arange(300 * 3, dtype=np.float32).reshape(300, 3)
    path = tmp_path_factory.mktemp("rows") / "m.safetensors"
    path.write_bytes(encode_safetensors({"pad": np.ones(5, np.float16), "a": array}))
    start, stop = sorted((first, second))
    digest = hashlib.sha256()
    np.testing.assert_array_equal(SafetensorsFile(path).rows("a", start, stop, digest), array[start:stop])
    assert digest.digest() == hashlib.sha256(array[start:stop].tobytes()).digest()


def test_memory_source_and_file_answer_alike(path, tensors):
    file, memory = SafetensorsFile(path), MemorySource(tensors)
    assert file.tensors == memory.tensors
    for name in ("f32", "f64", "f16", "scalar", "empty", "mask"):
        of_file, of_memory = hashlib.sha256(), hashlib.sha256()
        np.testing.assert_array_equal(file.rows(name, digest=of_file), memory.rows(name, digest=of_memory))
        assert of_file.digest() == of_memory.digest() == file.stored_digest(name) or name == "empty"


def test_integers_are_read_only_as_stored(path, tensors):
    source = SafetensorsFile(path)
    with pytest.raises(UnsupportedFile, match="'ids' of type I64"):
        source.rows("ids")
    np.testing.assert_array_equal(source.stored_rows("ids", 1, 3), tensors["ids"][1:3])


@pytest.mark.parametrize("dtype", ["F4", "C64"])
def test_packed_and_complex_types_are_refused_when_read(tmp_path, dtype):
    path = tmp_path / "m.safetensors"
    path.write_bytes(many(8, {"a": entry(dtype, [16 if dtype == "F4" else 1])}))
    for read_rows in (SafetensorsFile(path).rows, SafetensorsFile(path).stored_rows):
        with pytest.raises(UnsupportedFile, match=f"'a' of type {dtype}"):
            read_rows("a")


def test_bool_bytes_other_than_0_and_1_are_refused_when_read(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors_bytes({"a": entry("BOOL", [3], [0, 3])}, b"\1\0\xff"))
    with pytest.raises(MalformedFile, match="BOOL tensor 'a'"):
        SafetensorsFile(path).rows("a")


def test_reading_too_much_at_once_is_refused(path, monkeypatch):
    monkeypatch.setattr(limits, "MAX_DECODED", 1000)
    with pytest.raises(UnsupportedFile, match=r"600\.0 kB asked of tensor 'f32'"):
        SafetensorsFile(path).rows("f32")


def test_wrong_calls_are_lookup_errors(path):
    source = SafetensorsFile(path)
    with pytest.raises(LookupError, match="no tensor 'x'"):
        source.rows("x")
    for start, stop in ((-1, 2), (3, 2), (0, 301)):
        with pytest.raises(LookupError, match="rows"):
            source.rows("f32", start, stop)
    source.close()
    with pytest.raises(ValueError, match="closed"):
        source.rows("f32")


def test_a_file_that_changes_is_refused(path):
    source = SafetensorsFile(path)
    content = path.read_bytes()
    path.write_bytes(content[:-4] + b"\1\1\1\1")
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))  # clocks of file systems tick in milliseconds
    with pytest.raises(UnsafeFile, match="changed"):
        source.rows("f64")
    source = SafetensorsFile(path)
    path.write_bytes(content[:-100])
    with pytest.raises(UnsafeFile, match="changed"):
        source.stored_rows("ids")
    path.unlink()
    with pytest.raises(MalformedFile, match="missing"):
        source.rows("f64")


def read_100_bytes(path, position, before=lambda: None):
    file = LocalFile.at(path, Subject("file", "m"))
    with file.open() as stream:
        before()
        stream.seek(*position)
        read_exactly(stream, memoryview(bytearray(100)), file.subject)


def test_a_file_that_changes_during_the_read_is_refused(path):
    with pytest.raises(UnsafeFile, match="changed"):
        read_100_bytes(path, (0,), lambda: path.write_bytes(b"short"))


def test_a_short_read_is_malformed(path):
    read_100_bytes(path, (-100, io.SEEK_END))
    with pytest.raises(MalformedFile, match="4 of 100 bytes"):
        read_100_bytes(path, (-4, io.SEEK_END))


def test_torch_files_read_back(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(64, 33, generator=generator)
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
    stored = {str(kind): whole.to(kind) for kind in kinds}
    save_file(stored, tmp_path / "m.safetensors", {"format": "pt"})
    source = SafetensorsFile(tmp_path / "m.safetensors")
    for name, tensor in stored.items():
        np.testing.assert_array_equal(source.rows(name, 3, 60), tensor[3:60].to(torch.float64).numpy())


# Codecs

FLOAT8 = {
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}


def decode(dtype: str, patterns: np.ndarray) -> np.ndarray:
    codec = float_codecs.FLOAT_CODECS[dtype]
    out = np.empty(patterns.size, codec.decoded)
    codec.fill(patterns.astype(codec.stored), out)
    return out


def assert_same_bits(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Equal bits; any NaN equals any NaN."""
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
    finite = ~np.isnan(ours)
    np.testing.assert_array_equal(ours.view(np.uint32)[finite], theirs.view(np.uint32)[finite])


@pytest.mark.parametrize(("dtype", "theirs"), [("BF16", "bfloat16"), ("F16", "float16")])
def test_all_65536_patterns_decode_as_torch_decodes_them(dtype, theirs):
    torch = pytest.importorskip("torch")
    patterns = np.arange(65536, dtype=np.uint16)
    tensor = torch.from_numpy(patterns.view(np.int16)).view(getattr(torch, theirs)).to(torch.float32)
    assert_same_bits(decode(dtype, patterns), tensor.numpy())


@pytest.mark.parametrize("dtype", FLOAT8)
def test_all_256_float8_patterns_decode_as_torch_decodes_them(dtype):
    torch = pytest.importorskip("torch")
    patterns = np.arange(256, dtype=np.uint8)
    tensor = torch.from_numpy(patterns).view(getattr(torch, FLOAT8[dtype])).to(torch.float32)
    assert_same_bits(decode(dtype, patterns), tensor.numpy())


def test_rounding_to_bfloat16_is_that_of_torch():
    torch = pytest.importorskip("torch")
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32)
    ties = np.arange(65536, dtype=np.uint32) << 16 | 0x8000
    values = np.concatenate([bits, ties]).view(np.float32)
    theirs = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    ours = float_codecs.to_bfloat16(values)
    assert_same_bits(decode("BF16", ours), decode("BF16", theirs))


@pytest.mark.parametrize("shape", [(), (0,), (3, 100_000)])
def test_count_nonfinite(shape):
    array = np.zeros(shape, np.float32)
    assert float_codecs.count_nonfinite(array) == 0
    flat = array.reshape(-1)
    flat[::70_001] = np.nan
    flat[1:2] = np.inf
    expected = int(np.count_nonzero(~np.isfinite(array)))
    assert float_codecs.count_nonfinite(array) == expected
    assert float_codecs.count_nonfinite(array.T) == expected
