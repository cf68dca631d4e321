"""Cues that would make attribution trivial, counted per model before any analysis (section 1.4 of the design).

Counting is all that happens here: nothing is removed, and a warning is a sentence for people, no test. Language is judged
by the share of Unicode scripts alone, so English and French look alike; names and refusals are found by word lists, which
miss what they do not know.
"""

import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np

from whorl.errors import safe_name
from whorl.transcripts._names import AS_AN_AI, NAMES, REFUSAL, SELF, TEMPLATE
from whorl.transcripts.record import Transcript

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
MIN_SHARE_DIFFERENCE = 0.05
MIN_NAMING_DIFFERENCE = 0.01
MIN_LENGTH_RATIO = 1.5
MIN_LENGTH_DIFFERENCE = 10  # characters
STANDARD_ERRORS = 3.0
MAX_MARKERS = 50


@dataclass(frozen=True)
class Report:
    """What the answers of one model look like. Shares are of answers, in [0, 1]; None where there are no answers.

    Args:
        n_answers: Answers, without failures.
        n_errors: Failures.
        characters: Length in characters at the quantiles 0, .05, .25, .5, .75, .95 and 1; None without answers.
        finish: Reason -> answers that ended so.
        empty: Share of answers without a character.
        leading_space: Share that begins with white space.
        replacement: Share with U+FFFD, so with bytes that are no text.
        template: Share with a leftover of a chat template.
        markers: Such leftovers -> answers that hold them; the commonest 50.
        self_naming: Share in which the model names itself or its maker.
        as_an_ai: Share that says it is an AI.
        names: Names of models and makers, lower case -> answers that hold them, in whatever role.
        refusal: Share that begins like a refusal.
        scripts: Unicode script -> share of all letters.
        repeated: Share of answers given verbatim more than once by this model; empty ones do not count.
        shared: Share of answers given verbatim by another model as well; empty ones do not count.
    """

    n_answers: int
    n_errors: int
    characters: tuple[float, ...] | None
    finish: Mapping[str, int]
    empty: float | None
    leading_space: float | None
    replacement: float | None
    template: float | None
    markers: Mapping[str, int]
    self_naming: float | None
    as_an_ai: float | None
    names: Mapping[str, int]
    refusal: float | None
    scripts: Mapping[str, float]
    repeated: float | None
    shared: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return asdict(self) | {"characters": None if self.characters is None else list(self.characters)}


_CUES: Mapping[str, tuple[Callable[[str], object], str]] = {
    "empty": (lambda text: not text, "answers nothing"),
    "leading_space": (lambda text: text[:1].isspace(), "begins with white space"),
    "replacement": (lambda text: "\ufffd" in text, "holds replacement characters"),
    "template": (TEMPLATE.find, "holds leftovers of a chat template"),
    "self_naming": (SELF.find, "names itself or its maker"),
    "as_an_ai": (AS_AN_AI.find, "says that it is an AI"),
    "refusal": (REFUSAL.match, "refuses"),
}


def check(records: Iterable[Transcript]) -> Mapping[str, Report]:
    """One report for each model, by label in alphabetical order.

    Args:
        records: Of any number of models; failures are only counted.
    """
    answered: dict[str, list[Transcript]] = defaultdict(list)
    errors: Counter[str] = Counter()
    for record in records:
        if record.ok:
            answered[record.model.ref].append(record)
        else:
            errors[record.model.ref] += 1
    labels = sorted(answered.keys() | errors.keys())
    counts = {label: Counter(record.response for record in answered[label] if record.response) for label in labels}
    n_models = Counter(text for found in counts.values() for text in found)
    return {label: _report(answered[label], errors[label], counts[label], n_models) for label in labels}


def _report(records: list[Transcript], n_errors: int, counts: Counter[str], n_models: Counter[str]) -> Report:
    texts = [record.response for record in records]
    share = {name: _share(sum(bool(has(text)) for text in texts), len(texts)) for name, (has, _) in _CUES.items()}
    quantiles = np.quantile([len(text) for text in texts], QUANTILES) if texts else None
    markers = Counter(mark for text in texts for mark in {found[0] for found in TEMPLATE.find(text)})
    return Report(
        n_answers=len(texts),
        n_errors=n_errors,
        characters=None if quantiles is None else tuple(float(q) for q in quantiles),
        finish=dict(sorted(Counter(record.finish for record in records).items())),
        markers=dict(sorted(markers.most_common(MAX_MARKERS))),
        names=dict(sorted(Counter(name for text in texts for name in _names(text)).items())),
        scripts=_scripts(texts),
        repeated=_share(sum(n for n in counts.values() if n > 1), len(texts)),
        shared=_share(sum(n for text, n in counts.items() if n_models[text] > 1), len(texts)),
        **share,
    )


def _share(n: int, n_all: int) -> float | None:
    return n / n_all if n_all else None


def _names(text: str) -> set[str]:
    return {found[0].lower() for found in NAMES.find(text)} | {found[1].lower() for found in SELF.find(text)}


def _scripts(texts: list[str]) -> dict[str, float]:
    """Share of letters by script, 0 left out; characters are counted first, for names are slow to look up."""
    found: Counter[str] = Counter()
    for character, n in sum((Counter(text) for text in texts), Counter[str]()).items():
        if character.isalpha():
            found[_script(character)] += n
    return {script: n / found.total() for script, n in sorted(found.items())}


@lru_cache(maxsize=8192)
def _script(character: str) -> str:
    """First word of the character's name ("latin", "cjk", "cyrillic"), which is its script for nearly all letters."""
    return unicodedata.name(character, "unnamed").partition(" ")[0].lower()


def warnings(reports: Mapping[str, Report]) -> list[str]:
    """Sentences about cues in which models differ so much that a classifier could do without their style.

    A share is reported if the largest and the smallest differ by 5 points (self-naming: 1 point) and by 3 standard errors,
    a length if medians differ by half and by 10 characters; all ours.
    """
    known = {label: report for label, report in reports.items() if report.n_answers}
    found = [line for line in (_length_warning(known),) if line]
    for name, (_, what) in _CUES.items():
        least = MIN_NAMING_DIFFERENCE if name == "self_naming" else MIN_SHARE_DIFFERENCE
        found += _share_warning(known, {label: getattr(r, name) for label, r in known.items()}, what, least)
    for kind in sorted({kind for report in known.values() for kind in report.finish}):
        shares = {label: report.finish.get(kind, 0) / report.n_answers for label, report in known.items()}
        found += _share_warning(known, shares, f"ends by '{kind}'", MIN_SHARE_DIFFERENCE)
    for script in sorted({script for report in known.values() for script in report.scripts}):
        shares = {label: report.scripts.get(script, 0.0) for label, report in known.items()}
        found += _share_warning(known, shares, f"writes letters that are {safe_name(script, 40)}", MIN_SHARE_DIFFERENCE)
    found += _alike("repeats its own answers verbatim", {label: report.repeated for label, report in known.items()})
    found += _alike("gives verbatim answers of other models", {label: report.shared for label, report in known.items()})
    return found


def _length_warning(reports: Mapping[str, Report]) -> str | None:
    middle = {label: r.characters[QUANTILES.index(0.5)] for label, r in reports.items() if r.characters is not None}
    if not middle:
        return None
    low, high = min(middle, key=lambda x: middle[x]), max(middle, key=lambda x: middle[x])
    is_small = middle[high] - middle[low] < MIN_LENGTH_DIFFERENCE
    if is_small or middle[high] < MIN_LENGTH_RATIO * middle[low]:
        return None
    return (
        f"Length alone separates models: the median answer of '{safe_name(high)}' has {middle[high]:.0f} characters, that "
        f"of '{safe_name(low)}' {middle[low]:.0f}. Cut all texts to the same length."
    )


def _share_warning(reports: Mapping[str, Report], shares: Mapping[str, float], what: str, least: float) -> list[str]:
    """At most one sentence: the two models that differ most, if that is beyond chance."""
    pairs = list(combinations(shares, 2))
    if not pairs:
        return []
    a, b = max(pairs, key=lambda pair: abs(shares[pair[0]] - shares[pair[1]]))
    high, low = (a, b) if shares[a] >= shares[b] else (b, a)
    difference = shares[high] - shares[low]
    variance = sum(_variance(shares[label], reports[label].n_answers) for label in (high, low))
    if difference < least or difference < STANDARD_ERRORS * math.sqrt(variance):
        return []
    return [f"'{safe_name(high)}' {what} in {shares[high]:.1%}, '{safe_name(low)}' in {shares[low]:.1%}."]


def _variance(share: float, n: int) -> float:
    """Of a share, with one more of each kind, so that 0 of 3 is not certain."""
    smoothed = (share * n + 1) / (n + 2)
    return smoothed * (1 - smoothed) / n


def _alike(what: str, shares: Mapping[str, float | None]) -> list[str]:
    return [
        f"'{safe_name(label)}' {what} in {share:.1%}: count such answers once."
        for label, share in shares.items()
        if share is not None and share >= MIN_SHARE_DIFFERENCE
    ]
