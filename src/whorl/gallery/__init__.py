"""Galleries: known fingerprints in one SQLite file, to find again what a model descends from.

    from whorl.gallery import Gallery

    with Gallery.open(write=True) as gallery:
        gallery.add("org/base@v1")
        gallery.add("./mine", name="mine", labels=("internal",))
    whorl.identify("./suspect")          # ranked entries, or "none of these"

An entry holds a fingerprint, so comparing needs no weights; where the weights are still at hand, exact comparison and
pairwise methods read them again. `whorl.gallery.parquet` writes and reads galleries as data sets.
"""

from whorl.gallery.database import default_path
from whorl.gallery.store import Added, Entry, Gallery, stored

__all__ = ["Added", "Entry", "Gallery", "default_path", "stored"]
