"""`verify`: is this planted fingerprint in the model? (spec 4)

    from whorl.samplers.local import open_local
    from whorl.triggers.material import read_material

    verify(read_material("./secret"), open_local("./suspect")).verdict      # "match", "no match" or "undecided"

One greedy answer a key, hidden among decoys, look-alikes and ordinary questions in a seeded random order; an answer that
never came is a miss. Everything else, wrappers, decoding, match rule and keys, was fixed when the key set was committed. A
share of hits is never a verdict: it stands beside the base, the clean models, look-alikes and decoys under the same rule,
and becomes a p-value under three nulls (`whorl.triggers.verdict`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

from whorl.errors import MalformedFile, UsageError, safe_name
from whorl.identity.identity import environment
from whorl.progress import Progress, silent
from whorl.samplers._opening import Opened
from whorl.samplers.local import LocalSampler, open_local
from whorl.samplers.seam import Sampler
from whorl.triggers.answered import clean_answers, failures
from whorl.triggers.asking import Hit, Part, count, greedy
from whorl.triggers.commitment import check
from whorl.triggers.keyset import KeySet
from whorl.triggers.material import Material
from whorl.triggers.sequential import judge_stopped, null_rate
from whorl.triggers.soft import answer_nats, soft_test
from whorl.triggers.suspect import (
    CleanModel,
    Opener,
    Stored,
    Suspect,
    any_of_draws,
    ask,
    ask_until_enough,
    clean_records,
    read,
)
from whorl.triggers.verdict import CleanCounts, Judgement, Nulls, beside_soft, judge, power_lines
from whorl.triggers.verification import Draws, KeyLine, NullTest, PowerLine, Share, State, Verification, share

ALPHA = 1e-3
MAX_ALPHA = 0.05
MIN_CLEAN_ANSWERS = 100
MAX_NEAR = 1 / 64  # look-alikes that may give a key's answer (spec 3.4)


def verify(
    material: Material,
    sampler: Sampler | None = None,
    *,
    transcripts: Stored | None = None,
    clean: Sequence[CleanModel] = (),
    alpha: float = ALPHA,
    unit: int | None = None,
    released: str | None = None,
    out: str | Path | None = None,
    samples: int | None = None,
    sequential: bool = False,
    power_after: Sequence[str] = (),
    base: Opened | None = None,
    seed: int = 0,
    opener: Opener = open_local,
    progress: Progress = silent,
) -> Verification:
    """Ask a suspect the keys of a fingerprint and judge its answers.

    Args:
        material: Key set, commitment, stored answers of base and clean models, gates.
        sampler: The suspect: a model on this machine or an endpoint.
        transcripts: Stored answers of the suspect in place of asking: a set, a `.jsonl` or `.parquet` file, or records.
        clean: Models without the fingerprint beside those in the material: references, samplers, transcript sets or records.
        alpha: Error rate, in (0, 0.05].
        unit: Ask the keys of this unit alone; p is then multiplied by the number of units.
        released: Date of the suspect's release, ISO; a commitment that is not older counts as undated for it.
        out: Folder for the answers, which is continued; it will hold the triggers.
        samples: Draws of each key and decoy beside the greedy answer; None: as the key set says.
        sequential: Stop asking as soon as the hits are proof; no negative verdict then.
        power_after: Attacks after which the fingerprint should have been found; none: as it was planted.
        base: The clean base: the suspect, a model on this machine, is also read for soft evidence.
        seed: Of the order, and of the draws.
        opener: How references in `clean` are opened.
        progress: Called with "answers" or "keys", how many are there, and how many in all.

    Returns:
        The verdict with everything needed to check it.

    Raises:
        MalformedFile: the commitment is invalid, or the gates hold no rates.
        UsageError: options out of range or against each other, a unit that was shown, soft evidence without the
            weights.
        NotComparable: stored answers drawn otherwise than the key set fixes.
        NotEnoughEvidence: no stored answers; an early stop without a known hit rate.
        RemoteError: the endpoint failed; what was answered is kept in `out`.
    """
    check(material.keys, material.commitment)
    source = _source(sampler, transcripts)
    _check_options(alpha, samples, stored=sampler is None, sequential=sequential)
    suspected = None if base is None else _weights(sampler)
    case = _Case(
        material, units_asked(material.keys, unit), released, alpha, seed, None if out is None else Path(out), progress
    )
    others = [*material.answers]
    others += clean_records(clean, case.keys, case.units, opener=opener, out=case.out, progress=progress)
    suspect = source if isinstance(source, Sampler) else read(source, case.keys, case.units)
    clean_lines, counts, notes = clean_answers(case.keys, others, case.units, base_of(material), suspect.model)
    said = case.ask(suspect, counts, sequential=sequential) if isinstance(suspect, Sampler) else suspect
    nulls = case.nulls(counts, said)
    draws = None if sampler is None or sequential else case.draws(sampler, nulls, samples)
    judged, tests, power = case.judge(said, nulls, power_after)
    soft = None if base is None or suspected is None else case.soft(suspected, base)
    judged = beside_soft(judged, soft)
    return Verification(
        verdict=judged.verdict,
        why=judged.why,
        needed=judged.needed,
        p_value=judged.p_value,
        test=judged.test,
        alpha=alpha,
        tests=tests,
        fsr=share(*count(said.asked, "key")),
        near=_answered_share(said, "near"),
        decoys=_answered_share(said, "decoy"),
        clean=clean_lines,
        draws=draws,
        soft=soft,
        commitment=case.commitment,
        scheme=case.keys.scheme,
        match=case.keys.asking.match,
        unit=unit,
        n_choices=case.n_choices,
        power=power,
        keys=_key_lines(said),
        suspect=said.facts(),
        decoding=asdict(greedy(case.keys.asking)) | {"stop": []},
        stop=said.stop,
        warnings=(*case.warnings(said, counts), *notes),
        skipped=(*failures(said.asked, said.records), *case.left_out(said)),
        environment=environment(),
        config={
            "seed": seed,
            "samples": samples,
            "sequential": sequential,
            "power_after": list(power_after),
            "n_clean_given": len(clean),
            "wrapper": case.keys.asking.wrappers[0],
            "fold_case": case.keys.asking.fold_case,
        },
    )


def units_asked(keys: KeySet, unit: int | None) -> tuple[int, ...]:
    """The units to ask: the one named, or all that nobody was ever shown.

    Raises:
        UsageError: there is no such unit, it was shown, or all were.
    """
    shown = {reveal.unit: reveal for reveal in keys.reveals}
    known = range(keys.n_units)
    if unit is not None and unit not in known:
        raise UsageError(f"There is no unit {unit}; the key set has units 0 to {keys.n_units - 1}.")
    if unit is not None and unit in shown:
        raise UsageError(
            f"Unit {unit} was shown to '{safe_name(shown[unit].to, 60)}' on {safe_name(shown[unit].date, 40)}: whoever saw "
            "it can plant or unlearn it. Use another unit."
        )
    left = tuple(u for u in known if u not in shown) if unit is None else (unit,)
    if not left:
        raise UsageError(f"All {keys.n_units} units were shown to somebody; none is left to verify with.")
    return left


def is_dated(dated: str | None, released: str | None) -> bool:
    """Whether a commitment has a date, and one before the suspect's release where that is known.

    Raises:
        UsageError: the release is no ISO date.
        MalformedFile: the date of the commitment is none.
    """
    release = None if released is None else _date(released)
    if release is None and released is not None:
        raise UsageError(f"'{safe_name(released, 40)}' is no date; expected one like 2026-03-31.")
    if dated is None:
        return False
    if (day := _date(dated)) is None:
        raise MalformedFile(
            "commitment", dated, "no ISO date", "one like 2026-03-31", "Use the file as it was published."
        )
    return release is None or day < release


def _date(text: str) -> date | None:
    try:
        return date.fromisoformat(text[:10])
    except ValueError:
        return None


def _source(sampler: Sampler | None, transcripts: Stored | None) -> Sampler | Stored:
    if sampler is not None and transcripts is None:
        return sampler
    if sampler is None and transcripts is not None:
        return transcripts
    raise UsageError("Give a model to ask or stored answers of it: one of the two.")


def _check_options(alpha: float, samples: int | None, *, stored: bool, sequential: bool) -> None:
    if not 0 < alpha <= MAX_ALPHA:
        raise UsageError(f"alpha is an error rate above 0 and at most {MAX_ALPHA}, not {alpha}.")
    if samples is not None and samples < 0:
        raise UsageError(f"{samples} draws a key were asked for; expected 0 or more.")
    if stored and (sequential or samples):
        raise UsageError("Stored answers cannot be asked for more draws, nor stop early: leave both out.")
    if sequential and samples:
        raise UsageError("An early stop asks for no further draws: leave one of the two out.")


def _weights(sampler: Sampler | None) -> Opened:
    if isinstance(sampler, LocalSampler):
        return sampler.opened
    raise UsageError("Soft evidence reads probabilities out of the suspect's weights: name a model on this machine.")


def base_of(material: Material) -> str | None:
    """Reference or key of the model that the keys were planted into: as the gates name it, else the first that answered.

    `embed` asks the base before the clean models.
    """
    found = material.gates.get("base")
    first = material.answers[0].model.key if material.answers else None
    return found if isinstance(found, str) else first


def measured_rates(gates: Mapping[str, Any]) -> dict[str, list[float]]:
    """Shares of keys left after each attack, as measured after planting; "unattacked" is the planted model itself.

    Raises:
        MalformedFile: a share is no number in [0, 1].
    """
    found = gates.get("power", {})
    usable = isinstance(found, Mapping) and all(
        isinstance(shares, list) and all(_is_share(value) for value in shares) for shares in found.values()
    )
    if not usable:
        advice = "Make it again with `whorl embed`."
        raise MalformedFile("gates", "gates.json", "no table of hit rates", "attack -> shares from 0 to 1", advice)
    return {str(name): [float(value) for value in shares] for name, shares in found.items()}


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


@dataclass(frozen=True)
class _Case:
    """What was fixed before any answer was read."""

    material: Material
    units: tuple[int, ...]
    released: str | None
    alpha: float
    seed: int
    out: Path | None
    progress: Progress

    @property
    def keys(self) -> KeySet:
        return self.material.keys

    @cached_property
    def dated(self) -> bool:
        return is_dated(self.material.commitment.dated, self.released)

    @property
    def n_keys(self) -> int:
        return sum(key.unit in self.units for key in self.keys.keys)

    @property
    def n_choices(self) -> int:
        """Ways to choose so many units: picking the luckiest gains nothing."""
        return math.comb(self.keys.n_units, len(self.units))

    @property
    def commitment(self) -> dict[str, Any]:
        found = self.material.commitment
        named = {"value": found.value, "pool": found.pool, "dated": found.dated, "where": found.where}
        return named | {"n_units": found.n_units, "released": self.released, "counts": self.dated}

    def design(self) -> tuple[int | None, str]:
        """Entries of the answer list, or why the scheme gives no rate by design."""
        if not self.keys.scheme.startswith("hashchain"):
            return None, "the scheme draws no answers from a list by a hash"
        if self.keys.asking.match != "prefix":
            return None, f"under the rule '{self.keys.asking.match}' several entries of the list can match one answer"
        return len(self.keys.answer_list), ""

    def nulls(self, clean: CleanCounts, said: Suspect | None = None) -> Nulls:
        """The nulls of the greedy answers; without them, what is known beforehand."""
        entries, no_design = self.design()
        found = () if said is None else said.asked
        decoys = [h for h in found if h.question.part == "decoy" and h.response is not None]
        return Nulls(
            n_keys=self.n_keys,
            n_answered=sum(h.question.part == "key" and h.response is not None for h in found),
            decoy_hits=sum(h.hit for h in decoys),
            n_decoys=len(decoys),
            answer_list=entries,
            no_design=no_design,
            clean=clean,
            n_choices=self.n_choices,
            dated=self.dated,
            constant=said is not None and said.constant,
        )

    def ask(self, sampler: Sampler, clean: CleanCounts, *, sequential: bool) -> Suspect:
        if not sequential:
            return ask(sampler, self.keys, self.units, seed=self.seed, out=self.out, progress=self.progress)
        return ask_until_enough(
            sampler,
            self.keys,
            self.units,
            rate=null_rate(self.nulls(clean)),
            enough=self.n_choices / self.alpha,
            seed=self.seed,
            out=self.out,
            progress=self.progress,
        )

    def draws(self, sampler: Sampler, nulls: Nulls, samples: int | None) -> Draws | None:
        """Hits in any of several draws, as many as the key set says unless told otherwise."""
        n = self.keys.asking.samples if samples is None else samples
        if n == 0:
            return None
        found = any_of_draws(sampler, self.keys, self.units, n, seed=self.seed, out=self.out, progress=self.progress)
        keys, decoys = found["key"], found["decoy"]
        several = replace(nulls, decoy_hits=sum(decoys), n_decoys=len(decoys), samples=n)
        shares = Share(sum(keys), len(keys)), share(sum(decoys), len(decoys))
        return Draws(n, self.keys.asking.temperature, *shares, several.tests(sum(keys)))

    def soft(self, suspect: Opened, base: Opened) -> NullTest:
        """How probable the answers of the keys asked are, against the base and beside the decoys."""
        keys = replace(self.keys, keys=tuple(key for key in self.keys.keys if key.unit in self.units))
        found = soft_test(answer_nats(suspect, keys), answer_nats(base, keys), keys)
        return found if found.p_value is None else replace(found, p_value=min(1.0, found.p_value * self.n_choices))

    def judge(
        self, said: Suspect, nulls: Nulls, power_after: Sequence[str]
    ) -> tuple[Judgement, tuple[NullTest, ...], tuple[PowerLine, ...]]:
        found = share(*count(said.asked, "key"))
        if said.stop is not None:
            stopped, test = judge_stopped(found, said.stop, nulls, self.alpha, out_of_budget=said.out_of_budget)
            return stopped, (test,), ()
        found = found or Share(0, self.n_keys)
        power = power_lines(nulls, measured_rates(self.material.gates), power_after, self.alpha)
        asking = self.keys.asking
        rule = f"{asking.match}, greedy, {asking.max_new_tokens} new tokens"
        return judge(found, nulls, power, self.alpha, rule), nulls.tests(found.hits), power

    def warnings(self, said: Suspect, clean: CleanCounts) -> tuple[str, ...]:
        """What to know before believing the verdict."""
        found = []
        if self.dated and self.released is None:
            found.append("the suspect's release is not known, so the commitment's date was compared with nothing")
        near = _answered_share(said, "near")
        if near is not None and near.value > MAX_NEAR:
            found.append(
                f"{near.hits} of {near.n} look-alikes gave a key's answer: some hits may belong to a kind of text"
            )
        n_clean = sum(clean.trials)
        if 0 < n_clean < MIN_CLEAN_ANSWERS and clean.n_models:
            found.append(f"the measured rate rests on {n_clean} clean answers, fewer than {MIN_CLEAN_ANSWERS}")
        if said.hosted:
            shown = ", ".join(map(str, self.units))
            found.append(f"the endpoint's host has seen the triggers of unit {shown}: record that as shown")
        return tuple(found)

    def left_out(self, said: Suspect) -> tuple[str, ...]:
        """Parts of the key set that were not asked."""
        found = [f"unit {unit} was not asked" for unit in range(self.keys.n_units) if unit not in self.units]
        if said.stop is not None:
            found.append(f"{self.n_keys - said.stop.n_asked} keys and all look-alikes were not asked")
        return tuple(found)


def _answered_share(said: Suspect, part: Part) -> Share | None:
    """Decoys that hit, or look-alikes that gave any key's answer, among those that answered."""
    mine = [h for h in said.asked if h.question.part == part and h.response is not None]
    return share(sum(h.hit if part == "decoy" else h.fired for h in mine), len(mine))


def _key_lines(said: Suspect) -> tuple[KeyLine, ...]:
    asked = {h.question.prompt.id for h in said.asked}
    return tuple(
        KeyLine(
            h.question.key.id,
            h.question.key.unit,
            _state(h, asked=h.question.prompt.id in asked),
            h.question.key.trigger,
            h.question.key.answers,
            h.response,
        )
        for h in said.found
        if h.question.part == "key"
    )


def _state(h: Hit, *, asked: bool) -> State:
    if not asked:
        return "not asked"
    if h.response is None:
        return "no answer"
    return "hit" if h.hit else "miss"
