"""The texts a bundle is made of: each with its class, the group of its prompt, and the part it belongs to.

A bundle keeps the texts themselves: they are smaller than their n-gram rows, and enrolling a model needs all of them.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from whorl.errors import NotEnoughEvidence, safe_name
from whorl.transcripts.answers import Answers
from whorl.transcripts.record import KEY_DIGITS, Prompt
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
        prompts: Index of its prompt.
        parts: Index into `PARTS`.
        prompt_keys: Id and group of every prompt with a blank between, sorted; draws that ask nothing differ in the group.
        n_repeated: Test texts left out because a training text is verbatim the same.
    """

    texts: tuple[str, ...]
    labels: Indices
    prompts: Indices
    parts: Indices
    prompt_keys: tuple[str, ...]
    n_repeated: int = 0

    @cached_property
    def groups(self) -> Indices:
        """Number of the prompt group of each text."""
        return np.unique(list(map(group_in, self.prompt_keys)), return_inverse=True)[1][self.prompts]

    def group_names(self, rows: Indices) -> list[str]:
        """Prompt group of texts by position."""
        return [group_in(self.prompt_keys[i]) for i in self.prompts[rows]]

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


def id_in(key: str) -> str:
    """Prompt id of a prompt key."""
    return key[:KEY_DIGITS]


def group_in(key: str) -> str:
    """Group of a prompt key."""
    return key[KEY_DIGITS + 1 :]


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
    keys = [f"{prompt.id} {group}" for prompt, group in zip(table.prompts, table.groups, strict=True)]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    rows = [(text, k, at) for k, found in enumerate(table.texts) for at, i in enumerate(order) for text in found[i]]
    parts = np.array([part_of_group(table.groups[i], salt, shares) for i in order], np.int64)
    prompts = np.array([at for _, _, at in rows], np.int64)
    return without_repeats(
        Corpus(
            texts=tuple(text for text, _, _ in rows),
            labels=np.array([k for _, k, _ in rows], np.int64),
            prompts=prompts,
            parts=parts[prompts],
            prompt_keys=tuple(keys[i] for i in order),
        )
    )


def without_repeats(corpus: Corpus) -> Corpus:
    """Leave out test texts that occur verbatim in training, and count them."""
    seen = {corpus.texts[i] for i in corpus.rows(TRAIN)}
    repeated = np.array([p == TEST and t in seen for t, p in zip(corpus.texts, corpus.parts, strict=True)], bool)
    kept = np.flatnonzero(~repeated)
    return replace(
        corpus,
        texts=tuple(corpus.some(kept)),
        labels=corpus.labels[kept],
        prompts=corpus.prompts[kept],
        parts=corpus.parts[kept],
        n_repeated=corpus.n_repeated + int(repeated.sum()),
    )


def joined(corpus: Corpus, more: Corpus) -> Corpus:
    """Two corpora as one; the classes of the second get the numbers after those of the first."""
    keys = tuple(sorted({*corpus.prompt_keys, *more.prompt_keys}))
    place = {key: i for i, key in enumerate(keys)}
    old, new = (np.array([place[key] for key in c.prompt_keys], np.int64)[c.prompts] for c in (corpus, more))
    both = Corpus(
        texts=corpus.texts + more.texts,
        labels=np.concatenate([corpus.labels, more.labels + corpus.labels.max() + 1]),
        prompts=np.concatenate([old, new]),
        parts=np.concatenate([corpus.parts, more.parts]),
        prompt_keys=keys,
        n_repeated=corpus.n_repeated + more.n_repeated,
    )
    return without_repeats(both)


def training_table(corpus: Corpus, models: Sequence[str]) -> Answers:
    """The training part as a balanced table; prompts that a class lacks are left out, and contents of prompts are not kept."""
    train = corpus.rows(TRAIN)
    drawn: dict[tuple[int, int], list[str]] = defaultdict(list)
    for i in train.tolist():
        drawn[int(corpus.labels[i]), int(corpus.prompts[i])].append(corpus.texts[i])
    n_draws = max(map(len, drawn.values()))
    every = range(len(models))
    kept = [p for p in np.unique(corpus.prompts[train]).tolist() if all(len(drawn[k, p]) == n_draws for k in every)]
    return Answers(
        models=tuple(models),
        prompts=tuple(Prompt(corpus.prompt_keys[p]) for p in kept),
        groups=tuple(group_in(corpus.prompt_keys[p]) for p in kept),
        texts=tuple(tuple(tuple(drawn[k, p]) for p in kept) for k in every),
        dropped={},
    )


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
                raise NotEnoughEvidence(
                    f"'{safe_name(name)}' has {n} prompts in the {PARTS[part]} part, at least {least} are needed; the "
                    f"transcripts have {len(corpus.prompt_keys)} prompts. Sample about 600 for the default split, or about "
                    "130 with larger shares for calibration and test (--shares 0.4,0.45)."
                )
