"""Models of the lineage study on disk: opened with a fingerprint that is made once and kept beside them."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from whorl._readers.open import open_model
from whorl.fingerprints import Fingerprint, scan
from whorl.registry import weight_methods
from whorl.sides import Side

FINGERPRINTS = ".fingerprints"


@contextlib.contextmanager
def side(folder: Path, *, tokens: bool = True) -> Iterator[Side]:
    """A side of a comparison, without fingerprinting it again.

    Args:
        folder: Model folder; its fingerprint is kept in `.fingerprints` beside it.
        tokens: As `Side.use_tokens`.
    """
    path = next(folder.glob("*.gguf"), folder)
    with open_model(str(path.resolve())) as opened:
        kept = folder.parent / FINGERPRINTS / f"{folder.name}.json"
        if not kept.is_file():
            kept.parent.mkdir(exist_ok=True)
            found = scan(opened, weight_methods(None))
            replace(found, typed=folder.name, resolved=folder.name).save(kept)
        yield Side(Fingerprint.load(kept), opened, use_tokens=tokens)
