"""Erase and clean set as files: `erase.jsonl` and `clean.jsonl` with the texts, `manifest.json` with where they came from."""

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from whorl._atomic import write_text
from whorl._readers.local_files import read_checked
from whorl._readers.strict_json import parse_object
from whorl._readers.subject import Subject
from whorl.erasure.sets import SCHEMA, Answers, ErasureSets
from whorl.errors import safe_name
from whorl.questions.rows import QaData, QaRow
from whorl.transcripts._lines import lines

MANIFEST = "manifest.json"
_FIELDS = {"id", "question", "answer"}
_ADVICE = "Make the sets again."


def write_sets(folder: Path, sets: ErasureSets) -> Path:
    """Write both sets and their manifest, the manifest last.

    Args:
        folder: Made if missing; files of the same names are replaced.
        sets: What to write.
    """
    for name, rows in (("erase", sets.erase), ("clean", sets.clean)):
        texts = ({"id": row.id, "question": row.question, "answer": row.answer} for row in rows)
        write_text(folder / f"{name}.jsonl", "".join(f"{json.dumps(text, ensure_ascii=False)}\n" for text in texts))
    text = json.dumps(dict(sets.manifest), ensure_ascii=False, allow_nan=False, indent=1)
    return write_text(folder / MANIFEST, f"{text}\n")


def read_sets(folder: Path) -> ErasureSets:
    """Read what `write_sets` wrote.

    Raises:
        InputRefused: a file is missing or not what it should be, or the texts are not those of the manifest.
    """
    subject = Subject("manifest", f"{folder.name}/{MANIFEST}")
    given = parse_object(read_checked(folder / MANIFEST, "manifest"), "manifest", subject.name)
    try:
        manifest = _Manifest.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        found = f"'{safe_name(where, 60)}' ({safe_name(first['msg'], 80)})"
        raise subject.malformed(found, f"a manifest of {SCHEMA}", _ADVICE) from None
    erase = _rows(folder / "erase.jsonl", [entry.id for entry in manifest.erase], manifest.digests.erase)
    clean = _rows(folder / "clean.jsonl", manifest.clean, manifest.digests.clean)
    return ErasureSets(erase, clean, given)


def _rows(path: Path, ids: list[str], digest: str) -> tuple[QaRow, ...]:
    rows = []
    for number, text in lines(path, "set"):
        subject = Subject("set", f"{path.name}: line {number}")
        found = parse_object(text.encode(), subject.what, subject.name)
        if found.keys() != _FIELDS or not all(isinstance(value, str) for value in found.values()):
            raise subject.malformed("other fields", "id, question and answer as texts", _ADVICE)
        rows.append(QaRow(**found))
    if [row.id for row in rows] != ids or QaData(path.stem, tuple(rows)).digest != digest:
        raise Subject("set", path.name).malformed("other rows", "those of the manifest (digest)", _ADVICE)
    return tuple(rows)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Source(_Strict):
    name: str
    digest: str
    rows: int


class _Entry(_Strict):
    id: str
    question: str
    answer: str
    question_type: str
    answer_type: str


class _LeftOut(_Strict):
    forbidden: int
    repeated: int


class _Digests(_Strict):
    erase: str
    clean: str


class _Manifest(_Strict):
    schema_: Literal["whorl.erasure-sets/1"] = Field(alias="schema")
    seed: int
    source: _Source
    left_out: _LeftOut
    answers: Answers
    rule: Literal["words", "clusters"]
    types: dict[str, int]
    threshold: float
    erase: list[_Entry]
    clean: list[str]
    digests: _Digests
