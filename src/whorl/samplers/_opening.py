"""From a reference to a model and a tokenizer of transformers, with every byte of weights through whorl's own readers.

The library gets a config that names no code and tensors that were already checked; it never opens a weight file, so no
pickle, no adapter of another repository and no remote code can come in. Adapters are merged by the reader.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whorl._readers import hub, limits
from whorl._readers.adapter import AdapterSource
from whorl._readers.config import refuse_custom_code
from whorl._readers.folder import FolderSource
from whorl._readers.local_files import LocalFolder
from whorl._readers.open import OpenedModel, open_model
from whorl.errors import MalformedFile, UnsupportedFile, UsageError, safe_name
from whorl.progress import Progress, silent
from whorl.refs import parse_ref
from whorl.source import TensorSource
from whorl.transcripts.record import ModelId

PRECISIONS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_DTYPES = {stored: name for name, stored in PRECISIONS.items()}
_TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("tokenizer.model",))
_BESIDE = ("added_tokens.json", "special_tokens_map.json", "tokenizer_config.json", "chat_template.jinja")
_GENERATION = "generation_config.json"


@dataclass(frozen=True)
class Opened:
    """A model that can answer.

    Args:
        id: Who it is.
        model: Of transformers, in eval mode, on its device.
        tokenizer: Of transformers.
        tokenizer_digest: SHA-256 of the files that decide the ids.
        ends: Ids that end an answer.
        notes: What the readers saw and left alone.
    """

    id: ModelId
    model: Any
    tokenizer: Any
    tokenizer_digest: str
    ends: tuple[int, ...]
    notes: tuple[str, ...]


@contextmanager
def checked_files(ref: str, *, offline: bool, progress: Progress = silent) -> Iterator[tuple[OpenedModel, LocalFolder]]:
    """The open model and its folder, tokenizer files included; nothing in it names code.

    Raises:
        UsageError: the reference is wrong, or transformers is missing.
        InputRefused: files break a rule, name code, or are of a kind that cannot answer.
        RemoteError: the Hub failed.
    """
    require_transformers()
    with open_model(ref, offline=offline, progress=lambda text: progress(text, 0, 1)) as opened:
        folder = _folder_of(opened)
        if opened.commit is not None and not offline:
            folder = _with_tokenizer(opened, folder)
        refuse_custom_code(opened.source.config, opened.resolved)
        yield opened, folder


def open_for_sampling(
    ref: str, *, device: str, dtype: str, offline: bool = False, progress: Progress = silent
) -> Opened:
    """Read a model and put it on a device.

    Raises:
        UsageError: the reference, device or dtype is wrong, or transformers is missing.
        InputRefused, RemoteError: as `checked_files`, and for tensors that do not fit the config.
    """
    with checked_files(ref, offline=offline, progress=progress) as (opened, folder):
        device, dtype = checked_device(device), stored_dtype(opened.source, dtype)
        tokenizer, digest = read_tokenizer(folder)
        tensors, weights = _read(opened.source, dtype, progress)
        model, notes = _model(opened, tensors, dtype, device)
        name = model_id(ref, opened, weights, dtype)
    ends = ends_of(folder, model.config, tokenizer)
    return Opened(name, model, tokenizer, digest, ends, (*opened.notes, *notes))


def model_id(ref: str, opened: OpenedModel, weights: str, dtype: str) -> ModelId:
    """Who answers: the commit of a whole repository, otherwise the digest of the weights, is the revision."""
    whole = opened.commit is not None and not isinstance(opened.source, AdapterSource)
    return ModelId(_label(ref), opened.commit if whole else weights, PRECISIONS[dtype])


def require_transformers() -> None:
    """Check that the extra `lab` is installed.

    Raises:
        UsageError: torch or transformers is missing.
    """
    from importlib.util import find_spec

    missing = [name for name in ("torch", "transformers") if find_spec(name) is None]
    if missing:
        raise UsageError(f'Sampling a local model needs {" and ".join(missing)}: pip install "whorl[lab]".')


def checked_device(device: str) -> str:
    """The device, "auto" resolved.

    Raises:
        UsageError: no such device here.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch's words for an unknown or missing device
        reason = safe_name(str(error).partition("\n")[0], 120)
        raise UsageError(f"No device '{safe_name(device, 40)}' here ({reason}); use cpu, cuda or auto.") from error
    return device


def _label(ref: str) -> str:
    """Repository or last name of the folder, adapters included: no path of this machine enters a record."""
    parsed = parse_ref(ref)
    names = [
        part.repo if part.repo is not None else Path(str(part.path)).expanduser().resolve().name
        for part in (parsed.base, parsed.adapter)
        if part is not None
    ]
    return "+".join(str(name) for name in names)


# -- files -----------------------------------------------------------------------------------------------------------


def _folder_of(opened: OpenedModel) -> LocalFolder:
    source: TensorSource = opened.source
    while isinstance(source, AdapterSource):
        source = source.base
    if not isinstance(source, FolderSource):
        advice = "Serve it over HTTP and use --endpoint, or name the folder it was made from."
        raise UnsupportedFile("model", opened.typed, "a GGUF file", "a folder with safetensors and tokenizer", advice)
    return LocalFolder.at(source.folder.root)


def _with_tokenizer(opened: OpenedModel, folder: LocalFolder) -> LocalFolder:
    """Fetch the small files that fingerprints do not need, at the same commit."""
    repo = str(parse_ref(opened.resolved.partition("+")[0]).repo)
    sizes = hub._list_files(repo, str(opened.commit))
    fetch = hub._Fetch(repo, str(opened.commit), sizes, lambda _: None)
    wanted = next((names for names in _TOKENIZERS if names[0] in sizes), ())
    names = [name for name in (*wanted, *_BESIDE, _GENERATION) if name in sizes]
    fetch._check_text_sizes(names)
    for name in names:
        fetch._download(name)
    return LocalFolder.at(folder.root)


def _read(source: TensorSource, dtype: str, progress: Progress) -> tuple[dict[str, Any], str]:
    """All tensors in one type, and the digest of the stored weights."""
    import torch

    kept: dict[str, Any] = {}

    def keep(name: str, values: Any) -> None:
        kept[name] = torch.from_numpy(values).to(getattr(torch, dtype))

    return kept, weights_digest(source, keep, progress)


def weights_digest(source: TensorSource, keep: Callable[[str, Any], None], progress: Progress = silent) -> str:
    """SHA-256 of the stored weights, equal to `Fingerprint.weights_digest`; each tensor is shown to `keep` on the way."""
    total = hashlib.sha256()
    for done, (name, info) in enumerate(sorted(source.tensors.items())):
        progress("tensors", done, len(source.tensors))
        digest = hashlib.sha256()
        keep(name, source.rows(name, digest=digest))
        total.update(json.dumps([name, info.dtype, list(info.shape), digest.hexdigest()]).encode())
    return total.hexdigest()


def stored_dtype(source: TensorSource, dtype: str) -> str:
    """The dtype to compute in; "auto" is the one most values are stored in.

    Raises:
        UsageError: another one.
    """
    if dtype != "auto":
        if dtype not in PRECISIONS:
            raise UsageError(f"Unknown dtype '{safe_name(dtype, 40)}'; expected auto, {', '.join(PRECISIONS)}.")
        return dtype
    counts: Counter[str] = Counter()
    for info in source.tensors.values():
        counts[info.dtype] += info.n_values
    return _DTYPES.get(max(counts, key=lambda kind: counts[kind]), "float32")


# -- the model -------------------------------------------------------------------------------------------------------


def _model(opened: OpenedModel, tensors: Mapping[str, Any], dtype: str, device: str) -> tuple[Any, tuple[str, ...]]:
    """The model of transformers with these tensors, nothing missing, nothing of another shape; what it does not use."""
    import torch

    config = read_config(opened)
    with quiet(), torch.random.fork_rng(devices=[]):
        from transformers import AutoModelForCausalLM

        if type(config) not in AutoModelForCausalLM._model_mapping:
            raise _cannot_answer(opened, config.model_type)
        kind = AutoModelForCausalLM._model_mapping[type(config)]
        options = {"config": config, "state_dict": dict(tensors), "dtype": getattr(torch, dtype)}
        # Reported, and refused below with their names.
        options |= {"output_loading_info": True, "ignore_mismatched_sizes": True, "trust_remote_code": False}
        try:
            model, report = kind.from_pretrained(None, **options)
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            raise _does_not_fit(opened, safe_name(error, 200)) from error
    wrong = dict.fromkeys(report["missing_keys"], "is missing")
    wrong |= {name: f"has shape {tuple(found)}, not {tuple(own)}" for name, found, own in report["mismatched_keys"]}
    for name in sorted(wrong)[:1]:
        raise _does_not_fit(opened, f"tensor '{safe_name(name)}' {wrong[name]}")
    unused = sorted(report["unexpected_keys"])
    notes = (f"{len(unused)} tensors not used to answer, '{safe_name(unused[0], 80)}' among them",) if unused else ()
    return model.eval().to(device), notes


def read_config(opened: OpenedModel) -> Any:
    """The configuration of transformers.

    Raises:
        InputRefused: of an unknown family, with a value out of range, or of packed weights.
    """
    from transformers import CONFIG_MAPPING

    given = dict(opened.source.config)
    kind = given.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise _cannot_answer(opened, kind)
    if given.get("quantization_config"):
        advice = "Serve it over HTTP and use --endpoint, or name the unquantised model."
        raise UnsupportedFile("model", opened.typed, "packed quantised weights", "plain floats", advice)
    try:
        return CONFIG_MAPPING[kind].from_dict(given)
    except Exception as error:  # the library checks each field with exceptions of many kinds
        found = f"a config that transformers refuses ({safe_name(error, 200)})"
        raise MalformedFile("config of", opened.typed, found, "the config of its family", "Fetch it again.") from error


def _cannot_answer(opened: OpenedModel, kind: object) -> UnsupportedFile:
    found = f"model type '{safe_name(kind, 40)}'"
    return UnsupportedFile("model", opened.typed, found, "a causal language model that transformers knows", "Name one.")


def _does_not_fit(opened: OpenedModel, found: str) -> MalformedFile:
    return MalformedFile("model", opened.typed, found, "the tensors of its config", "Fetch the model again.")


# -- the tokenizer ---------------------------------------------------------------------------------------------------


def read_tokenizer(folder: LocalFolder) -> tuple[Any, str]:
    """The tokenizer of transformers, and the digest of its files."""
    from transformers import AutoTokenizer

    wanted = next((names for names in _TOKENIZERS if names[0] in folder), None)
    if wanted is None:
        advice = "Name a folder that holds tokenizer.json, or serve the model over HTTP."
        raise UnsupportedFile("folder", folder.subject.name, "no tokenizer", "the tokenizer of the model", advice)
    names = [name for name in (*wanted, *_BESIDE) if name in folder]
    contents = {name: folder.file(name, "tokenizer").read_all(limits.MAX_JSON) for name in names}
    digest = hashlib.sha256(b"".join(contents[n] for n in names if n in (*wanted, "added_tokens.json")))
    if "tokenizer_config.json" in folder:
        refuse_custom_code(folder.json("tokenizer_config.json", "tokenizer"), folder.subject.name)
    with quiet():
        try:
            made = AutoTokenizer.from_pretrained(folder.root, trust_remote_code=False, local_files_only=True)
        except ImportError as error:
            raise UsageError(f"The tokenizer needs another library: {safe_name(error, 200)}") from error
        except Exception as error:  # the Rust library raises bare exceptions
            found = f"a tokenizer that transformers refuses ({safe_name(error, 200)})"
            raise MalformedFile("folder", folder.subject.name, found, "its tokenizer", "Fetch it again.") from error
    return made, digest.hexdigest()


def ends_of(folder: LocalFolder, config: Any, tokenizer: Any) -> tuple[int, ...]:
    """Ids that end an answer, as config, generation config and tokenizer name them."""
    given: list[Any] = [config.get_text_config().eos_token_id, tokenizer.eos_token_id]
    if _GENERATION in folder:
        given.append(folder.json(_GENERATION, "config").get("eos_token_id"))
    flat = [value for item in given for value in (item if isinstance(item, list) else [item])]
    n_vocab = config.get_text_config().vocab_size
    return tuple(sorted({value for value in flat if type(value) is int and 0 <= value < n_vocab}))


@contextmanager
def quiet() -> Iterator[None]:
    """No bars and no remarks of transformers; its settings are put back."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
