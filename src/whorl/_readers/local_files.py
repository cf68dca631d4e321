"""Files and folders of this machine: what may be opened, and whether it stays the same while it is read."""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import Any

from whorl._readers import limits, strict_json
from whorl._readers.file_names import refuse_lookalikes
from whorl._readers.subject import DAMAGED, INCOMPLETE, Subject, size_text
from whorl.errors import MalformedFile, safe_name

_READ_SUFFIXES = (".safetensors", ".json", ".gguf", ".model", ".txt", ".jinja")
_SHARED_BLOB = re.compile(r"[0-9a-f]{64}")
_SHARED_MARKER = ".huggingface-shared-blobs"
_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
    | getattr(os, "O_NONBLOCK", 0)  # a FIFO put in place between the look and the opening must not block us
)


@dataclass(frozen=True)
class LocalFile:
    """One regular file, remembered with its identity; opened anew for each use, so that no descriptor is kept.

    Args:
        path: Where the file really is, links resolved.
        subject: How messages call it.
        stamp: Device, inode, size in bytes and modification time in ns when it was first seen.
    """

    path: Path
    subject: Subject
    stamp: tuple[int, int, int, int]

    @classmethod
    def at(cls, path: str | os.PathLike[str], subject: Subject) -> "LocalFile":
        """Look at a file for the first time.

        Raises:
            UnsafeFile: not a regular file.
            MalformedFile: missing, or the system does not let us read it.
        """
        real = Path(path)
        with _open_regular(real, subject) as stream:
            return cls(real, subject, _stamp(stream))

    @property
    def n_bytes(self) -> int:
        """Size in bytes."""
        return self.stamp[2]

    @contextmanager
    def open(self) -> Iterator[FileIO]:
        """The file, open for unbuffered reading.

        Raises:
            UnsafeFile: it is not the file that was first seen, or it changed while it was being read.
        """
        with _open_regular(self.path, self.subject) as stream:
            self._check_unchanged(stream)
            try:
                yield stream
            except MalformedFile:
                self._check_unchanged(stream)  # the better explanation of a short read
                raise
            self._check_unchanged(stream)

    def read_all(self, cap: int) -> bytes:
        """The whole content, at most `cap` bytes (`UnsafeFile` above)."""
        if self.n_bytes > cap:
            raise self.subject.unsafe(size_text(self.n_bytes), f"at most {size_text(cap)}", DAMAGED)
        content = bytearray(self.n_bytes)
        with self.open() as stream:
            read_exactly(stream, memoryview(content), self.subject)
        return bytes(content)

    def _check_unchanged(self, stream: FileIO) -> None:
        if _stamp(stream) != self.stamp:
            raise self.subject.unsafe("it changed while it was read", "a file that stays the same", "Run again.")


def read_checked(path: str | os.PathLike[str], what: str = "file", cap: int = limits.MAX_JSON) -> bytes:
    """The content of one regular file of at most `cap` bytes; messages use its last name.

    Raises:
        InputRefused: missing, unreadable, not a regular file, too large, or changing.
    """
    return LocalFile.at(path, Subject(what, Path(path).name)).read_all(cap)


def read_exactly(stream: FileIO, view: memoryview, subject: Subject) -> None:
    """Fill `view` from the current position.

    Raises:
        MalformedFile: the file ends before, or the system cannot read it.
    """
    done = 0
    while done < len(view):
        try:
            n_read = stream.readinto(view[done:])
        except OSError as error:
            raise subject.malformed(f"a read error ({error.strerror})", "a readable file", "Check the disk.") from error
        if not n_read:
            raise subject.malformed(f"{done} of {len(view)} bytes of a block", "all", INCOMPLETE)
        done += n_read


@contextmanager
def _open_regular(path: Path, subject: Subject) -> Iterator[FileIO]:
    try:
        _check_regular(path.stat().st_mode, subject)  # before opening: opening a device can have effects
        descriptor = os.open(path, _FLAGS)
    except FileNotFoundError as error:
        raise subject.malformed("it is missing", "the file", INCOMPLETE) from error
    except OSError as error:
        raise subject.malformed(f"{error.strerror}", "a readable file", "Check its permissions.") from error
    with FileIO(descriptor) as stream:
        _check_regular(os.fstat(descriptor).st_mode, subject)
        yield stream


def _check_regular(mode: int, subject: Subject) -> None:
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"))
    if not stat.S_ISREG(mode):
        found = next((kind for test, kind in kinds if test(mode)), "a device")
        raise subject.unsafe(found, "a regular file", "Do not use it.")


def _stamp(stream: FileIO) -> tuple[int, int, int, int]:
    facts = os.fstat(stream.fileno())
    return (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)


@dataclass(frozen=True)
class LocalFolder:
    """One folder whose names and links were checked.

    Args:
        root: Its real path.
        subject: How messages call it.
    """

    root: Path
    subject: Subject

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> "LocalFolder":
        """Look into a folder.

        Raises:
            MalformedFile: the system does not let us list it.
            UnsafeFile: two names of files that are read are one name on some systems.
        """
        subject = Subject("folder", os.fspath(path))
        try:
            folder = cls(Path(os.path.realpath(path, strict=True)), subject)
            names = folder.names
        except OSError as error:
            raise subject.malformed(f"{error.strerror}", "a readable folder", "Check its permissions.") from error
        refuse_lookalikes((name for name in names if name.lower().endswith(_READ_SUFFIXES)), subject)
        return folder

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of all entries."""
        return frozenset(entry.name for entry in self.root.iterdir())

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def file(self, name: str, what: str) -> LocalFile:
        """One file of this folder.

        Args:
            name: A plain name.
            what: Kind for messages ("shard", "config").

        Raises:
            MalformedFile: missing, or a link to nothing.
            UnsafeFile: a link that leaves the folder, or not a regular file.
        """
        subject = Subject(what, name)
        if name not in self.names:
            raise subject.malformed("it is missing", f"the file in '{safe_name(self.subject.name)}'", INCOMPLETE)
        try:
            real = Path(os.path.realpath(self.root / name, strict=True))
        except OSError as error:
            raise subject.malformed("a link to nothing", "a file", INCOMPLETE) from error
        if not (real.is_relative_to(self.root) or self._is_cached(name, real)):
            advice = "Name the folder that holds the files themselves, or copy them."
            raise subject.unsafe("a link that leaves the folder", "a file inside", advice)
        return LocalFile.at(real, subject)

    def json(self, name: str, what: str, cap: int = limits.MAX_JSON) -> dict[str, Any]:
        """One config of this folder: a JSON object through the strict parser, with the numbers that Python writes."""
        text = self.file(name, what).read_all(cap)
        return strict_json.parse_object(text, what, name, max_bytes=cap, python_numbers=True)

    def _is_cached(self, name: str, real: Path) -> bool:
        """Whether this is a Hub cache, `<cache>/<repository>/snapshots/<commit>`, and the entry one of its links.

        The link leads into `blobs/` of the same repository. What lies there is the file itself or, since
        huggingface_hub 2, a link to the store that all repositories of the cache share, named by content hash.
        """
        link = self.root / name
        if self.root.parent.name != "snapshots" or not link.is_symlink():
            return False
        repository = self.root.parent.parent
        first = Path(os.path.realpath((self.root / link.readlink()).parent)) / link.readlink().name
        if first.parent != repository / "blobs":
            return False
        store = repository.parent / "blobs"
        shared = real.parent == store / real.name[:2] and _SHARED_BLOB.fullmatch(real.name) is not None
        return real == first or (shared and (store / _SHARED_MARKER).is_file())
