"""Opening a gallery file and writing to it: who may, what is refused, and how SQLite's errors become ours.

A gallery is a foreign file. It must be an SQLite database of whorl with exactly the tables of its schema: no views, no
triggers, nothing else, and `trusted_schema` is off. Writers wait for each other (`BEGIN IMMEDIATE`, a busy timeout);
readers see the last committed state (write-ahead log).
"""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from whorl.errors import MalformedFile, RemoteError, UnsafeFile, UnsupportedFile, UsageError, safe_name
from whorl.gallery import migrations

MAGIC = b"SQLite format 3\0"
WAIT_S = 10.0
PAGE_BYTES = 16_384  # vectors and fingerprints are blobs of tens of kilobytes
MAX_BLOB = 64_000_000
RESTORE = "Restore it from a copy, or from an export with `whorl gallery import`."


def default_path() -> Path:
    """`$WHORL_GALLERY`, or `gallery.sqlite` in the folder where this system keeps data of users."""
    named = os.environ.get("WHORL_GALLERY")
    if named:
        return Path(named)
    if os.name == "nt":
        home = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        home = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return home / "whorl" / "gallery.sqlite"


def connect(path: Path, *, write: bool, wait_s: float = WAIT_S) -> sqlite3.Connection:
    """A checked connection of the newest schema.

    Args:
        path: The file; made with its folders when missing and `write`.
        write: Whether rows will be changed. An older schema is brought up to date either way.
        wait_s: How long to wait for another writer.

    Raises:
        UsageError: no such gallery, or it cannot be written here.
        MalformedFile, UnsafeFile, UnsupportedFile: no gallery, damaged, with foreign definitions, or of a newer whorl.
        RemoteError: another process kept it locked.
    """
    is_new = _check_file(path, write=write)
    if is_new:
        path.parent.mkdir(parents=True, exist_ok=True)
    with translated(path):
        connection = _open(path, write=write, wait_s=wait_s)
        try:
            if is_new or migrations.version(connection) < migrations.NEWEST:
                connection = _upgraded(connection, path, write=write, wait_s=wait_s)
            _check_schema(connection, path)
        except BaseException:
            connection.close()
            raise
    return connection


def _check_file(path: Path, *, write: bool) -> bool:
    """Whether the gallery is still to be made."""
    if not path.exists() or (path.is_file() and not path.stat().st_size):
        if write:
            return True
        raise UsageError(f"There is no gallery '{safe_name(path)}' yet: make one with `whorl gallery add MODEL`.")
    if not path.is_file():
        raise UnsafeFile("gallery", path.name, "not a regular file", "an SQLite file", "Name a gallery.")
    try:
        with path.open("rb") as file:
            head = file.read(len(MAGIC))
    except OSError as error:
        raise UsageError(f"The gallery '{safe_name(path)}' cannot be read: {error.strerror}.") from error
    if head != MAGIC:
        raise MalformedFile("gallery", path.name, "not an SQLite database", "a gallery of whorl", RESTORE)
    return False


def _open(path: Path, *, write: bool, wait_s: float) -> sqlite3.Connection:
    mode = "rwc" if write else "ro"
    frozen = not write and not _is_writable(path)
    log = path.with_name(f"{path.name}-wal")
    if frozen and log.exists() and log.stat().st_size:
        raise UsageError(
            f"The gallery '{safe_name(path)}' is read-only and has changes that were not merged: copy it with its "
            "'-wal' file to where it can be written."
        )
    # Without write access no lock file can be made beside it; nothing is lost, for we have no way to change it.
    uri = f"{path.absolute().as_uri()}?mode={mode}{'&immutable=1' if frozen else ''}"
    connection = sqlite3.connect(uri, uri=True, timeout=wait_s, isolation_level=None)
    connection.text_factory = _text
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_BLOB)
    for setting in ("trusted_schema = OFF", "cell_size_check = ON", "foreign_keys = ON", "synchronous = FULL"):
        connection.execute(f"PRAGMA {setting}")
    return connection


def _text(data: bytes) -> str:
    """Text of a foreign file, whatever its bytes."""
    return data.decode("utf-8", errors="backslashreplace")


def _is_writable(path: Path) -> bool:
    return os.access(path, os.W_OK) and os.access(path.absolute().parent, os.W_OK)


def _upgraded(connection: sqlite3.Connection, path: Path, *, write: bool, wait_s: float) -> sqlite3.Connection:
    """The connection after all migrations that are missing, in one transaction."""
    if migrations.version(connection) or migrations.objects(connection):
        _check_schema(connection, path)
    if not write:
        connection.close()
        if not _is_writable(path):
            raise UnsupportedFile("gallery", path.name, "an older schema", "a newer one", "Copy it to be upgraded.")
        upgraded = connect(path, write=True, wait_s=wait_s)
        upgraded.close()
        return _open(path, write=False, wait_s=wait_s)
    connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
    _use_write_ahead_log(connection, wait_s)
    with transaction(connection, path):
        migrations.migrate(connection)
    return connection


def _use_write_ahead_log(connection: sqlite3.Connection, wait_s: float) -> None:
    """SQLite does not wait for this switch, so two processes that make one gallery together would fail."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.02)


def _check_schema(connection: sqlite3.Connection, path: Path) -> None:
    if connection.execute("PRAGMA application_id").fetchone()[0] != migrations.APPLICATION_ID:
        found = "an SQLite database of another program"
        raise MalformedFile("gallery", path.name, found, "a gallery of whorl", "Name another file.")
    number = migrations.version(connection)
    if number > migrations.NEWEST:
        found, expected = f"schema {number}, newer than this whorl", f"schema {migrations.NEWEST} or older"
        raise UnsupportedFile("gallery", path.name, found, expected, "Update whorl; the file was not touched.")
    if migrations.objects(connection) != migrations.expected_objects(number):
        odd = migrations.objects(connection) ^ migrations.expected_objects(number)
        kind, name, _ = min(odd)
        found = f"{kind} '{safe_name(name, 40)}' is missing, changed or not ours"
        raise UnsafeFile("gallery", path.name, found, f"the tables of schema {number}", RESTORE)


@contextmanager
def transaction(connection: sqlite3.Connection, path: Path) -> Iterator[None]:
    """Everything inside is written, or nothing; other writers wait."""
    with translated(path):
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """SQLite's errors about the file as errors of our tree; errors about our own SQL stay what they are."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorname", "")
        shown = safe_name(path)
        if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise RemoteError(
                f"The gallery '{shown}' is locked by another process; nothing was changed. "
                "Run the command again when it is done."
            ) from error
        if code.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
            raise UsageError(
                f"The gallery '{shown}' cannot be written here; nothing was changed. "
                "Name another file with --gallery or $WHORL_GALLERY."
            ) from error
        if code.startswith("SQLITE_FULL"):
            raise RemoteError(f"The disk of the gallery '{shown}' is full; nothing was changed.") from error
        if code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_IOERR", "SQLITE_TOOBIG")):
            raise MalformedFile("gallery", path.name, f"damaged ({error})", "an intact SQLite file", RESTORE) from error
        raise
