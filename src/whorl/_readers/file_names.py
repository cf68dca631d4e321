"""File names that other files or other people chose, judged by POSIX and Windows rules on every system."""

import unicodedata
from collections.abc import Iterable

from whorl._readers import limits
from whorl._readers.subject import Subject
from whorl.errors import safe_name

_RESERVED = {
    *("con", "prn", "aux", "nul", "conin$", "conout$", "clock$"),
    *(f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789¹²³"),
}
_WINDOWS_FORBIDDEN = set('<>:"|?*')
NAME_ADVICE = "Do not use it."


def check_plain_name(name: str, subject: Subject, suffix: str) -> None:
    """Refuse names that could reach outside a folder, or that mean something else on another system.

    Args:
        name: The name, for example a value of a shard index.
        subject: The file that holds the name.
        suffix: How the name must end, ".safetensors".

    Raises:
        UnsafeFile: empty, absolute, with a separator, "..", drive, NUL or unprintable character, a Windows device
            name, over 255 bytes, or another ending.
    """
    fault = _fault(name)
    if fault:
        raise subject.unsafe(f"shard name '{safe_name(name, 60)}' {fault}", "a plain file name", NAME_ADVICE)
    if not name.endswith(suffix) or name == suffix:
        found = f"shard name '{safe_name(name, 60)}'"
        raise subject.unsafe(found, f"a name that ends in {suffix}", NAME_ADVICE)


def _fault(name: str) -> str:
    if not name:
        return "is empty"
    if name.startswith(("/", "\\")) or name[1:2] == ":":
        return "is an absolute path"
    if ".." in name.replace("\\", "/").split("/"):
        return "leaves the folder"
    if "/" in name or "\\" in name:
        return "holds a path separator"
    if not name.isprintable():
        return "holds an unprintable character"
    if _WINDOWS_FORBIDDEN & set(name) or name != name.rstrip(" .") or name != name.lstrip(" "):
        return "is not valid on Windows"
    if name.split(".", maxsplit=1)[0].rstrip(" ").casefold() in _RESERVED:
        return "is a Windows device"
    if len(name.encode()) > limits.MAX_FILE_NAME_BYTES:
        return "is too long"
    return ""


def refuse_lookalikes(names: Iterable[str], subject: Subject) -> None:
    """Refuse two names that some file system takes for one.

    Raises:
        UnsafeFile: two names are equal after case folding and Unicode normalisation (NFKC).
    """
    seen: dict[str, str] = {}
    for name in sorted(names):
        key = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
        if key in seen:
            found = f"'{safe_name(seen[key], 60)}' and '{safe_name(name, 60)}', one file on some systems"
            raise subject.unsafe(found, "names that differ by more than case or Unicode form")
        seen[key] = name
