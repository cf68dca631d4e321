"""Texts as sparse rows of n-gram weights: characters, words or the ids of a shared tokenizer.

Notable:
- Case, punctuation and white space are style, so nothing is lowered or stripped; a word is a run of letters, digits and
  underscores, and every other visible character is a word of its own (ours; scikit-learn drops both kinds of short words).
- An n-gram is one integer: its units written in base (number of units + 1). So counting is sorting, a vocabulary is one
  array, and nothing is pickled.
- Texts are counted once (`count`); a fold then only looks up which columns its training rows have. That gives exactly the
  rows that counting the training texts alone would give, without counting them again.
- TF-IDF: (1 + ln count) * (1 + ln((1 + n) / (1 + texts with the n-gram))), L2 norm 1 for each block; log-count: ln(1 + count).
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from whorl.errors import UsageError

Analyzer = Literal["char", "word", "subword"]
Weighting = Literal["tfidf", "log-count"]
Sparse = Any
"""A `scipy.sparse.csr_matrix`; scipy is loaded by the functions that need it."""

UNITS_AT_ONCE = 1 << 20
"""Bounds the memory of counting: about 32 bytes for each unit and length of n-gram."""

_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Ngrams:
    """One block of features.

    Args:
        analyzer: What the units are; "subword" needs a tokenizer.
        low: Shortest n-gram, at least 1.
        high: Longest n-gram.
        weighting: "tfidf" (L2 norm 1) or "log-count" (no norm).
        max_features: Keep the most frequent so many; None keeps all.
        min_df: Least number of training texts that have the n-gram.
    """

    analyzer: Analyzer
    low: int
    high: int
    weighting: Weighting = "tfidf"
    max_features: int | None = None
    min_df: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high:
            raise UsageError(f"n-grams from {self.low} to {self.high} are none; pass 1 <= low <= high.")


SUBWORD_COUNTS = (Ngrams("subword", 1, 1, "log-count"),)
WORD_TFIDF = (Ngrams("word", 1, 2),)
CHAR_TFIDF = (Ngrams("char", 1, 4),)
ATTRIBUTION = (*CHAR_TFIDF, *WORD_TFIDF)


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The n-grams that are columns.

    Args:
        units: Distinct characters, words or tokens, sorted.
        codes: int64, ascending: the units of an n-gram (1 to len(units)) as digits in base len(units) + 1.
    """

    units: tuple[str, ...]
    codes: NDArray[np.int64]

    def names(self, analyzer: Analyzer) -> tuple[str, ...]:
        """Each n-gram as text; words and tokens are joined by a blank."""
        base, glue = len(self.units) + 1, "" if analyzer == "char" else " "
        spelled = np.array([glue, *(glue + unit for unit in self.units)], dtype=object)
        rest, names = self.codes.copy(), np.full(len(self.codes), "", dtype=object)
        while rest.any():
            digit = rest % base
            names = np.where(digit > 0, spelled[digit], "") + names
            rest //= base
        return tuple(name.removeprefix(glue) for name in names)

    def only(self, columns: NDArray[Any]) -> "Vocabulary":
        """Some of the columns, with the units that they still use."""
        base, codes = len(self.units) + 1, self.codes[columns]
        digits: list[NDArray[np.int64]] = []
        while codes.any():
            digits.append(codes % base)
            codes = codes // base
        used = np.unique(np.concatenate(digits)) if digits else np.zeros(0, np.int64)
        used = used[used > 0]
        new, code = np.zeros(base, np.int64), np.zeros(len(self.codes[columns]), np.int64)
        new[used] = np.arange(1, len(used) + 1)
        for digit in reversed(digits):
            code = code * (len(used) + 1) + new[digit]
        return Vocabulary(tuple(self.units[i - 1] for i in used.tolist()), code)  # order is kept: digits keep theirs


@dataclass(frozen=True, eq=False)
class Counts:
    """How often every text has every n-gram of all texts.

    Args:
        settings: What was counted.
        vocabulary: The columns.
        table: csr float32, shape (texts, n-grams).
    """

    settings: Ngrams
    vocabulary: Vocabulary
    table: Sparse

    def columns(self, rows: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Columns that a vectoriser fitted on some rows keeps, and their inverse document frequencies (1 for log-count)."""
        chosen, width = self.table[rows], self.table.shape[1]
        frequency = np.bincount(chosen.indices, minlength=width)
        kept = np.flatnonzero(frequency >= max(1, self.settings.min_df))
        if self.settings.max_features is not None and len(kept) > self.settings.max_features:
            total = np.bincount(chosen.indices, chosen.data, minlength=width)[kept]
            kept = np.sort(kept[np.argsort(-total, kind="stable")[: self.settings.max_features]])
        idf = np.ones(len(kept))
        if self.settings.weighting == "tfidf":
            idf += np.log((1 + chosen.shape[0]) / (1 + frequency[kept]))
        return kept, idf.astype(np.float32)

    def weighted(self, rows: NDArray[Any]) -> Sparse:
        """All texts as a vectoriser fitted on some rows sees them; columns it does not keep are empty."""
        kept, idf = self.columns(rows)
        weights = np.zeros(self.table.shape[1], np.float32)
        weights[kept] = idf
        return _weigh(self.table, weights, self.settings.weighting)


@dataclass(frozen=True, eq=False)
class Block:
    """One fitted block: n-grams and inverse document frequencies, float32, shape (columns,)."""

    settings: Ngrams
    vocabulary: Vocabulary
    idf: NDArray[np.float32]

    def transform(self, texts: Sequence[str], tokenizer: Any) -> Sparse:
        """Weights, csr float32, shape (texts, columns)."""
        units = _Units(self.settings.analyzer, texts, tokenizer, self.vocabulary.units)
        known, tables = self.vocabulary.codes, []
        for n_texts, rows, codes in units.grams(self.settings):
            at = np.searchsorted(known, codes)
            at[at == len(known)] = 0
            found = known[at] == codes if len(known) else np.zeros(len(codes), bool)
            tables.append(_table(rows[found], at[found], (n_texts, len(known))))
        return _weigh(_below(tables), self.idf, self.settings.weighting)


@dataclass(frozen=True, eq=False)
class FeatureSpace:
    """A fitted vectoriser: blocks side by side.

    Args:
        blocks: In the order of the settings.
        tokenizer: The `tokenizers.Tokenizer` of sub-word blocks.
    """

    blocks: tuple[Block, ...]
    tokenizer: Any = None

    @property
    def n_features(self) -> int:
        """Columns in all."""
        return sum(len(block.idf) for block in self.blocks)

    @property
    def settings(self) -> tuple[Ngrams, ...]:
        """What the blocks are."""
        return tuple(block.settings for block in self.blocks)

    def names(self, columns: Sequence[int] | None = None) -> tuple[str, ...]:
        """The n-gram of each column, or of some, as text."""
        if columns is None:
            return tuple(name for block in self.blocks for name in block.vocabulary.names(block.settings.analyzer))
        ends = np.cumsum([len(block.idf) for block in self.blocks])
        return tuple(self._name(int(np.searchsorted(ends, column, side="right")), column, ends) for column in columns)

    def _name(self, i: int, column: int, ends: NDArray[np.int64]) -> str:
        block = self.blocks[i]
        code = block.vocabulary.codes[column - ends[i]]  # counted from the end of the block
        return Vocabulary(block.vocabulary.units, code[None]).names(block.settings.analyzer)[0]

    def transform(self, texts: Sequence[str]) -> Sparse:
        """Weights, csr float32, shape (texts, n_features); n-grams that the training texts lack are left out."""
        return _beside([block.transform(texts, self.tokenizer) for block in self.blocks])

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Plain arrays: settings as UTF-8 JSON, and for each block its units (UTF-8 and offsets), codes and idf."""
        arrays: dict[str, NDArray[Any]] = {}
        arrays["settings"] = _bytes(json.dumps([asdict(block.settings) for block in self.blocks], sort_keys=True))
        if self.tokenizer is not None:
            arrays["tokenizer"] = _bytes(self.tokenizer.to_str())
        for i, block in enumerate(self.blocks):
            pieces = [unit.encode("utf-8", "surrogatepass") for unit in block.vocabulary.units]
            arrays[f"{i}.units"] = np.frombuffer(b"".join(pieces), np.uint8)
            arrays[f"{i}.offsets"] = np.cumsum([0, *map(len, pieces)], dtype=np.int64)
            arrays[f"{i}.codes"], arrays[f"{i}.idf"] = block.vocabulary.codes, block.idf
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "FeatureSpace":
        """What `to_arrays` gave.

        Raises:
            UsageError: an array is missing or does not fit the others.
        """
        try:
            settings = [Ngrams(**found) for found in json.loads(bytes(arrays["settings"]))]
            blocks = tuple(_block(one, i, arrays) for i, one in enumerate(settings))
            stored = bytes(arrays["tokenizer"]).decode() if "tokenizer" in arrays else None
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise UsageError(f"These arrays are no feature space ({type(error).__name__}).") from error
        if stored is None:
            return cls(blocks)
        from tokenizers import Tokenizer

        return cls(blocks, Tokenizer.from_str(stored))


def _block(settings: Ngrams, i: int, arrays: Mapping[str, NDArray[Any]]) -> Block:
    data, offsets = bytes(arrays[f"{i}.units"]), arrays[f"{i}.offsets"].tolist()
    pieces = (data[start:end] for start, end in pairwise(offsets))
    units = tuple(piece.decode("utf-8", "surrogatepass") for piece in pieces)
    codes, idf = arrays[f"{i}.codes"].astype(np.int64), arrays[f"{i}.idf"].astype(np.float32)
    ascending = list(units) == sorted(set(units)) and bool((np.diff(codes) > 0).all())
    inside = not len(codes) or 0 < codes[0] <= codes[-1] < (len(units) + 1) ** settings.high
    if (
        not ascending
        or not inside
        or codes.shape != idf.shape
        or offsets[-1] != len(data)
        or not np.isfinite(idf).all()
    ):
        raise ValueError(settings.analyzer)
    return Block(settings, Vocabulary(units, codes), idf)


def _bytes(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(text.encode("utf-8"), np.uint8)


def fit_space(settings: Sequence[Ngrams], texts: Sequence[str], tokenizer: Any = None) -> FeatureSpace:
    """Fit n-gram features on training texts.

    Args:
        settings: One for each block.
        texts: Training texts.
        tokenizer: `tokenizers.Tokenizer`, needed by "subword".

    Raises:
        UsageError: sub-words without a tokenizer, or n-grams too long for so many different units.
    """
    rows, blocks = np.arange(len(texts)), []
    for counts in count(settings, texts, tokenizer):
        kept, idf = counts.columns(rows)
        blocks.append(Block(counts.settings, counts.vocabulary.only(kept), idf))
    return FeatureSpace(tuple(blocks), tokenizer if any(one.analyzer == "subword" for one in settings) else None)


def count(settings: Sequence[Ngrams], texts: Sequence[str], tokenizer: Any = None) -> tuple[Counts, ...]:
    """Count all n-grams of all texts, once.

    Raises:
        UsageError: see `fit_space`.
    """
    return tuple(_count(one, texts, tokenizer) for one in settings)


def weighted(counts: Iterable[Counts], rows: NDArray[Any]) -> Sparse:
    """All counted texts as a vectoriser fitted on some rows sees them, blocks side by side, csr float32."""
    return _beside([one.weighted(rows) for one in counts])


def _count(settings: Ngrams, texts: Sequence[str], tokenizer: Any) -> Counts:
    units = _Units(settings.analyzer, texts, tokenizer)
    kept, tables = [], []
    for n_texts, rows, codes in units.grams(settings):
        kept.append(np.unique(codes))  # by hashing, and a search after it: twice as fast as a sort with its inverse
        tables.append(_table(rows, np.searchsorted(kept[-1], codes), (n_texts, len(kept[-1]))))
    distinct = np.unique(np.concatenate(kept))
    widened = [
        _widen(table, np.searchsorted(distinct, own), len(distinct)) for table, own in zip(tables, kept, strict=True)
    ]
    return Counts(settings, Vocabulary(units.units, distinct), _below(widened))


class _Units:
    """All texts as one row of digits: 0 for a unit that is not in `units`, else its place there, from 1."""

    def __init__(
        self, analyzer: Analyzer, texts: Sequence[str], tokenizer: Any, units: tuple[str, ...] | None = None
    ) -> None:
        if analyzer == "char":
            points, self.lengths = _characters(texts)
            known = np.unique(points) if units is None else np.array([ord(unit) for unit in units], np.uint32)
            self.units = tuple(map(chr, known.tolist()))
            place = np.searchsorted(known, points)
            place[place == len(known)] = 0
            self.digits = np.where(known[place] == points, place + 1, 0) if len(known) else np.zeros(len(points), int)
            return
        pieces = _words(texts) if analyzer == "word" else _tokens(texts, tokenizer)
        self.lengths = np.array([len(piece) for piece in pieces], np.int64)
        self.units = tuple(sorted({unit for piece in pieces for unit in piece})) if units is None else units
        place_of = {unit: i for i, unit in enumerate(self.units, 1)}
        self.digits = np.array([place_of.get(unit, 0) for piece in pieces for unit in piece], np.int64)

    def grams(self, settings: Ngrams) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """Texts, and row and code of each of their n-grams, about `UNITS_AT_ONCE` units at a time.

        Raises:
            UsageError: a code would not fit 63 bits.
        """
        if (len(self.units) + 1) ** settings.high >= 2**63:
            raise UsageError(
                f"{settings.analyzer} n-grams of {settings.high} over {len(self.units):,} different units are too many to "
                "tell apart. Pass shorter n-grams."
            )
        ends = np.cumsum(self.lengths)
        chunk = (ends - self.lengths) // UNITS_AT_ONCE  # by the first unit of a text
        for first, last in pairwise([0, *(np.flatnonzero(np.diff(chunk)) + 1).tolist(), len(ends)]):
            inside = slice(int(ends[first] - self.lengths[first]), int(ends[last - 1])) if last > first else slice(0)
            rows, codes = self._codes(self.digits[inside], self.lengths[first:last], settings)
            yield last - first, rows, codes

    def _codes(
        self, digits: NDArray[np.int64], lengths: NDArray[np.int64], settings: Ngrams
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row and code of every n-gram without unknown units; the rows of one code ascend."""
        row = np.repeat(np.arange(len(lengths)), lengths)
        left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(row))  # units to the end of the text
        starts = np.flatnonzero(digits)
        code = digits[starts]
        rows, codes = [], []
        for n in range(1, settings.high + 1):
            if n > 1:
                starts, code = starts[left[starts] >= n], code[left[starts] >= n]
                digit = digits[starts + n - 1]
                starts, code = starts[digit > 0], (code * (len(self.units) + 1) + digit)[digit > 0]
            if n >= settings.low:
                rows.append(row[starts])
                codes.append(code)
        return np.concatenate(rows), np.concatenate(codes)


def _characters(texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    encoded = "".join(texts).encode("utf-32-le", "surrogatepass")
    return np.frombuffer(encoded, "<u4"), np.array([len(text) for text in texts], np.int64)


def _words(texts: Sequence[str]) -> list[list[str]]:
    return [_WORD.findall(text) for text in texts]


def _tokens(texts: Sequence[str], tokenizer: Any) -> list[list[str]]:
    if tokenizer is None:
        raise UsageError("Sub-word features need the tokenizer that the models share.")
    whole = [text.encode("utf-8", "replace").decode() for text in texts]  # a lone surrogate has no UTF-8
    return [encoding.tokens for encoding in tokenizer.encode_batch(whole, add_special_tokens=False)]


def _table(rows: NDArray[np.int64], columns: NDArray[np.int64], shape: tuple[int, int]) -> Sparse:
    """Sums of equal (row, column) pairs, csr float32 with sorted columns; the rows of each column come in order."""
    from scipy.sparse import coo_matrix

    ones = np.ones(len(rows), np.float32)
    pairs = coo_matrix((ones, (rows.astype(np.int32), columns.astype(np.int32))), shape=shape)
    return pairs.tocsc().tocsr()  # two counting sorts in place of one comparison sort


def _weigh(counts: Sparse, weights: NDArray[np.float32], weighting: Weighting) -> Sparse:
    from scipy.sparse import csr_matrix

    tf = np.log1p(counts.data) if weighting == "log-count" else 1 + np.log(counts.data)
    data = tf * weights[counts.indices]
    table = csr_matrix((data, counts.indices, counts.indptr), shape=counts.shape)
    if weighting == "tfidf":
        norms = np.sqrt(np.asarray(table.multiply(table).sum(axis=1))).ravel()
        table.data /= np.repeat(np.where(norms > 0, norms, 1), np.diff(table.indptr)).astype(np.float32)
    return table


def _widen(table: Sparse, columns: NDArray[np.int64], width: int) -> Sparse:
    """The same rows with their columns at ascending places of a wider table."""
    from scipy.sparse import csr_matrix

    return csr_matrix(
        (table.data, columns.astype(np.int32)[table.indices], table.indptr), shape=(table.shape[0], width)
    )


def _below(tables: Sequence[Sparse]) -> Sparse:
    from scipy.sparse import vstack

    return tables[0] if len(tables) == 1 else vstack(tables, format="csr")


def _beside(tables: Sequence[Sparse]) -> Sparse:
    from scipy.sparse import hstack

    return tables[0] if len(tables) == 1 else hstack(tables, format="csr", dtype=np.float32)
