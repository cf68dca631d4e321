"""Galleries as Parquet data sets: what goes out comes back, and nothing else comes in."""

import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import llama_folder
import whorl
from gallery_worker import variant
from whorl.errors import MalformedFile, UnsafeFile, UnsupportedFile, UsageError
from whorl.gallery import Gallery
from whorl.gallery.parquet import Imported, export_parquet, import_parquet


@pytest.fixture(scope="module")
def prints(tmp_path_factory):
    root = tmp_path_factory.mktemp("parquet")
    return [whorl.fingerprint(llama_folder.folder(root / str(seed), seed), ["head-spectra"]) for seed in range(3)]


@pytest.fixture(scope="module")
def exported(prints, tmp_path_factory):
    root = tmp_path_factory.mktemp("exported")
    with Gallery.open(root / "g.sqlite", write=True) as gallery:
        for i, fingerprint in enumerate(prints):
            gallery.add(fingerprint, name=f"m{i}", labels=[f"label {i}"], note="ü")
        assert export_parquet(gallery, root / "g.parquet") == 3
    assert sorted(p.name for p in root.iterdir() if not p.name.startswith("g.sqlite")) == ["g.parquet"]
    return root / "g.parquet"


@pytest.fixture
def empty(tmp_path):
    with Gallery.open(tmp_path / "new.sqlite", write=True) as gallery:
        yield gallery


def test_what_goes_out_comes_back(exported, empty, prints):
    assert import_parquet(empty, exported) == Imported(added=3, updated=0, skipped=0)
    for i, fingerprint in enumerate(prints):
        assert empty.fingerprint(f"m{i}").to_dict() == fingerprint.to_dict()
    entry = empty.entry("m1")
    assert (entry.labels, entry.note, entry.location) == (("label 1",), "ü", None)
    assert empty.nearest(prints[1], 1)[0].entry.name == "m1"
    empty.check()


def test_known_weights_are_skipped_and_counted(exported, empty, prints):
    empty.add(prints[0], name="mine")
    assert import_parquet(empty, exported) == Imported(added=2, updated=0, skipped=1)
    assert import_parquet(empty, exported) == Imported(added=0, updated=0, skipped=3)
    assert [e.name for e in empty.entries()] == ["m1", "m2", "mine"]


def test_a_name_taken_by_other_weights_refuses_the_whole_import(exported, empty, prints):
    empty.add(variant(prints[2], "other"), name="m2")
    with pytest.raises(UsageError, match="other weights under the name 'm2'"):
        import_parquet(empty, exported)
    assert [e.name for e in empty.entries()] == ["m2"]


def rewritten(exported, tmp_path, change):
    """The exported table after `change` of its rows, written as a file of ours would be."""
    table = pq.read_table(exported)
    rows = table.to_pylist()
    change(rows)
    path = tmp_path / "changed.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    return path


@pytest.mark.parametrize(
    ("field", "value", "error", "message"),
    [
        ("name", "\x1b[31m", MalformedFile, "row 3.*cannot be the name"),
        ("note", "a\x1b]0;b", MalformedFile, "row 3.*control characters"),
        ("labels", ["x" * 200], MalformedFile, "row 3.*labels"),
        ("labels", [None], MalformedFile, "row 3.*text"),
        ("added", "yesterday", MalformedFile, "row 3.*yesterday"),
        ("name", None, MalformedFile, "row 3.*a text is missing"),
        ("weights_digest", "0" * 64, MalformedFile, "row 3.*not that of the fingerprint"),
        ("fingerprint", "{}", MalformedFile, "row 3.*field"),
        ("fingerprint", '{"schema": 9}', UnsupportedFile, "row 3.*schema 9"),
        ("fingerprint", "[" * 100, MalformedFile, "row 3.*nested"),
    ],
)
def test_one_bad_row_refuses_all(exported, empty, tmp_path, field, value, error, message):
    path = rewritten(exported, tmp_path, lambda rows: rows[2].update({field: value}))
    with pytest.raises(error, match=message):
        import_parquet(empty, path)
    assert len(empty) == 0
    empty.check()


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [('"values": [', '"values": [NaN, ', MalformedFile), ('"method', '"metho', MalformedFile),
     ("head-spectra@1", "head-spectra@2", UnsupportedFile), ('"values": [', '"values": [1.0, ', MalformedFile),
     ('"typed"', '"typed": "x", "typed"', UnsafeFile)],
)  # fmt: skip
def test_fingerprints_of_others_are_checked(exported, empty, tmp_path, old, new, error):
    def change(rows):
        text = rows[0]["fingerprint"].replace('":"', '": "').replace('":[', '": [').replace('":{', '": {')
        assert old in text
        rows[0]["fingerprint"] = text.replace(old, new, 1)

    with pytest.raises(error):
        import_parquet(empty, rewritten(exported, tmp_path, change))
    assert len(empty) == 0


def test_the_unchanged_file_passes_the_same_way(exported, empty, tmp_path):
    assert import_parquet(empty, rewritten(exported, tmp_path, lambda rows: None)).added == 3


def test_files_that_are_no_export_are_refused(exported, empty, tmp_path):
    with pytest.raises(UsageError, match="There is no file"):
        import_parquet(empty, tmp_path / "nothing.parquet")
    with pytest.raises(UnsafeFile, match="not a regular file"):
        import_parquet(empty, tmp_path)
    text = tmp_path / "text.parquet"
    text.write_text("PAR1 no")
    with pytest.raises(MalformedFile, match="unreadable"):
        import_parquet(empty, text)
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(exported.read_bytes()[:-20])
    with pytest.raises(MalformedFile, match="unreadable"):
        import_parquet(empty, cut)
    table = pq.read_table(exported)
    pq.write_table(table.replace_schema_metadata({"kind": "other"}), text)
    with pytest.raises(MalformedFile, match="no gallery of whorl"):
        import_parquet(empty, text)
    pq.write_table(table.replace_schema_metadata({"kind": "whorl-gallery", "schema": "7"}), text)
    with pytest.raises(UnsupportedFile, match="schema 7"):
        import_parquet(empty, text)
    more = table.append_column("extra", pa.array([1, 2, 3])).replace_schema_metadata(table.schema.metadata)
    pq.write_table(more, text)
    with pytest.raises(MalformedFile, match="other columns"):
        import_parquet(empty, text)
    assert len(empty) == 0


def test_scribbled_files_raise_only_errors_of_ours(exported, empty, tmp_path):
    data, path = exported.read_bytes(), tmp_path / "scribbled.parquet"
    for i in range(40):
        at = 4 + i * (len(data) - 40) // 40
        path.write_bytes(data[:at] + bytes(b ^ 0x5A for b in data[at : at + 16]) + data[at + 16 :])
        try:
            import_parquet(empty, path)
        except (MalformedFile, UnsafeFile, UnsupportedFile):
            assert len(empty) == 0
        else:
            for entry in empty.entries():
                empty.remove(entry.name)


def test_without_pyarrow_the_install_line_is_shown(empty, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"pip install 'whorl\[gallery\]'"):
        export_parquet(empty, tmp_path / "x.parquet")
