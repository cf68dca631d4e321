"""Lines of foreign text files, one in memory at a time, each with its number."""

from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from whorl._readers import limits
from whorl._readers.local_files import _open_regular
from whorl._readers.subject import Subject, size_text

TOO_LONG = "Remove that line, or cut the text in it."


def lines(path: Path, what: str, *, drop_torn: bool = False) -> Iterator[tuple[int, str]]:
    r"""Number from 1 and text, without its line end, of every line; only \n ends a line.

    Args:
        path: A regular file in UTF-8.
        what: Kind of thing for messages.
        drop_torn: Leave out a last line without its end, which a killed writer leaves behind.

    Raises:
        InputRefused: missing, unreadable, not a regular file, a line of over 1 MB, or not UTF-8.
    """
    with _open_regular(path, Subject(what, path.name)) as raw, BufferedReader(raw) as file:
        number = 0
        while data := file.readline(limits.MAX_TRANSCRIPT_LINE + 1):
            number += 1
            subject = Subject(what, f"{path.name}: line {number}")
            if len(data) > limits.MAX_TRANSCRIPT_LINE:
                raise subject.malformed("a longer line", f"at most {size_text(limits.MAX_TRANSCRIPT_LINE)}", TOO_LONG)
            if drop_torn and not data.endswith(b"\n"):
                return
            try:
                yield number, data.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")
            except UnicodeDecodeError as error:
                found = f"a byte that is not UTF-8 at position {error.start}"
                raise subject.malformed(found, "UTF-8", "Convert the file to UTF-8.") from error
