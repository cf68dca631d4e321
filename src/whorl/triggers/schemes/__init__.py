"""The schemes: how the keys of a fingerprint are drawn."""

from whorl.triggers.schemes.seam import KINDS, Scheme, fresh_seed, make, of

__all__ = ["KINDS", "Scheme", "fresh_seed", "make", "of"]
