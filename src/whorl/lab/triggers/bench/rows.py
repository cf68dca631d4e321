"""Rows of measurements that are to be made again: taken out of their file."""

import json
from collections.abc import Callable, Collection
from pathlib import Path

from whorl._atomic import write_text
from whorl.lab._jobs import Row, read_rows


def forget(path: Path, keys: Collection[str]) -> None:
    """Take the rows of these keys out of a file."""
    keep(path, lambda row: row["key"] not in keys)


def keep(path: Path, wanted: Callable[[Row], bool]) -> None:
    """Keep the rows that are wanted; the file is written anew only when one is not."""
    rows = read_rows(path)
    kept = [row for row in rows.values() if wanted(row)]
    if len(kept) < len(rows):
        write_text(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in kept))
