"""Many independent measurements on all cores, each kept as one line of JSON as soon as it is done."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from whorl._threads import n_cores
from whorl.errors import MalformedFile
from whorl.progress import Progress, silent

Row = dict[str, Any]


def run_jobs(
    keys: Sequence[str], work: Callable[[str], Row], path: Path, what: str, progress: Progress = silent
) -> dict[str, Row]:
    """Run `work` for every key that `path` does not hold yet, and return all rows by key.

    Args:
        keys: Distinct names of the jobs; `work` needs nothing else.
        work: A picklable function of one key that returns JSON values.
        path: File of rows, one a line; a line cut off by a kill is done again.
        what: For the progress.
        progress: Called with `what`, jobs done and jobs in all.

    Raises:
        MalformedFile: a line of the file is no JSON object with a key.
    """
    rows = read_rows(path)
    missing = [key for key in keys if key not in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    progress(what, len(keys) - len(missing), len(keys))
    with path.open("a", encoding="utf-8") as file, ProcessPoolExecutor(n_cores(), initializer=one_thread) as pool:
        for done in as_completed({pool.submit(_keyed, work, key) for key in missing}):
            row = done.result()
            rows[row["key"]] = row
            file.write(json.dumps(row, allow_nan=False) + "\n")
            file.flush()
            progress(what, sum(key in rows for key in keys), len(keys))
    return {key: rows[key] for key in keys}


def read_rows(path: Path) -> dict[str, Row]:
    """Rows of an earlier run by key; a last line without its end is cut off."""
    if not path.is_file():
        return {}
    text = path.read_text("utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, "utf-8")
    return {row["key"]: row for row in _parsed(path, whole.splitlines())}


def _parsed(path: Path, lines: Iterable[str]) -> Iterable[Row]:
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or "key" not in row:
            found = f"line {number} is no measurement"
            raise MalformedFile(
                "results", path.name, found, "one JSON object a line", "Remove the file to start again."
            )
        yield row


def _keyed(work: Callable[[str], Row], key: str) -> Row:
    return {"key": key, **work(key)}


def one_thread() -> None:
    """Each worker has a core of its own; the variable is read when a library of threads is first loaded."""
    os.environ["OMP_NUM_THREADS"] = "1"
    from threadpoolctl import threadpool_limits

    threadpool_limits(limits=1)
    if "torch" in sys.modules:  # its own MKL, which threadpoolctl does not see, and threads do not survive a fork
        sys.modules["torch"].set_num_threads(1)
