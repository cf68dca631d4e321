"""What the test of derivation says: the verdict, its error rates, and everything they rest on."""

import html
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from whorl import __version__
from whorl._atomic import write_text

SCHEMA = 1

NOT_SHOWN = (
    "Outputs cannot tell A -> B from B -> A, from a common ancestor, or from training on A's answers: all are 'related'.",
    "'Related' is no proof of ownership: a way of answering can be imitated.",
    "The rank p holds for a suspect that is like the controls in all but lineage: size, data, language, template.",
    "p over prompts alone is never a verdict: prompts are not the sampling unit, models are.",
    "'Unrelated' excludes derivatives like the planted ones, as strong as these were made, and no others.",
    "Its power counts training runs: planted derivatives that share a run and were not said to would make it look larger.",
    "Long retraining, an answer filter or another system prompt can hide a derivative.",
    "'Undecided' is not 'unrelated'.",
)


@dataclass(frozen=True)
class Member:
    """One model of the test.

    Args:
        role: "reference", "suspect", "control" or "planted".
        label: How the test calls it.
        ref: What its transcripts call it.
        revision: Commit or digest; None when it cannot be known.
        key: Model key, 16 hex digits.
        lineage: Its lineage, as given; its own label where none was.
        n_answers: Answers that were given.
        n_dropped: Of those that could serve the main score, left out: errors, surplus draws, prompts others lack.
        similarity: S(A, this model) by the main score; None for the reference, and where nothing could be scored.
        p_prompt: Of a control: p of "the suspect exceeds it by at most delta".
        p_model: Of a planted derivative: its rank p.
        effect: Of a planted derivative: its similarity minus that of the closest control.
        found: Of a planted derivative: whether all three levels were passed.
        run: Of a planted derivative: the training run that made it; its own label where none was given.
    """

    role: str
    label: str
    ref: str
    revision: str | None
    key: str
    lineage: str
    n_answers: int
    n_dropped: int | None = None
    similarity: float | None = None
    p_prompt: float | None = None
    p_model: float | None = None
    effect: float | None = None
    found: bool | None = None
    run: str | None = None


@dataclass(frozen=True)
class ScoreLine:
    """One score, whether it decides or not.

    Args:
        score: Which.
        decides: Whether it was fixed beforehand as the main one.
        why: Why it could not be computed; "" when it could.
        similarity: S(A, B).
        distance: -log S of alleles, else None.
        closest: Largest S(A, C_i).
        p_model: Rank p; descriptive unless it decides.
        n_prompts: Prompts.
        n_groups: Clusters of prompts.
        n_draws: Answers a prompt and model.
    """

    score: str
    decides: bool
    why: str = ""
    similarity: float | None = None
    distance: float | None = None
    closest: float | None = None
    p_model: float | None = None
    n_prompts: int = 0
    n_groups: int = 0
    n_draws: int = 0


@dataclass(frozen=True)
class PromptCounts:
    """Prompts on which only one of two agrees with the reference, for the control that comes closest.

    Args:
        control: Its label.
        only_suspect: Prompts.
        only_control: Prompts.
        p_nominal: Exact McNemar p as if prompts were independent; never decides.
    """

    control: str
    only_suspect: int
    only_control: int
    p_nominal: float


@dataclass(frozen=True)
class Found:
    """Runs of planted derivatives found whole: `found` of `n`, exact one-sided 95 % lower bound, and whether it reaches 0.9."""

    found: int
    n: int
    lower: float
    enough: bool


@dataclass(frozen=True)
class DerivationResult:
    """Does B derive from A, from outputs?

    Args:
        verdict: "related", "unrelated" or "undecided".
        why: One sentence.
        missing: What would decide it; empty unless undecided.
        p_value: `p_model`, corrected for the parents tried (Holm); None when nothing could be scored.
        alpha: Error rate fixed before the data were read.
        delta: Smallest difference of interest.
        similarity: S(A, B) by the main score.
        p_prompt: Largest sign-flip p over the controls.
        p_prompt_kind: "exact" when every flip was made and the score keeps the symmetry, else "monte-carlo".
        p_model: Rank p before correction.
        effect: S(A, B) minus the largest S(A, C_i).
        in_bulk: Whether S(A, B) lies where the controls lie.
        n_lineages: Independent control lineages N.
        needed_lineages: How many the error rate needs.
        n_candidates: Parents tried, for the correction.
        power: Planted derivatives found; None when none was planted or scored.
        scores: Every score, the main one first.
        closest: Counts of prompts against the closest control; None for graded scores.
        members: All models.
        warnings: What weakens the result.
        decoding: Distinct decoding settings of the main score's answers.
        prompts_digest: SHA-256 of the prompt ids of the main score; None when nothing could be scored.
        config: Score, b, seed, mixed decoding.
        environment: Versions.
    """

    verdict: str
    why: str
    missing: tuple[str, ...]
    p_value: float | None
    alpha: float
    delta: float
    similarity: float | None
    p_prompt: float | None
    p_prompt_kind: str | None
    p_model: float | None
    effect: float | None
    in_bulk: bool | None
    n_lineages: int
    needed_lineages: int
    n_candidates: int
    power: Found | None
    scores: tuple[ScoreLine, ...]
    closest: PromptCounts | None
    members: tuple[Member, ...]
    warnings: tuple[str, ...]
    decoding: tuple[Mapping[str, Any], ...]
    prompts_digest: str | None
    config: Mapping[str, Any]
    environment: Mapping[str, str]

    @property
    def reference(self) -> Member:
        """A."""
        return self.members[0]

    @property
    def suspect(self) -> Member:
        """B."""
        return self.members[1]

    def to_dict(self) -> dict[str, Any]:
        """Exactly what `whorl compare --from transcripts --question derivation --json` prints."""
        head = {"schema": SCHEMA, "kind": "derivation", "status": "done", "whorl_version": __version__}
        return {**head, **asdict(self), "does_not_show": list(NOT_SHOWN)}

    def save(self, path: str | Path) -> Path:
        """Write as JSON, atomically."""
        return write_text(Path(path), json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")

    def __repr__(self) -> str:
        return f"<DerivationResult {self.reference.label!r} {self.suspect.label!r}: {self.verdict}>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td><code>{html.escape(m.label)}</code></td><td>{m.role}</td><td>{m.similarity:.4f}</td></tr>"
            for m in self.members
            if m.similarity is not None
        )
        caption = f"<b>{html.escape(self.verdict)}</b>: {html.escape(self.why)}"
        head = "<tr><th>model</th><th>role</th><th>similarity with the reference</th></tr>"
        return f"<table><caption>{caption}</caption>{head}{rows}</table>"
