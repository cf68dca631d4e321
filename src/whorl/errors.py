"""The one exception tree.

    WhorlError
    ├── UsageError              exit 2   the command or call is wrong
    ├── InputRefused            exit 3
    │   ├── MalformedFile       the bytes are not what the format demands
    │   ├── UnsafeFile          readable, but reading on would be dangerous or ambiguous
    │   └── UnsupportedFile     harmless, but not a kind we read
    ├── NotComparable           exit 4   two things cannot be compared; never a score of 0
    │   └── BrokenModel         its weights give no finite numbers
    ├── NotEnoughEvidence       exit 4   more prompts, layers or pairs would help
    └── RemoteError             exit 4   the other side failed; safe to try again

Every refusal reads `Refused <what> '<safe name>': <found>; expected <expected>. <advice>`.
"""

from typing import ClassVar

MAX_SHOWN_NAME = 120


def safe_name(text: object, limit: int = MAX_SHOWN_NAME) -> str:
    """Text of foreign origin made harmless for a terminal: ASCII, escaped, at most `limit` characters."""
    escaped = str(text).encode("unicode_escape", errors="backslashreplace").decode("ascii")
    return escaped if len(escaped) <= limit else escaped[: limit - 3] + "..."


class WhorlError(Exception):
    """Base of every error that whorl raises on purpose."""

    exit_code: ClassVar[int] = 70

    def to_dict(self) -> dict[str, str]:
        """The error as `--json` prints it: its class and its message."""
        return {"kind": type(self).__name__, "message": str(self)}


class UsageError(WhorlError):
    """The command or the call is wrong: unknown method, contradictory options, ambiguous reference."""

    exit_code = 2


class InputRefused(WhorlError):
    """A file, folder or repository that must not or cannot be read.

    Args:
        what: Kind of thing, in one or two words ("file", "shard", "index", "folder").
        name: Its name as the user or the file gave it; escaped here.
        found: What was found.
        expected: What was expected instead.
        advice: What to do, one sentence with its full stop.
    """

    exit_code = 3

    def __init__(self, what: str, name: object, found: str, expected: str, advice: str) -> None:
        self.what, self.name, self.found, self.expected, self.advice = what, safe_name(name), found, expected, advice
        super().__init__(f"Refused {what} '{self.name}': {found}; expected {expected}. {advice}")

    def __reduce__(self) -> tuple[type["InputRefused"], tuple[str, str, str, str, str]]:
        """Errors cross from worker processes to the one that prints them."""
        return type(self), (self.what, self.name, self.found, self.expected, self.advice)


class MalformedFile(InputRefused):
    """The bytes are not what the format demands."""


class UnsafeFile(InputRefused):
    """Readable, but reading on would be dangerous, or two readers could read different things."""


class UnsupportedFile(InputRefused):
    """Harmless, but not a kind of file or model that whorl reads."""


class NotComparable(WhorlError):
    """Two things cannot be compared by this method; the message is the reason."""

    exit_code = 4


class BrokenModel(NotComparable):
    """A model whose weights give no finite numbers: it has no answer, no loss and no perplexity."""


class NotEnoughEvidence(WhorlError):
    """The question is sound but the input is too small to answer it."""

    exit_code = 4


class RemoteError(WhorlError):
    """The other side failed (network, Hub); trying again is safe."""

    exit_code = 4
