"""The gallery file: entries, search, migrations, two writers, kills, and files that are not what they should be."""

import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import llama_folder
import whorl
from gallery_worker import variant
from whorl.errors import InputRefused, MalformedFile, RemoteError, UnsafeFile, UnsupportedFile, UsageError
from whorl.gallery import Gallery, default_path, migrations, search, stored
from whorl.gallery.records import encode, matrix_keys, name_for

WORKER = Path(__file__).with_name("gallery_worker.py")
ZOO = Path(whorl.__file__).parent / "examples" / "zoo"
SPECTRA = "head-spectra@1()"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("gallery")
    return [llama_folder.folder(root / f"model-{seed}", seed) for seed in range(3)]


@pytest.fixture(scope="module")
def prints(folders):
    return [whorl.fingerprint(folder, ["std-vector", "head-spectra"]) for folder in folders]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "gallery.sqlite"


@pytest.fixture
def filled(path, prints):
    with Gallery.open(path, write=True) as gallery:
        for i, fingerprint in enumerate(prints):
            gallery.add(fingerprint, name=f"m{i}", labels=["a", "b"], note="by a test")
    return path


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


# Entries


def test_an_entry_gives_back_what_was_stored(filled, prints, folders):
    with Gallery.open(filled) as gallery:
        assert [e.name for e in gallery.entries()] == ["m0", "m1", "m2"]
        entry = gallery.entry("m1")
        assert (entry.labels, entry.note, entry.searchable) == (("a", "b"), "by a test", True)
        assert entry.location == folders[1]
        assert gallery.fingerprint("m1").to_dict() == prints[1].to_dict()
        assert gallery.with_digest(prints[2].weights_digest).name == "m2"
        gallery.check()


def test_the_same_weights_again_are_kept_and_new_methods_are_taken_over(path, folders):
    with Gallery.open(path, write=True) as gallery:
        first = gallery.add(whorl.fingerprint(folders[0], ["std-vector"]), name="one")
        assert (first.what, first.entry.searchable) == ("added", False)
        again = gallery.add(whorl.fingerprint(folders[0], ["std-vector"]), name="other")
        assert (again.what, again.entry.name) == ("kept", "one")
        more = gallery.add(folders[0])
        assert (more.what, more.entry.searchable, len(gallery)) == ("updated", True, 1)
        assert SPECTRA in gallery.fingerprint("one").methods
        assert [near.entry.name for near in gallery.nearest(gallery.fingerprint("one"))] == ["one"]


def test_a_name_taken_by_other_weights_is_refused_and_nothing_changes(filled, prints):
    with Gallery.open(filled, write=True) as gallery:
        with pytest.raises(UsageError, match="other weights under the name 'm0'"):
            gallery.add(variant(prints[0], "other"), name="m0")
        assert len(gallery) == 3
        gallery.check()


@pytest.mark.parametrize("name", ["", "a b", "a\x1b[31m", "../x", "-x", "x" * 201, "a+b", "ä"])
def test_names_that_no_reference_could_carry_are_refused(path, prints, name):
    with Gallery.open(path, write=True) as gallery, pytest.raises(UsageError, match="cannot be the name"):
        gallery.add(prints[0], name=name)


def test_names_come_from_references(prints):
    commit = "0" * 40
    hub = replace(prints[0], resolved=f"org/name@{commit}", commit=commit)
    assert name_for(hub) == "org/name"
    assert name_for(replace(prints[0], resolved="/some where/my model")) == "my_model"
    assert name_for(replace(prints[0], resolved="/some/..")).startswith("model-")


def test_removing_takes_everything_with_it(filled, prints):
    with Gallery.open(filled, write=True) as gallery:
        assert gallery.remove("m1").name == "m1"
        assert [e.name for e in gallery.entries()] == ["m0", "m2"]
        assert "m1" not in {near.entry.name for near in gallery.nearest(prints[1])}
        assert gallery.sharing(prints[1]) == ()
        with pytest.raises(UsageError, match=r"no 'm1'.*gallery list"):
            gallery.entry("m1")
        with pytest.raises(UsageError, match="Did you mean 'm2'"):
            gallery.entry("m22")
        gallery.add(prints[1], name="back")
        assert gallery.nearest(prints[1], 1)[0].entry.name == "back"
        gallery.check()


def test_a_damaged_entry_can_be_removed(filled, prints):
    change(filled, "UPDATE fingerprints SET data = x'00' WHERE entry = 2")
    with Gallery.open(filled, write=True) as gallery:
        gallery.remove("m1")
        assert gallery.sharing(prints[1]) == ()
        assert len(gallery.nearest(prints[0])) == 2
        gallery.check()


def test_entries_that_share_matrices_are_found_by_their_bytes(filled, prints):
    mixed = replace(prints[0], tensors=(*prints[0].tensors[:40], *prints[1].tensors[40:]))
    expected = [sum(k in matrix_keys(p) for k in matrix_keys(mixed)) for p in prints]
    with Gallery.open(filled) as gallery:
        found = {entry.name: n for entry, n in gallery.sharing(mixed)}
    assert found == {"m0": expected[0], "m1": expected[1]}
    assert min(found.values()) > 5


def test_gallery_references_are_stored_fingerprints(filled, prints, monkeypatch):
    monkeypatch.setenv("WHORL_GALLERY", str(filled))
    assert default_path() == filled
    assert stored("gallery:m2").weights_digest == prints[2].weights_digest
    assert whorl.compare("gallery:m2", prints[2]).relation == "identical"
    with pytest.raises(UsageError, match="no 'nobody'"):
        stored("gallery:nobody")


def test_the_default_is_in_the_users_own_data(monkeypatch, tmp_path):
    monkeypatch.delenv("WHORL_GALLERY", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    assert default_path() == tmp_path / "whorl" / "gallery.sqlite"


# Search


@pytest.fixture(scope="module")
def zoo():
    names = ("base-0", "base-1", "base-2", "base-3", "small-0", "large-0", "base-0-topics-code", "base-1-lora",
             "base-1-int4", "base-0-pruned", "base-2-dropped", "base-0-merged", "base-0-disguised")  # fmt: skip
    return {name: whorl.fingerprint(str(ZOO / name), ["head-spectra"]) for name in names}


def test_derivatives_are_nearest_to_their_base(path, zoo):
    bases = [name for name in zoo if name.count("-") == 1]
    with Gallery.open(path, write=True) as gallery:
        for name in bases:
            gallery.add(zoo[name], name=name)
        nearest = {name: gallery.nearest(zoo[name], 1)[0].entry.name for name in zoo if name not in bases}
    assert nearest == {name: name[:6] for name in zoo if name not in bases}


def test_function_preserving_edits_do_not_move_the_vector(zoo):
    cosine = float(search.embed(zoo["base-0"]) @ search.embed(zoo["base-0-disguised"]))
    assert cosine == pytest.approx(1.0, abs=1e-3)


def test_a_model_without_live_layers_has_no_vector(prints):
    dead = {SPECTRA: {k: np.zeros_like(v) for k, v in prints[0].methods[SPECTRA].items()}}
    assert search.embed(replace(prints[0], methods=dead)) is None
    assert search.embed(replace(prints[0], methods={})) is None


def test_the_search_is_exact_and_its_order_is_that_of_a_full_sort():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((1000, search.LENGTH)).astype(np.float32)
    rows[500:520] = rows[3]  # ties
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    vectors = search.Vectors(np.arange(1, 1001), rows)
    for n in (1, 10, 1000, 5000):
        found = vectors.nearest(rows[3], n)
        everything = sorted(zip(-(rows @ rows[3]), range(1, 1001), strict=True))
        assert [number for number, _ in found] == [number for _, number in everything[:n]]


def test_many_chunks_and_holes(path, prints):
    rng = np.random.default_rng(1)
    with Gallery.open(path, write=True) as gallery:
        gallery.add(prints[0], name="real")
        rows = rng.standard_normal((600, search.LENGTH)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        with gallery.changing():
            slots = [search.append(gallery._connection, 10 + i, row) for i, row in enumerate(rows)]
            search.forget(gallery._connection, slots[5])
        loaded = search.load(gallery._connection, "g")
    assert slots == list(range(1, 601))
    assert loaded.entries.tolist() == [1, *(10 + i for i in range(600) if i != 5)]
    assert np.array_equal(loaded.matrix[1:], np.delete(rows, 5, axis=0))


def test_an_open_gallery_sees_what_others_write(filled, prints):
    with Gallery.open(filled) as reader, Gallery.open(filled, write=True) as writer:
        assert len(reader.nearest(prints[0])) == 3
        writer.add(variant(prints[0], "new"), name="new")
        assert len(reader.nearest(prints[0])) == 4
        writer.remove("new")
        assert len(reader.nearest(prints[0])) == 3


# Migrations


# What whorl wrote at schema 1; never to be edited.
SCHEMA_1 = """
CREATE TABLE entries (
  id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, resolved TEXT NOT NULL, location TEXT, hub_commit TEXT,
  weights_digest TEXT NOT NULL UNIQUE, family TEXT NOT NULL, n_layers INTEGER NOT NULL, d_model INTEGER NOT NULL,
  labels TEXT NOT NULL, note TEXT NOT NULL, added TEXT NOT NULL ) STRICT;
CREATE TABLE fingerprints ( entry INTEGER PRIMARY KEY REFERENCES entries (id) ON DELETE CASCADE, data BLOB NOT NULL ) STRICT;
CREATE TABLE matrices ( digest INTEGER NOT NULL, entry INTEGER NOT NULL, PRIMARY KEY (digest, entry) ) STRICT, WITHOUT ROWID;
PRAGMA application_id = 1464356690;
PRAGMA user_version = 1;
PRAGMA journal_mode = WAL;
"""


def write_schema_1(path, prints):
    connection = sqlite3.connect(path)
    connection.executescript(SCHEMA_1)
    for i, f in enumerate(prints, 1):
        row = (
            i,
            f"old{i}",
            f.resolved,
            None,
            None,
            f.weights_digest,
            "llama",
            8,
            32,
            "[]",
            "",
            "2026-01-01T00:00:00+00:00",
        )
        connection.execute(f"INSERT INTO entries VALUES ({','.join('?' * len(row))})", row)  # noqa: S608
        connection.execute("INSERT INTO fingerprints VALUES (?, ?)", (i, encode(f)))
        connection.executemany("INSERT INTO matrices VALUES (?, ?)", [(k, i) for k in matrix_keys(f)])
    connection.commit()
    connection.close()


def test_a_gallery_of_schema_1_is_brought_up_to_date(path, prints):
    write_schema_1(path, prints)
    with Gallery.open(path) as gallery:  # a reader upgrades too
        assert [e.name for e in gallery.entries()] == ["old1", "old2", "old3"]
        assert all(e.searchable for e in gallery.entries())
        assert gallery.nearest(prints[2], 1)[0].entry.name == "old3"
        assert migrations.version(gallery._connection) == migrations.NEWEST
        gallery.check()


def test_a_migration_that_fails_leaves_the_old_file(path, prints):
    write_schema_1(path, prints)
    connection = sqlite3.connect(path)
    connection.execute("UPDATE fingerprints SET data = x'00' WHERE entry = 2")
    connection.commit()
    connection.close()
    with pytest.raises(MalformedFile, match="entry 2"):
        Gallery.open(path, write=True)
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    assert connection.execute("SELECT count(*) FROM fingerprints").fetchone() == (3,)
    assert "vectors" not in {row[0] for row in connection.execute("SELECT name FROM sqlite_schema")}
    connection.close()


# Several processes


def start(*arguments):
    command = [sys.executable, str(WORKER), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_may_make_and_write_one_gallery_at_once(path, prints, tmp_path):
    file = prints[0].save(tmp_path / "one.json")
    workers = [start(path, file, prefix, 8) for prefix in ("left", "right")]
    done = [worker.communicate(timeout=60) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], done
    with Gallery.open(path) as gallery:
        assert {e.name for e in gallery.entries()} == {f"{p}-{i}" for p in ("left", "right") for i in range(8)}
        assert len(gallery.nearest(prints[0], 100)) == 16
        gallery.check()


def test_a_kill_in_the_middle_loses_nothing_that_was_said_to_be_stored(path, prints, tmp_path):
    file = prints[0].save(tmp_path / "one.json")
    worker = start(path, file, "m", 10_000)
    said = [worker.stdout.readline().strip() for _ in range(6)]
    os.kill(worker.pid, signal.SIGKILL)
    said += worker.communicate(timeout=60)[0].split()
    with Gallery.open(path, write=True) as gallery:
        names = [e.name for e in gallery.entries()]
        assert set(said) <= set(names)
        assert len(names) <= len(said) + 1
        assert len(gallery.nearest(prints[0], 20_000)) == len(names)
        gallery.check()
        assert gallery.add(prints[1], name="after").what == "added"


def test_a_locked_gallery_is_said_to_be_locked(filled, prints):
    holder = sqlite3.connect(filled, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with Gallery.open(filled, write=True, wait_s=0.1) as gallery:
        assert len(gallery) == 3  # readers go on
        with pytest.raises(RemoteError, match="locked by another process; nothing was changed"):
            gallery.add(variant(prints[0], "x"), name="x")
        holder.execute("ROLLBACK")
        assert gallery.add(variant(prints[0], "x"), name="x").what == "added"
    holder.close()


READ_ONLY = """
import os, sys
import whorl.fingerprints, whorl._readers.strict_json, whorl._readers.fingerprint_file, whorl.weights.head_spectra, whorl.weights.std_vector
from whorl.errors import UsageError
from whorl.gallery import Gallery, search
'x'.encode('unicode_escape')
if os.geteuid() == 0:
    os.setuid(65534)  # to root nothing is read-only
with Gallery.open(sys.argv[1]) as gallery:
    print(*[e.name for e in gallery.entries()], gallery.fingerprint("m0").shape.n_layers)
try:
    Gallery.open(sys.argv[1], write=True).remove("m0")
except UsageError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="rights of POSIX")
def test_a_read_only_gallery_is_read_and_not_written(filled):
    with sqlite3.connect(filled) as merged:
        merged.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    merged.close()
    filled.chmod(0o444)
    folder = filled.parent
    folder.chmod(0o555)
    before = digest(filled)
    private = [p for p in folder.parents if not p.stat().st_mode & 0o001 and os.geteuid() == 0]
    for parent in private:
        parent.chmod(0o711)  # pytest keeps its folders to one user
    command = [sys.executable, "-c", READ_ONLY, str(filled)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    for changed in (folder, *private):
        changed.chmod(0o700)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "m0 m1 m2 8"
    assert "cannot be written here; nothing was changed" in second
    assert digest(filled) == before


# Files that are not what they should be


def change(path, *statements):
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


@pytest.mark.parametrize(
    ("statement", "error", "message"),
    [
        ("PRAGMA user_version = 99", UnsupportedFile, "schema 99, newer than this whorl"),
        ("PRAGMA application_id = 0", MalformedFile, "another program"),
        ("CREATE TRIGGER t AFTER INSERT ON entries BEGIN DELETE FROM entries; END", UnsafeFile, "trigger 't'"),
        ("CREATE VIEW v AS SELECT 1", UnsafeFile, "view 'v'"),
        ("CREATE TABLE x (y)", UnsafeFile, "table 'x'"),
        ("CREATE INDEX i ON entries (note)", UnsafeFile, "index 'i'"),
        ("ALTER TABLE entries ADD COLUMN more TEXT", UnsafeFile, "table 'entries'"),
        ("DROP TABLE vectors", UnsafeFile, "table 'vectors'"),
    ],
)
@pytest.mark.parametrize("write", [False, True])
def test_definitions_other_than_ours_are_refused_and_the_file_is_left_alone(filled, statement, error, message, write):
    change(filled, statement)
    before = digest(filled)
    with pytest.raises(error, match=message):
        Gallery.open(filled, write=write)
    assert digest(filled) == before


def test_files_of_other_kinds_are_refused(path, tmp_path):
    with pytest.raises(UsageError, match="no gallery"):
        Gallery.open(path)
    path.write_text("name,digest\n")
    with pytest.raises(MalformedFile, match="not an SQLite database"):
        Gallery.open(path, write=True)
    with pytest.raises(UnsafeFile, match="not a regular file"):
        Gallery.open(tmp_path)
    other = tmp_path / "other.sqlite"
    change(other, "CREATE TABLE cookies (host TEXT)")
    before = digest(other)
    with pytest.raises(MalformedFile, match="another program"):
        Gallery.open(other, write=True)
    assert digest(other) == before


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
def test_a_cut_gallery_is_damaged(filled, keep):
    change(filled)
    data = filled.read_bytes()
    filled.write_bytes(data[: int(keep * len(data)) // 512 * 512])
    with pytest.raises(MalformedFile, match="damaged"), Gallery.open(filled) as gallery:
        gallery.check()


def test_scribbled_pages_never_give_other_values(filled, prints):
    change(filled)
    data = bytearray(filled.read_bytes())
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(25):
        broken = bytearray(data)
        at = int(rng.integers(100, len(data) - 1024))
        broken[at : at + 1024] = rng.bytes(1024)
        filled.write_bytes(broken)
        try:
            with Gallery.open(filled) as gallery:
                for entry in gallery.entries():
                    found = gallery.fingerprint(entry.name)
                    assert found.to_dict() in [p.to_dict() for p in prints]
                gallery.nearest(prints[0])
        except (InputRefused, UsageError):
            refused += 1
    assert refused >= 3


def bomb():
    return zlib.compress(b" " * 60_000_000, 9)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"no zlib", MalformedFile, "damaged"),
        (zlib.compress(b"{}")[:-3], MalformedFile, "cut short"),
        (zlib.compress(b"{}") + b"more", MalformedFile, "bytes after its end"),
        (zlib.compress(b'{"schema": 1, "schema": 1}'), UnsafeFile, "the key 'schema' twice"),
        (zlib.compress(b'{"schema": 1, "kind": "fingerprint"}'), MalformedFile, "field"),
        (bomb(), UnsafeFile, "when unpacked"),
    ],
    ids=["noise", "cut", "trailer", "key twice", "empty", "bomb"],
)
def test_stored_fingerprints_are_checked_like_foreign_files(filled, data, error, message):
    connection = sqlite3.connect(filled)
    connection.execute("UPDATE fingerprints SET data = ? WHERE entry = 2", (data,))
    connection.commit()
    connection.close()
    with Gallery.open(filled) as gallery:
        assert gallery.fingerprint("m0").shape.n_layers == 8
        with pytest.raises(error, match=message):
            gallery.fingerprint("m1")


def test_swapped_fingerprints_are_noticed(filled, prints):
    connection = sqlite3.connect(filled)
    connection.execute("UPDATE fingerprints SET data = ? WHERE entry = 2", (encode(prints[0]),))
    connection.commit()
    connection.close()
    with Gallery.open(filled) as gallery, pytest.raises(MalformedFile, match="other weights than its entry"):
        gallery.fingerprint("m1")


@pytest.mark.parametrize("change_to", [np.nan, 0.0, 7.0])
def test_search_vectors_that_are_none_are_refused(filled, prints, change_to):
    rows = np.full((3, search.LENGTH), change_to, "<f4").tobytes()
    connection = sqlite3.connect(filled)
    connection.execute("UPDATE vectors SET data = ?", (rows,))
    connection.commit()
    connection.close()
    with Gallery.open(filled) as gallery, pytest.raises(MalformedFile, match="not of unit length"):
        gallery.nearest(prints[0])


def test_listing_needs_no_numpy(filled):
    code = (
        "import sys\nfrom whorl.gallery import Gallery\n"
        f"with Gallery.open({str(filled)!r}) as g: names = [e.name for e in g.entries()]\n"
        "print(*names, *sorted({'numpy', 'torch', 'scipy', 'sklearn', 'pydantic', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["m0", "m1", "m2"]


def test_results_hold_no_not_a_number(filled):
    with Gallery.open(filled) as gallery:
        json.dumps([e.to_dict() for e in gallery.entries()], allow_nan=False)
