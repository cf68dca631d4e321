"""The schema of a gallery as numbered migrations; `PRAGMA user_version` holds the number of the last one (ours).

    1   entries, their stored fingerprints, and the digests of their matrices
    2   search vectors, made from the stored fingerprints

A migration is SQL statements and, where rows must be computed, a function. Both run inside one transaction together with
the new number, so a gallery has a whole schema or the one before. A migration is never edited once released.
"""

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

APPLICATION_ID = 0x57484F52  # "WHOR": tells a gallery from the SQLite files of other programs

_ENTRIES = """
CREATE TABLE entries (
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  resolved TEXT NOT NULL,
  location TEXT,
  hub_commit TEXT,
  weights_digest TEXT NOT NULL UNIQUE,
  family TEXT NOT NULL,
  n_layers INTEGER NOT NULL,
  d_model INTEGER NOT NULL,
  labels TEXT NOT NULL,
  note TEXT NOT NULL,
  added TEXT NOT NULL
) STRICT
"""

_FINGERPRINTS = """
CREATE TABLE fingerprints (
  entry INTEGER PRIMARY KEY REFERENCES entries (id) ON DELETE CASCADE,
  data BLOB NOT NULL
) STRICT
"""

# The first 8 bytes of a SHA-256 as an integer; a hit is checked against the stored fingerprint.
_MATRICES = """
CREATE TABLE matrices (
  digest INTEGER NOT NULL,
  entry INTEGER NOT NULL,
  PRIMARY KEY (digest, entry)
) STRICT, WITHOUT ROWID
"""

# Many vectors a row: reading 100,000 rows one by one takes longer than the search.
_VECTORS = """
CREATE TABLE vectors (
  chunk INTEGER PRIMARY KEY,
  entries BLOB NOT NULL,
  data BLOB NOT NULL
) STRICT
"""

_SLOT = "ALTER TABLE entries ADD COLUMN slot INTEGER"


@dataclass(frozen=True)
class Migration:
    """One step of the schema.

    Args:
        statements: SQL, run first.
        fill: Computes rows from those that are there, or None.
    """

    statements: tuple[str, ...]
    fill: Callable[[sqlite3.Connection], None] | None = None


def _fill_vectors(connection: sqlite3.Connection) -> None:
    from whorl.gallery.records import decode
    from whorl.gallery.search import append, embed

    for entry, data in connection.execute("SELECT entry, data FROM fingerprints ORDER BY entry").fetchall():
        vector = embed(decode(data, f"entry {entry}"))
        slot = None if vector is None else append(connection, entry, vector)
        connection.execute("UPDATE entries SET slot = ? WHERE id = ?", (slot, entry))


MIGRATIONS = (
    Migration((f"PRAGMA application_id = {APPLICATION_ID}", _ENTRIES, _FINGERPRINTS, _MATRICES)),
    Migration((_VECTORS, _SLOT), _fill_vectors),
)
NEWEST = len(MIGRATIONS)


def version(connection: sqlite3.Connection) -> int:
    """The schema number of a gallery, 0 for an empty database."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def migrate(connection: sqlite3.Connection, up_to: int = NEWEST) -> None:
    """Bring a gallery up to a schema, inside the transaction of the caller."""
    for number in range(version(connection) + 1, up_to + 1):
        step = MIGRATIONS[number - 1]
        for statement in step.statements:
            connection.execute(statement)
        if step.fill is not None:
            step.fill(connection)
        connection.execute(f"PRAGMA user_version = {number}")


Objects = frozenset[tuple[str, str, str]]


def objects(connection: sqlite3.Connection) -> Objects:
    """(type, name, SQL) of everything a database defines, statistics left out."""
    found = connection.execute("SELECT type, name, coalesce(sql, '') FROM sqlite_schema").fetchall()
    return frozenset((kind, name, " ".join(sql.split())) for kind, name, sql in found if "sqlite_stat" not in name)


@cache
def expected_objects(number: int) -> Objects:
    """What a gallery of schema `number` defines, and nothing else: views and triggers would run when rows are read."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        for step in MIGRATIONS[:number]:
            for statement in step.statements:
                connection.execute(statement)
        return objects(connection)
    finally:
        connection.close()
