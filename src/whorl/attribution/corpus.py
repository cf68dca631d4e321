"""The texts a bundle is made of: each with its class, the group of its prompt, and the part it belongs to.

A bundle keeps the texts themselves: they are smaller than their n-gram rows, and enrolling a model needs all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from whorl.errors import NotEnoughEvidence, safe_name
from whorl.transcripts.answers import Answers
from whorl.transcripts.splits import bucket, part_of

PARTS = ("train", "temperature", "conformal", "test")
TRAIN, TEMPERATURE, CONFORMAL, TEST = range(4)
MIN_CALIBRATION = 19
"""Prompts in the conformal half: with fewer, no p-value reaches 0.05 and "none of these" could never be said."""
MIN_TEST = 10

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Corpus:
    """Texts in the order class, prompt, draw.

    Args:
        texts: Normalised answers.
        labels: Class of each.
        groups: Number of its prompt group.
        group_names: Names of the groups.
        parts: Index into `PARTS`.
        n_repeated: Test texts left out because a training text is verbatim the same.
    """

    texts: tuple[str, ...]
    labels: Indices
    groups: Indices
    group_names: tuple[str, ...]
    parts: Indices
    n_repeated: int = 0

    def rows(self, part: int, labels: Sequence[int] | None = None) -> Indices:
        """Positions of the texts of one part, of all classes or some."""
        inside = self.parts == part
        return np.flatnonzero(inside if labels is None else inside & np.isin(self.labels, labels))

    def some(self, rows: Indices) -> list[str]:
        """Texts by position."""
        return [self.texts[i] for i in rows]

    def distinct(self, rows: Indices) -> Indices:
        """The first of these texts of every class and wording: in a pool, a text that occurs twice counts once."""
        first: dict[tuple[int, str], int] = {}
        for i in rows.tolist():
            first.setdefault((int(self.labels[i]), self.texts[i]), i)
        return np.array(list(first.values()), np.int64)

    def one_a_group(self, rows: Indices) -> Indices:
        """The first of these texts of every class and prompt group.

        Answers to one prompt are not exchangeable with answers to another (single subsampling of arXiv 1809.07441).
        """
        pairs = np.stack([self.labels[rows], self.groups[rows]], axis=1)
        _, first = np.unique(pairs, axis=0, return_index=True)
        return rows[np.sort(first)]


def part_of_group(group: str, salt: str, shares: tuple[float, float]) -> int:
    """Part of a prompt group; validation is halved by a hash of its own."""
    part = part_of(group, salt, shares)
    if part == "validation":
        return TEMPERATURE if bucket(group, f"{salt}\0half") % 2 else CONFORMAL
    return TRAIN if part == "train" else TEST


def build(table: Answers, salt: str, shares: tuple[float, float]) -> Corpus:
    """The corpus of a balanced table.

    Args:
        table: Answers of all classes, already normalised.
        salt: Of the split.
        shares: Of the prompts for training and for validation; the rest is the test part.
    """
    names = tuple(sorted(set(table.groups)))
    number = {name: i for i, name in enumerate(names)}
    part = [part_of_group(name, salt, shares) for name in names]
    of_prompt = [number[group] for group in table.groups]
    rows = [
        (text, k, group) for k, by_prompt in enumerate(table.texts)
        for group, draws in zip(of_prompt, by_prompt, strict=True) for text in draws
    ]  # fmt: skip
    groups = np.array([group for _, _, group in rows], np.int64)
    found = Corpus(
        texts=tuple(text for text, _, _ in rows),
        labels=np.array([k for _, k, _ in rows], np.int64),
        groups=groups,
        group_names=names,
        parts=np.array(part, np.int64)[groups],
    )
    return without_repeats(found)


def without_repeats(corpus: Corpus) -> Corpus:
    """Leave out test texts that occur verbatim in training, and count them."""
    seen = {corpus.texts[i] for i in corpus.rows(TRAIN)}
    repeated = np.array([p == TEST and t in seen for t, p in zip(corpus.texts, corpus.parts, strict=True)], bool)
    kept = np.flatnonzero(~repeated)
    return replace(
        corpus,
        texts=tuple(corpus.some(kept)),
        labels=corpus.labels[kept],
        groups=corpus.groups[kept],
        parts=corpus.parts[kept],
        n_repeated=corpus.n_repeated + int(repeated.sum()),
    )


def joined(corpus: Corpus, more: Corpus) -> Corpus:
    """Two corpora as one; the classes of the second get the numbers after those of the first."""
    names = tuple(sorted({*corpus.group_names, *more.group_names}))
    number = {name: i for i, name in enumerate(names)}
    old, new = (np.array([number[name] for name in c.group_names], np.int64)[c.groups] for c in (corpus, more))
    both = Corpus(
        texts=corpus.texts + more.texts,
        labels=np.concatenate([corpus.labels, more.labels + corpus.labels.max() + 1]),
        groups=np.concatenate([old, new]),
        group_names=names,
        parts=np.concatenate([corpus.parts, more.parts]),
        n_repeated=corpus.n_repeated + more.n_repeated,
    )
    return without_repeats(both)


def require_enough(corpus: Corpus, classes: Sequence[str]) -> None:
    """Refuse what is too small to calibrate or to test.

    Raises:
        NotEnoughEvidence: fewer than two classes, or too few prompts in a part; says how many are there and wanted.
    """
    if len(classes) < 2:
        raise NotEnoughEvidence(f"Attribution needs at least 2 models; {len(classes)} given.")
    needs = {TRAIN: 10, TEMPERATURE: 10, CONFORMAL: MIN_CALIBRATION, TEST: MIN_TEST}
    for part, least in needs.items():
        for k, name in enumerate(classes):
            n = len(np.unique(corpus.groups[corpus.rows(part, [k])]))
            if n < least:
                total = len(corpus.group_names)
                raise NotEnoughEvidence(
                    f"'{safe_name(name)}' has {n} prompts in the {PARTS[part]} part, at least {least} are needed; the "
                    f"transcripts have {total} prompts. With the default split sample about 450, or give calibration and "
                    "test a larger share (--shares 0.5,0.35)."
                )
