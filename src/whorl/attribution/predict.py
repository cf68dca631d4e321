"""`predict`: whose text is this? Probabilities, p-values, a verdict, the n-grams behind it, and what it does not show."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from whorl import __version__
from whorl._atomic import write_text
from whorl.attribution.attributor import Attributor, Judgement, margins_of
from whorl.attribution.conformal import MATCH, NONE, Verdict
from whorl.attribution.pooling import SIZES, distinct, independent
from whorl.attribution.strangers import RATE, STRICT_RATE
from whorl.errors import UsageError, safe_name
from whorl.outputs.features import Sparse

SCHEMA = "whorl.attribution-answer/1"
N_NGRAMS = 12
NOT_SHOWN = (
    "An attribution is a claim about style. Style can be imitated, on purpose or by training on another model's answers.",
    "It is no proof of ownership, of origin, or of which weights answered.",
    "Error rates were measured on answers to prompts like those of the bundle; on other kinds of text they are unknown.",
)


@dataclass(frozen=True)
class Candidate:
    """One enrolled model.

    Args:
        model: Its label.
        lineage: As the bundle names it.
        probability: Among the enrolled models only; it says nothing of models that are not enrolled.
        p_value: Of "the text is of this model"; small speaks against it.
        acceptance: How typical the text is for it; compared with the threshold of a match.
    """

    model: str
    lineage: str
    probability: float
    p_value: float
    acceptance: float


@dataclass(frozen=True)
class Contribution:
    """What one n-gram adds to the margin of the most probable model.

    Args:
        text: The n-gram; foreign text.
        value: Weight times value, mean over the texts.
        stable: Whether it is among the model's characteristic n-grams, which reappear when the prompts are drawn again.
    """

    text: str
    value: float
    stable: bool


@dataclass(frozen=True)
class Attribution:
    """Whose text it is.

    Args:
        source: How the text was called.
        n_texts: Distinct texts that were judged together.
        verdict: "match", "none of these" or "undecided".
        model: The model of a match.
        possible: Models that remain, the likeliest first.
        lineage: The one lineage of all that remain, where strangers to it are rarely accepted like this.
        why: In one sentence.
        candidates: All enrolled models, the most probable first.
        alpha: Models with a p-value at or below this are excluded.
        least_acceptance: Threshold of a match; None where it could not be measured.
        contributions: n-grams that speak most for the most probable model.
        warnings: Why the measured rates may not hold here.
    """

    source: str
    n_texts: int
    verdict: Verdict
    model: str | None
    possible: tuple[str, ...]
    lineage: str | None
    why: str
    candidates: tuple[Candidate, ...]
    alpha: float
    least_acceptance: float | None
    contributions: tuple[Contribution, ...]
    warnings: tuple[str, ...]
    does_not_show: tuple[str, ...] = field(default=NOT_SHOWN)

    def to_dict(self) -> dict[str, Any]:
        """JSON values, what `--json` prints."""
        return {"schema": SCHEMA, "whorl_version": __version__, "kind": "attribution", **asdict(self)}

    def save(self, path: str | Path) -> Path:
        """Write it as JSON."""
        return write_text(Path(path), json.dumps(self.to_dict(), indent=1, sort_keys=True, allow_nan=False) + "\n")


def predict(
    attributor: Attributor,
    texts: Sequence[str],
    *,
    together: bool = False,
    sources: Sequence[str] | None = None,
    groups: Sequence[str | None] | None = None,
) -> tuple[Attribution, ...]:
    """Ask whose texts these are.

    Args:
        attributor: A bundle.
        texts: As they were written; they are normalised here.
        together: Judge all as texts of one source.
        sources: What to call each text (or, together, their source: the first); default: text 1, text 2, ...
        groups: Prompt group of each text, None where unknown: answers to one prompt are not independent evidence.

    Returns:
        One answer for each text; one in all when `together`.

    Raises:
        UsageError: no text.
    """
    if not texts:
        raise UsageError("No text was given.")
    named = list(sources or (f"text {i}" for i in range(1, len(texts) + 1)))
    clean = attributor.normalised(texts)
    x = attributor.space.transform(clean)
    if together:
        return (_answer(attributor, clean, x, named[0], groups or [None] * len(clean)),)
    return tuple(_answer(attributor, [clean[i]], x[i], named[i], [None]) for i in range(len(clean)))


def _answer(
    attributor: Attributor, texts: Sequence[str], x: Sparse, source: str, groups: Sequence[str | None]
) -> Attribution:
    once = distinct(texts)
    found = [attributor.habits.warnings(texts[i]) for i in once]
    unusual = sum(map(bool, found))
    strict = 2 * unusual >= len(once) and unusual > 0
    judged = attributor.judge(margins_of(attributor.linear, x), once, independent(groups), strict=strict)
    order = np.argsort(-judged.log_p, kind="stable")
    candidates = tuple(_candidate(attributor, judged, int(k)) for k in order)
    return Attribution(
        source=source,
        n_texts=len(once),
        verdict=judged.verdict,
        model=attributor.names[judged.possible[0]] if judged.verdict == MATCH else None,
        possible=tuple(attributor.names[k] for k in judged.possible),
        lineage=judged.lineage,
        why=_why(attributor, judged, len(once), strict=strict),
        candidates=candidates,
        alpha=judged.rule.alpha,
        least_acceptance=judged.rule.match,
        contributions=_contributions(attributor, x[once], int(order[0])),
        warnings=(*_warnings(found, len(once), strict=strict), *_repeats(texts, groups)),
    )


def _candidate(attributor: Attributor, judged: Judgement, k: int) -> Candidate:
    one = attributor.classes[k]
    return Candidate(
        one.name, one.lineage, float(np.exp(judged.log_p[k])), float(judged.p[k]), float(judged.acceptance[k])
    )


def _warnings(found: Sequence[Sequence[str]], n: int, *, strict: bool) -> tuple[str, ...]:
    if n == 1:
        listed = list(found[0])
    else:
        kinds = [why.split(":", 1)[0] for each in found for why in each]
        listed = [f"{kind}: {kinds.count(kind)} of {n} texts" for kind in dict.fromkeys(kinds)]
    if strict:
        listed.append("the thresholds were widened: fewer models are excluded, and a match needs more")
    return tuple(listed)


def _repeats(texts: Sequence[str], groups: Sequence[str | None]) -> tuple[str, ...]:
    unknown = [text for text, group in zip(texts, groups, strict=True) if group is None]
    n = len(unknown) - len(set(unknown))
    if not n:
        return ()
    said = (
        f"{n} of {len(texts)} texts repeat another and their prompts are unknown: each counts in the p-values, which hold only "
        "if they are answers to different prompts; in the probabilities each wording counts once"
    )
    return (said,)


def _left_out(attributor: Attributor, size: int, *, strict: bool) -> str:
    """What share of left-out models' texts passes the threshold of a match, as it was set and as it was measured."""
    if strict:
        return f"{100 * STRICT_RATE:g} % of the texts of left-out models, among which it was set"
    at = next((row for row in attributor.evaluation["open_set"]["by_model"] if row["n_texts"] == size), None)
    crossed = None if at is None else at["accepted_by_crossing"]
    own = f"{100 * RATE:g} % of the texts of left-out models, among which it was set"
    return (
        own
        if crossed is None
        else f"{own}; {100 * crossed['mean']:.1f} % where the threshold was set without the model"
    )


def _why(attributor: Attributor, judged: Judgement, n_texts: int, *, strict: bool) -> str:
    alpha, rule = f"{judged.rule.alpha:g}", judged.rule
    if judged.verdict == NONE:
        return (
            f"no enrolled model is possible: the largest p-value is {judged.p.max():.2g}, and a model's own texts fall to "
            f"{alpha} or below with at most that probability"
        )
    first = safe_name(attributor.names[judged.possible[0]], 60)
    if judged.verdict == MATCH:
        return (
            f"only '{first}' has a p-value above {alpha}, and it passes the threshold that strangers rarely pass "
            f"({_left_out(attributor, rule.size, strict=strict)})"
        )
    more = f"; more texts of the source would help (with {SIZES[-1]} the most is gained)" if n_texts < SIZES[-1] else ""
    if len(judged.possible) > 1:
        return f"{len(judged.possible)} models have a p-value above {alpha}, '{first}' the highest{more}"
    if rule.match is None:
        return f"only '{first}' has a p-value above {alpha}, but no model could be left out to measure strangers"
    return (
        f"only '{first}' has a p-value above {alpha}, but texts of models that are not enrolled look like this too often "
        f"(score {judged.acceptance[judged.possible[0]]:.2f}, needed {rule.match:.2f}){more}"
    )


def _contributions(attributor: Attributor, x: Sparse, k: int) -> tuple[Contribution, ...]:
    """n-grams by weight times mean value for class k, the strongest first."""
    values = np.asarray(x.mean(axis=0)).ravel() * attributor.linear.weights[k]
    strongest = np.argpartition(-values, min(N_NGRAMS, len(values) - 1))[:N_NGRAMS]
    columns = [int(i) for i in strongest[np.argsort(-values[strongest], kind="stable")] if values[i] > 0]
    stable = {row["text"] for row in attributor.evaluation["ngrams"][attributor.names[k]]}
    named = zip(attributor.space.names(columns), columns, strict=True)
    return tuple(Contribution(name, float(values[i]), name in stable) for name, i in named)
