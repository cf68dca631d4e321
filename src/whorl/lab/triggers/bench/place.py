"""Where the models of a benchmark lie, and what names in braces stand for."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from whorl._atomic import write_text
from whorl.lab.triggers.base import QaParts, qa_parts
from whorl.lab.triggers.bench.cells import BASE, Model
from whorl.lab.triggers.bench.config import Bench, names_in


@dataclass(frozen=True)
class Place:
    """The folder of a run.

    Args:
        bench: Its configuration.
        out: Its folder.
    """

    bench: Bench
    out: Path

    def model(self, model: Model) -> Path:
        """Folder of a model before any attack."""
        return Path(self.bench.base) if model.name == BASE else self.out / "planted" / model.name / "model"

    def keys(self, model: Model) -> Path:
        """Folder of its key set."""
        return self.out / "planted" / model.name / "keys"

    def side(self, name: str) -> Path:
        """Folder of a sibling or an adapter."""
        return self.out / "beside" / name

    @property
    def attacker(self) -> Path:
        """Questions that the attacker trains on."""
        return self.out / "attacker.jsonl"

    def filled(self, value: Any, model: Model) -> Any:
        """A value with names in braces replaced by paths on this machine."""
        if isinstance(value, Mapping):
            return {name: self.filled(part, model) for name, part in value.items()}
        if isinstance(value, list | tuple):
            return [self.filled(part, model) for part in value]
        names = list(names_in(value))
        return str(self.named(names[0], model).resolve()) if names else value

    def named(self, name: str, model: Model) -> Path:
        """What a name in braces stands for."""
        there = {"base": Path(self.bench.base), "keys": self.keys(model), "attacker": self.attacker}
        return there[name] if name in there else self.side(name)


@lru_cache(maxsize=2)
def parts(questions: str) -> QaParts:
    """The questions dealt out to base, owner, attacker and test."""
    from whorl.questions.reading import load_questions

    return qa_parts(load_questions(questions))


def write_attacker(place: Place) -> None:
    """Write the attacker's questions where attacks read them."""
    if not place.attacker.is_file():
        rows = ({"question": r.question, "answer": r.answer} for r in parts(place.bench.questions).attacker.rows)
        write_text(place.attacker, "".join(json.dumps(row) + "\n" for row in rows))
