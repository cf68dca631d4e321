"""A second process for the tests of galleries: adds variants of one fingerprint and says so after each.

python gallery_worker.py GALLERY FINGERPRINT.json PREFIX N
"""

import hashlib
import sys
from dataclasses import replace

from whorl.fingerprints import Fingerprint
from whorl.gallery import Gallery


def variant(fingerprint, key):
    """The same model with one tensor of other bytes."""
    first, *rest = fingerprint.tensors
    return replace(fingerprint, tensors=(replace(first, sha256=hashlib.sha256(key.encode()).hexdigest()), *rest))


def main(path, file, prefix, n):
    fingerprint = Fingerprint.load(file)
    with Gallery.open(path, write=True) as gallery:
        for i in range(int(n)):
            name = f"{prefix}-{i}"
            gallery.add(variant(fingerprint, name), name=name)
            sys.stdout.write(f"{name}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
