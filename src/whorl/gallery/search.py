"""Finding the stored models nearest to one: a vector for each, and one matrix product over all of them (ours).

The vector holds how the shapes of the QK and OV spectra of `head-spectra` run through the depth of a model: logarithms of
the singular values of a head, centred (no scale), at four relative ranks, averaged over the heads of a layer, centred
over the layers (what all models of a recipe share goes) and read off at eight depths. It has one length for every
architecture, and no function-preserving edit moves it. Nearness here is a way to find candidates, never evidence.
"""

import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from whorl.errors import MalformedFile

if TYPE_CHECKING:
    from whorl.fingerprints import Fingerprint

Vector = NDArray[np.float32]

METHOD = "head-spectra@1()"
KEPT = 1e-3  # values below this share of the largest are rounding, as in `head-spectra`
MIN_VALUES = 3
MIN_LAYERS = 4
RANKS = np.array([0.0, 0.25, 0.625, 1.0])
DEPTHS = np.linspace(0.0, 1.0, 8)
LENGTH = 2 * len(DEPTHS) * len(RANKS)
CHUNK = 256  # vectors a row


def embed(fingerprint: "Fingerprint") -> Vector | None:
    """The search vector of a fingerprint, shape (64,), unit length.

    None where there is nothing to make it from: no `head-spectra`, or fewer than four layers with a live head.
    """
    values = fingerprint.methods.get(METHOD)
    if values is None:
        return None
    profiles = [_profile(values[kind]) for kind in ("qk", "ov")]
    found = [p / norm for p in profiles if p is not None and (norm := float(np.linalg.norm(p))) > 0]
    if len(found) < len(profiles):
        return None
    return np.concatenate([p.ravel() for p in found]).astype(np.float32) / np.float32(np.sqrt(len(found)))


def _profile(spectra: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """How spectrum shapes run through the depth: (8, 4), centred over depth; from (L, H, r)."""
    rows = np.array([_layer_shape(layer) for layer in spectra])  # (L, 4), NaN without a live head
    live = np.flatnonzero(np.isfinite(rows).all(axis=1))
    if len(live) < MIN_LAYERS:
        return None
    depth = live / (len(rows) - 1)
    resampled = np.stack([np.interp(DEPTHS, depth, rows[live, j]) for j in range(rows.shape[1])], axis=1)
    return resampled - resampled.mean(axis=0)


def _layer_shape(heads: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over live heads of the centred log spectrum at `RANKS`: (4,), NaN without one; from (H, r), descending."""
    shapes = []
    for head in heads:
        kept = head[head > KEPT * head[0]]
        if len(kept) >= MIN_VALUES:
            log = np.log(kept)
            shapes.append(np.interp(RANKS, np.linspace(0.0, 1.0, len(log)), log - log.mean()))
    return np.mean(shapes, axis=0) if shapes else np.full(len(RANKS), np.nan)


def append(connection: sqlite3.Connection, entry: int, vector: Vector) -> int:
    """Store the vector of an entry; returns its slot. Inside the transaction of the caller."""
    last = connection.execute("SELECT chunk, entries, data FROM vectors ORDER BY chunk DESC LIMIT 1").fetchone()
    chunk, entries, data = last or (0, b"", b"")
    if len(entries) >= 8 * CHUNK:
        chunk, entries, data = chunk + 1, b"", b""
    entries += np.array([entry], "<i8").tobytes()
    data += vector.astype("<f4").tobytes()
    connection.execute("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", (chunk, entries, data))
    return int(chunk * CHUNK + len(entries) // 8 - 1)


def forget(connection: sqlite3.Connection, slot: int) -> None:
    """Empty a slot: entry 0 belongs to nobody. Inside the transaction of the caller."""
    chunk, place = divmod(slot, CHUNK)
    entries, data = connection.execute("SELECT entries, data FROM vectors WHERE chunk = ?", (chunk,)).fetchone()
    ids, rows = np.frombuffer(entries, "<i8").copy(), np.frombuffer(data, "<f4").copy().reshape(-1, LENGTH)
    ids[place], rows[place] = 0, 0.0
    connection.execute(
        "UPDATE vectors SET entries = ?, data = ? WHERE chunk = ?", (ids.tobytes(), rows.tobytes(), chunk)
    )


@dataclass(frozen=True)
class Vectors:
    """All search vectors of a gallery in memory.

    Args:
        entries: Row ids, shape (n,).
        matrix: Unit vectors, shape (n, 64).
    """

    entries: NDArray[np.int64]
    matrix: Vector

    def nearest(self, vector: Vector, n: int) -> list[tuple[int, float]]:
        """(row id, cosine) of the `n` nearest, nearest first; ties in order of the ids."""
        cosine = self.matrix @ vector
        if n < len(cosine):
            # One cut for all ties of the last place, so that the order never depends on the partition.
            worst = np.partition(cosine, len(cosine) - n)[len(cosine) - n]
            chosen = np.flatnonzero(cosine >= worst)
        else:
            chosen = np.arange(len(cosine))
        order = chosen[np.lexsort((self.entries[chosen], -cosine[chosen]))][:n]
        return [(int(self.entries[i]), float(cosine[i])) for i in order]


def load(connection: sqlite3.Connection, name: str) -> Vectors:
    """All vectors of a gallery.

    Raises:
        MalformedFile: a row of another size, or numbers that are no unit vectors.
    """
    rows = connection.execute("SELECT entries, data FROM vectors ORDER BY chunk").fetchall()
    if any(len(data) != 4 * LENGTH * (len(ids) // 8) or len(ids) % 8 for ids, data in rows):
        raise _damaged(name, "a search vector of another length")
    ids = np.frombuffer(b"".join(r[0] for r in rows), "<i8")
    matrix = np.frombuffer(b"".join(r[1] for r in rows), "<f4").reshape(-1, LENGTH)
    used = ids > 0
    if not used.all():
        ids, matrix = ids[used], matrix[used]
    squares = np.einsum("ij,ij->i", matrix, matrix)
    if not np.all(np.abs(squares - 1.0) < 1e-3):  # NaN fails too
        raise _damaged(name, "a search vector that is not of unit length")
    return Vectors(ids, matrix)


def _damaged(name: str, found: str) -> MalformedFile:
    advice = "Export its entries and import them into a new gallery."
    return MalformedFile("gallery", name, found, f"{LENGTH} numbers an entry", advice)
