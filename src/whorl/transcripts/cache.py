"""Answers kept for all runs of a user, found by their id: what was paid for once is not asked again (ours).

One SQLite file with a write-ahead log, so that several processes share it. An id says everything about how an answer came
about except in which prompt set its prompt was; `get` puts in the prompt it is given. Failures are not kept. An entry that
does not give its own id again is refused, never used.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from whorl.errors import InputRefused, MalformedFile, RemoteError, UsageError, safe_name
from whorl.gallery.database import _use_write_ahead_log
from whorl.transcripts.codec import from_line, to_line
from whorl.transcripts.record import Prompt, Transcript

FILE_NAME = "answers.sqlite"
WAIT_S = 30.0
_TABLE = "CREATE TABLE answers (id TEXT PRIMARY KEY, line TEXT NOT NULL) WITHOUT ROWID, STRICT"
_DELETE = "Delete the cache; it is made again."


def default_folder() -> Path:
    """`$WHORL_CACHE`, or `~/.cache/whorl/transcripts`; the only place where this part reads the environment."""
    named = os.environ.get("WHORL_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "whorl" / "transcripts"


class Cache:
    """The cache in one folder, made when missing. Use it in a `with` block and in one thread.

    Args:
        folder: Default: `default_folder()`.
        wait_s: How long to wait for other processes, in seconds.

    Raises:
        UsageError: it cannot be written here.
        MalformedFile: the file is damaged, or of another program or version.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, *, wait_s: float = WAIT_S) -> None:
        self.path = Path(default_folder() if folder is None else folder) / FILE_NAME
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"The cache '{safe_name(self.path)}' cannot be made: {error.strerror}.") from error
        with _translated(self.path):
            self._connection = sqlite3.connect(self.path, timeout=wait_s, isolation_level=None)
            try:
                self._prepare(wait_s)
            except BaseException:
                self._connection.close()
                raise

    def _prepare(self, wait_s: float) -> None:
        self._connection.text_factory = _text
        _use_write_ahead_log(self._connection, wait_s)
        for setting in ("trusted_schema = OFF", "synchronous = NORMAL"):
            self._connection.execute(f"PRAGMA {setting}")
        with self._transaction():
            if not self._objects():
                self._connection.execute(_TABLE)
        if self._objects() != [_TABLE]:
            found, expected = "other tables", f"the table of a cache of this version, {_TABLE}"
            raise MalformedFile("cache", self.path.name, found, expected, _DELETE)

    def _objects(self) -> list[str]:
        return [row[0] for row in self._connection.execute("SELECT sql FROM sqlite_schema")]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        with _translated(self.path):
            return int(self._connection.execute("SELECT count(*) FROM answers").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def get(self, key: str, prompt: Prompt | None = None) -> Transcript | None:
        """The answer with an id, or None.

        Args:
            key: The id, 64 hex digits.
            prompt: Takes the place of the stored one: of the same content, but perhaps of another set or group.

        Raises:
            MalformedFile: the entry is not an answer with this id.
        """
        with _translated(self.path):
            row = self._connection.execute("SELECT line FROM answers WHERE id = ?", (key,)).fetchone()
        if row is None:
            return None
        try:
            record = from_line(row[0], f"cache entry {key[:16]}", 1)
        except InputRefused as error:
            raise MalformedFile("cache", self.path.name, str(error), "intact entries", _DELETE) from None
        record = record if prompt is None else replace(record, prompt=prompt)
        if record.id != key or not record.ok:
            raise MalformedFile("cache", self.path.name, f"another answer as {key[:16]}", "intact entries", _DELETE)
        return record

    def put(self, *records: Transcript) -> None:
        """Keep answers, all or none; an older answer with the same id is replaced, failures are left out.

        Raises:
            UsageError: a value that cannot be stored.
            RemoteError: another process kept the cache locked, or the disk is full.
        """
        rows = [(record.id, to_line(record)) for record in records if record.ok]
        with _translated(self.path), self._transaction():
            self._connection.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise


def _text(data: bytes) -> str:
    """Text of a file that may be damaged, whatever its bytes."""
    return data.decode("utf-8", errors="backslashreplace")


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """SQLite's errors about the file as errors of our tree; errors about our own SQL stay what they are."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorname", "")
        if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_FULL")):
            raise RemoteError(
                f"The cache '{safe_name(path)}' cannot be used now ({error}); run again later."
            ) from error
        if code.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
            raise UsageError(
                f"The cache '{safe_name(path)}' cannot be written here; name another in WHORL_CACHE."
            ) from error
        if code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_IOERR")):
            raise MalformedFile("cache", path.name, f"damaged ({error})", "an intact SQLite file", _DELETE) from error
        raise
