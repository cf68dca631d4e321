"""What single methods need of a pair beyond its canonical layers: shared tokens, matched columns, tensors as stored.

Each is found once, and only when a method asks for it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from whorl._readers.float_codecs import count_nonfinite
from whorl.canonical.embedding import fold_embedding
from whorl.canonical.model import CanonicalModel
from whorl.errors import MalformedFile, NotComparable
from whorl.linalg.blocks import Doubles
from whorl.linalg.matching import Indices, assign
from whorl.pairs._shared_tokens import shared_ids
from whorl.source import Floats

Raw = Mapping[str, Floats]

_ROWS_AT_ONCE = 8192
_LARGEST_GAP = 16  # unwanted rows that are read rather than stepped over


@dataclass(frozen=True, eq=False)
class SharedTokens:
    """Tokens that both models have, each string once.

    Args:
        strings: The strings, in code point order, whatever the ids are.
        a: Their rows in the first embedding, shape (n,).
        b: Their rows in the second.
    """

    strings: tuple[str, ...]
    a: Indices
    b: Indices


@dataclass(frozen=True, eq=False)
class MatchedColumns:
    """Residual dimensions of two models matched one to one, with signs.

    Args:
        a: Dimensions of the first model, ascending, shape (n,), n = min(d_a, d_b).
        b: Their partners.
        sign: 1 or -1: column `b` times it resembles column `a`.
        cosine: Mean |cosine| of matched columns over the shared tokens.
        n_tokens: How many those are.
    """

    a: Indices
    b: Indices
    sign: Doubles
    cosine: float
    n_tokens: int


class PairExtras:
    """See the module.

    Args:
        a: One model, open; stays so and belongs to the caller.
        b: The other.
        tokens: Strings of both models' embedding rows by id, None where no tokenizer could be read.
    """

    def __init__(
        self,
        a: CanonicalModel,
        b: CanonicalModel,
        tokens: tuple[Sequence[str | None] | None, Sequence[str | None] | None],
    ) -> None:
        self.a, self.b, self._tokens = a, b, tokens
        self.columns = cache(self._columns)
        self.rows = cache(self._rows)

    @cached_property
    def shared(self) -> SharedTokens:
        """Strings that are tokens of both models.

        Raises:
            NotComparable: a model has no strings.
        """
        for model, strings in zip((self.a, self.b), self._tokens, strict=True):
            if strings is None:
                raise NotComparable(f"the tokens of {model.label} are not known, so none is known to be shared")
        first, second = (tuple(strings or ()) for strings in self._tokens)
        a, b = shared_ids(first[: self.a.shape.n_vocab], second[: self.b.shape.n_vocab])
        strings = [str(first[i]) for i in a]
        order = np.array([i for _, i in sorted((string, i) for i, string in enumerate(strings))], dtype=np.intp)
        return SharedTokens(tuple(strings[i] for i in order), a[order], b[order])

    def _rows(self, n: int, *, folded: bool) -> tuple[Floats, Floats]:
        """Embedding rows of `n` shared tokens (or all, if fewer), shapes (n, d_a) and (n, d_b); see `rare_first`.

        Args:
            n: At most so many.
            folded: Canonical rows, or rows as stored.
        """
        chosen = rare_first(self.shared.strings)[:n]
        one, other = self.shared.a[chosen], self.shared.b[chosen]
        return embedding_rows(self.a, one, folded=folded), embedding_rows(self.b, other, folded=folded)

    def _columns(self, *, folded: bool) -> MatchedColumns:
        """Residual dimensions by signed assignment on |cosine| of embedding columns (AWM, arXiv 2510.06738, 4.1).

        Raises:
            NotComparable: fewer shared tokens than dimensions, or an embedding with a zero column.
        """
        shared, side = self.shared, min(self.a.shape.d_model, self.b.shape.d_model)
        if len(shared.strings) < side:
            raise NotComparable(f"{len(shared.strings)} shared tokens are too few to match {side} dimensions by them")
        cosine = self._column_cosines(folded=folded)
        rows, columns, cost = assign(-np.abs(cosine))
        sign = np.where(cosine[rows, columns] < 0, -1.0, 1.0)
        return MatchedColumns(rows, columns, sign, -cost / side, len(shared.strings))

    def _column_cosines(self, *, folded: bool) -> Doubles:
        """Cosines of embedding columns over the shared tokens, shape (d_a, d_b); block by block in float64."""
        shape = (self.a.shape.d_model, self.b.shape.d_model)
        products: Doubles = np.zeros(shape)
        squares: tuple[Doubles, Doubles] = np.zeros(shape[0]), np.zeros(shape[1])
        for start in range(0, len(self.shared.strings), _ROWS_AT_ONCE):
            stop = start + _ROWS_AT_ONCE
            one = embedding_rows(self.a, self.shared.a[start:stop], folded=folded).astype(np.float64)
            other = embedding_rows(self.b, self.shared.b[start:stop], folded=folded).astype(np.float64)
            products += one.T @ other
            squares[0][:] += np.square(one).sum(axis=0)
            squares[1][:] += np.square(other).sum(axis=0)
        if not (squares[0].all() and squares[1].all()):
            raise NotComparable("degenerate: an embedding has a dimension that is zero for all shared tokens")
        return np.asarray(products / np.sqrt(np.outer(*squares)))

    def raw(self, i: int, j: int) -> Iterator[tuple[Raw, Raw]]:
        """Tensors as stored of layer `i` of the first model and `j` of the second: attention, then dense MLPs.

        Read from the files again, one sublayer of both at a time, so that only methods that ask pay for it.
        """
        for one, other in zip(self.a.layer_parts(i), self.b.layer_parts(j), strict=False):
            routed = one.shape.n_experts or other.shape.n_experts
            if one.kind != other.kind or (one.kind == "mlp" and routed):
                return
            yield one.raw, other.raw


def rare_first(strings: Sequence[str]) -> Indices:
    """An order that begins with the rare tokens, as far as strings alone tell (ours).

    Words (letters, perhaps with a leading space) before the rest, long before short, then by code points; special
    tokens, which no text holds and training may never have touched, last. Ids play no part, so that exchanging them
    changes nothing.
    """
    return np.array(sorted(range(len(strings)), key=lambda i: _rarity(strings[i])), dtype=np.intp)


def embedding_rows(model: CanonicalModel, ids: Indices, *, folded: bool) -> Floats:
    """Rows of the embedding in the order of `ids`, shape (n, d): canonical, or as stored.

    Raises:
        MalformedFile: a value is NaN or infinite.
    """
    order = np.argsort(ids)
    found: Floats | None = None
    for low, high in _runs(ids[order]):
        wanted = order[low:high]
        block = _stored_rows(model, int(ids[wanted[0]]), int(ids[wanted[-1]]) + 1)
        if found is None:
            found = np.empty((len(ids), block.shape[1]), block.dtype)
        found[wanted] = block[ids[wanted] - ids[wanted[0]]]
    rows = np.empty((0, model.shape.d_model), np.float32) if found is None else found
    return fold_embedding(rows, model.shape, model.embed_norm()) if folded else rows


def _runs(ids: Indices) -> Iterator[tuple[int, int]]:
    """Slices of ascending ids that lie close enough to be read at once."""
    low = 0
    for place in range(1, len(ids) + 1):
        if place == len(ids) or ids[place] - ids[place - 1] > _LARGEST_GAP or ids[place] - ids[low] >= _ROWS_AT_ONCE:
            yield low, place
            low = place


def _stored_rows(model: CanonicalModel, start: int, stop: int) -> Floats:
    name = model.layout.outer["embed"].name
    rows = model.source.rows(name, start, stop)
    if n_bad := count_nonfinite(rows):
        found = f"{n_bad} of {rows.size} values read are NaN or infinite"
        raise MalformedFile("tensor", name, found, "finite numbers", "The file is damaged or training diverged.")
    return rows


def _rarity(string: str) -> tuple[bool, bool, int, str]:
    word = string.removeprefix(" ").isalpha()
    special = len(string) > 2 and (string[0] + string[-1]) in {"<>", "[]"}
    return special, not word, -len(string), string
