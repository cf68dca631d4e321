"""`Job`: what one attack is asked to do, and how its result reaches the disk."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whorl._readers.folder import open_local
from whorl.attacks._model_files import Array, Tensors, read_model, stored_dtypes, write_model
from whorl.attacks._role_tensors import RoleTensors, load_roles
from whorl.canonical.model import CanonicalModel
from whorl.errors import UsageError, safe_name
from whorl.lab.truth import Record
from whorl.progress import Progress, silent

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True)
class Job:
    """One attack.

    Args:
        kind: Its kind.
        models: Local folders or files that it reads.
        out: New folder.
        seed: Seed of whatever is random.
        options: All options of the kind, defaults included; they go into the record.
        progress: Called by trainings.
    """

    kind: str
    models: tuple[Path, ...]
    out: Path
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    progress: Progress = silent

    @property
    def model(self) -> Path:
        """The model of a kind that takes one, the first of the others."""
        return self.models[0]

    @property
    def folder(self) -> Path:
        """The folder whose tokenizer files go along."""
        return self.model.parent if self.model.is_file() else self.model

    def read(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """All tensors and the config of the model."""
        return read_model(self.model)

    def read_roles(self) -> tuple[RoleTensors, tuple[str, ...]]:
        """The model by roles, and the names of tensors that no role describes and that are therefore lost."""
        source = open_local(self.model)
        try:
            model = CanonicalModel(source)
            return load_roles(model), model.inventory.unknown
        finally:
            source.close()

    def record(self, kind: str, facts: Mapping[str, Any] | None = None, *, random: bool = False) -> Record:
        """The record of the result: the options, what came out of them, and the seed where one was used."""
        parameters = {"attack": self.kind, **self.options, **(facts or {})}
        return Record(kind, tuple(path.name for path in self.models), parameters, self.seed if random else None)

    def write(
        self,
        record: Record,
        tensors: Tensors,
        config: Mapping[str, Any],
        *,
        dtype: str | None = None,
        files: Mapping[str, bytes] | None = None,
        copy_tokenizer: bool = True,
    ) -> None:
        """Write the result; every tensor in the type that it has in the model, or all of them in `dtype`."""
        types = dtype or _types(tensors, stored_dtypes(self.model))
        copy_from = self.folder if copy_tokenizer else None
        write_model(self.out, tensors, config, copy_from, record=record, dtype=types, files=files)

    def write_trained(self, record: Record, model: Any) -> None:
        """Write the weights of a model of transformers that was trained from this job's model.

        Raises:
            UsageError: transformers gives a parameter another name than the file does.
        """
        tensors, config = self.read()
        found = {name: array.detach().float().cpu().numpy() for name, array in model.state_dict().items()}
        strange = sorted({name for name, _ in model.named_parameters()} - set(tensors))
        if strange:
            raise UsageError(
                f"'{safe_name(self.model.name)}' has no tensor '{safe_name(strange[0])}' as transformers calls it."
            )
        self.write(record, {name: found.get(name, array) for name, array in tensors.items()}, config)


def _types(tensors: Tensors, stored: Mapping[str, str]) -> dict[str, str]:
    """The stored type of each tensor; one of a new or renumbered layer has that of the other layers."""
    any_layer = {_NUMBER.sub("#", name): kind for name, kind in stored.items()}
    return {name: stored.get(name) or any_layer.get(_NUMBER.sub("#", name), "F32") for name in tensors}


def whole_share(share: float, n: int, what: str) -> int:
    """How many of n a share is, at least one and not all.

    Raises:
        UsageError: the share is outside (0, 1), or rounds to none or all.
    """
    count = round(share * n) if 0 < share < 1 else 0
    if not 0 < count < n:
        raise UsageError(f"A share of {share} of {n} {what}; expected a share that takes some and leaves some.")
    return count
