"""From measurements to verdicts: what leaves a fingerprint, against which controls, with which intervals.

A factor leaves a fingerprint when all planned replicates are there, the lower end of their t interval exceeds chance, and
every sampler-seed control C1 passed; beside it stands the one-sided p after Holm's correction over all planned factors.
Only the headline classifier on prompted texts gives verdicts. Texts and prompts are many and give a narrow interval of
their own; it says how well this set of models is told apart, not whether the factor does it, so it never decides.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from whorl._atomic import write_text
from whorl.lab._jobs import Row
from whorl.lab._llama import library_versions
from whorl.lab.natural.answers import PROMPTS, conditions, factors_of
from whorl.lab.natural.config import Experiment, cells, level_names, levels
from whorl.lab.natural.measure import ABLATIONS, CLASSIFIERS, HEADLINE, YARDSTICK, holds_chance, passes_c1
from whorl.lab.natural.text import prepare
from whorl.lab.natural.train import folder_of, losses
from whorl.multiple import holm
from whorl.outputs.accuracy import replicate_interval

SCHEMA = 1
DECIDES = (PROMPTS, HEADLINE)
LEAST_REPLICATES = 3

FINGERPRINT = "fingerprint"
NOT_SHOWN = "not shown"
TOO_FEW = "too few replicates"
INVALID = "invalid: C1 failed"
DESCRIBED = "–"  # other classifiers and conditions are shown and decide nothing
ALPHA = 0.05  # of the corrected p


@dataclass(frozen=True)
class Measured:
    """One factor under one condition by one classifier.

    Args:
        factor: What was varied.
        condition: "prompts" or "unconditional".
        classifier: Features of the logistic regression.
        accuracies: One per replicate, shares.
        intervals: Bootstrap interval over prompts of each, 95 %.
        over_replicates: t interval over the replicates, 95 %; None below two.
        chance: 1 / models.
        pooled: Texts of one source -> mean accuracy over replicates.
        losses: Final training losses, [replicate][level], nats per token.
        confusions: Counts [replicate][truth][answer].
        p_value: One-sided t test over replicates against chance, after Holm's correction over the factors; None below
            three replicates and for what gives no verdict.
        verdict: See the module.
        to_yardstick: Mean difference to "both" over common replicates, and its t interval; None where there is none.
    """

    factor: str
    condition: str
    classifier: str
    accuracies: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...]
    over_replicates: tuple[float, float] | None
    chance: float
    pooled: Mapping[str, float]
    losses: tuple[tuple[float, ...], ...]
    confusions: tuple[tuple[tuple[int, ...], ...], ...]
    p_value: float | None
    verdict: str
    to_yardstick: tuple[float, float, float] | None

    @property
    def accuracy(self) -> float:
        """Mean over replicates."""
        return sum(self.accuracies) / len(self.accuracies)

    @property
    def lift(self) -> float:
        """(accuracy - chance) / (1 - chance): comparable across numbers of models."""
        return (self.accuracy - self.chance) / (1 - self.chance)

    @property
    def loss_spread(self) -> float:
        """Largest difference of final losses within a replicate, the mean over replicates; nats per token."""
        return sum(max(row) - min(row) for row in self.losses) / len(self.losses)


@dataclass(frozen=True)
class Control:
    """One control: what it is, its accuracy, interval over prompts, and whether it shows what it must."""

    name: str
    condition: str
    classifier: str
    accuracy: float
    low: float
    high: float
    chance: float
    n_texts: int
    passed: bool
    attempt: int = 0


@dataclass(frozen=True)
class Results:
    """A whole run.

    Args:
        experiment: The settings.
        text: Name and digest of the text, passes of the windows over it, prompts.
        measured: All factors.
        controls: C1 and C3.
        rerun: C2: whether the weights of a repeated training are equal, and the largest difference.
        ablations: Transform -> replicate -> accuracy "retrained" and "tested", by the headline classifier.
        curves: Classifier -> prompts to train on -> mean accuracy.
        ngrams: Model of the first replicate of "both" -> its most characteristic words.
        missing: Factors and replicates that were not run.
        versions: Libraries.
    """

    experiment: Experiment
    text: Mapping[str, Any]
    measured: tuple[Measured, ...]
    controls: tuple[Control, ...]
    rerun: Mapping[str, Any]
    ablations: Mapping[str, tuple[Mapping[str, float], ...]]
    curves: Mapping[str, Mapping[int, float]]
    ngrams: Mapping[str, Any]
    missing: tuple[str, ...]
    versions: Mapping[str, str]

    def of(self, condition: str, classifier: str) -> tuple[Measured, ...]:
        """The factors under one condition by one classifier."""
        return tuple(m for m in self.measured if (m.condition, m.classifier) == (condition, classifier))

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        found: dict[str, Any] = {"schema": SCHEMA, "kind": "natural-fingerprints"}
        found |= {"experiment": self.experiment.model_dump(mode="json"), "text": dict(self.text)}
        found["measured"] = [
            {**asdict(m), "accuracy": m.accuracy, "lift": m.lift, "loss_spread": m.loss_spread} for m in self.measured
        ]
        found["controls"] = [asdict(control) for control in self.controls]
        found |= {"rerun": dict(self.rerun), "ablations": {k: [dict(r) for r in v] for k, v in self.ablations.items()}}
        found["curves"] = {name: {str(n): a for n, a in curve.items()} for name, curve in self.curves.items()}
        return found | {
            "ngrams": dict(self.ngrams),
            "missing": list(self.missing),
            "versions": dict(self.versions),
            "does_not_show": list(DOES_NOT_SHOW),
        }

    def save(self, path: Path) -> Path:
        """Write the JSON."""
        return write_text(path, json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")


DOES_NOT_SHOW = (
    (
        "Models of a million weights trained on a megabyte of text: nothing here says how large the effect is in a model of "
        "a billion weights."
    ),
    "All models and replicates share one text, tokenizer and list of prompts: the intervals speak of other seeds only.",
    "A factor that is not shown here may leave a trace that more replicates or a stronger classifier would find.",
    "Models that differ in final loss differ in quality, and are separable for that reason alone.",
)


def results(experiment: Experiment, out: Path, rows: Mapping[str, Row]) -> Results:
    """All verdicts of a run from its measurements."""
    controls = _controls(rows)
    corrected = _corrected(experiment, rows)
    measured = tuple(
        _measured(experiment, rows, factor, condition, classifier, corrected, c1_passed(controls))
        for condition in conditions(experiment)
        for classifier in CLASSIFIERS
        for factor in factors_of(experiment, condition)
        if _replicates(rows, factor, condition, classifier, experiment)
    )
    text = prepare(experiment)
    facts = {
        "name": text.name,
        "digest": text.digest,
        "passes": round(text.n_passes, 2),
        "prompts": len(text.prompts),
        "windows": list(text.windows.shape),
        "first_loss": _loss(out, experiment),
    }
    return Results(
        experiment,
        facts,
        measured,
        controls,
        {k: v for k, v in rows["c2"].items() if k != "key"},
        _ablations(experiment, rows),
        _curves(experiment, rows),
        {k: v for k, v in rows.get("ngrams|prompts|0", {}).items() if k == "models"}.get("models", {}),
        _missing(experiment, rows),
        library_versions(),
    )


def _loss(out: Path, experiment: Experiment) -> float:
    return losses(out, cells(experiment)[0])


def _replicates(
    rows: Mapping[str, Row], factor: str, condition: str, classifier: str, experiment: Experiment
) -> list[Row]:
    found = (rows.get(f"factor|{condition}|{classifier}|{factor}|{r}") for r in range(experiment.replicates))
    return [row for row in found if row is not None]


def _measured(
    experiment: Experiment,
    rows: Mapping[str, Row],
    factor: str,
    condition: str,
    classifier: str,
    corrected: Mapping[str, float],
    c1: bool,
) -> Measured:
    own = _replicates(rows, factor, condition, classifier, experiment)
    accuracies = tuple(float(row["accuracy"]) for row in own)
    chance = 1 / int(own[0]["n_models"])
    spread = replicate_interval(accuracies)
    interval = None if spread is None else spread[1:]
    p_value = corrected.get(factor) if (condition, classifier) == DECIDES else None
    verdict = _verdict(interval, len(own), experiment.replicates, chance, c1)
    pooled = {n: sum(row["pooled"][n] for row in own) / len(own) for n in own[0]["pooled"]}
    return Measured(
        factor,
        condition,
        classifier,
        accuracies,
        tuple((row["low"], row["high"]) for row in own),
        interval,
        chance,
        pooled,
        tuple(tuple(row["losses"]) for row in own),
        tuple(tuple(tuple(line) for line in row["confusion"]) for row in own),
        p_value,
        verdict if (condition, classifier) == DECIDES else DESCRIBED,
        _to_yardstick(experiment, rows, factor, condition, classifier),
    )


def _verdict(interval: tuple[float, float] | None, n_replicates: int, planned: int, chance: float, c1: bool) -> str:
    if not c1:
        return INVALID
    if interval is None or n_replicates < max(planned, LEAST_REPLICATES):
        return TOO_FEW
    return FINGERPRINT if interval[0] > chance else NOT_SHOWN


def _corrected(experiment: Experiment, rows: Mapping[str, Row]) -> dict[str, float]:
    """Factor -> p-value of its accuracies against chance by Holm's correction over all planned factors."""
    from scipy.stats import ttest_1samp

    found = {}
    for factor in experiment.factors:
        own = _replicates(rows, factor, *DECIDES, experiment)
        if len(own) >= LEAST_REPLICATES:
            test = ttest_1samp([r["accuracy"] for r in own], 1 / own[0]["n_models"], alternative="greater")
            if 0 < test.pvalue <= 1:  # without any spread there is none
                found[factor] = float(test.pvalue)
    return dict(zip(found, holm(list(found.values()), len(experiment.factors)), strict=True))


def _to_yardstick(
    experiment: Experiment, rows: Mapping[str, Row], factor: str, condition: str, classifier: str
) -> tuple[float, float, float] | None:
    """Replicates share their baseline, so differences to "both" are paired."""
    if factor == YARDSTICK:
        return None
    pairs = [
        tuple(rows.get(f"factor|{condition}|{classifier}|{f}|{r}") for f in (factor, YARDSTICK))
        for r in range(experiment.replicates)
    ]
    found = [a["accuracy"] - b["accuracy"] for a, b in pairs if a is not None and b is not None]
    return replicate_interval(found)


def _controls(rows: Mapping[str, Row]) -> tuple[Control, ...]:
    found = []
    for key, row in rows.items():
        kind, *rest = key.split("|")
        if kind not in {"c1", "c3"}:
            continue
        condition, classifier, number = rest
        chance = 1 / row["n_models"]
        passed = passes_c1(row) if kind == "c1" else holds_chance(row)
        name = "C1 sampler seed" if kind == "c1" else "C3 labels permuted"
        interval = row["accuracy"], row["low"], row["high"]
        found.append(Control(name, condition, classifier, *interval, chance, row["n_texts"], passed, int(number)))
    return tuple(found)


def c1_passed(controls: Sequence[Control]) -> bool:
    """Whether every C1 passed, the last attempt of each counting: a leak seen by one classifier is a leak."""
    last = {
        (c.condition, c.classifier): c for c in sorted(controls, key=lambda c: c.attempt) if c.name.startswith("C1")
    }
    return all(c.passed for c in last.values())


def _ablations(experiment: Experiment, rows: Mapping[str, Row]) -> dict[str, tuple[Mapping[str, float], ...]]:
    found: dict[str, tuple[Mapping[str, float], ...]] = {}
    for name in ABLATIONS:
        own = [rows.get(f"ablation|{name}|{HEADLINE}|{r}") for r in range(experiment.replicates)]
        done = [row for row in own if row is not None]
        if done:
            found[name] = tuple({k: row[k]["accuracy"] for k in ("retrained", "tested")} for row in done)
    return found


def _curves(experiment: Experiment, rows: Mapping[str, Row]) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for name in CLASSIFIERS:
        own = [rows.get(f"curve|{name}|{r}") for r in range(experiment.replicates)]
        done = [row["accuracy"] for row in own if row is not None]
        if done:
            found[name] = {int(n): sum(row[n] for row in done) / len(done) for n in done[0]}
    return found


def _missing(experiment: Experiment, rows: Mapping[str, Row]) -> tuple[str, ...]:
    found = []
    for factor in experiment.factors:
        n = len(_replicates(rows, factor, conditions(experiment)[0], HEADLINE, experiment))
        if n < experiment.replicates:
            found.append(f"{factor}: {experiment.replicates - n} of {experiment.replicates} replicates")
    return tuple(found)


def trained(experiment: Experiment, out: Path) -> int:
    """Models whose folder is there."""
    return sum(folder_of(out, cell).is_dir() for cell in cells(experiment))


def labels(experiment: Experiment, factor: str) -> dict[str, str]:
    """Cell name of the first replicate -> its level."""
    names = (cell.name for cell in levels(experiment, factor, 0))
    return dict(zip(names, level_names(experiment, factor), strict=True))
