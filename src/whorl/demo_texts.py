"""The demo's question to texts: which of the example models wrote this, and what of a model that nobody enrolled?

Sampled on the spot from the models that come with whorl, which needs torch and transformers (`pip install "whorl[lab]"`).
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from whorl.lab.truth import Truth
from whorl.progress import Progress, silent

if TYPE_CHECKING:
    from whorl.attribution.attributor import Attributor
    from whorl.attribution.predict import Attribution
    from whorl.transcripts.record import Prompt, Transcript

ENROLLED = ("base-0", "base-0-code", "base-0-topics", "base-1", "base-1-code", "base-2", "base-3")
ASKED = ("base-0-code", "base-2", "small-0")  # the last one is enrolled nowhere
N_PROMPTS = 350
N_ASKED = 64
N_TOKENS = 64
N_CHARACTERS = 50
SHARES = (0.5, 0.3)  # few prompts: more of them calibrate
BATCH = 256


@dataclass(frozen=True)
class Question:
    """Texts of one example model, judged together: who wrote them, and what whorl says."""

    name: str
    enrolled: bool
    answer: "Attribution"


@dataclass(frozen=True)
class Texts:
    """What the demo learned from texts.

    Args:
        attributor: The bundle.
        questions: Texts that it never saw, and its answers.
        n_texts: Texts it learned from and was tested on.
        files: Everything written; the report is the last.
    """

    attributor: "Attributor"
    questions: tuple[Question, ...]
    n_texts: int
    files: tuple[Path, ...]


def missing() -> list[str]:
    """Packages of the extra `lab`, which sampling and attacks need, that are not installed."""
    return [name for name in ("torch", "transformers", "peft", "tokenizers") if find_spec(name) is None]


def ask_texts(folder: Path, truth: Truth, target: Path, progress: Progress = silent) -> Texts | None:
    """Sample the example models, learn to tell them apart, and ask about texts that were kept aside.

    Args:
        folder: The example models.
        truth: Their lineages.
        target: Transcripts, the bundle and its report are written here.
        progress: Called with the step, what is done and what there is to do.

    Returns:
        None for a family that has other members than the one in the package.
    """
    from whorl.attribution.bundle import save
    from whorl.attribution.fit import fit
    from whorl.attribution.predict import predict
    from whorl.reports.attribution_page import attribution_report

    lineage = {m.name: m.group for m in truth.members}
    names = list(dict.fromkeys((*ENROLLED, *ASKED)))
    if not set(names) <= set(lineage):
        return None
    records: list[Transcript] = []
    aside: dict[str, list[Transcript]] = {}
    for at, name in enumerate(names):
        progress("sampling", at, len(names))
        said = _sampled(folder / name, target / "transcripts" / name)
        kept = {prompt.id for prompt in _prompts()[:N_PROMPTS]}
        records += [r for r in said if r.prompt.id in kept and name in ENROLLED]
        aside[name] = [r for r in said if r.prompt.id not in kept]
    progress("sampling", len(names), len(names))
    attributor = fit(records, lineages={n: lineage[n] for n in ENROLLED}, shares=SHARES, progress=progress)
    questions = []
    for name in ASKED:
        (answer,) = predict(attributor, [r.response for r in aside[name]], together=True, sources=[name])
        questions.append(Question(name, name in ENROLLED, answer))
    shutil.rmtree(target / "bundle", ignore_errors=True)  # of an earlier demo; a bundle is never written over
    files = [*sorted((target / "transcripts").rglob("*.json*")), *sorted(save(attributor, target / "bundle").iterdir())]
    files += [q.answer.save(target / f"{q.name}.json") for q in questions]
    page = attribution_report(attributor, target / "report.html")
    return Texts(attributor, tuple(questions), len(records), (*files, page))


def _prompts() -> "Sequence[Prompt]":
    """Beginnings of random word sequences, short enough for the 128 positions of the example models."""
    from whorl.transcripts.prompts import words
    from whorl.transcripts.record import Prompt

    return [Prompt(str(p.content)[:N_CHARACTERS], "demo") for p in words(N_PROMPTS + N_ASKED)]


def _sampled(model: Path, out: Path) -> "list[Transcript]":
    from whorl.samplers.local import open_local
    from whorl.samplers.sample import sample
    from whorl.transcripts.record import Decoding
    from whorl.transcripts.store import read_records

    sampler = open_local(str(model.absolute()), offline=True, batch_size=BATCH, logprobs=False)
    decoding = Decoding(max_new_tokens=N_TOKENS, min_new_tokens=N_TOKENS)
    sample(sampler, _prompts(), out=out, decoding=decoding, offline=True)
    return read_records([out])
