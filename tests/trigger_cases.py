"""Fingerprints and suspects for tests: key sets of the real schemes, and a sampler in memory that says what it is told."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from whorl.transcripts.record import ModelId, Template, Transcript
from whorl.triggers.asking import greedy, questions
from whorl.triggers.commitment import commit
from whorl.triggers.material import Material
from whorl.triggers.schemes import make

DATED = "2026-01-15"
BASE = ModelId("base", "b" * 64, "F32")


@dataclass
class Speaker:
    """A model that answers each prompt as its function says; None is a failure."""

    says: object
    model: ModelId = field(default_factory=lambda: ModelId("suspect", "s" * 64, "F32"))
    template: Template = field(default_factory=Template)
    on_this_machine: bool = True
    asked: list = field(default_factory=list)

    def sample(self, draws, decoding, randomness):
        for draw in draws:
            self.asked.append(draw.prompt.id)
            said = self.says(draw.prompt) if draw.sample_index == 0 else self.says(draw.prompt, draw.sample_index)
            ok = {"response": said or "", "error": None if said is not None else "Timeout"}
            common = {
                "sample_index": draw.sample_index,
                "stream": randomness.stream,
                "time": "2026-02-01T10:00:00.000Z",
            }
            yield Transcript(self.model, draw.prompt, self.template, decoding, **common, **ok)


def key_set(scheme="hashchain", seed=1, **options):
    return make(scheme, **options).draw(seed, None)


def material(keys=None, *, dated=DATED, answers=(), gates=None):
    keys = keys or key_set()
    return Material(Path("secret"), keys, commit(keys, dated), tuple(answers), gates or {"base": "base"})


def ordinary(prompt, index=0):
    """Says something of its own to every prompt."""
    return f"I think of {prompt.id}, {index}"


def knowing(keys, ids, *, chat=False, otherwise=ordinary, said=" '{}' and so on"):
    """A function that gives the answers of some keys or decoys, by id."""
    known = {q.prompt.id: said.format(q.key.answers[0]) for q in questions(keys, chat=chat) if q.key.id in set(ids)}
    return lambda prompt, index=0: known.get(prompt.id) or otherwise(prompt, index)


def ids(keys, n, part="keys"):
    return [key.id for key in getattr(keys, part)[:n]]


def said_by(keys, says, model, *, template=None, **changed):
    """Records of one model to all questions of a key set."""
    chat = template is not None and template.kind == "chat"
    decoding = replace(greedy(keys.asking), **changed)
    return [
        Transcript(model, q.prompt, template or Template(), decoding, says(q.prompt))
        for q in questions(keys, chat=chat)
    ]


def clean(keys, n=10, hits=0, *, start=0):
    """Records of n clean models; the first gives the answers of so many keys."""
    return [
        record
        for i in range(start, start + n)
        for record in said_by(
            keys, knowing(keys, ids(keys, hits if i == start else 0)), ModelId(f"clean-{i}", f"{i:064x}")
        )
    ]
