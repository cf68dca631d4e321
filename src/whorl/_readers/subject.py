"""What a refusal is about: the kind and the name of a thing, given once and used by every check on it."""

from dataclasses import dataclass

from whorl.errors import MalformedFile, UnsafeFile, UnsupportedFile

DAMAGED = "The file is damaged or crafted: fetch it again, or ask its owner."
CRAFTED = "Two readers could see two different models here: do not use it, or ask its owner."
INCOMPLETE = "The download is incomplete: fetch it again."


@dataclass(frozen=True)
class Subject:
    """One input and how messages call it.

    Args:
        what: Kind in one or two words ("file", "shard", "index", "config", "folder").
        name: Its name as the user or another file gave it; escaped by the errors.
    """

    what: str
    name: str

    def malformed(self, found: str, expected: str, advice: str = DAMAGED) -> MalformedFile:
        """The error for bytes that are not what the format demands."""
        return MalformedFile(self.what, self.name, found, expected, advice)

    def unsafe(self, found: str, expected: str, advice: str = CRAFTED) -> UnsafeFile:
        """The error for something readable that is dangerous or ambiguous."""
        return UnsafeFile(self.what, self.name, found, expected, advice)

    def unsupported(self, found: str, expected: str, advice: str) -> UnsupportedFile:
        """The error for a harmless thing that is not read."""
        return UnsupportedFile(self.what, self.name, found, expected, advice)


def size_text(n_bytes: int) -> str:
    """A size for people: `"12 bytes"`, `"4.9 GB"` (decimal units)."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n_bytes >= 10 * factor or (n_bytes >= factor and unit == "GB"):
            return f"{n_bytes / factor:.1f} {unit}"
    return f"{n_bytes} byte" if n_bytes == 1 else f"{n_bytes} bytes"
