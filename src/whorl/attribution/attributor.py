"""The fitted value: who is enrolled, how margins become probabilities, p-values and a verdict, and what was measured.

`Attributor` is what `fit` and `enrol` make, `save` and `load` keep, and `predict` asks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whorl.attribution.conformal import DRAWS, Rule, Verdict, p_values, pooled_p_value, verdict
from whorl.attribution.corpus import CONFORMAL, TEMPERATURE, TRAIN, Corpus
from whorl.attribution.habits import Habits, habits
from whorl.attribution.pooling import fit_gamma, pool
from whorl.attribution.strangers import UNMEASURED, Threshold
from whorl.attribution.temperature import fit_temperature, log_probabilities
from whorl.attribution.typicality import Typical, typical
from whorl.outputs.classifier import Linear
from whorl.outputs.features import FeatureSpace
from whorl.transcripts.normal import normalise
from whorl.transcripts.record import ModelId

SCHEMA = "whorl.attribution/1"
STRICT = 5.0
"""How much wider the undecided zone is for short or altered texts: alpha divided by this, as far as the calibration texts can
resolve it, and 1 % of strangers in place of 5 %."""

Doubles = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Enrolled:
    """One class: the model and its lineage, as the user named it."""

    model: ModelId
    lineage: str

    @property
    def name(self) -> str:
        """The model's reference."""
        return self.model.ref


@dataclass(frozen=True)
class Settings:
    """What a bundle was made with.

    Args:
        seed: Of every draw.
        salt: Of the split by prompt.
        shares: Of the prompts for training and validation.
        alpha: A model's own text is declared foreign with at most this probability.
        c: Weight of the losses of the classifier, chosen on held-out training prompts.
        n_characters: Texts are cut to so many characters.
        mask_names: Whether self-names were masked.
        decodings: Digests of the decoding settings of the transcripts.
        n_draws: Answers of each model to each prompt.
    """

    seed: int
    salt: str
    shares: tuple[float, float]
    alpha: float
    c: float
    n_characters: int
    mask_names: bool
    decodings: tuple[str, ...]
    n_draws: int


@dataclass(frozen=True, eq=False)
class Calibration:
    """How margins are read.

    Args:
        temperature: Of the softmax.
        gamma: Weight of a text in a pool.
        typical: Margins of each class's own validation texts.
        scores: Sorted nonconformity of each class's own calibration texts, one a prompt group.
    """

    temperature: float
    gamma: float
    typical: Typical
    scores: tuple[Doubles, ...]


@dataclass(frozen=True, eq=False)
class Judgement:
    """What the margins of one source say.

    Args:
        log_p: Log probability of each class among the enrolled, shape (classes,).
        p: p-value of each class.
        acceptance: How much like each class, shape (classes,).
        rule: The thresholds that were used.
        verdict: "match", "none of these" or "undecided".
        possible: Classes that remain, the likeliest first.
        lineage: Of all possible classes, where it is one and strangers to it are rarely accepted like this.
    """

    log_p: Doubles
    p: Doubles
    acceptance: Doubles
    rule: Rule
    verdict: Verdict
    possible: tuple[int, ...]
    lineage: str | None


@dataclass(frozen=True, eq=False)
class Attributor:
    """A fitted attribution of texts to models.

    Args:
        classes: Who is enrolled.
        settings: What it was made with.
        space: n-grams, frozen once fitted.
        linear: One-vs-rest weights.
        calibration: From validation prompts.
        thresholds: By size of pool, from left-out models.
        corpus: The normalised texts it was made of.
        evaluation: The tables of section 4.4, JSON values.
        created: Date, ISO 8601.
    """

    classes: tuple[Enrolled, ...]
    settings: Settings
    space: FeatureSpace
    linear: Linear
    calibration: Calibration
    thresholds: tuple[Threshold, ...]
    corpus: Corpus
    evaluation: Mapping[str, Any]
    created: str

    @property
    def names(self) -> tuple[str, ...]:
        """Labels of the enrolled models."""
        return tuple(one.name for one in self.classes)

    @property
    def lineages(self) -> tuple[str, ...]:
        """Lineage of each enrolled model."""
        return tuple(one.lineage for one in self.classes)

    @property
    def train_prior(self) -> Doubles:
        """Share of each class among the training texts."""
        counts = np.bincount(self.corpus.labels[self.corpus.rows(TRAIN)], minlength=len(self.classes))
        return counts / counts.sum()

    def normalised(self, texts: Sequence[str]) -> list[str]:
        """Texts as those of the bundle were: names masked, cut to the same length."""
        return normalise(texts, self.settings.n_characters, mask_names=self.settings.mask_names)

    @cached_property
    def habits(self) -> Habits:
        """What is usual among its texts."""
        return habits(self.corpus)

    def margins(self, texts: Sequence[str]) -> Doubles:
        """One-vs-rest margins of normalised texts, shape (n, classes)."""
        return margins_of(self.linear, self.space.transform(texts))

    def judge(
        self,
        margins: Doubles,
        distinct: Indices | None = None,
        independent: Indices | None = None,
        *,
        strict: bool = False,
        draws: int = DRAWS,
    ) -> Judgement:
        """Verdict on texts of one source.

        Args:
            margins: Of all its texts, shape (m, classes), m at least 1.
            distinct: Texts that differ, for probabilities and acceptance; default: all.
            independent: Texts that answer different prompts, equal or not, for the p-value; default: all.
            strict: Widen the undecided zone: the texts are short or altered.
            draws: Permutations of the p-value of several texts.
        """
        log_p = log_probabilities(margins, self.calibration.temperature)
        even = np.full(len(self.classes), 1.0 / len(self.classes))
        p = self._p_values(-log_p if independent is None else -log_p[independent], draws)
        if distinct is not None:
            margins, log_p = margins[distinct], log_p[distinct]
        acceptance = self.calibration.typical.by_class(margins[None])[0]
        rule = self.rule(len(margins), strict=strict)
        word, possible = verdict(p, acceptance, rule)
        families = {self.lineages[k] for k in possible}
        kin = len(families) == 1 and rule.lineage is not None and acceptance[list(possible)].max() > rule.lineage
        return Judgement(
            log_p=pool(log_p, even, self.train_prior, self.calibration.gamma),
            p=p,
            acceptance=acceptance,
            rule=rule,
            verdict=word,
            possible=possible,
            lineage=families.pop() if kin else None,
        )

    def _p_values(self, scores: Doubles, draws: int) -> Doubles:
        if len(scores) == 1:
            return p_values(scores, self.calibration.scores)[0]
        rng = np.random.default_rng(self.settings.seed)
        own = self.calibration.scores
        return np.array([pooled_p_value(scores[:, k], own[k], rng, draws) for k in range(len(own))])

    def rule(self, n_texts: int, *, strict: bool = False) -> Rule:
        """Thresholds for so many texts: those of the largest measured pool that is no larger."""
        measured = (t for t in reversed(self.thresholds) if t.size <= n_texts and t.match is not None)
        at = next(measured, UNMEASURED)
        if not strict:
            return Rule(self.settings.alpha, at.match, at.lineage, at.size)
        finest = 1 / (1 + min(map(len, self.calibration.scores)))  # less typical than every calibration text
        alpha = min(self.settings.alpha, max(self.settings.alpha / STRICT, finest))
        return Rule(alpha, at.match_strict, at.lineage_strict, at.size)


def margins_of(linear: Linear, x: Any) -> Doubles:
    """One-vs-rest margins of feature rows, shape (n, classes)."""
    return np.asarray(x @ linear.weights.T, dtype=np.float64) + linear.bias


def calibrate(corpus: Corpus, margins: Doubles, seed: int) -> Calibration:
    """Temperature, gamma and typical margins on one half of the validation prompts, conformal scores on the other.

    Args:
        corpus: Texts of all classes.
        margins: Of all its texts, shape (n, classes).
        seed: Of the pools.
    """
    half = corpus.rows(TEMPERATURE)
    temperature = fit_temperature(margins[half], corpus.labels[half])
    log_p = log_probabilities(margins, temperature)
    distinct = corpus.distinct(half)
    gamma = fit_gamma(log_p[distinct], corpus.labels[distinct], np.random.default_rng([seed, 1]))
    own = []
    for k in range(margins.shape[1]):
        rows = corpus.one_a_group(corpus.rows(CONFORMAL, [k]))
        own.append(np.sort(-log_p[rows, k]))
    return Calibration(temperature, gamma, typical(margins[half], corpus.labels[half]), tuple(own))
