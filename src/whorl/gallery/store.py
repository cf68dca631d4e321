"""`Gallery`: entries of one file, each change one transaction."""

import difflib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from whorl.errors import InputRefused, MalformedFile, UsageError, safe_name
from whorl.gallery import database
from whorl.gallery.records import checked_name, checked_remarks, decode, encode, matrix_keys, name_for
from whorl.progress import Progress, silent

if TYPE_CHECKING:
    from whorl.fingerprints import Fingerprint
    from whorl.gallery.search import Vectors
    from whorl.refs import ModelRef

PREFIX = "gallery:"
MAX_SQL_VALUES = 500  # keys in one query

_COLUMNS = (
    "id, name, resolved, location, hub_commit, weights_digest, family, n_layers, d_model, labels, note, added, slot"
)


@dataclass(frozen=True)
class Entry:
    """One stored model, without its fingerprint.

    Args:
        name: Its name in the gallery; `gallery:NAME` stands for it wherever a model is asked for.
        resolved: Path, or repository with its full commit, as read.
        location: Where its weights can be read again, None when that is not known.
        commit: Hub commit, None for local files.
        weights_digest: Of the fingerprint.
        family: Of the model's shape, as `n_layers` and `d_model`.
        n_layers: Layers.
        d_model: Width.
        labels: The user's own.
        note: The user's own.
        added: When it was stored, UTC, ISO 8601.
        searchable: Whether it has a search vector.
    """

    name: str
    resolved: str
    location: str | None
    commit: str | None
    weights_digest: str
    family: str
    n_layers: int
    d_model: int
    labels: tuple[str, ...]
    note: str
    added: str
    searchable: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return asdict(self) | {"labels": list(self.labels)}


@dataclass(frozen=True)
class Added:
    """What adding a model did.

    Args:
        entry: The entry that holds the model now.
        what: "added"; "updated": these weights were there with fewer methods; "kept": they were there already.
    """

    entry: Entry
    what: Literal["added", "updated", "kept"]


@dataclass(frozen=True)
class Near:
    """An entry found by its search vector: cosine in [-1, 1], 1 = the same course of spectra. Not evidence."""

    entry: Entry
    cosine: float


class Gallery:
    """An open gallery file; use as a context manager. Objects are not shared between threads.

    Args:
        path: The file.
        connection: Checked by `whorl.gallery.database.connect`.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self._vectors: tuple[tuple[int, int], Vectors] | None = None

    @classmethod
    def open(cls, path: str | Path | None = None, *, write: bool = False, wait_s: float = database.WAIT_S) -> "Gallery":
        """Open a gallery.

        Args:
            path: The file; None for `default_path()`.
            write: Whether to change it; then a missing file is made.
            wait_s: How long to wait for other writers, seconds.

        Raises:
            UsageError: no such gallery, or not writable here.
            InputRefused: not a gallery, damaged, of a newer whorl.
            RemoteError: another process keeps it locked.
        """
        file = database.default_path() if path is None else Path(path)
        return cls(file, database.connect(file, write=write, wait_s=wait_s))

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Gallery {str(self.path)!r}>"

    def __len__(self) -> int:
        return int(self._rows("SELECT count(*) FROM entries")[0][0])

    def _rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with database.translated(self.path):
            return self._connection.execute(sql, values).fetchall()

    def _entries(self, where: str = "", values: Sequence[Any] = ()) -> dict[int, Entry]:
        sql = f"SELECT {_COLUMNS} FROM entries {where}"  # noqa: S608 - clauses of this file, values apart
        return {row[0]: self._entry(row) for row in self._rows(sql, values)}

    def _entry(self, row: tuple[Any, ...]) -> Entry:
        _, name, resolved, location, commit, digest, family, n_layers, d_model, labels, note, added, slot = row
        texts, counts = (name, resolved, digest, family, labels, note, added), (n_layers, d_model)
        well_formed = all(isinstance(t, str) for t in texts) and all(isinstance(n, int) for n in counts)
        if not well_formed or not all(isinstance(t, str | None) for t in (location, commit)):
            found = f"entry '{safe_name(name, 40)}' has a value of the wrong type"
            raise MalformedFile("gallery", self.path.name, found, "an entry of whorl", database.RESTORE)
        return Entry(
            name, resolved, location, commit, digest, family, n_layers, d_model, _labels(labels), note, added,
            slot is not None,
        )  # fmt: skip

    def entries(self) -> tuple[Entry, ...]:
        """All entries by name."""
        return tuple(self._entries("ORDER BY name").values())

    def entry(self, name: str) -> Entry:
        """One entry.

        Raises:
            UsageError: none of that name; a near miss is suggested.
        """
        return next(iter(self._named(name).values()))

    def _named(self, name: str) -> dict[int, Entry]:
        found = self._entries("WHERE name = ?", (name,))
        if not found:
            names = [row[0] for row in self._rows("SELECT name FROM entries")]
            near = difflib.get_close_matches(name, names, n=1)
            hint = f" Did you mean '{safe_name(near[0])}'?" if near else " `whorl gallery list` shows all."
            raise UsageError(f"There is no '{safe_name(name)}' in the gallery '{safe_name(self.path)}'.{hint}")
        return found

    def fingerprint(self, name: str) -> "Fingerprint":
        """The stored fingerprint of an entry, checked like any foreign file.

        Raises:
            UsageError: no such entry.
            InputRefused: it is damaged, or of other weights than the entry.
        """
        ((number, entry),) = self._named(name).items()
        return self._fingerprint(number, entry)

    def _fingerprint(self, number: int, entry: Entry) -> "Fingerprint":
        rows = self._rows("SELECT data FROM fingerprints WHERE entry = ?", (number,))
        found = decode(rows[0][0] if rows else None, entry.name)
        if found.weights_digest != entry.weights_digest:
            what = "it belongs to other weights than its entry"
            raise MalformedFile("fingerprint", entry.name, what, "the digest of the entry", database.RESTORE)
        return found

    def with_digest(self, weights_digest: str) -> Entry | None:
        """The entry with exactly these weights, if there is one."""
        return next(iter(self._entries("WHERE weights_digest = ?", (weights_digest,)).values()), None)

    def sharing(self, fingerprint: "Fingerprint", limit: int = 20) -> tuple[tuple[Entry, int], ...]:
        """Entries that hold matrices with the same bytes, and how many; the most first, at most `limit`.

        Only digests are compared: a constant or zeroed matrix counts like any other until the weights are looked at.
        """
        keys, counts = matrix_keys(fingerprint), dict[int, int]()
        for start in range(0, len(keys), MAX_SQL_VALUES):
            some = keys[start : start + MAX_SQL_VALUES]
            marks = ",".join("?" * len(some))
            sql = f"SELECT entry, count(*) FROM matrices WHERE digest IN ({marks}) GROUP BY entry"  # noqa: S608 - marks only
            for number, n in self._rows(sql, some):
                counts[number] = counts.get(number, 0) + n
        chosen = sorted(counts, key=lambda number: (-counts[number], number))[:limit]
        found = self._numbered(chosen)
        return tuple((found[number], counts[number]) for number in chosen if number in found)

    def nearest(self, fingerprint: "Fingerprint", n: int = 10) -> tuple[Near, ...]:
        """The `n` entries nearest by search vector, nearest first; empty when the model has no vector.

        The first call reads all vectors (256 bytes an entry); an open gallery keeps them until somebody writes.
        """
        from whorl.gallery.search import embed

        vector = embed(fingerprint)
        if vector is None:
            return ()
        with database.translated(self.path):
            found = self._loaded().nearest(vector, n)
        entries = self._numbered([number for number, _ in found])
        return tuple(Near(entries[number], cosine) for number, cosine in found if number in entries)

    def _loaded(self) -> "Vectors":
        from whorl.gallery.search import load

        # The first number changes with commits of other connections, the second with our own.
        state = (self._rows("PRAGMA data_version")[0][0], self._connection.total_changes)
        if self._vectors is None or self._vectors[0] != state:
            self._vectors = (state, load(self._connection, self.path.name))
        return self._vectors[1]

    def _numbered(self, numbers: Sequence[int]) -> dict[int, Entry]:
        found: dict[int, Entry] = {}
        for start in range(0, len(numbers), MAX_SQL_VALUES):
            some = numbers[start : start + MAX_SQL_VALUES]
            found |= self._entries(f"WHERE id IN ({','.join('?' * len(some))})", some)
        return found

    def stored_bytes(self) -> Iterator[tuple[Entry, bytes]]:
        """Entries by name, each with the compressed JSON of its fingerprint, one at a time."""
        for number, entry in self._entries("ORDER BY name").items():
            rows = self._rows("SELECT data FROM fingerprints WHERE entry = ?", (number,))
            yield entry, rows[0][0] if rows else b""

    def changing(self) -> AbstractContextManager[None]:
        """One transaction: everything inside the block is written, or nothing."""
        return database.transaction(self._connection, self.path)

    def add(
        self,
        model: "str | Fingerprint",
        *,
        name: str | None = None,
        labels: Iterable[str] = (),
        note: str = "",
        offline: bool = False,
        progress: Progress = silent,
    ) -> Added:
        """Store a model: fingerprint it if need be, then write it in one transaction.

        Args:
            model: A reference, a saved fingerprint (`.json`), or a `Fingerprint`.
            name: Of the entry; None for the repository's or the last part of the path.
            labels: Texts to find it by.
            note: Free text.
            offline: Open no socket.
            progress: Called once per sublayer.

        Raises:
            UsageError: the name is taken by other weights, or cannot be one.
            InputRefused: the model, or the gallery.
        """
        if name is not None:
            checked_name(name)
        remarks = tuple(labels)
        checked_remarks(remarks, note)
        found = _fingerprinted(model, offline, progress)
        row = Row(found, name or name_for(found), _location(found), remarks, note, _now())
        with self.changing():
            return self.insert(row)

    def insert(self, row: "Row") -> Added:
        """Store one row inside the transaction of the caller (`add` and the import make their own).

        Raises:
            UsageError: the name is taken by other weights.
        """
        there = self._entries("WHERE weights_digest = ?", (row.fingerprint.weights_digest,))
        if there:
            ((number, entry),) = there.items()
            return self._renewed(number, entry, row.fingerprint)
        if self._entries("WHERE name = ?", (row.name,)):
            raise UsageError(
                f"The gallery has other weights under the name '{row.name}': give another one with --name, or remove it."
            )
        f = row.fingerprint
        cursor = self._connection.execute(
            "INSERT INTO entries (name, resolved, location, hub_commit, weights_digest, family, n_layers, d_model,"
            " labels, note, added) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (row.name, f.resolved, row.location, f.commit, f.weights_digest, f.shape.family, f.shape.n_layers,
             f.shape.d_model, json.dumps(row.labels), row.note, row.added),
        )  # fmt: skip
        number = int(cursor.lastrowid or 0)
        keys = [(key, number) for key in matrix_keys(f)]
        self._connection.executemany("INSERT INTO matrices VALUES (?, ?)", keys)
        self._write_values(number, f)
        return Added(self._numbered([number])[number], "added")

    def _renewed(self, number: int, entry: Entry, fingerprint: "Fingerprint") -> Added:
        """The same weights again: values of new methods are taken over, everything else stays."""
        if set(fingerprint.methods) <= set(self._fingerprint(number, entry).methods):
            return Added(entry, "kept")
        self._forget_vector(number)
        self._connection.execute("DELETE FROM fingerprints WHERE entry = ?", (number,))
        self._write_values(number, fingerprint)
        return Added(self._numbered([number])[number], "updated")

    def _write_values(self, number: int, fingerprint: "Fingerprint") -> None:
        from whorl.gallery.search import append, embed

        self._connection.execute("INSERT INTO fingerprints VALUES (?, ?)", (number, encode(fingerprint)))
        vector = embed(fingerprint)
        slot = None if vector is None else append(self._connection, number, vector)
        self._connection.execute("UPDATE entries SET slot = ? WHERE id = ?", (slot, number))

    def _forget_vector(self, number: int) -> None:
        from whorl.gallery.search import forget

        slot = self._rows("SELECT slot FROM entries WHERE id = ?", (number,))[0][0]
        if slot is not None:
            forget(self._connection, slot)

    def remove(self, name: str) -> Entry:
        """Delete one entry with all that belongs to it; returns what it was.

        Raises:
            UsageError: no such entry.
        """
        with database.transaction(self._connection, self.path):
            ((number, entry),) = self._named(name).items()
            self._forget_vector(number)
            self._forget_matrices(number, entry)
            self._connection.execute("DELETE FROM entries WHERE id = ?", (number,))
        return entry

    def _forget_matrices(self, number: int, entry: Entry) -> None:
        try:
            keys = matrix_keys(self._fingerprint(number, entry))
        except InputRefused:  # damaged, and its keys unknown: look through the whole table
            self._connection.execute("DELETE FROM matrices WHERE entry = ?", (number,))
            return
        sql = "DELETE FROM matrices WHERE digest = ? AND entry = ?"
        self._connection.executemany(sql, [(key, number) for key in keys])

    def check(self) -> None:
        """Read the whole file and look for damage.

        Raises:
            MalformedFile: SQLite finds its structure broken, or a stored fingerprint is.
        """
        if self._rows("PRAGMA quick_check(1)") != [("ok",)]:
            raise MalformedFile("gallery", self.path.name, "damaged", "an intact SQLite file", database.RESTORE)
        for number, entry in self._entries().items():
            self._fingerprint(number, entry)


@dataclass(frozen=True)
class Row:
    """What one entry is made of.

    Args:
        fingerprint: The model.
        name: Of the entry, checked here.
        location: See `Entry`.
        labels: See `Entry`.
        note: See `Entry`.
        added: See `Entry`.
    """

    fingerprint: "Fingerprint"
    name: str
    location: str | None
    labels: tuple[str, ...]
    note: str
    added: str

    def __post_init__(self) -> None:
        checked_name(self.name)
        checked_remarks(self.labels, self.note)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _labels(text: str) -> tuple[str, ...]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return (safe_name(text),)
    return tuple(str(label) for label in found) if isinstance(found, list) else (safe_name(text),)


def _fingerprinted(model: "str | Fingerprint", offline: bool, progress: Progress) -> "Fingerprint":
    from whorl.fingerprints import fingerprint

    if not isinstance(model, str):
        return model
    return stored(model) or fingerprint(model, offline=offline, progress=progress)


def _location(fingerprint: "Fingerprint") -> str | None:
    """Where these weights can be opened again: Hub commits as resolved, paths made absolute if they exist now."""
    from whorl.refs import parse_ref

    resolved = fingerprint.resolved.split("+")
    try:
        typed = parse_ref(fingerprint.typed)
        sides = [typed.base, *([] if typed.adapter is None else [typed.adapter])]
        if len(sides) != len(resolved):  # a path with a plus sign
            return None
        found = [_pinned(side, text) for side, text in zip(sides, resolved, strict=True)]
    except UsageError:  # the reference of another machine
        return None
    if None in found:
        return None
    return "+".join(str(side) for side in found)


def _pinned(ref: "ModelRef", resolved: str) -> "ModelRef | None":
    from whorl.refs import ModelRef, local_path, parse_ref

    if ref.path is None:
        return parse_ref(resolved)
    path = local_path(ref.path).absolute()
    return ModelRef(path=str(path)) if path.exists() else None


def stored(ref: str) -> "Fingerprint | None":
    """The fingerprint that a reference names: `gallery:NAME` of the default gallery, or a saved `.json`; None for models.

    Raises:
        UsageError: no such file, gallery or entry.
        InputRefused: the file or the gallery is not what it should be.
    """
    from whorl.fingerprints import Fingerprint

    if ref.startswith(PREFIX):
        with Gallery.open() as gallery:
            return gallery.fingerprint(ref.removeprefix(PREFIX))
    return Fingerprint.load(ref) if ref.endswith(".json") else None
