"""What a transcript set declares: its prompts with their groups, the split, and how each model was asked (ours).

A set is only worth analysing if every model got the same prompts, so these are fixed when the set is made; a model's
decoding and template are fixed by its first answer. Both digests are redone on reading: a changed list of prompts or a
changed way to split them is noticed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from whorl._atomic import write_text
from whorl._readers.local_files import read_checked
from whorl._readers.strict_json import parse_object
from whorl._readers.subject import Subject
from whorl.errors import UsageError, safe_name
from whorl.transcripts.codec import (
    Hex16,
    Hex64,
    ModelFields,
    Name,
    TemplateFields,
    decoding_of,
    first_fault,
    settings_of,
    template_fields,
    template_of,
)
from whorl.transcripts.record import Decoding, ModelId, Prompt, Template, Transcript, canonical_json, digest
from whorl.transcripts.splits import DEFAULT_SALT, bucket_digest, group_of

SCHEMA: Literal["whorl.transcript-set/1"] = "whorl.transcript-set/1"
FILE_NAME = "manifest.json"
RESTORE = "Restore the manifest from a copy, or sample the set again."


@dataclass(frozen=True)
class Asked:
    """How one model was asked.

    Args:
        model: Who answered, without what a server reported.
        decoding: Of all its answers in this set.
        template: Of all its answers in this set.
        streams: In alphabetical order.
    """

    model: ModelId
    decoding: Decoding
    template: Template
    streams: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """The declaration of a set.

    Args:
        prompt_set: Name of the prompt set.
        prompts: Prompt id -> group.
        salt: Of the split.
        asked: Model key -> how it was asked.
    """

    prompt_set: str
    prompts: Mapping[str, str]
    salt: str = DEFAULT_SALT
    asked: Mapping[str, Asked] = field(default_factory=dict)

    @classmethod
    def of(cls, prompts: Iterable[Prompt], salt: str = DEFAULT_SALT) -> "Manifest":
        """The declaration before any model answered.

        Raises:
            UsageError: no prompts, prompts of two sets, or one prompt in two groups.
        """
        groups: dict[str, str] = {}
        names: set[str] = set()
        for prompt in prompts:
            names.add(prompt.prompt_set)
            if groups.setdefault(prompt.id, group_of(prompt)) != group_of(prompt):
                raise UsageError(f"The prompt {prompt.id} is in two groups; give it one.")
        if len(names) != 1:
            shown = ", ".join(safe_name(name, 40) for name in sorted(names)[:3]) or "none"
            raise UsageError(f"A transcript set holds the prompts of one prompt set; given: {shown}.")
        return cls(names.pop(), groups, salt)

    @property
    def prompts_digest(self) -> str:
        """SHA-256 of all prompt ids with their groups."""
        return digest(dict(self.prompts))

    @property
    def bucket_digest(self) -> str:
        """SHA-256 of the bucket table of all groups."""
        return bucket_digest(self.prompts.values(), self.salt)

    def difference(self, other: "Manifest") -> str | None:
        """Which part of the declaration differs, models aside."""
        parts = ("prompt_set", "prompts_digest", "salt")
        return next((part for part in parts if getattr(self, part) != getattr(other, part)), None)

    def fault(self, record: Transcript) -> str | None:
        """Why an answer does not belong here, or None."""
        prompt = record.prompt
        if prompt.prompt_set != self.prompt_set or self.prompts.get(prompt.id) != group_of(prompt):
            return f"the prompt {prompt.id} of '{safe_name(prompt.prompt_set, 40)}' is not one the set declares"
        known = self.asked.get(record.model.key)
        if known is None:
            return "the set declares no such model"
        if record.decoding != known.decoding:
            return "the decoding is not the model's in this set"
        if record.template != known.template:
            return "the template is not the model's in this set"
        return (
            None if record.stream in known.streams else f"the set declares no stream '{safe_name(record.stream, 40)}'"
        )

    def with_record(self, record: Transcript) -> "Manifest":
        """The same with the model and the stream of an answer; the same object where both are known."""
        key = record.model.key
        known = self.asked.get(key) or Asked(replace(record.model, reported=None), record.decoding, record.template, ())
        if record.stream in known.streams:
            return self
        known = replace(known, streams=tuple(sorted({*known.streams, record.stream})))
        return replace(self, asked=dict(self.asked) | {key: known})

    def write(self, folder: Path) -> None:
        """Put it into the folder of the set, atomically."""
        write_text(folder / FILE_NAME, canonical_json(self.to_dict()) + "\n")

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "schema": SCHEMA,
            "prompt_set": self.prompt_set,
            "prompts": dict(self.prompts),
            "prompts_digest": self.prompts_digest,
            "salt": self.salt,
            "bucket_digest": self.bucket_digest,
            "models": {
                key: {
                    "model": asdict(asked.model),
                    "decoding": settings_of(asked.decoding),
                    "template": template_fields(asked.template),
                    "streams": list(asked.streams),
                }
                for key, asked in sorted(self.asked.items())
            },
        }


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Asked(_Strict):
    model: ModelFields
    decoding: dict[str, Any]
    template: TemplateFields
    streams: Annotated[list[Name], Field(min_length=1)]


class _File(_Strict):
    schema_: Annotated[Literal["whorl.transcript-set/1"], Field(alias="schema")]
    prompt_set: Name
    prompts: Annotated[dict[Hex16, Name], Field(min_length=1)]
    prompts_digest: Hex64
    salt: str
    bucket_digest: Hex64
    models: dict[Hex16, _Asked]


def read_manifest(folder: Path) -> Manifest:
    """The checked declaration of a set.

    Raises:
        InputRefused: no strict JSON, an unknown schema, or digests and keys that do not follow from the content.
    """
    name = f"{folder.name}/{FILE_NAME}"
    subject = Subject("manifest", name)
    parsed = parse_object(read_checked(folder / FILE_NAME, "manifest"), "manifest", name)
    try:
        file = _File.model_validate(parsed)
        manifest = Manifest(file.prompt_set, file.prompts, file.salt, {k: _asked(a) for k, a in file.models.items()})
    except ValidationError as error:
        raise subject.malformed(first_fault(error), f"a manifest of {SCHEMA}", RESTORE) from None
    except UsageError as error:
        raise subject.malformed(str(error).rstrip("."), f"a manifest of {SCHEMA}", RESTORE) from None
    wrong = next((key for key, asked in manifest.asked.items() if asked.model.key != key), None)
    if wrong is not None:
        raise subject.malformed(f"the model key {wrong} is not that of its model", "the key of the model", RESTORE)
    for part in ("prompts_digest", "bucket_digest"):
        if getattr(file, part) != getattr(manifest, part):
            raise subject.malformed(f"field '{part}' is not that of the prompts", getattr(manifest, part), RESTORE)
    return manifest


def _asked(asked: _Asked) -> Asked:
    return Asked(
        ModelId(**asked.model.model_dump()),
        decoding_of(canonical_json(asked.decoding)),
        template_of(asked.template.kind, asked.template.digest, asked.template.system),
        tuple(asked.streams),
    )
