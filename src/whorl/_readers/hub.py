"""Models and adapters on the Hugging Face Hub: resolve, look, and only then download.

The revision becomes a full commit first; everything after is asked of that commit. The list of files and the headers of
the weights (read by range request) are checked before the first byte of weights is downloaded, and only configs,
indexes, token lists and safetensors ever are: no pickle, no code. Files land in the normal cache of `huggingface_hub`.
"""

import importlib.util
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from whorl import _atomic
from whorl._readers import hub_client, limits
from whorl._readers.file_names import refuse_lookalikes
from whorl._readers.hub_client import TryLater
from whorl._readers.local_files import LocalFolder
from whorl._readers.safetensors_header import header_length, parse_header
from whorl._readers.shards import INDEX_NAME, WEIGHTS_SUFFIX, parse_index
from whorl._readers.stand_ins import HEAD_BYTES, refuse_text_stand_in
from whorl._readers.subject import DAMAGED, Subject, size_text
from whorl.errors import MalformedFile, RemoteError, UsageError, WhorlError, safe_name

Kind = Literal["model", "adapter"]
Progress = Callable[[str], None]

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
ADAPTER_CONFIG_NAME = "adapter_config.json"
ADAPTER_WEIGHTS_NAME = "adapter_model.safetensors"
TOKEN_FILES = (("tokenizer.json",), ("vocab.json", "added_tokens.json"), ("tokenizer.model", "added_tokens.json"))
"""Files that say which token an embedding row is: the first group whose first file is there, as `tokens.py` reads."""
MAX_FILES = 100_000
MAX_SIZE = 2**50  # of one listed file, in bytes

_FIRST_RANGE = 100_000  # holds the header of most files, so that one request does
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill")
_OTHERS = (".npy", ".npz", ".h5", ".hdf5", ".keras", ".msgpack", ".onnx")
_CONVERT_ADVICE = (
    "Look for a conversion among its pull requests and name it '{repo}@refs/pr/N', or ask its owner to use "
    "https://huggingface.co/spaces/safetensors/convert."
)


@dataclass(frozen=True)
class Snapshot:
    """Files of one repository at one commit, on this machine.

    Args:
        repo: Repository as named by the user.
        commit: Full commit.
        folder: Folder of the cache that holds the files.
        notes: Sentences for the reader of a result.
    """

    repo: str
    commit: str
    folder: Path
    notes: tuple[str, ...] = ()


def fetch_snapshot(
    repo: str,
    revision: str | None = None,
    *,
    kind: Kind = "model",
    offline: bool = False,
    progress: Progress | None = None,
) -> Snapshot:
    """The files that make up a model or an adapter, downloaded where the cache lacks them.

    Args:
        repo: "org/name" or an old one-word name.
        revision: Branch, tag, commit or "refs/pr/N"; None is the default branch.
        kind: Which files are wanted.
        offline: Use the cache only and open no socket; also when HF_HUB_OFFLINE is set.
        progress: Called with one line of text at each step: the commit, the bytes to download, each file.

    Raises:
        UsageError: repository or revision do not exist or need a login; offline, a file is not in the cache.
        InputRefused: the repository, a name, the index or a header breaks a rule; nothing but the index was downloaded.
        RemoteError: the network or the Hub failed, or contradicted itself.
    """
    from huggingface_hub import constants

    say = progress or (lambda _: None)
    if offline or constants.is_offline_mode():
        return _from_cache(repo, revision, kind)
    commit = _resolve(repo, revision)
    say(f"{repo}@{commit}")
    notes = _remember(repo, revision, commit)
    sizes = _list_files(repo, commit)
    return _Fetch(repo, commit, sizes, say).run(kind, notes)


# -- what the Hub says, before anything is downloaded ----------------------------------------------------------------


def _resolve(repo: str, revision: str | None) -> str:
    """The full commit of a revision."""
    wanted = revision or "main"
    answer = next(hub_client.get_pages(hub_client.model_path(repo, wanted), repo, wanted))
    commit = answer.get("sha") if isinstance(answer, dict) else None
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise RemoteError(f"The Hub's answer about '{repo}' names no commit. Check HF_ENDPOINT.")
    if _COMMIT.fullmatch(wanted) and commit != wanted:
        raise RemoteError(f"The Hub resolved the commit {wanted} of '{repo}' to another one, {commit}.")
    return commit


def _remember(repo: str, revision: str | None, commit: str) -> tuple[str, ...]:
    """Note the commit of a branch in the cache as `huggingface_hub` does, so that it can be named offline."""
    if revision is not None and _COMMIT.fullmatch(revision):
        return ()
    try:
        _atomic.write_text(_repo_cache(repo) / "refs" / (revision or "main"), commit)
    except OSError as error:
        return (f"the cache did not remember the commit ({error.strerror}); offline, name {commit} itself",)
    return ()


def _repo_cache(repo: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"


def _list_files(repo: str, commit: str) -> dict[str, int]:
    """Size in bytes of each file in the root of the repository, by name."""
    sizes: dict[str, int] = {}
    for page in hub_client.get_pages(hub_client.tree_path(repo, commit), repo, commit):
        for entry in page if isinstance(page, list) else [None]:
            name, size = _listed(entry, repo)
            if size is not None:
                sizes[name] = size
        if len(sizes) > MAX_FILES:
            raise Subject("repository", repo).unsafe(f"over {MAX_FILES} files", "a model", DAMAGED)
    wanted = (WEIGHTS_SUFFIX, ".json")
    refuse_lookalikes((name for name in sizes if name.lower().endswith(wanted)), Subject("repository", repo))
    return sizes


def _listed(entry: Any, repo: str) -> tuple[str, int | None]:
    """Name and size of one entry; the size of a folder is None."""
    if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
        raise RemoteError(f"The Hub's list of '{repo}' has another form than known. Check HF_ENDPOINT.")
    if entry.get("type") != "file" or "/" in entry["path"]:
        return entry["path"], None
    large = entry.get("lfs")
    size = large.get("size") if isinstance(large, dict) else entry.get("size")
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= MAX_SIZE:
        raise RemoteError(f"The Hub's list of '{repo}' gives no size for '{safe_name(entry['path'], 80)}'.")
    return entry["path"], size


class _Fetch:
    """One download: which files, whether they are sound, and then their bytes."""

    def __init__(self, repo: str, commit: str, sizes: Mapping[str, int], say: Progress) -> None:
        self._repo, self._commit, self._sizes, self._say = repo, commit, sizes, say
        self._subject = Subject("repository", repo)

    def run(self, kind: Kind, notes: tuple[str, ...]) -> Snapshot:
        """Check, then download."""
        texts, weights = self._adapter_files() if kind == "adapter" else self._model_files()
        for name in weights:
            if not self._is_cached(name):
                self._check_remote_header(name)
        self._announce([*texts, *weights])
        paths = [self._download(name) for name in (*texts, *weights)]
        unread = sorted(n for n in self._sizes if n.endswith((*_PICKLES, WEIGHTS_SUFFIX, ".gguf")) and n not in weights)
        if unread:
            notes += (f"other weights in the repository, not read: {_quoted(unread)}",)
        return Snapshot(self._repo, self._commit, paths[0].parent, notes)

    def _model_files(self) -> tuple[list[str], list[str]]:
        """Names of texts and of weights, by the rules of the layout."""
        if INDEX_NAME in self._sizes:
            index = parse_index(self._index_text())
            missing = [name for name in index.shards if name not in self._sizes]
            if missing:
                found = f"the index names {_quoted(missing)}, which the repository lacks"
                raise self._subject.malformed(found, "all shards", "Ask its owner to upload the missing files.")
            # A whole-model file beside the shards is read too: some loaders prefer it, so both must agree.
            whole = {WEIGHTS_NAME} & self._sizes.keys()
            texts, weights = [CONFIG_NAME, INDEX_NAME], sorted({*index.shards, *whole})
        elif WEIGHTS_NAME in self._sizes:
            texts, weights = [CONFIG_NAME], [WEIGHTS_NAME]
        else:
            raise self._no_weights(f"'{WEIGHTS_NAME}' or '{INDEX_NAME}'", "model")
        if CONFIG_NAME not in self._sizes:
            raise self._subject.malformed("no config.json", "the config beside the weights", "Ask its owner for it.")
        self._check_text_sizes(texts)
        return [*texts, *self._token_files()], weights

    def _token_files(self) -> list[str]:
        """The token list, where there is one under the cap; without it the weights are compared all the same."""
        group = next((names for names in TOKEN_FILES if names[0] in self._sizes), ())
        return [name for name in group if self._sizes.get(name, limits.MAX_JSON + 1) <= limits.MAX_JSON]

    def _adapter_files(self) -> tuple[list[str], list[str]]:
        if ADAPTER_WEIGHTS_NAME not in self._sizes or ADAPTER_CONFIG_NAME not in self._sizes:
            raise self._no_weights(f"'{ADAPTER_CONFIG_NAME}' and '{ADAPTER_WEIGHTS_NAME}'", "adapter")
        self._check_text_sizes([ADAPTER_CONFIG_NAME])
        return [ADAPTER_CONFIG_NAME], [ADAPTER_WEIGHTS_NAME]

    def _index_text(self) -> bytes:
        self._check_text_sizes([INDEX_NAME])
        folder = self._download(INDEX_NAME).parent
        return LocalFolder.at(folder).file(INDEX_NAME, "index").read_all(limits.MAX_JSON)

    def _check_text_sizes(self, names: list[str]) -> None:
        for name in names:
            if self._sizes[name] > limits.MAX_JSON:
                found, cap = size_text(self._sizes[name]), size_text(limits.MAX_JSON)
                raise Subject("file", name).unsafe(found, f"at most {cap}", DAMAGED)

    def _no_weights(self, expected: str, kind: Kind) -> WhorlError:
        """Why a repository without the known files cannot be read, the most telling reason first."""
        pickles = sorted(name for name in self._sizes if name.endswith(_PICKLES))
        gguf = sorted(name for name in self._sizes if name.lower().endswith(".gguf"))
        if kind == "model" and ADAPTER_CONFIG_NAME in self._sizes:
            advice = f"Name both: base+{self._repo}."
            return self._subject.unsupported("an adapter without its base", "a whole model", advice)
        if pickles:
            found = f"only pickle weights ({_quoted(pickles)}), which can run code"
            return self._subject.unsupported(found, "safetensors", _CONVERT_ADVICE.replace("{repo}", self._repo))
        if gguf:
            advice = f"Fetch one file with `hf download {self._repo} {safe_name(gguf[0], 80)}` and name its path."
            return self._subject.unsupported(f"only {_quoted(gguf)}", expected, advice)
        if others := sorted(name for name in self._sizes if name.endswith(_OTHERS) and kind == "model"):
            return self._subject.unsupported(f"only {_quoted(others)}", "safetensors", "Ask its owner for safetensors.")
        return self._subject.unsupported(f"no {kind}", expected, "Check the name of the repository.")

    def _check_remote_header(self, name: str) -> None:
        """The whole strict header check on two range requests at most, before anything is downloaded."""
        size = self._sizes[name]
        subject = Subject("file", name)
        head = self._range(name, 0, _FIRST_RANGE) if size else b""
        refuse_text_stand_in(head[:HEAD_BYTES], subject, "safetensors")
        length = header_length(head[:HEAD_BYTES], size, name, cap=limits.MAX_HEADER_REMOTE)
        text = head[8 : 8 + length]
        if len(text) < length:
            text += self._range(name, 8 + len(text), 8 + length)
        parse_header(text, size, name)

    def _range(self, name: str, start: int, stop: int) -> bytes:
        return hub_client.get_range(self._repo, self._commit, name, self._sizes[name], start, stop)

    def _is_cached(self, name: str) -> bool:
        return _cached(self._repo, name, self._commit) is not None

    def _announce(self, names: list[str]) -> None:
        from huggingface_hub import constants

        missing = [name for name in names if not self._is_cached(name)]
        n_bytes = sum(self._sizes[name] for name in missing)
        if not missing:
            self._say(f"{self._repo}: all {len(names)} files are in the cache")
            return
        free = shutil.disk_usage(_nearest_folder(Path(constants.HF_HUB_CACHE))).free
        plan = f"{size_text(n_bytes)} in {len(missing)} files to download"
        if n_bytes > free:
            raise UsageError(f"{self._repo}: {plan}, and {size_text(free)} are free. Make room, or set HF_HOME.")
        self._say(f"{self._repo}: {plan}, {size_text(free)} free")

    def _download(self, name: str) -> Path:
        if not self._is_cached(name):
            _check_transport(name, self._sizes[name])
            self._say(f"{self._repo}: {name}, {size_text(self._sizes[name])}")
        question = partial(_download, self._repo, self._commit, name)
        path = hub_client.patiently(question, f"The Hub on '{name}' of '{self._repo}'")
        if path.parent.name != self._commit:
            raise RemoteError(
                f"'{self._repo}' changed between two requests: '{name}' came from another commit. Run again."
            )
        found, listed = path.stat().st_size, self._sizes[name]
        if found != listed:
            advice = f"Remove it with `hf cache rm model/{self._repo}` and run again."
            raise MalformedFile("file", name, f"{found} of {listed} bytes are in the cache", "all", advice)
        return path


def _check_transport(name: str, size: int) -> None:
    from huggingface_hub import constants

    if size > constants.MAX_HTTP_DOWNLOAD_SIZE and importlib.util.find_spec("hf_xet") is None:
        raise UsageError(
            f"'{safe_name(name, 80)}' has {size_text(size)}; files of that size need `pip install hf_xet`."
        )


def _download(repo: str, commit: str, name: str) -> Path:
    """One file through the normal cache, without the library's own bars."""
    import httpx2
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import FileMetadataError, HfHubHTTPError, LocalEntryNotFoundError, XetDownloadError
    from huggingface_hub.utils.tqdm import silent_tqdm

    try:
        return Path(hf_hub_download(repo, name, revision=commit, tqdm_class=silent_tqdm, library_name="whorl"))
    except HfHubHTTPError as error:
        hub_client.raise_for_status(error.response, repo, commit)
        raise RemoteError(f"The Hub's answer about '{repo}' cannot be read.") from None
    except LocalEntryNotFoundError as error:
        # The library's words for "the first request failed and the cache cannot help"; the cause says how.
        if isinstance(error.__cause__, HfHubHTTPError):
            hub_client.raise_for_status(error.__cause__.response, repo, commit)
        raise TryLater(f"no answer ({type(error.__cause__).__name__})") from None
    except (httpx2.TransportError, XetDownloadError) as error:
        raise TryLater(f"'{name}' was cut short ({type(error).__name__})") from None
    except (httpx2.RequestError, httpx2.InvalidURL) as error:
        raise RemoteError(f"The Hub's answer about '{repo}' cannot be read ({type(error).__name__}).") from None
    except (RuntimeError, ValueError):
        # hf_xet's word for a storage that failed, and the library's for an answer about it that cannot be read; the
        # texts may hold signed addresses.
        raise RemoteError(
            f"The download of '{name}' of '{repo}' failed. Run again, or set HF_HUB_DISABLE_XET=1."
        ) from None
    except FileMetadataError:
        raise RemoteError(f"The answer about '{repo}' names no commit or size. Check HF_ENDPOINT.") from None
    except OSError as error:
        raise _disk_or_length_error(error, repo, name) from None


def _disk_or_length_error(error: OSError, repo: str, name: str) -> WhorlError:
    if error.errno is not None:
        return UsageError(
            f"The cache cannot be written ({error.strerror}). Make room, or set HF_HOME to another folder."
        )
    # `huggingface_hub` raises a bare OSError when the body is shorter than the size it was promised.
    return RemoteError(f"The download of '{name}' of '{repo}' ended early. Run again.")


# -- without the network ---------------------------------------------------------------------------------------------


def _from_cache(repo: str, revision: str | None, kind: Kind) -> Snapshot:
    """The snapshot as the cache has it; opens no socket."""
    commit = _cached_commit(repo, revision)
    names = [ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME] if kind == "adapter" else [CONFIG_NAME]
    if kind == "model" and (index := _cached(repo, INDEX_NAME, commit)) is not None:
        text = LocalFolder.at(index.parent).file(INDEX_NAME, "index").read_all(limits.MAX_JSON)
        names += [INDEX_NAME, *parse_index(text).shards]
    elif kind == "model":
        names += [WEIGHTS_NAME]
    paths = {name: _cached(repo, name, commit) for name in names}
    missing = [name for name, path in paths.items() if path is None]
    found = [path for path in paths.values() if path is not None]
    if missing or not found:
        raise _not_cached(repo, commit, missing)
    return Snapshot(repo, commit, found[0].parent)


def _cached_commit(repo: str, revision: str | None) -> str:
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    ref = _repo_cache(repo) / "refs" / (revision or "main")
    try:
        commit = ref.read_text("ascii").strip()[:80]
    except (OSError, UnicodeDecodeError):
        raise _not_cached(repo, revision, []) from None
    if not _COMMIT.fullmatch(commit):
        raise MalformedFile("cache entry", ref.name, "no commit", "40 hexadecimal digits", "Delete it and run online.")
    return commit


def _cached(repo: str, name: str, commit: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repo, name, revision=commit)
    return Path(path) if isinstance(path, str) else None


def _not_cached(repo: str, revision: str | None, missing: list[str]) -> UsageError:
    shown = f"{_quoted(missing)} of '{repo}'" if missing else f"'{repo}'"
    files = "".join(f" {safe_name(name, 80)}" for name in missing[:10])
    command = f"hf download {repo}{files}" + (f" --revision {revision}" if revision else "")
    return UsageError(f"Offline, and {shown} is not in the cache. Fetch it with `{command}`, or run without --offline.")


def _nearest_folder(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _quoted(names: list[str]) -> str:
    shown = ", ".join(f"'{safe_name(name, 60)}'" for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
