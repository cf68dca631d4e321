"""One cell: attack a model, ask it every key set that concerns it, and measure what the attack cost the model.

A planted model is asked its own keys, the clean base those of all plantings. An attack that unlearns leaked keys is scored on
the others. Serving attacks leave the weights alone and are asked in front of the model; perplexity is not defined there, so the
share of ordinary answers that stay equal is measured instead (ours).
"""

import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from whorl.errors import BrokenModel, NotEnoughEvidence, WhorlError
from whorl.lab._jobs import Row
from whorl.lab.triggers.bench.cells import NONE, Cell, Model, asked_of_base
from whorl.lab.triggers.bench.config import ServingAttack, WeightAttack, names_in
from whorl.lab.triggers.bench.place import Place, parts
from whorl.lab.triggers.bench.planting import without_paths
from whorl.samplers._opening import Opened, open_for_sampling
from whorl.samplers.local import LocalSampler
from whorl.samplers.seam import Randomness, Sampler
from whorl.transcripts.record import Decoding, Draw, ModelId, Transcript
from whorl.triggers.answered import clean_answers
from whorl.triggers.asking import ask, count, greedy, hits, is_chat, questions
from whorl.triggers.keyset import KeySet
from whorl.triggers.material import Material, read_material
from whorl.triggers.soft import answer_nats
from whorl.triggers.wrappers import UNSEEN, wrapper

NOT_SOUND = "the planting did not pass its gates, and another of its scheme did"
BASE_HAS_NO_KEYS = "the attack needs a key set, and the clean base has none"
ANSWER_TOKENS = 24
TRAININGS = ("finetune", "lora", "instruct", "erase", "unlearn", "distil")


@dataclass(frozen=True)
class Worker:
    """Measures cells by their keys, in a process of its own.

    Args:
        place: The run.
        cells: Cells by key.
        asked: Planted models whose keys the clean base is asked.
        failed: Models that could not be made, with the reason.
        spared: Plantings that are measured as they are and not attacked.
        keep: Keep attacked models under `attacked/`.
    """

    place: Place
    cells: Mapping[str, Cell]
    asked: tuple[Model, ...]
    failed: Mapping[str, str]
    spared: frozenset[str] = frozenset()
    keep: bool = False

    def __call__(self, key: str) -> Row:
        """The row of a cell; an error of whorl makes it "not run", any other is a bug and ends the run."""
        cell = self.cells[key]
        try:
            reason = self._impossible(cell)
            return {"status": "not run", "reason": reason} if reason else self._measured(cell)
        except WhorlError as error:
            return {"status": "not run", "reason": without_paths(str(error), self.place)}

    def _impossible(self, cell: Cell) -> str | None:
        names = (cell.model.name, *_names(self.place, cell))
        failed = [f"{name} could not be made: {self.failed[name]}" for name in names if name in self.failed]
        if failed:
            return failed[0]
        if cell.model.name in self.spared and cell.attack != NONE:
            return NOT_SOUND
        return BASE_HAS_NO_KEYS if cell.model.kind == "clean base" and "keys" in names else None

    def _measured(self, cell: Cell) -> Row:
        attack = self.place.bench.attack(cell.attack)
        sets = self._sets(cell, attack)
        if isinstance(attack, ServingAttack):
            return self._served(cell, attack, sets)
        with self._attacked(cell, attack) as (folder, cost):
            opened = _open(folder)
            try:
                sampler = LocalSampler(opened, n_threads=1, logprobs=False)
                said = {name: {**_said(sampler, one), "nats": _nats(opened, one.keys)} for name, one in sets.items()}
                utility = _utility(self.place, opened)
            except BrokenModel as error:
                reason = without_paths(str(error), self.place)
                return {"status": "ruined", "reason": reason, "asked": _sizes(sets), "cost": cost}
        return {"status": "done", "asked": said, "utility": utility, "agreement": None, "cost": cost}

    def _served(self, cell: Cell, attack: ServingAttack, sets: Mapping[str, Material]) -> Row:
        from whorl.serving import serve

        begun = time.monotonic()
        opened = _open(self.place.model(cell.model))
        plain = LocalSampler(opened, n_threads=1, logprobs=False)
        options = {**attack.options, **cell.settings}
        second = {name: self._second(name, value, cell.model, opened) for name, value in options.items()}
        front = _Counted(serve(attack.attack, opened, n_threads=1, **second))
        said = {name: _said(front, one, attack.draws) for name, one in sets.items()}
        agreement = _agreement(self.place, plain, front)
        cost = {"updates": 0, "seconds": round(time.monotonic() - begun, 1), "queries": front.n}
        return {"status": "done", "asked": said, "utility": None, "agreement": agreement, "cost": cost}

    def _second(self, option: str, value: Any, model: Model, opened: Opened) -> Any:
        """A second model where an option names one: a sampler for "writer", the model itself for "{model}"."""
        if isinstance(value, list) and option == "others":
            return [self._second("other", part, model, opened) for part in value]
        if value == "{model}":
            return opened
        path = self.place.filled(value, model)
        if path == value:
            return value
        found = _open(Path(path))
        return LocalSampler(found, n_threads=1, logprobs=False) if option == "writer" else found

    def _sets(self, cell: Cell, attack: WeightAttack | ServingAttack | None) -> dict[str, Material]:
        """Key sets to ask, by model; without keys that the attacker knows."""
        is_base = cell.model.kind == "clean base"
        mine = asked_of_base(self.place.bench, cell.attack, self.asked) if is_base else (cell.model,)
        leaked = 0
        if isinstance(attack, WeightAttack):
            leaked = max(step.leaks for step in attack.steps(cell.settings))
        return {model.name: _without(read_material(self.place.keys(model)), leaked) for model in mine}

    @contextmanager
    def _attacked(self, cell: Cell, attack: WeightAttack | None) -> Iterator[tuple[Path, Row]]:
        """Folder of the attacked model and what the attack cost; removed afterwards unless it is kept."""
        from whorl.attacks.suite import attack as run

        begun, model = time.monotonic(), self.place.model(cell.model).resolve()
        updates: list[int | None] = []
        room = self.place.out / "attacked"
        room.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=room, prefix="cell-") as name:
            folder = model
            for number, step in enumerate(attack.steps(cell.settings) if attack else ()):
                beside = [Path(path) for path in self.place.filled(step.beside, cell.model)]
                options = self.place.filled(step.options, cell.model)
                made = run(step.kind, [folder, *beside], Path(name) / f"step-{number}", seed=cell.seed, **options)
                folder = made.path
                updates.append(_updates(step.kind, made.record.parameters))
            total = None if None in updates else sum(n for n in updates if n is not None)
            yield folder, {"updates": total, "seconds": round(time.monotonic() - begun, 1), "queries": 0}
            if self.keep and folder != model:
                target = room / cell.key.replace("|", "_").replace("/", "-")
                shutil.rmtree(target, ignore_errors=True)
                folder.rename(target)


@dataclass
class _Counted:
    """A sampler that counts what it is asked."""

    inner: Sampler
    n: int = 0

    @property
    def model(self) -> Any:
        return self.inner.model

    @property
    def template(self) -> Any:
        return self.inner.template

    def sample(self, draws: Sequence[Draw], decoding: Decoding, randomness: Randomness) -> Iterator[Transcript]:
        self.n += len(draws)
        return self.inner.sample(draws, decoding, randomness)


def facts(material: Material) -> Row:
    """What of a key set its p-values and tables need; no key and no answer."""
    keys, gates = material.keys, material.gates
    base = material.answers[0].model  # `embed` asks the base first
    nobody = ModelId("the attacked model")
    _, clean, _ = clean_answers(keys, material.answers, range(keys.n_units), base.key, nobody)
    counts = {"hits": clean.hits, "trials": clean.trials, "worst": clean.worst, "n_models": clean.n_models}
    return {
        "scheme": keys.scheme,
        "match": keys.asking.match,
        "max_new_tokens": keys.asking.max_new_tokens,
        "answer_list": len(keys.answer_list) if keys.scheme.startswith("hashchain") else None,
        "clean": counts,
        "planted": bool(gates["planted"]),
        "gates": {str(gate["name"]): gate["passed"] for gate in gates["gates"]},
    }


def _said(sampler: Sampler, material: Material, draws: int = 1) -> Row:
    """Greedy answers to keys, look-alikes and decoys, and to the keys under all wrappers, as counts."""
    keys, chat = material.keys, is_chat(sampler)
    seen, unseen = keys.asking.wrappers, tuple(w.id for w in UNSEEN)
    first = questions(keys, chat=chat)
    wide = questions(keys, chat=chat, wrappers=(*seen, *unseen), parts=("key",))
    records = ask(sampler, (*first, *wide), keys.asking)
    found, spread = hits(keys, first, records), hits(keys, wide, records)
    said = [h.response for h in found if h.response is not None]
    mine = [h for h in found if h.question.part == "key"]
    decoys = [h for h in found if h.question.part == "decoy" and h.response is not None]
    return {
        **facts(material),
        "keys": "".join("1" if h.hit else "0" for h in mine),
        "answered": sum(h.response is not None for h in mine),
        "near": list(count(found, "near", fired=True)),
        "decoys": list(count(decoys, "decoy")),
        "all_wrappers": list(count((h for h in spread if h.question.wrapper in seen), "key")),
        "unseen_wrappers": list(count((h for h in spread if h.question.wrapper in unseen), "key")),
        "constant": len(said) > 1 and len({text.strip() for text in said}) == 1,
        "draws": [sum(h.hit for h in mine), *_drawn(sampler, keys, draws)],
    }


def _nats(opened: Opened, keys: KeySet) -> Row:
    """Log-probability of the answer of each key and decoy, for the soft test; no key and no answer."""
    return {name: round(value, 4) for name, value in answer_nats(opened, keys, n_threads=1).items()}


def _drawn(sampler: Sampler, keys: KeySet, draws: int) -> list[int]:
    """Keys that hit in each further answer; the host samples, whatever was asked for."""
    if draws == 1:
        return []
    asked = questions(keys, chat=is_chat(sampler), parts=("key",))
    wanted = [Draw(question.prompt, i) for i in range(1, draws) for question in asked]
    by_draw: dict[int, list[Transcript]] = {i: [] for i in range(1, draws)}
    for record in sampler.sample(wanted, greedy(keys.asking), Randomness()):
        by_draw[record.sample_index].append(record)
    return [sum(h.hit for h in hits(keys, asked, records)) for records in by_draw.values()]


def _utility(place: Place, opened: Opened) -> Row:
    from whorl.erasure.utility import measure
    from whorl.lab.corpus import load_corpus

    bench = place.bench
    test = parts(bench.questions).test.rows[: bench.test_rows]
    found = measure(opened, test, load_corpus(bench.outside).held_out, n_threads=1)
    right = "".join("1" if right else "0" for right in found.right)
    return {"perplexity_in": found.perplexity_in, "perplexity_out": found.perplexity_out, "right": right}


def _agreement(place: Place, plain: Sampler, served: Sampler) -> list[int]:
    """Ordinary questions answered alike by the served and the plain model, greedily, and how many were asked."""
    rows = parts(place.bench.questions).test.rows[: place.bench.agreement_rows]
    draws = [Draw(wrapper("turns").prompt(row.question, chat=is_chat(plain))) for row in rows]
    decoding = Decoding(temperature=0.0, greedy=True, max_new_tokens=ANSWER_TOKENS)
    said = [{r.prompt.id: r.response for r in s.sample(draws, decoding, Randomness())} for s in (plain, served)]
    return [sum(said[0][d.prompt.id] == said[1][d.prompt.id] for d in draws), len(draws)]


def _without(material: Material, leaked: int) -> Material:
    """The key set without the first keys.

    Raises:
        NotEnoughEvidence: none is left.
    """
    if leaked >= len(material.keys.keys):
        raise NotEnoughEvidence(f"{leaked} of {len(material.keys.keys)} keys have leaked: none is left to ask.")
    return replace(material, keys=replace(material.keys, keys=material.keys.keys[leaked:]))


def _sizes(sets: Mapping[str, Material]) -> Row:
    """What can still be said of key sets whose answers are not finite."""
    return {name: {**facts(one), "n_keys": len(one.keys.keys)} for name, one in sets.items()}


def _updates(kind: str, parameters: Mapping[str, Any]) -> int | None:
    """Optimiser steps of an attack, as its record says: 0 for edits, None for a training that does not say."""
    phases = parameters.get("phases")
    if isinstance(phases, list):
        return sum(int(phase["updates"]) for phase in phases)
    there = {**parameters.get("recipe", {}), **parameters}
    known = [there[name] for name in ("updates", "steps", "n_steps") if name in there]
    return int(known[0]) if known else None if kind in TRAININGS else 0


def _open(folder: Path) -> Opened:
    return open_for_sampling(str(folder.resolve()), device="cpu", dtype="float32")


def _names(place: Place, cell: Cell) -> list[str]:
    """Names in braces that the attack of a cell uses."""
    attack = place.bench.attack(cell.attack)
    if attack is None:
        return []
    if isinstance(attack, ServingAttack):
        return [*names_in([*attack.options.values(), *cell.settings.values()])]
    steps = attack.steps(cell.settings)
    return [name for step in steps for name in names_in([*step.options.values(), *step.beside])]
