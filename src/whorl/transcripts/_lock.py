"""A lock between processes that the system gives back when its holder dies, so that a killed run never blocks the next."""

import os
import sys
import time
from pathlib import Path

from whorl.errors import UsageError, safe_name


class Lock:
    """Held from construction until `release`; also excludes a second holder in the same process.

    Args:
        path: A file that stays behind, empty.
        busy: What to say when another holds it; the start of a sentence.
        wait_s: How long to wait for the other, in seconds.

    Raises:
        UsageError: another holds it, or the file cannot be made.
    """

    def __init__(self, path: Path, busy: str, wait_s: float = 0.0) -> None:
        deadline = time.monotonic() + wait_s
        try:
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
        except OSError as error:
            raise UsageError(f"'{safe_name(path)}' cannot be written: {error.strerror}.") from error
        while not _taken(self._handle):
            if time.monotonic() >= deadline:
                os.close(self._handle)
                raise UsageError(f"{busy}: wait for it, or use another folder.")
            time.sleep(0.02)

    def release(self) -> None:
        """Let others in."""
        os.close(self._handle)


def _taken(handle: int) -> bool:
    """Try to lock, without waiting; the lock goes with the handle."""
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
