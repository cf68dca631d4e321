"""MEraser (arXiv 2506.12551) as one kind of attack; the method itself is `whorl.erasure.phases`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from whorl.attacks._job import Job

if TYPE_CHECKING:
    from whorl.erasure.sets import ErasureSets
    from whorl.questions.rows import QaData
    from whorl.tuning.settings import Settings


def run(
    job: Job,
    *,
    questions: str = "docstrings",
    arm: str = "erase+recover",
    rate: float = 5e-4,
    rate_recover: float = 5e-4,
    epochs_recover: int = 2,
    rows: int = 300,
    pairing: str = "mismatched",
    rank: int = 8,
    loss_on: str = "all",
    transfer: str | None = None,
    scale: float = 1.0,
    key: str | None = None,
    threads: int = 1,
) -> None:
    """Erase with mismatched pairs, repair with correct ones.

    Args:
        job: One fingerprinted folder with its tokenizer.
        questions: "docstrings" (the attacker's part of the built-in questions), a file, or a data set of the Hub.
        arm: "erase", "recover", "erase+recover" or "clean-only".
        rate: Of the erase phase.
        rate_recover: Of the recover phase.
        epochs_recover: Of the recover phase; published are 2.
        rows: Mismatched rows.
        pairing: "mismatched", "random", "shuffled" or "correct".
        rank: Of the erase phase's adapter, alpha twice that.
        loss_on: "all" tokens, as the released code has it, or the "answer".
        transfer: Folder of an erasing adapter that was trained on the clean base, instead of the erase phase.
        scale: Of that adapter.
        key: Folder of the fingerprint's keys, to check that no row holds one of them; an attacker has none.
        threads: Threads of torch.

    Raises:
        UsageError: impossible settings, or the extra `lab` is missing.
        InputRefused: the data cannot be read.
        NotEnoughEvidence: the data have too few rows of a type.
        NotComparable: the adapter belongs to another base.
    """
    from whorl.erasure.phases import RECOVER, erase

    erase(
        job.model,
        job.out,
        sets=sets_of(questions, job.seed, rows, pairing, () if key is None else texts_of(Path(key))),
        arm=arm,  # type: ignore[arg-type]
        erase=erase_settings(rate, rank, threads),
        recover=replace(RECOVER, learning_rate=rate_recover, epochs=epochs_recover, n_threads=threads),
        transfer=None if transfer is None else Path(transfer),
        scale=scale,
        seed=job.seed,
        loss_on=loss_on,  # type: ignore[arg-type]
        progress=job.progress,
    )


def erase_settings(rate: float, rank: int, threads: int) -> "Settings":
    """The erase phase with another rate and rank."""
    from whorl.erasure.phases import ERASE
    from whorl.tuning.settings import ATTENTION, Lora

    return replace(ERASE, learning_rate=rate, lora=Lora(rank, 2 * rank, 0.05, ATTENTION), n_threads=threads)


def texts_of(key: Path) -> tuple[str, ...]:
    """Every trigger and answer of a key set."""
    from whorl.triggers.material import read_material

    keys = read_material(key).keys
    members = (*keys.keys, *keys.near_train, *keys.near_eval, *keys.decoys)
    return tuple(dict.fromkeys([*(k.trigger for k in members), *keys.answers]))


def sets_of(questions: str, seed: int, rows: int, pairing: str, forbidden: Sequence[str] = ()) -> "ErasureSets":
    """Mismatched and clean questions out of some data.

    Raises:
        MalformedFile: a row holds a forbidden text.
        NotEnoughEvidence: too few rows of a type.
        UsageError: an unknown pairing.
    """
    from whorl.erasure.sets import build_sets

    return build_sets(attacker_and_test(questions)[0], seed=seed, n_rows=rows, answers=pairing, forbidden=forbidden)  # type: ignore[arg-type]


def attackers_questions(questions: str) -> "QaData":
    """What an attacker trains on: all of a user's data, of the built-in questions those that nobody else has seen."""
    from whorl.lab.triggers.base import qa_parts
    from whorl.questions.reading import load_questions

    return qa_parts().attacker if questions == "docstrings" else load_questions(questions)


def attacker_and_test(questions: str) -> "tuple[QaData, QaData]":
    """Questions to attack with, and others to measure on: a fifth of a user's data, the test part of the built-in ones."""
    from whorl.lab.triggers.base import qa_parts
    from whorl.questions.reading import load_questions

    if questions == "docstrings":
        parts = qa_parts()
        return parts.attacker, parts.test
    attacker, test = load_questions(questions).parts((0.8, 0.2))
    return attacker, test
