"""A LoRA adapter without its base: the factors of each module, and nothing that would need the base's shapes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from whorl._readers.adapter_config import LoraConfig, read_config
from whorl._readers.adapter_names import sort_tensors
from whorl._readers.folder import CONFIG_NAME as MODEL_CONFIG
from whorl._readers.local_files import LocalFolder
from whorl._readers.safetensors_file import SafetensorsFile
from whorl._readers.subject import Subject
from whorl.errors import MalformedFile, UnsupportedFile, safe_name
from whorl.source import Floats

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Update:
    """The update of one module, dW = s B A.

    Args:
        b: Factor B, (out, r).
        a: Factor A, (r, in).
        scale: s.
    """

    b: Floats
    a: Floats
    scale: float


class BareAdapter:
    """An adapter folder opened alone; closes its file at the end of a `with` block.

    Args:
        folder: Folder with `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        MalformedFile: a file is broken, or the two factors of a module do not fit each other.
        UnsupportedFile: not a LoRA adapter, or one whose update is no product of two factors (DoRA).
    """

    def __init__(self, folder: Path | str) -> None:
        files = LocalFolder.at(folder)
        self.label = str(folder)
        self._lora: LoraConfig = read_config(files.json(CONFIG_NAME, "adapter config"), CONFIG_NAME)
        self._file = SafetensorsFile(files.file(WEIGHTS_NAME, "adapter"))
        self._modules = sort_tensors(self._file.tensors, Subject("adapter", WEIGHTS_NAME)).modules

    @property
    def declared(self) -> Mapping[str, str]:
        """What the adapter claims about its base; never evidence."""
        return self._lora.declared

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules with an update, sorted."""
        return tuple(sorted(name for name, factors in self._modules.items() if factors.a and factors.b))

    def update(self, module: str) -> Update:
        """The factors of a module.

        Raises:
            MalformedFile: ranks differ, or a factor is no matrix.
            UnsupportedFile: the module has DoRA magnitudes.
        """
        factors = self._modules[module]
        if factors.magnitude is not None:
            found = f"DoRA magnitudes of '{safe_name(module, 80)}'"
            raise UnsupportedFile("adapter", WEIGHTS_NAME, found, "plain LoRA", "Name the base too: base+adapter.")
        a, b = (self._file.rows(str(name)) for name in (factors.a, factors.b))
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            found = f"factors {a.shape} and {b.shape} of '{safe_name(module, 80)}'"
            raise MalformedFile("adapter", WEIGHTS_NAME, found, "(r, in) and (out, r)", "The adapter is damaged.")
        return Update(b, a, self._lora.scale_of(module))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def is_bare_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    return (folder / CONFIG_NAME).is_file() and not (folder / MODEL_CONFIG).is_file()
