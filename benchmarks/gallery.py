"""A gallery of 100,000 entries: size, opening, search; against scanning the same rows with SQLite and scipy's cdist.

    python benchmarks/gallery.py --cache runs/bench --entries 100000

Entries are synthetic: search vectors drawn around those of the example models, and one stored fingerprint of an example
model as the blob of each (about 28 kB; a model of 32 layers with 32 heads has about 1.5 MB). Each measurement is a process
of its own, after its imports; both sides alternate and the median of the ratios counts. `--blobs 0` leaves the blobs out.
"""

import argparse
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import whorl
from whorl.gallery import Gallery, search
from whorl.gallery.records import encode, matrix_keys

ZOO = Path(whorl.__file__).parent / "examples" / "zoo"
BASES = ("base-0", "base-1", "base-2", "base-3", "small-0", "large-0")
COLUMNS = "name, resolved, weights_digest, family, n_layers, d_model, labels, note, added, slot"


def suspect():
    return whorl.fingerprint(str(ZOO / "base-0-topics"), ["head-spectra"])


def synthetic_vectors(prints, n):
    """Unit vectors with the mean and the spread of those of the example models, and some of every direction."""
    known = np.array([search.embed(f) for f in prints])
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((n, len(known))).astype(np.float32)
    rows = weights @ known + 0.1 * rng.standard_normal((n, search.LENGTH)).astype(np.float32)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype("<f4")


def build(path, n, n_blobs):
    """Write the rows that `Gallery.add` would write, without fingerprinting 100,000 models."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    prints = [whorl.fingerprint(str(ZOO / name)) for name in BASES]
    blob, n_keys = encode(prints[0]), len(matrix_keys(prints[0]))
    rows = synthetic_vectors(prints, n)
    rng = np.random.default_rng(1)
    keys = np.sort(rng.integers(-(2**63), 2**63 - 1, n * n_keys))
    owner = rng.integers(1, n + 1, len(keys))
    with Gallery.open(path, write=True) as gallery, gallery.changing():
        c = gallery._connection
        sql = f"INSERT INTO entries (id, {COLUMNS}) VALUES (?, ?, ?, ?, 'llama', 8, 64, '[]', '', '2026-01-01', ?)"
        c.executemany(sql, ((i, f"model-{i}", f"org/model-{i}", f"{i:064x}", i - 1) for i in range(1, n + 1)))
        c.executemany("INSERT INTO fingerprints VALUES (?, ?)", ((i, blob) for i in range(1, n_blobs + 1)))
        c.executemany("INSERT INTO matrices VALUES (?, ?)", zip(keys.tolist(), owner.tolist(), strict=True))
        for start in range(0, n, search.CHUNK):
            ids = np.arange(start + 1, min(start + search.CHUNK, n) + 1, dtype="<i8")
            row = (start // search.CHUNK, ids.tobytes(), rows[start : start + search.CHUNK].tobytes())
            c.execute("INSERT INTO vectors VALUES (?, ?, ?)", row)
    peer = path.with_suffix(".peer.sqlite")
    peer.unlink(missing_ok=True)
    c = sqlite3.connect(peer)
    c.execute("CREATE TABLE vectors (id INTEGER PRIMARY KEY, data BLOB)")
    c.executemany("INSERT INTO vectors VALUES (?, ?)", ((i + 1, row.tobytes()) for i, row in enumerate(rows)))
    c.commit()
    c.close()
    gallery_add = time_of_add(path)
    return {
        "bytes": path.stat().st_size,
        "bytes_without_blobs": path.stat().st_size - n_blobs * len(blob),
        **gallery_add,
    }


def time_of_add(path):
    """Adding and removing one more entry."""
    model = suspect()
    with Gallery.open(path, write=True) as gallery:
        start = time.perf_counter()
        gallery.add(model, name="one-more")
        added = time.perf_counter()
        gallery.remove("one-more")
        return {"add_s": added - start, "remove_s": time.perf_counter() - added}


def run_whorl(path, model):
    """Open, search, and search again in the open gallery; then look for shared matrices."""
    start, used = time.perf_counter(), time.process_time()
    gallery = Gallery.open(path)
    opened = time.perf_counter()
    first = gallery.nearest(model, 10)
    searched, cpu = time.perf_counter(), time.process_time() - used
    gallery.nearest(model, 10)
    again = time.perf_counter()
    gallery.sharing(model)
    shared = time.perf_counter()
    names = [near.entry.name for near in first]
    gallery.close()
    return {
        "total_s": searched - start, "open_s": opened - start, "again_s": again - searched,
        "sharing_s": shared - again, "cpu_s": cpu, "names": names,
    }  # fmt: skip


def run_peer(path, model):
    """One row a vector, fetched from SQLite, and scipy's cdist over them."""
    from scipy.spatial.distance import cdist

    query = search.embed(model)
    start = time.perf_counter()
    connection = sqlite3.connect(path.with_suffix(".peer.sqlite"))
    ids, rows = zip(*connection.execute("SELECT id, data FROM vectors"), strict=True)
    matrix = np.frombuffer(b"".join(rows), "<f4").reshape(-1, search.LENGTH)
    distance = cdist(query[None], matrix, "cosine")[0]
    best = np.argsort(distance, kind="stable")[:10]
    total = time.perf_counter() - start
    connection.close()
    return {"total_s": total, "names": [f"model-{ids[i]}" for i in best]}


def measure(role, path):
    command = [sys.executable, __file__, "--role", role, "--path", str(path)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return json.loads(subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout)


def child(role, path):
    import scipy.spatial.distance  # noqa: F401 - imports are not part of what is timed

    model = suspect()
    print(json.dumps({"whorl": run_whorl, "peer": run_peer}[role](path, model)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=Path("runs/bench"))
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--blobs", type=int, help="entries with a stored fingerprint; default: all")
    parser.add_argument("--keep", action="store_true", help="measure the gallery of an earlier run")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--role", choices=("whorl", "peer"), help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role:
        child(arguments.role, arguments.path)
        return
    path = arguments.cache.resolve() / f"gallery-{arguments.entries}.sqlite"
    n_blobs = arguments.entries if arguments.blobs is None else arguments.blobs
    built = {} if arguments.keep else build(path, arguments.entries, n_blobs)
    runs = [{role: measure(role, path) for role in ("whorl", "peer")} for _ in range(arguments.repeats)]
    if any(run["whorl"]["names"] != run["peer"]["names"] for run in runs):
        sys.exit("whorl and the peer find other entries")
    mine = {
        key: statistics.median(r["whorl"][key] for r in runs)
        for key in ("total_s", "open_s", "again_s", "sharing_s", "cpu_s")
    }
    peer = statistics.median(r["peer"]["total_s"] for r in runs)
    ratio = statistics.median(r["whorl"]["total_s"] / r["peer"]["total_s"] for r in runs)
    if built:
        print(
            f"{arguments.entries} entries: {built['bytes'] / 1e6:.0f} MB, {built['bytes_without_blobs'] / 1e6:.0f} MB without "
            f"fingerprints; one more {1000 * built['add_s']:.0f} ms, removed {1000 * built['remove_s']:.0f} ms"
        )
    print(
        f"   top 10 in a fresh process, opening the file: {1000 * mine['total_s']:.0f} ms (of it opening "
        f"{1000 * mine['open_s']:.0f} ms); again {1000 * mine['again_s']:.0f} ms; "
        f"shared matrices {1000 * mine['sharing_s']:.0f} ms; processor time {1000 * mine['cpu_s']:.0f} ms"
    )
    print(f"   rows of SQLite with scipy's cdist: {1000 * peer:.0f} ms; ratio {ratio:.2f}")
    if arguments.out:
        arguments.out.write_text(json.dumps({"built": built, "runs": runs, "ratio": ratio}, indent=1))


if __name__ == "__main__":
    main()
