"""Texts of data sets on the Hub, streamed through `datasets` from a commit that is pinned first and named in the result.

    hf:org/name   hf:org/name:config   hf:org/name:config:column@revision   hf:org/name::column

No code of a data set runs: `datasets` has run none since its version 4 and older ones are refused; so are formats other
than plain tables and texts, and a data set whose card leads to files outside its own repository.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

from whorl._readers.hub_client import get_pages
from whorl.errors import MalformedFile, RemoteError, UnsafeFile, UnsupportedFile, UsageError, safe_name
from whorl.lab.corpus import Corpus
from whorl.lab.data_sets import Row, corpus_of
from whorl.refs import ModelRef

OLDEST = 4  # version of `datasets` that no longer runs scripts of a data set
FORMATS = ("parquet", "json", "csv", "text", "arrow")


@dataclass(frozen=True)
class Place:
    """Where texts lie on the Hub.

    Args:
        repo: Data set, "org/name".
        config: Configuration of it, None for the default one.
        column: Column of texts, None for the obvious one.
        revision: Branch, tag or commit.
    """

    repo: str
    config: str | None = None
    column: str | None = None
    revision: str = "main"


@lru_cache(maxsize=2)
def hub_corpus(name: str) -> Corpus:
    """The texts of a data set of the Hub: its split "train", else its first.

    Args:
        name: `org/name`, optionally `:config`, `:column` and `@revision`, without the prefix `hf:`.

    Returns:
        A corpus called `hf:org/name:config@commit:column`, with the full commit.

    Raises:
        UsageError: `datasets` is missing or old; no such data set, revision, configuration or text column; too little text.
        InputRefused: a format that is not read, files outside the repository, or rows that cannot be read.
        RemoteError: the Hub cannot be reached.
    """
    place = parse_place(name)
    found, rows = hub_rows(place)
    return corpus_of(found, rows, place.column)


def hub_rows(place: Place) -> tuple[str, Iterator[Row]]:
    """The rows of a data set of the Hub, one value by column each, and its name `hf:org/name:config@commit`.

    Raises:
        UsageError: `datasets` is missing or old; no such data set, revision or configuration.
        InputRefused: a format that is not read, files outside the repository, or (later) rows that cannot be read.
        RemoteError: the Hub cannot be reached.
    """
    datasets = _library()
    repo, commit = _resolved(place)
    with _reading(datasets, repo):
        builder = datasets.load_dataset_builder(repo, place.config, revision=commit)
    files = _checked_files(builder, repo, commit)
    rows = _rows(datasets, repo, builder, "train" if "train" in files else next(iter(files)))
    return f"hf:{repo}:{safe_name(builder.config.name)}@{commit}", rows


def parse_place(name: str) -> Place:
    """Read `org/name[:config[:column]][@revision]`.

    Raises:
        UsageError: another form.
    """
    place, at, revision = name.partition("@")
    repo, *rest = place.split(":")
    if len(rest) > 2 or (at and not revision) or "/" not in repo:
        raise UsageError(
            f"'hf:{safe_name(name)}' names no data set; expected hf:org/name, hf:org/name:config or "
            "hf:org/name:config:column, and @revision after any of them."
        )
    ModelRef(repo=repo, revision=revision or None)  # the Hub's rules for names are the same for data sets
    config, column = (part or None for part in (*rest, "", "")[:2])
    return Place(repo, config, column, revision or "main")


def _library() -> Any:
    if find_spec("datasets") is None:
        raise UsageError('Texts of the Hub need datasets: pip install "whorl[text]".')
    datasets = import_module("datasets")
    if int(datasets.__version__.partition(".")[0]) < OLDEST:
        raise UsageError(
            f"datasets {datasets.__version__} may run code of a data set; {OLDEST} or later is needed: "
            'pip install --upgrade "whorl[text]".'
        )
    return datasets


def _resolved(place: Place) -> tuple[str, str]:
    """The repository's present name and the full commit, before anything else is read."""
    path = f"/api/datasets/{place.repo}/revision/{quote(place.revision, safe='')}"
    answer = next(get_pages(path, place.repo, place.revision))
    facts = answer if isinstance(answer, dict) else {}
    repo, commit = facts.get("id"), facts.get("sha")
    if not isinstance(repo, str) or not isinstance(commit, str) or len(commit) != 40:
        raise RemoteError(f"The Hub's answer about '{place.repo}' names no commit. Check HF_ENDPOINT.")
    ModelRef(repo=repo, revision=commit)
    if Path(repo).exists():
        raise UsageError(
            f"'{repo}' is also a local folder, which `datasets` would read instead. Run in another folder."
        )
    return repo, commit


def _checked_files(builder: Any, repo: str, commit: str) -> Any:
    """Split -> files of a data set, all of them its own."""
    name = builder.__module__.rsplit(".", 1)[-1]
    if name not in FORMATS:
        advice = "Convert the texts to Parquet or .jsonl."
        raise UnsupportedFile(
            "data set", repo, f"format '{safe_name(name, 40)}'", f"one of {', '.join(FORMATS)}", advice
        )
    files = builder.config.data_files
    own = f"hf://datasets/{repo}@{commit}/"
    listed = [file for names in files.values() for file in names]
    strange = [file for file in listed if not file.startswith(own) or ".." in file.split("/")]
    if strange:
        found = f"its card leads to '{safe_name(strange[0], 60)}'"
        raise UnsafeFile("data set", repo, found, "files of the repository itself", "Do not use it.")
    return files


def _rows(datasets: Any, repo: str, builder: Any, split: str) -> Iterator[Row]:
    with _reading(datasets, repo):
        yield from builder.as_streaming_dataset(split=split)


@contextmanager
def _reading(datasets: Any, repo: str) -> Iterator[None]:
    """Translate what the library raises; its own texts may hold signed addresses, so little of them is shown."""
    import httpx2
    import pyarrow as pa
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        yield
    except (httpx2.HTTPError, ConnectionError, TimeoutError, LocalEntryNotFoundError) as error:
        kind = type(error).__name__
        raise RemoteError(
            f"The Hub did not serve data set '{repo}' ({kind}). Check the network and try again."
        ) from None
    except (pa.ArrowException, UnicodeDecodeError) as error:
        advice = "Choose another revision, or ask its owner."
        raise MalformedFile("data set", repo, f"unreadable rows ({type(error).__name__})", "texts", advice) from None
    except (RuntimeError, ImportError) as error:  # scripts, and addresses that need another library
        advice = "Look for a revision with Parquet files, or convert it."
        raise UnsupportedFile("data set", repo, safe_name(error, 80), "data files of its own", advice) from None
    except (datasets.exceptions.DatasetsError, FileNotFoundError, ValueError) as error:
        raise UsageError(f"Data set 'hf:{repo}' cannot be opened: {safe_name(error, 300)}") from None
