"""A model folder in the Hugging Face layout as a tensor source, and the choice of a reader for what a user names.

Read are `config.json` and either `model.safetensors` or the shards of `model.safetensors.index.json`; never guessed
from file order. Pickles are never opened.
"""

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from whorl._readers import limits
from whorl._readers.buffers import Buffers
from whorl._readers.config import custom_code_notes
from whorl._readers.local_files import LocalFolder
from whorl._readers.safetensors_file import SafetensorsFile
from whorl._readers.shards import (
    INDEX_NAME,
    WEIGHTS_SUFFIX,
    index_notes,
    join_shards,
    parse_index,
    refuse_second_model,
)
from whorl._readers.stand_ins import UNPACK_ADVICE
from whorl._readers.subject import INCOMPLETE, Subject
from whorl.errors import UsageError, safe_name
from whorl.source import Digest, Floats, TensorInfo, TensorSource

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
ADAPTER_NAME = "adapter_model.safetensors"

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill")
_ARRAYS = (".npy", ".npz", ".h5", ".hdf5", ".keras", ".msgpack", ".onnx", ".pb", ".tflite", ".ot")
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar", ".zst")
_PICKLE_ADVICE = (
    "Ask its owner for safetensors, use https://huggingface.co/spaces/safetensors/convert, or convert it in a sandbox "
    "without network: `import torch, safetensors.torch as st` and `st.save_file({k: v.clone().contiguous() for k, v in "
    "torch.load({name!r}, map_location='cpu', weights_only=True).items()}, 'model.safetensors')`."
)
_HEADS = ("lm_head.weight", "language_model.lm_head.weight", "embed_out.weight")
_SHARD_NAME = re.compile(r"-0*\d+-of-0*(\d+)\.safetensors$")


class FolderSource:
    """A `TensorSource` over a local folder; all headers are checked on construction, no data is read.

    Args:
        path: The folder.
        weights: Name of the one safetensors file to read; None finds the weights by the rules of the layout.

    Raises:
        InputRefused: the folder, a name, a link, the index, a header or the config breaks a rule.
    """

    def __init__(self, path: str | os.PathLike[str], weights: str | None = None) -> None:
        self._folder = folder = LocalFolder.at(path)
        self._label = str(path if weights is None else Path(path) / weights)
        if weights is None:
            self._home, config, notes = _whole_folder(folder)
        else:
            self._home, config, notes = _one_file(folder, weights), folder.json(CONFIG_NAME, "config"), []
        self._config = MappingProxyType(config)
        read = {file.label for file in self._home.values()}
        self._notes = (*custom_code_notes(config), *notes, *_notes(folder, read))
        self._tensors = MappingProxyType({name: file.tensors[name] for name, file in sorted(self._home.items())})

    @property
    def label(self) -> str:
        """The path as given."""
        return self._label

    @property
    def folder(self) -> LocalFolder:
        """The checked folder that holds the weights."""
        return self._folder

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors of all shards by name, in sorted name order."""
        return self._tensors

    @property
    def config(self) -> Mapping[str, Any]:
        """The parsed `config.json`."""
        return self._config

    @property
    def notes(self) -> tuple[str, ...]:
        """What was seen and left alone: custom code, pickles, other weights. Plain sentences, already escaped."""
        return self._notes

    def rows(self, name: str, start: int = 0, stop: int | None = None, digest: Digest | None = None) -> Floats:
        """Decoded rows [start, stop); see `SafetensorsFile.rows`."""
        return self.file_of(name).rows(name, start, stop, digest)

    def file_of(self, name: str) -> SafetensorsFile:
        """The file that holds a tensor (`LookupError` when there is none)."""
        if name not in self._home:
            raise LookupError(f"no tensor '{name}' in {self.label}")
        return self._home[name]

    def close(self) -> None:
        """Make further reads an error."""
        for file in self._home.values():
            file.close()


def open_local(path: str | os.PathLike[str]) -> TensorSource:
    """Open what a user named: a folder, a `.safetensors` file with its `config.json` beside it, or a `.gguf` file.

    Raises:
        UsageError: there is nothing at `path`.
        InputRefused: it is something else, or it breaks a rule.
    """
    real = _expand(path)
    mode = _mode(real)
    if stat.S_ISDIR(mode):
        return FolderSource(real)
    if not stat.S_ISREG(mode):
        raise Subject("path", str(real)).unsafe("neither a file nor a folder", "a model", "Do not use it.")
    if real.name.endswith(WEIGHTS_SUFFIX):
        return FolderSource(real.parent, real.name)
    if real.suffix.lower() == ".gguf":
        from whorl._readers.gguf_file import GgufSource

        return GgufSource(real)
    raise _unread_kind(real)


def _expand(path: str | os.PathLike[str]) -> Path:
    text = os.fspath(path)
    if not text or "\0" in text:
        raise UsageError(f"Not a path: '{safe_name(text)}'.")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # "~name" of nobody here
        raise UsageError(f"Cannot open '{safe_name(text)}': no such user.") from error


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except OSError as error:
        raise UsageError(f"Cannot open '{safe_name(path)}': {error.strerror}.") from error


def _unread_kind(path: Path) -> Exception:
    subject, suffix = Subject("file", str(path)), path.suffix.lower()
    if suffix in _PICKLES:
        advice = _PICKLE_ADVICE.replace("{name!r}", repr(safe_name(path.name)))
        return subject.unsupported("a pickle, which can run code", "safetensors", advice)
    if suffix in _ARCHIVES:
        return subject.unsupported("an archive", "a model folder", UNPACK_ADVICE)
    if suffix in _ARRAYS:
        return subject.unsupported(f"a {suffix} file", "safetensors or GGUF", "Ask its owner for safetensors.")
    advice = "Name the folder of the model, its .safetensors file or its .gguf file."
    return subject.unsupported("another kind of file", "a model", advice)


def _whole_folder(folder: LocalFolder) -> tuple[dict[str, SafetensorsFile], dict[str, Any], list[str]]:
    """File by tensor, config, notes."""
    if INDEX_NAME not in folder and WEIGHTS_NAME not in folder:
        raise _no_weights(folder)
    if CONFIG_NAME not in folder:
        raise folder.subject.malformed("no config.json", "the config beside the weights", INCOMPLETE)
    config = folder.json(CONFIG_NAME, "config")
    if INDEX_NAME in folder:
        joined, notes = _sharded(folder, tied=config.get("tie_word_embeddings") is not False)
        return joined, config, notes
    file = SafetensorsFile(folder.file(WEIGHTS_NAME, "file"))
    return dict.fromkeys(file.tensors, file), config, []


def _sharded(folder: LocalFolder, *, tied: bool) -> tuple[dict[str, SafetensorsFile], list[str]]:
    index = parse_index(folder.file(INDEX_NAME, "index").read_all(limits.MAX_JSON))
    buffers = Buffers()
    shards = {name: SafetensorsFile(folder.file(name, "shard"), buffers=buffers) for name in index.shards}
    joined = join_shards(index, shards, _HEADS if tied else ())
    if WEIGHTS_NAME in folder and WEIGHTS_NAME not in shards:
        refuse_second_model(SafetensorsFile(folder.file(WEIGHTS_NAME, "file")), joined)
    return joined, index_notes(index, {name: file.tensors[name] for name, file in joined.items()})


def _no_weights(folder: LocalFolder) -> Exception:
    """Why a folder without the two known layouts cannot be read, the most telling reason first."""
    names = sorted(folder.names)
    safetensors = [name for name in names if name.endswith(WEIGHTS_SUFFIX)]
    subject = folder.subject
    if ADAPTER_NAME in names or "adapter_config.json" in names:
        return subject.unsupported("an adapter without its base", "a whole model", "Name both: base+adapter.")
    if any(_SHARD_NAME.search(name) for name in safetensors):
        return subject.malformed("shards without their index", f"'{INDEX_NAME}'", INCOMPLETE)
    if safetensors:
        advice = "Name the file itself if it is the whole model."
        return subject.unsupported(f"only {_quoted(safetensors)}", f"'{WEIGHTS_NAME}' or an index", advice)
    if pickles := _with_suffix(names, _PICKLES):
        found = f"only pickle weights ({_quoted(pickles)}), which can run code"
        return subject.unsupported(
            found, "safetensors", _PICKLE_ADVICE.replace("{name!r}", repr(safe_name(pickles[0])))
        )
    if gguf := _with_suffix(names, (".gguf",)):
        return subject.unsupported(f"only {_quoted(gguf)}", "safetensors", "Name one of the GGUF files itself.")
    if others := _with_suffix(names, (*_ARRAYS, *_ARCHIVES)):
        return subject.unsupported(f"only {_quoted(others)}", "safetensors", "Ask its owner for safetensors.")
    return subject.unsupported("no weights", f"'{WEIGHTS_NAME}' or '{INDEX_NAME}'", "Name the folder of a model.")


def _one_file(folder: LocalFolder, name: str) -> dict[str, SafetensorsFile]:
    subject = Subject("file", name)
    if (match := _SHARD_NAME.search(name)) and int(match[1]) > 1:
        raise subject.unsupported("one shard of several", "a whole model", "Name its folder.")
    file = SafetensorsFile(folder.file(name, "file"))
    if CONFIG_NAME not in folder:
        advice = "Put the config.json of the model beside it."
        raise subject.unsupported("no config.json beside it", "the config that says what its tensors mean", advice)
    return dict.fromkeys(file.tensors, file)


def _notes(folder: LocalFolder, read: set[str]) -> list[str]:
    """What lies in the folder and is not read, as far as it could hold another model or code."""
    code = _with_suffix(folder.names, (".py",)) + [name for name in ("custom_generate",) if name in folder.names]
    weights = _with_suffix(folder.names, (*_PICKLES, *_ARRAYS, WEIGHTS_SUFFIX, ".gguf"))
    unread = [name for name in weights if name not in read]
    notes = [f"custom code in the folder, not run: {_quoted(code)}"] if code else []
    return [*notes, f"other weights in the folder, not read: {_quoted(unread)}"] if unread else notes


def _with_suffix(names: Any, suffixes: tuple[str, ...]) -> list[str]:
    return sorted(name for name in names if name.lower().endswith(suffixes))


def _quoted(names: list[str]) -> str:
    shown = ", ".join(f"'{safe_name(name, 60)}'" for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
