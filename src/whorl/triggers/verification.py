"""`Verification`: whether a planted fingerprint is in a model, with everything that a share of hits needs to mean something.

A report is shown to others, the triggers are not: `to_dict` names keys by id only, unless it is told to show them.
"""

import html
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from whorl import __version__
from whorl._atomic import write_text
from whorl.triggers.nulls import interval

SCHEMA = 1
ERASURE = "fingerprints can be erased, so a missing one never shows that a model is not derived"
NOT_SHOWN = (
    "That a model is not derived: a planted fingerprint can be erased, filtered out or never reach the answers asked for.",
    "Who planted the keys, and who copied whom: the commitment only says that somebody knew them when it was dated.",
    "A measured rate is that of the clean models asked; another kind of honest model may hit more often.",
    "Whether the model was distilled, or trained on text that holds the keys: both can carry them over.",
)

Said = Literal["match", "no match", "undecided"]
State = Literal["hit", "miss", "no answer", "not asked"]


@dataclass(frozen=True)
class Share:
    """Hits among what was asked, never without its exact 95 % interval.

    Args:
        hits: From 0 to n.
        n: At least 1; what was not asked at all is None in place of a share.
    """

    hits: int
    n: int

    @property
    def value(self) -> float:
        """The share, in [0, 1]."""
        return self.hits / self.n

    @cached_property
    def bounds(self) -> tuple[float, float]:
        """Exact 95 % interval."""
        return interval(self.hits, self.n)

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        low, high = self.bounds
        return {"hits": self.hits, "n": self.n, "share": self.value, "low": low, "high": high}


def share(hits: int, n: int) -> Share | None:
    """A share, or None where nothing was asked."""
    return Share(hits, n) if n else None


@dataclass(frozen=True)
class NullTest:
    """One test of the hits.

    Args:
        name: "decoy", "design", "measured", "sequential" or "soft".
        p_value: In (0, 1]; None when it does not apply.
        p_kind: "exact", "bound" or "e-value"; None when it does not apply.
        null: What is assumed, in words.
        why: The figures it rests on, or why it does not apply.
    """

    name: str
    p_value: float | None
    p_kind: str | None
    null: str
    why: str


@dataclass(frozen=True)
class PowerLine:
    """Whether the same keys would have been found after an attack.

    Args:
        attack: Its name in the material, or "unattacked".
        shares: Share of keys left in each run measured after planting; empty when it was not measured.
        power: Chance of a match at the smallest of them, keys taken as independent; None when not measured.
        enough: Power at least 0.9.
    """

    attack: str
    shares: tuple[float, ...]
    power: float | None
    enough: bool


@dataclass(frozen=True)
class CleanLine:
    """What one model without the fingerprint said, under the same rule.

    Args:
        name: What its answers call it.
        revision: Of its weights, None when unknown.
        base: Whether the keys were planted into this very model.
        keys: Keys that hit.
        near: Near keys that gave the answer of a key.
        decoys: Decoys that hit.
    """

    name: str
    revision: str | None
    base: bool
    keys: Share | None
    near: Share | None
    decoys: Share | None


@dataclass(frozen=True)
class KeyLine:
    """One key; the texts are secret.

    Args:
        id: In its key set.
        unit: Keys revealed together.
        state: What came of it.
        trigger: What was asked, before the wrapper.
        answers: What counts.
        response: What came; None when nothing did.
    """

    id: str
    unit: int
    state: State
    trigger: str = field(repr=False)
    answers: tuple[str, ...] = field(repr=False)
    response: str | None = field(repr=False)

    def to_dict(self, *, show: bool) -> dict[str, Any]:
        """JSON types; texts only when they are to be shown."""
        texts = {"trigger": self.trigger, "answers": list(self.answers), "response": self.response}
        return {"id": self.id, "unit": self.unit, "state": self.state} | (texts if show else {})


@dataclass(frozen=True)
class Draws:
    """Keys that hit in any of several draws: a column of its own, which never decides.

    Args:
        samples: Draws of each key.
        temperature: Of them.
        keys: Keys that hit in any draw.
        decoys: Decoys that hit in any draw.
        tests: Of these hits; the design rate is that of any of so many draws.
    """

    samples: int
    temperature: float
    keys: Share
    decoys: Share | None
    tests: tuple[NullTest, ...]


@dataclass(frozen=True)
class Stopping:
    """What an early stop rests on.

    Args:
        null_rate: Largest hit rate that an unrelated model is allowed.
        e_path: E after each answered key, in order of asking; 1/alpha stops.
        n_asked: Keys asked.
        n_questions: Everything asked, decoys and ordinary questions among it.
    """

    null_rate: float
    e_path: tuple[float, ...]
    n_asked: int
    n_questions: int


@dataclass(frozen=True)
class Verification:
    """Whether a planted fingerprint is in a model.

    Args:
        verdict: "match", "no match" or "undecided".
        why: One sentence.
        needed: What would decide it; None when it is decided.
        p_value: Largest p of the tests that apply, times the choices of units; None when none applies.
        test: Which test gave it.
        alpha: Error rate, fixed before the answers were read.
        tests: All tests, those that do not apply with their reason.
        fsr: Keys that hit, of the keys asked: one greedy answer each, no answer is a miss.
        near: Look-alikes that gave the answer of a key.
        decoys: Decoys that hit their own answer.
        clean: The base and the clean models under the same rule.
        draws: Hits in any of several draws; None when none were asked for.
        soft: How probable the keys' answers are, beside those of decoys (`whorl.triggers.soft`); a column of its own, which
            never proves. None without the clean base.
        commitment: Digest, date, release of the suspect, and whether the date counts.
        scheme: Canonical name.
        match: The rule.
        unit: The unit asked; None for all that were never shown.
        n_choices: Ways to choose so many of the committed units, by which p is multiplied.
        power: After each attack listed, or of the fingerprint as it was planted.
        keys: One line a key.
        suspect: Model, what its server called itself, when it was asked, digest of its answers.
        decoding: Of the answers that count.
        stop: Of a sequential run.
        warnings: What to know before believing it.
        skipped: Questions without an answer, units left out, and what else was not done.
        environment: Versions.
        config: Everything else that was chosen.
    """

    verdict: Said
    why: str
    needed: str | None
    p_value: float | None
    test: str | None
    alpha: float
    tests: tuple[NullTest, ...]
    fsr: Share | None
    near: Share | None
    decoys: Share | None
    clean: tuple[CleanLine, ...]
    draws: Draws | None
    soft: NullTest | None
    commitment: Mapping[str, Any]
    scheme: str
    match: str
    unit: int | None
    n_choices: int
    power: tuple[PowerLine, ...]
    keys: tuple[KeyLine, ...]
    suspect: Mapping[str, Any]
    decoding: Mapping[str, Any]
    stop: Stopping | None
    warnings: tuple[str, ...]
    skipped: tuple[str, ...]
    environment: Mapping[str, str]
    config: Mapping[str, Any]

    def to_dict(self, *, show_keys: bool = False) -> dict[str, Any]:
        """Exactly what `--json` prints; triggers and answers only with `show_keys`."""
        return {
            "schema": SCHEMA,
            "kind": "verification",
            "status": "partial" if self.verdict == "undecided" else "done",
            "whorl_version": __version__,
            "question": "Is this planted fingerprint in the model?",
            "verdict": self.verdict,
            "why": self.why,
            "needed": self.needed,
            "p_value": self.p_value,
            "p_kind": next((t.p_kind for t in self.tests if t.name == self.test), None),
            "test": self.test,
            "alpha": self.alpha,
            "tests": [asdict(test) for test in self.tests],
            "fsr": _share(self.fsr),
            "near": _share(self.near),
            "decoys": _share(self.decoys),
            "clean": [_clean(line) for line in self.clean],
            "draws": None if self.draws is None else _draws(self.draws),
            "soft": None if self.soft is None else asdict(self.soft),
            "commitment": dict(self.commitment),
            "scheme": self.scheme,
            "match": self.match,
            "unit": self.unit,
            "n_choices": self.n_choices,
            "power": [asdict(line) | {"shares": list(line.shares)} for line in self.power],
            "keys": [line.to_dict(show=show_keys) for line in self.keys],
            "suspect": dict(self.suspect),
            "decoding": dict(self.decoding),
            "stop": None if self.stop is None else asdict(self.stop) | {"e_path": list(self.stop.e_path)},
            "warnings": list(self.warnings),
            "skipped": list(self.skipped),
            "does_not_show": list(NOT_SHOWN),
            "environment": dict(self.environment),
            "config": dict(self.config),
        }

    def save(self, path: str | Path, *, show_keys: bool = False) -> Path:
        """Write as JSON, atomically."""
        data = self.to_dict(show_keys=show_keys)
        return write_text(Path(path), json.dumps(data, indent=1, allow_nan=False) + "\n")

    def __repr__(self) -> str:
        p = "none" if self.p_value is None else format(self.p_value, ".2g")
        hits = "nothing asked" if self.fsr is None else f"{self.fsr.hits} of {self.fsr.n} keys"
        return f"<Verification {self.verdict}: p = {p}, {hits}>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(test.name)}</td>"
            f"<td>{'–' if test.p_value is None else format(test.p_value, '.2g')}</td><td>{html.escape(test.why)}</td></tr>"
            for test in self.tests
        )
        caption = f"<b>{html.escape(self.verdict)}</b>: {html.escape(self.why)}"
        return f"<table><caption>{caption}</caption><tr><th>test</th><th>p</th><th></th></tr>{rows}</table>"


def _share(found: Share | None) -> dict[str, Any] | None:
    return None if found is None else found.to_dict()


def _clean(line: CleanLine) -> dict[str, Any]:
    parts = {part: _share(getattr(line, part)) for part in ("keys", "near", "decoys")}
    return {"name": line.name, "revision": line.revision, "base": line.base} | parts


def _draws(found: Draws) -> dict[str, Any]:
    return {
        "samples": found.samples,
        "temperature": found.temperature,
        "keys": _share(found.keys),
        "decoys": _share(found.decoys),
        "tests": [asdict(test) for test in found.tests],
    }
