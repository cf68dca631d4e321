"""`IdentityResult`: the verdict on an endpoint, with everything needed to check it (statistics.md 11)."""

import html
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from whorl import __version__
from whorl._atomic import write_text
from whorl.identity.power import Detection

SCHEMA = 1

NULL = (
    "the suspect's answers to each prompt are drawn from the same distribution as those of the reference, or of one of the "
    "honest variants that were allowed"
)
NOT_SHOWN = (
    "'Match' excludes the declared differences at the stated power, and nothing smaller.",
    "A silent int8 copy often lies below the noise between honest servers: it is then undetectable, not excluded.",
    "'No match': the answers differ from every variant sampled; an honest server set up in yet another way differs too.",
    "Answers to these prompts, under this decoding, at this time: an endpoint may route, change or recognise an audit.",
    "Lineage: a fine-tune of the claimed model is 'no match'. Nothing is said about which other model answers.",
    "The length of answers never decides: they are compared only as far as they reach.",
    "'Undecided' is not 'match'.",
)


@dataclass(frozen=True)
class StatisticResult:
    """One statistic of one test; larger is more different.

    Args:
        name: "mmd", "first-word", "classifier", "log-likelihood", "length" or "max-t".
        value: Observed distance (MMD^2, accuracy, largest z); None when it could not be computed.
        expected: Its mean over relabellings, where nothing differs.
        sd: Its standard deviation over relabellings.
        p_value: In (0, 1], exact by randomisation; None when there is none.
        b: Relabellings.
        why: Why there is no value, else None.
    """

    name: str
    value: float | None
    expected: float | None
    sd: float | None
    p_value: float | None
    b: int
    why: str | None = None


@dataclass(frozen=True)
class NullResult:
    """The suspect against one honest model.

    Args:
        name: "reference", or the name of the variant.
        model: Its reference, revision, precision.
        digest: Of its records.
        n_prompts: Usable prompts.
        n_too_few: Prompts dropped for fewer than 2 draws on a side.
        n_draws: Draws of this model and of the suspect on the usable prompts.
        p_value: Of the main statistic; None when there is none.
        statistics: All statistics, the main one first.
        why: Why there is no p, else None.
    """

    name: str
    model: Mapping[str, Any]
    digest: str
    n_prompts: int
    n_too_few: int
    n_draws: tuple[int, int]
    p_value: float | None
    statistics: tuple[StatisticResult, ...] = ()
    why: str | None = None


@dataclass(frozen=True)
class IdentityResult:
    """Whether a suspect answers like the model it claims to be.

    Args:
        verdict: "match", "no match" or "undecided".
        why: One sentence.
        needed: What would decide it, one sentence; None when it is decided.
        p_value: Largest p over the reference and all allowed variants; None when one of them could not be tested.
        alpha: Error rate, fixed before the answers were read.
        statistic: The main statistic, fixed before the answers were read.
        nulls: The suspect against the reference, then against every variant.
        power: Detection of the declared differences; empty when none was declared, or none was needed.
        suspect: The suspect's model, digest, counts, and what its server called itself.
        b: Relabellings.
        seed: Of relabellings and resamples.
        config: Everything else that was chosen.
        decoding: Settings of the answers.
        warnings: What to know before believing it.
        environment: Versions.
    """

    verdict: str
    why: str
    needed: str | None
    p_value: float | None
    alpha: float
    statistic: str
    nulls: tuple[NullResult, ...]
    power: tuple[Detection, ...]
    suspect: Mapping[str, Any]
    b: int
    seed: int
    config: Mapping[str, Any] = field(default_factory=dict)
    decoding: tuple[Mapping[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def nearest(self) -> NullResult | None:
        """The honest model that the suspect is most like: it gives the p."""
        tested = [null for null in self.nulls if null.p_value is not None]
        return max(tested, key=lambda null: null.p_value or 0.0) if tested else None

    def to_dict(self) -> dict[str, Any]:
        """Exactly what `--json` prints."""
        return {
            "schema": SCHEMA,
            "kind": "identity",
            "status": "done" if self.verdict != "undecided" else "partial",
            "whorl_version": __version__,
            "question": "Is this endpoint the model it claims to be?",
            "null": NULL,
            "verdict": self.verdict,
            "why": self.why,
            "needed": self.needed,
            "p_value": self.p_value,
            "p_kind": None if self.p_value is None else "exact",
            "alpha": self.alpha,
            "statistic": self.statistic,
            "direction": "distance",
            "nulls": [_null(null) for null in self.nulls],
            "power": [asdict(d) | {"enough": d.enough, "undetectable": d.undetectable} for d in self.power],
            "suspect": dict(self.suspect),
            "decoding": [dict(d) for d in self.decoding],
            "warnings": list(self.warnings),
            "does_not_show": list(NOT_SHOWN),
            "environment": dict(self.environment),
            "config": dict(self.config) | {"alpha": self.alpha, "b": self.b, "seed": self.seed},
        }

    def save(self, path: str | Path) -> Path:
        """Write as JSON, atomically."""
        return write_text(Path(path), json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")

    def __repr__(self) -> str:
        p = "none" if self.p_value is None else format(self.p_value, ".2g")
        return f"<IdentityResult {self.verdict}: p = {p}, {len(self.nulls)} honest models>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(null.name)}</td><td>{null.n_prompts}</td>"
            f"<td>{'–' if null.p_value is None else format(null.p_value, '.4g')}</td></tr>"
            for null in self.nulls
        )
        caption = f"<b>{html.escape(self.verdict)}</b>: {html.escape(self.why)}"
        return (
            f"<table><caption>{caption}</caption><tr><th>honest model</th><th>prompts</th><th>p</th></tr>{rows}</table>"
        )


def _null(null: NullResult) -> dict[str, Any]:
    return asdict(null) | {"model": dict(null.model), "n_draws": list(null.n_draws)}
