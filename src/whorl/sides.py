"""The two sides of a comparison: a reference opened and fingerprinted, or a stored fingerprint."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from whorl._readers.open import OpenedModel, open_model
from whorl._readers.tokens import TokensRead, read_tokens
from whorl.canonical.model import CanonicalModel
from whorl.errors import UsageError
from whorl.fingerprints import Fingerprint, say, scan
from whorl.gallery import stored
from whorl.lineage.exact import ExactFinding, same_bytes, same_values, shared_matrices
from whorl.method import Method
from whorl.progress import Progress
from whorl.registry import weight_methods
from whorl.weights.method import WeightMethod


@dataclass(frozen=True)
class Side:
    """One of two models.

    Args:
        fingerprint: Its fingerprint.
        opened: The open model, None when only the fingerprint was given.
        use_tokens: False withholds the tokenizer, as if every token had been renamed.
    """

    fingerprint: Fingerprint
    opened: OpenedModel | None
    use_tokens: bool = True

    @cached_property
    def model(self) -> CanonicalModel | None:
        """The model by roles, None without weights."""
        return None if self.opened is None else CanonicalModel(self.opened.source)

    @cached_property
    def tokens(self) -> TokensRead:
        """Token strings by id, as far as a tokenizer could be read."""
        if not self.use_tokens:
            return TokensRead(None, "withheld")
        if self.opened is None:
            return TokensRead(None, "a stored fingerprint holds no tokenizer")
        return read_tokens(self.opened)


def open_side(
    ref: str | Fingerprint,
    methods: Sequence[Method],
    adapter: str | None,
    offline: bool,
    progress: Progress,
    stack: contextlib.ExitStack,
) -> Side:
    """Fingerprint a reference, keeping it open on `stack`; stored fingerprints are loaded and checked.

    Raises:
        UsageError: a stored fingerprint lacks one of the methods.
        InputRefused: as `whorl.fingerprint`.
    """
    reading = tuple(m for m in methods if isinstance(m, WeightMethod))
    if isinstance(ref, str):
        ref = stored(ref) or ref
    if isinstance(ref, Fingerprint):
        missing = [m.canonical_name for m in reading if m.canonical_name not in ref.methods]
        if missing:
            raise UsageError(
                f"The stored fingerprint of '{ref.resolved}' lacks {missing[0]}: make it again from the model."
            )
        return Side(ref, None)
    opened = stack.enter_context(open_model(ref, adapter=adapter, offline=offline, progress=partial(say, progress)))
    return Side(scan(opened, reading, progress), opened)


def common_methods(refs: Sequence[str | Fingerprint]) -> tuple[WeightMethod, ...]:
    """All methods that fingerprint one model, or those that every stored fingerprint holds."""
    prints = [stored(r) if isinstance(r, str) else r for r in refs]
    held = [set(f.methods) for f in prints if f is not None]
    if not held:
        return weight_methods(None)
    common = set.intersection(*held)
    if not common:
        raise UsageError("The stored fingerprints have no method in common: make one of them again from the model.")
    return weight_methods(sorted(common))


def exact_finding(a: Side, b: Side) -> tuple[ExactFinding, tuple[str, ...]]:
    """Exact comparison as far as it can be made, and what had to be skipped."""
    found = same_bytes(a.fingerprint, b.fingerprint)
    if found.relation is not None:
        return found, ()
    if a.model is None or b.model is None:
        shared = None if a.model is None else shared_matrices(a.model, set(found.shared))
        found = shared if shared is not None and shared.relation is not None else found
        return found, ("exact comparison of values: a stored fingerprint holds no weights",)
    return same_values(a.model, b.model, found.shared), ()
