"""A bundle on disk: `bundle.json` and `arrays.safetensors`, both checked by digest and shape, no pickle anywhere.

A bundle may come from anybody, so nothing in it is believed: fields, types, sizes, ranges and digests are checked before any
use, and what fits no rule is refused. It holds the texts of the models it was made of, since enrolling another one needs
them: whoever shares a bundle shares those texts.
"""

import hashlib
import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError

from whorl import __version__
from whorl._readers import limits
from whorl._readers.local_files import read_checked
from whorl._readers.strict_json import parse, parse_object
from whorl._readers.subject import Subject
from whorl.attacks._model_files import new_folder
from whorl.attribution.attributor import SCHEMA, Attributor, Calibration, Enrolled, Settings
from whorl.attribution.corpus import PARTS, Corpus
from whorl.attribution.strangers import Threshold
from whorl.attribution.tables import Evaluation
from whorl.attribution.typicality import Typical
from whorl.errors import UsageError, safe_name
from whorl.outputs.classifier import Linear
from whorl.outputs.features import FeatureSpace
from whorl.transcripts.codec import Count, Hex64, ModelFields, Name, first_fault
from whorl.transcripts.record import ModelId, digest

JSON_FILE = "bundle.json"
ARRAYS_FILE = "arrays.safetensors"
MAX_ARRAYS = 4_000 * limits.MB
MAX_NGRAM = 8
ADVICE = "Fetch it again, or make it again with `whorl attribute fit`."

Arrays = dict[str, NDArray[Any]]
PromptKey = Annotated[str, Field(pattern=r"(?s)^[0-9a-f]{16} .", max_length=2_000)]
Positive = Annotated[FiniteFloat, Field(gt=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Class(_Strict):
    model: ModelFields
    lineage: Name


class _Settings(_Strict):
    seed: Count
    salt: Annotated[str, Field(max_length=1_000)]
    shares: Annotated[list[Annotated[FiniteFloat, Field(ge=0, le=1)]], Field(min_length=2, max_length=2)]
    alpha: Annotated[FiniteFloat, Field(gt=0, lt=1)]
    c: Positive
    n_characters: Annotated[int, Field(ge=1)]
    mask_names: bool
    decodings: list[Hex64]
    n_draws: Annotated[int, Field(ge=1)]


class _Threshold(_Strict):
    size: Annotated[int, Field(ge=1)]
    match: FiniteFloat | None
    match_strict: FiniteFloat | None
    lineage: FiniteFloat | None
    lineage_strict: FiniteFloat | None


class _Ngrams(_Strict):
    analyzer: Literal["char", "word"]
    low: Annotated[int, Field(ge=1)]
    high: Annotated[int, Field(ge=1, le=MAX_NGRAM)]
    weighting: Literal["tfidf", "log-count"]
    max_features: Annotated[int, Field(ge=1)] | None
    min_df: Annotated[int, Field(ge=1)]


_SETTINGS = TypeAdapter(list[_Ngrams])


class _File(_Strict):
    schema_: Annotated[Literal["whorl.attribution/1"], Field(alias="schema")]
    whorl_version: Name
    created: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")]
    classes: Annotated[list[_Class], Field(min_length=2)]
    settings: _Settings
    prompts_digest: Hex64
    temperature: Positive
    gamma: Annotated[FiniteFloat, Field(gt=0, le=1)]
    thresholds: list[_Threshold]
    prompts: Annotated[list[PromptKey], Field(min_length=1)]
    n_repeated: Count
    evaluation: Evaluation
    arrays_sha256: Hex64
    digest: Hex64


def save(attributor: Attributor, folder: str | os.PathLike[str]) -> Path:
    """Write a new bundle; the folder appears complete or not at all.

    Raises:
        UsageError: the folder exists already.
    """
    from safetensors.numpy import save as to_bytes

    arrays = to_bytes({name: np.ascontiguousarray(array) for name, array in _arrays(attributor).items()})
    values = to_dict(attributor) | {"arrays_sha256": hashlib.sha256(arrays).hexdigest()}
    text = json.dumps(values | {"digest": digest(values)}, indent=1, sort_keys=True, allow_nan=False) + "\n"
    with new_folder(Path(folder)) as partial:
        (partial / ARRAYS_FILE).write_bytes(arrays)
        (partial / JSON_FILE).write_text(text, encoding="utf-8")
    return Path(folder)


def to_dict(attributor: Attributor) -> dict[str, Any]:
    """Everything but the arrays and texts, JSON values."""
    settings = attributor.settings
    return {
        "schema": SCHEMA,
        "whorl_version": __version__,
        "created": attributor.created,
        "classes": [
            {"model": {name: getattr(one.model, name) for name in ModelFields.model_fields}, "lineage": one.lineage}
            for one in attributor.classes
        ],
        "settings": {name: _listed(getattr(settings, name)) for name in _Settings.model_fields},
        "prompts_digest": digest(list(attributor.corpus.prompt_keys)),
        "temperature": attributor.calibration.temperature,
        "gamma": attributor.calibration.gamma,
        "thresholds": [{name: getattr(t, name) for name in _Threshold.model_fields} for t in attributor.thresholds],
        "prompts": list(attributor.corpus.prompt_keys),
        "n_repeated": attributor.corpus.n_repeated,
        "evaluation": dict(attributor.evaluation),
    }


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _arrays(attributor: Attributor) -> Arrays:
    corpus, calibration = attributor.corpus, attributor.calibration
    pieces = [text.encode("utf-8", "surrogatepass") for text in corpus.texts]
    return {
        **{f"space.{name}": array for name, array in attributor.space.to_arrays().items()},
        "weights": attributor.linear.weights,
        "bias": attributor.linear.bias,
        "typical.mean": calibration.typical.mean,
        "typical.spread": calibration.typical.spread,
        "scores": np.concatenate(calibration.scores),
        "scores.offsets": np.cumsum([0, *map(len, calibration.scores)], dtype=np.int64),
        "texts": np.frombuffer(b"".join(pieces), np.uint8),
        "texts.offsets": np.cumsum([0, *map(len, pieces)], dtype=np.int64),
        "labels": corpus.labels,
        "prompts": corpus.prompts,
        "parts": corpus.parts,
    }


def load(folder: str | os.PathLike[str]) -> Attributor:
    """Read a bundle.

    Raises:
        UsageError: no such folder.
        UnsupportedFile: another schema, or features this version does not know.
        MalformedFile: a digest, field, shape or number that is not what it should be.
        UnsafeFile: over the caps, or a key twice.
    """
    path = Path(folder)
    if not path.is_dir():
        raise UsageError(f"There is no bundle '{safe_name(path)}': make one with `whorl attribute fit`.")
    subject = Subject("bundle", path.name)
    file = _read_json(path / JSON_FILE, subject)
    data = read_checked(path / ARRAYS_FILE, "bundle", MAX_ARRAYS)
    if hashlib.sha256(data).hexdigest() != file.arrays_sha256:
        raise subject.malformed(f"{ARRAYS_FILE} with another digest", f"sha256 {file.arrays_sha256[:16]}...", ADVICE)
    return _attributor(file, _Arrays(data, subject), subject)


def _read_json(path: Path, subject: Subject) -> _File:
    values = parse_object(read_checked(path, "bundle"), "bundle", subject.name)
    if (schema := values.get("schema")) != SCHEMA:
        raise subject.unsupported(f"schema {safe_name(schema, 40)}", SCHEMA, "Read it with the whorl that wrote it.")
    try:
        file = _File.model_validate(values)
    except ValidationError as error:
        raise subject.malformed(first_fault(error), "a bundle", ADVICE) from None
    if digest({key: value for key, value in values.items() if key != "digest"}) != file.digest:
        raise subject.malformed(f"{JSON_FILE} with another digest", f"sha256 {file.digest[:16]}...", ADVICE)
    names = [one.model.ref for one in file.classes]
    k = len(names)
    confusion = file.evaluation.closed_set.confusion
    faults = {
        "one model twice": len(set(names)) != k,
        "prompts that are not those of the digest": digest(sorted(set(file.prompts))) != file.prompts_digest,
        "a confusion matrix of another shape": {len(confusion), *map(len, confusion)} != {k},
        "n-grams of models that are not enrolled": not set(file.evaluation.ngrams) <= set(names),
    }
    if (found := next((fault for fault, there in faults.items() if there), None)) is not None:
        raise subject.malformed(found, "a bundle that agrees with itself", ADVICE)
    return file


class _Arrays:
    """The arrays of a bundle by name; each is taken once, with the type and shape it must have."""

    def __init__(self, data: bytes, subject: Subject) -> None:
        from safetensors import SafetensorError
        from safetensors.numpy import load as from_bytes

        self.subject = subject
        try:
            self._left: Arrays = from_bytes(data)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise subject.malformed(f"{ARRAYS_FILE}: {safe_name(error, 80)}", "safetensors", ADVICE) from None

    def take(self, name: str, dtype: type, *shape: int | None) -> NDArray[Any]:
        """One array; None in the shape allows any length."""
        array = self._left.pop(name, None)
        if array is None:
            raise self.subject.malformed(f"no array '{name}'", "all arrays of a bundle", ADVICE)
        fits = array.ndim == len(shape) and all(s is None or s == n for s, n in zip(shape, array.shape, strict=True))
        if not fits or array.dtype != np.dtype(dtype):
            wanted = "x".join("n" if s is None else str(s) for s in shape)
            found = f"array '{name}' of {array.dtype} {'x'.join(map(str, array.shape))}"
            raise self.subject.malformed(found, f"{np.dtype(dtype)} {wanted}", ADVICE)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise self.subject.malformed(f"array '{name}' with a number that is not finite", "finite numbers", ADVICE)
        return array

    def space(self) -> Arrays:
        """All arrays of the feature space, without their prefix."""
        names = [name for name in self._left if name.startswith("space.")]
        return {name.removeprefix("space."): self._left.pop(name) for name in names}

    def slices(self, name: str, dtype: type, n: int | None = None) -> list[NDArray[Any]]:
        """An array cut at its offsets."""
        offsets = self.take(f"{name}.offsets", np.int64, None if n is None else n + 1)
        data = self.take(name, dtype, None)
        if not len(offsets) or offsets[0] or offsets[-1] != len(data) or (np.diff(offsets) < 0).any():
            raise self.subject.malformed(f"offsets of '{name}' that do not fit it", "ascending offsets", ADVICE)
        return [data[start:end] for start, end in pairwise(offsets.tolist())]

    def finish(self) -> None:
        """Refuse what was not asked for."""
        if self._left:
            raise self.subject.malformed(f"an array '{safe_name(min(self._left), 40)}'", "no other arrays", ADVICE)


def _attributor(file: _File, arrays: _Arrays, subject: Subject) -> Attributor:
    k, space = len(file.classes), _space(arrays.space(), subject)
    weights = arrays.take("weights", np.float32, k, space.n_features)
    linear = Linear(weights, arrays.take("bias", np.float32, k), "one-vs-rest")
    usual = Typical(arrays.take("typical.mean", np.float64, k), arrays.take("typical.spread", np.float64, k))
    scores = tuple(arrays.slices("scores", np.float64, k))
    if (usual.spread <= 0).any() or any(not len(s) or (np.diff(s) < 0).any() for s in scores):
        raise subject.malformed("calibration scores that are empty or not sorted", "sorted scores", ADVICE)
    corpus = _corpus(file, arrays, subject)
    arrays.finish()
    values = file.settings.model_dump()
    tuples = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return Attributor(
        classes=tuple(Enrolled(ModelId(**one.model.model_dump()), one.lineage) for one in file.classes),
        settings=Settings(**(values | tuples)),
        space=space,
        linear=linear,
        calibration=Calibration(file.temperature, file.gamma, usual, scores),
        thresholds=tuple(Threshold(**t.model_dump()) for t in file.thresholds),
        corpus=corpus,
        evaluation=file.evaluation.model_dump(by_alias=True),
        created=file.created,
    )


def _space(arrays: Arrays, subject: Subject) -> FeatureSpace:
    if "settings" not in arrays or "tokenizer" in arrays:
        raise subject.unsupported("unknown features", "character or word n-grams", ADVICE)
    try:
        _SETTINGS.validate_python(parse(bytes(arrays["settings"]), "bundle", subject.name))
    except ValidationError:
        raise subject.unsupported("unknown features", "character or word n-grams", ADVICE) from None
    try:
        space = FeatureSpace.from_arrays(arrays)
    except UsageError as error:
        raise subject.malformed(str(error).rstrip("."), "n-grams and their frequencies", ADVICE) from None
    for block in space.blocks:
        single = block.settings.analyzer == "word" or all(len(unit) == 1 for unit in block.vocabulary.units)
        if block.idf.ndim != 1 or not single:
            raise subject.malformed("n-grams of unknown units", "n-grams of its own units", ADVICE)
    return space


def _corpus(file: _File, arrays: _Arrays, subject: Subject) -> Corpus:
    try:
        texts = tuple(bytes(piece).decode("utf-8", "surrogatepass") for piece in arrays.slices("texts", np.uint8))
    except UnicodeDecodeError:
        raise subject.malformed("a text that is not UTF-8", "UTF-8", ADVICE) from None
    bounds = {"labels": len(file.classes), "prompts": len(file.prompts), "parts": len(PARTS)}
    found = {name: arrays.take(name, np.int64, len(texts)) for name in bounds}
    wrong = next(
        (n for n, bound in bounds.items() if len(texts) and not (0 <= found[n].min() <= found[n].max() < bound)), None
    )
    every = {(k, part) for k in range(len(file.classes)) for part in range(len(PARTS))}
    if wrong is not None or not every <= set(zip(found["labels"].tolist(), found["parts"].tolist(), strict=True)):
        raise subject.malformed(f"'{wrong or 'parts'}' out of range", "texts of every model in every part", ADVICE)
    return Corpus(
        texts, found["labels"], found["prompts"], found["parts"], tuple(sorted(file.prompts)), file.n_repeated
    )
