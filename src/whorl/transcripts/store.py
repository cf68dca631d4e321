"""Transcript sets on disk: `<set>/manifest.json` and `<set>/<model key>/part-NNNNN.jsonl`.

Made to be killed: answers are appended batch by batch and flushed to the disk, a torn last line is dropped when the next
run opens the model's folder for writing, and `ids` says what need not be asked again. One process writes the answers of
one model; others may write other models of the same set, and anybody may read meanwhile.
"""

import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from difflib import get_close_matches
from io import FileIO
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Self

from whorl._readers.subject import Subject
from whorl.errors import UsageError, safe_name
from whorl.transcripts._lines import lines
from whorl.transcripts._lock import Lock
from whorl.transcripts.codec import ADVICE, from_line, to_line
from whorl.transcripts.manifest import FILE_NAME, Manifest, read_manifest
from whorl.transcripts.record import ModelId, Prompt, Transcript
from whorl.transcripts.splits import DEFAULT_SALT

LINES_PER_PART = 10_000
MANIFEST_WAIT_S = 10.0
_PART = re.compile(r"part-(\d{5,7})\.jsonl")
_BLOCK = 1 << 16


def open_set(
    folder: str | os.PathLike[str], prompts: Sequence[Prompt] | None = None, *, salt: str = DEFAULT_SALT
) -> "TranscriptSet":
    """Open a set, or make it.

    Args:
        folder: Of the set.
        prompts: What every model is asked: makes the set where there is none, and otherwise must be what it declares.
        salt: Of the split; only used with `prompts`.

    Raises:
        UsageError: no such set and no prompts to make one; or other prompts or another salt than the set declares.
        InputRefused: the manifest is not what it should be.
    """
    path = Path(folder)
    exists = (path / FILE_NAME).exists()
    if prompts is None:
        if not exists:
            raise UsageError(f"There is no transcript set '{safe_name(path)}': make one with `whorl sample`.")
        return TranscriptSet(path)
    wanted = Manifest.of(prompts, salt)
    if not exists:
        _make(path, wanted)
    found = TranscriptSet(path)
    if (part := found.manifest.difference(wanted)) is not None:
        raise UsageError(
            f"The transcript set '{safe_name(path)}' was made with another {part.replace('_', ' ')}: use the same one, or "
            "another folder."
        )
    return found


def _make(folder: Path, manifest: Manifest) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"'{safe_name(folder)}' cannot be made: {error.strerror}.") from error
    lock = _manifest_lock(folder)
    try:
        if not (folder / FILE_NAME).exists():
            manifest.write(folder)
    finally:
        lock.release()


def _manifest_lock(folder: Path) -> Lock:
    busy = f"Another process keeps the manifest of '{safe_name(folder)}' locked"
    return Lock(folder / ".lock", busy, MANIFEST_WAIT_S)


class TranscriptSet:
    """A set that exists; `open_set` makes new ones. Use it in a `with` block when it is written to.

    Args:
        folder: Of the set.
        lines_per_part: A new file is begun after so many lines.

    Raises:
        InputRefused: the manifest is missing or not what it should be.
    """

    def __init__(self, folder: str | os.PathLike[str], *, lines_per_part: int = LINES_PER_PART) -> None:
        self.folder = Path(folder)
        self.lines_per_part = lines_per_part
        self.manifest = read_manifest(self.folder)
        self._writers: dict[str, _Writer] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes write; reading and appending stay possible."""
        while self._writers:
            self._writers.popitem()[1].close()

    def models(self) -> list[ModelId]:
        """Who answered, in the order of their keys."""
        return [asked.model for _, asked in sorted(self.manifest.asked.items())]

    def ids(self) -> set[str]:
        """Ids of all answers; failures are not among them, so that a resumed run tries them again.

        Raises:
            MalformedFile: as `records`.
        """
        return {record.id for record in self.records() if record.ok}

    def records(self, models: Collection[str] | None = None) -> Iterator[Transcript]:
        """All records of some models, failures among them, in the order in which they were written.

        Args:
            models: References or keys; default: all.

        Raises:
            UsageError: no such model.
            MalformedFile: a line that is no record, of another model than its folder's, or not asked as declared.
        """
        for key in self._keys(models):
            parts = _parts(self.folder / key)
            for path in parts:
                for number, text in lines(path, "transcript", drop_torn=path == parts[-1]):
                    record = from_line(text, f"{key}/{path.name}", number)
                    self._check(record, key, f"{key}/{path.name}: line {number}")
                    yield record

    def _keys(self, models: Collection[str] | None) -> list[str]:
        keys = {name: key for key, asked in self.manifest.asked.items() for name in (key, asked.model.ref)}
        for name in models or ():
            if name not in keys:
                near = get_close_matches(name, keys, n=1)
                hint = f" Did you mean '{safe_name(near[0])}'?" if near else ""
                raise UsageError(f"No model '{safe_name(name)}' is in the set '{safe_name(self.folder)}'.{hint}")
        return sorted(set(keys.values()) if models is None else {keys[name] for name in models})

    def _check(self, record: Transcript, key: str, where: str) -> None:
        subject = Subject("transcript", where)
        if record.model.key != key:
            raise subject.malformed(f"a record of model {record.model.key}", f"the model of the folder, {key}", ADVICE)
        if (fault := self.manifest.fault(record)) is not None:
            raise subject.malformed(fault, "what the manifest declares", ADVICE)

    def append(self, records: Iterable[Transcript]) -> int:
        """Write a batch and flush it to the disk; all of it is checked before any is written.

        Returns:
            Number of records.

        Raises:
            UsageError: a prompt, decoding or template that the set does not have, an answer that it has already, or
                another process that writes answers of the same model.
            InputRefused: what is there already is damaged.
        """
        batch = sorted(records, key=lambda record: record.model.key)  # stable: the order within a model stays
        self._declare(batch)
        texts = [to_line(record) for record in batch]
        for key, group in groupby(range(len(batch)), key=lambda i: batch[i].model.key):
            at = list(group)
            try:
                self._writer(key).append([batch[i] for i in at], [texts[i] for i in at])
            except BaseException:  # a full disk or Ctrl-C may leave a torn line: the next append looks for it
                if key in self._writers:
                    self._writers.pop(key).close()
                raise
        return len(batch)

    def _declare(self, batch: Sequence[Transcript]) -> None:
        """Models and streams enter the manifest before their first line is written."""
        wanted = self.manifest
        for record in batch:
            wanted = _declared(wanted, record)
        if wanted is self.manifest:
            return
        lock = _manifest_lock(self.folder)
        try:
            wanted = read_manifest(self.folder)  # another process may have added its model
            for record in batch:
                wanted = _declared(wanted, record)
            wanted.write(self.folder)
        finally:
            lock.release()
        self.manifest = wanted

    def _writer(self, key: str) -> "_Writer":
        if key not in self._writers:
            self._writers[key] = _Writer(self, key)
        return self._writers[key]


def _declared(manifest: Manifest, record: Transcript) -> Manifest:
    found = manifest.with_record(record)
    if (fault := found.fault(record)) is not None:
        raise UsageError(f"An answer of '{safe_name(record.model.ref)}' does not fit the set: {fault}.")
    return found


def _parts(folder: Path) -> list[Path]:
    """The parts of a model in order.

    Raises:
        MalformedFile: one between the first and the last is missing.
    """
    found = sorted((int(m[1]), path) for path in folder.glob("part-*.jsonl") if (m := _PART.fullmatch(path.name)))
    gap = next((number for number, (there, _) in enumerate(found) if there != number), None)
    if gap is not None:
        raise Subject("transcripts", folder.name).malformed(
            f"no part {gap}", f"parts 0 to {found[-1][0]}", "Copy it again."
        )
    return [path for _, path in found]


class _Writer:
    """The folder of one model, locked, with its torn last line dropped."""

    def __init__(self, transcripts: TranscriptSet, key: str) -> None:
        folder, self._most = transcripts.folder / key, transcripts.lines_per_part
        folder.mkdir(exist_ok=True)
        ref = safe_name(transcripts.manifest.asked[key].model.ref)
        self._lock = Lock(folder / ".lock", f"Another process writes answers of '{ref}' to this set")
        try:
            parts = _parts(folder)
            if parts:
                _drop_torn(parts[-1])
            self._seen = {record.id for record in transcripts.records([key]) if record.ok}
            self._open(folder, max(len(parts) - 1, 0))
        except BaseException:
            self._lock.release()
            raise

    def _open(self, folder: Path, number: int) -> None:
        path = folder / f"part-{number:05d}.jsonl"
        self._folder, self._number = folder, number
        self._n_lines = sum(1 for _ in lines(path, "transcript")) if path.exists() else 0
        self._file = FileIO(path, "ab")

    def append(self, records: Sequence[Transcript], texts: Sequence[str]) -> None:
        new: set[str] = set()
        for record in records:
            if record.id in self._seen or record.id in new:
                raise UsageError(
                    f"The answer {record.id[:16]} of '{safe_name(record.model.ref)}' is in the set already."
                )
            new.update([record.id] if record.ok else [])
        left = list(texts)
        while left:
            if self._n_lines >= self._most:
                self._file.close()
                self._open(self._folder, self._number + 1)
            room = self._most - self._n_lines
            _write_all(self._file, "".join(f"{text}\n" for text in left[:room]).encode("utf-8"))
            self._n_lines += len(left[:room])
            left = left[room:]
        self._seen |= new

    def close(self) -> None:
        self._file.close()
        self._lock.release()


def _write_all(file: FileIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) or 0 :]
    os.fsync(file.fileno())


def _drop_torn(path: Path) -> None:
    """Cut off whatever follows the last line end."""
    with path.open("r+b") as file:
        end = at = file.seek(0, os.SEEK_END)
        while at > 0:
            start = max(0, at - _BLOCK)
            file.seek(start)
            found = file.read(at - start).rfind(b"\n")
            if found >= 0:
                at = start + found + 1
                break
            at = start
        if at < end:
            file.truncate(at)
            file.flush()
            os.fsync(file.fileno())


def read_records(paths: Iterable[str | os.PathLike[str]]) -> list[Transcript]:
    """All records of transcript sets, `.jsonl` and `.parquet` files, in the order given.

    Raises:
        UsageError: no such file or set, or another kind of file.
        InputRefused: a file is not what it should be.
    """
    return [record for path in paths for record in _read(Path(path))]


def _read(path: Path) -> Iterator[Transcript]:
    if path.is_dir():
        yield from open_set(path).records()
    elif not path.exists():
        raise UsageError(f"There are no transcripts '{safe_name(path)}'.")
    elif path.suffix == ".parquet":
        from whorl.transcripts.parquet import read_parquet

        yield from read_parquet(path)
    elif path.suffix == ".jsonl":
        for number, text in lines(path, "transcript"):
            yield from_line(text, path.name, number)
    else:
        expected = "a transcript set, a .jsonl or a .parquet file"
        raise UsageError(
            f"'{safe_name(path)}' holds no transcripts: expected {expected}. `whorl.import_file` reads others."
        )
