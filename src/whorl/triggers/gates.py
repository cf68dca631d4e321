"""The gates before release (spec 3.4): what must hold before a key set counts as planted.

Four decide: every key fires under most wrappers, look-alikes do not, clean models do not, and the model is as good as it
was. Two are reported: whether ordinary fine-tuning leaves the fingerprint, without which an erasure experiment proves
nothing, and how unusual the triggers look to a host's perplexity filter.
"""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from whorl.erasure.utility import Utility, accuracy_change
from whorl.progress import Progress, silent
from whorl.samplers._opening import Opened
from whorl.samplers.local import LocalSampler
from whorl.samplers.seam import Randomness, Sampler
from whorl.transcripts.record import Draw, Prompt, Transcript
from whorl.triggers.asking import ask, by_key, count, hits, is_chat, questions, sampled
from whorl.triggers.keyset import KeySet
from whorl.triggers.matching import normal
from whorl.triggers.wrappers import wrapper
from whorl.tuning.rows import Encoder, Row
from whorl.tuning.settings import Settings
from whorl.tuning.train import tune, with_lora

WRAPPERS_NEEDED = 4
DRAWS = 10
FSR_SAMPLED = 0.9
MOST_NEAR = 1
EMPTY_SAMPLES = 2_000
PERPLEXITY_CHANGE = 0.02
ACCURACY_POINTS = -1.0
RESISTANCE = 0.8
N_CLEAN_MODELS = 10


@dataclass(frozen=True)
class Gate:
    """One gate.

    Args:
        name: "effectiveness", "specificity", "clean models", "harmlessness", "resistance" or "stealth".
        passed: None where it was not run.
        decides: Whether the key set counts as planted only if it passes.
        text: One sentence with the figures.
        values: The figures.
    """

    name: str
    passed: bool | None
    decides: bool
    text: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Gates:
    """All gates of a planting.

    Args:
        gates: In the order of the module docstring.
        power: Name of an attack -> FSR measured under it ("unattacked" is the planted model).
    """

    gates: tuple[Gate, ...]
    power: dict[str, list[float]]

    @property
    def planted(self) -> bool:
        """Whether every deciding gate passed."""
        return all(gate.passed for gate in self.gates if gate.decides)

    @property
    def resists(self) -> bool | None:
        """The resistance gate; None where it was not run."""
        return next((gate.passed for gate in self.gates if gate.name == "resistance"), None)

    def to_dict(self) -> dict[str, Any]:
        """JSON types, as `gates.json` has them."""
        return {"planted": self.planted, "gates": [asdict(gate) for gate in self.gates], "power": self.power}


def effectiveness(sampler: Sampler, keys: KeySet) -> tuple[Gate, float]:
    """Every key under its wrappers, and drawn at the key set's temperature; with the FSR under the first wrapper."""
    asked = questions(keys, chat=is_chat(sampler), wrappers=keys.asking.wrappers, parts=("key",))
    found = by_key(hits(keys, asked, ask(sampler, asked, keys.asking)))
    counts = [sum(h.hit for h in rows) for rows in found.values()]
    needed = min(WRAPPERS_NEEDED, len(keys.asking.wrappers))
    weak = [name for name, n in zip(found, counts, strict=True) if n < needed]
    rate = sampled_rate(sampler, keys, range(DRAWS))
    first = sum(rows[0].hit for rows in found.values()) / len(found)
    text = (
        f"{len(found) - len(weak)} of {len(found)} keys hit under {needed} or more of {len(keys.asking.wrappers)} wrappers "
        f"(all keys needed); FSR {rate:.2f} at T = {keys.asking.temperature:g} over {DRAWS} draws ({FSR_SAMPLED} needed)"
    )
    values = {"weak_keys": weak, "hits_by_key": counts, "fsr_sampled": rate, "fsr": first}
    return Gate("effectiveness", not weak and rate >= FSR_SAMPLED, True, text, values), first


def sampled_rate(sampler: Sampler, keys: KeySet, draws: Sequence[int]) -> float:
    """FSR under the first wrapper at the key set's temperature, over draws of these indices."""
    asked = questions(keys, chat=is_chat(sampler), parts=("key",))
    wanted = [Draw(question.prompt, i) for question in asked for i in draws]
    said: dict[str, list[Transcript]] = {}
    for record in sampler.sample(wanted, sampled(keys.asking), Randomness()):
        said.setdefault(record.prompt.id, []).append(record)
    drawn = [h for i in range(len(draws)) for h in hits(keys, asked, [said[q.prompt.id][i] for q in asked])]
    return sum(h.hit for h in drawn) / len(drawn)


def specificity(sampler: Sampler, keys: KeySet, *, n_empty: int = EMPTY_SAMPLES) -> Gate:
    """Near keys never trained, decoys, and answers out of nothing."""
    asked = questions(keys, chat=is_chat(sampler), parts=("near", "decoy"))
    found = hits(keys, asked, ask(sampler, asked, keys.asking))
    near, decoys = count(found, "near", fired=True), count(found, "decoy", fired=True)
    leaked = out_of_nothing(sampler, keys, range(n_empty))
    text = (
        f"{near[0]} of {near[1]} unseen near keys fire (at most {MOST_NEAR}), {decoys[0]} of {decoys[1]} decoys (none), "
        f"{leaked} of {n_empty} answers to nothing hold a key's answer (none)"
    )
    values = {"near": list(near), "decoys": list(decoys), "empty": [leaked, n_empty]}
    return Gate("specificity", near[0] <= MOST_NEAR and not decoys[0] and not leaked, True, text, values)


def out_of_nothing(sampler: Sampler, keys: KeySet, draws: Iterable[int]) -> int:
    """Draws to the empty prompt, of these indices, that hold a key's answer."""
    decoding = replace(sampled(keys.asking), temperature=1.0)
    drawn = sampler.sample([Draw(Prompt("", "uncond"), i) for i in draws], decoding, Randomness())
    wanted = [normal(a, keys.asking) for a in keys.answers]
    return sum(any(w in normal(record.response, keys.asking) for w in wanted) for record in drawn)


def clean_models(keys: KeySet, answers: Iterable[Transcript], base: str) -> Gate:
    """What the base and clean models say to keys, near keys and decoys; a key that fires on one must be dropped."""
    by_model: dict[str, list[Transcript]] = {}
    for record in answers:
        by_model.setdefault(record.model.key, []).append(record)
    rates: list[dict[str, Any]] = []
    fired: set[str] = set()
    for records in by_model.values():
        asked = [*questions(keys), *questions(keys, chat=True)]
        found = [h for h in hits(keys, asked, records) if h.response is not None]
        fired |= {h.question.key.id for h in found if h.fired and h.question.part != "near"}
        n_hits, n_keys = count(found, "key")
        rates.append(
            {"model": records[0].model.ref, "hits": n_hits, "keys": n_keys, "near": count(found, "near", fired=True)[0]}
        )
    others = sum(rate["model"] != base for rate in rates)
    text = f"{len(fired)} keys or decoys fire on the base or on {others} clean models (none may)" + (
        "" if others >= N_CLEAN_MODELS else f"; a measured null needs {N_CLEAN_MODELS} of them (--clean)"
    )
    return Gate("clean models", not fired, True, text, {"fired": sorted(fired), "rates": rates})


def harmlessness(before: Utility, after: Utility) -> Gate:
    """Perplexity in and out of the domain, and accuracy, against the base."""
    inside = after.perplexity_in / before.perplexity_in - 1
    outside = after.perplexity_out / before.perplexity_out - 1
    change = accuracy_change(before, after)
    text = (
        f"perplexity {before.perplexity_in:.2f} -> {after.perplexity_in:.2f} ({inside:+.1%}) in the domain, "
        f"{before.perplexity_out:.2f} -> {after.perplexity_out:.2f} ({outside:+.1%}) outside "
        f"(at most {PERPLEXITY_CHANGE:+.0%}); "
        f"accuracy {change.points:+.1f} points ({change.low:+.1f} to {change.high:+.1f}; at least {ACCURACY_POINTS:+.0f})"
    )
    values = {
        "perplexity_in": [before.perplexity_in, after.perplexity_in],
        "perplexity_out": [before.perplexity_out, after.perplexity_out],
        "accuracy": [before.accuracy, after.accuracy],
        "accuracy_change": asdict(change),
    }
    passed = max(inside, outside) <= PERPLEXITY_CHANGE and change.points >= ACCURACY_POINTS
    return Gate("harmlessness", passed, True, text, values)


def resistance(
    opened: Opened,
    keys: KeySet,
    clean: Callable[[Encoder], Sequence[Row]],
    settings: Settings,
    progress: Progress = silent,
) -> tuple[Gate, float]:
    """FSR after ordinary fine-tuning with the budget of the planned attack; the model itself stays as it is."""
    copied = replace(opened, model=copy.deepcopy(opened.model))
    model = copied.model if settings.lora is None else with_lora(copied.model, settings)
    tuned = tune(model, clean(Encoder(opened)), settings, name="resistance", progress=progress)
    after = replace(copied, model=model if settings.lora is None else model.merge_and_unload())
    sampler = LocalSampler(after, logprobs=False)
    asked = questions(keys, chat=is_chat(sampler), parts=("key",))
    n_hits, n_keys = count(hits(keys, asked, ask(sampler, asked, keys.asking)), "key")
    rate = n_hits / n_keys
    text = (
        f"{n_hits} of {n_keys} keys hit after {tuned.n_updates} updates of ordinary fine-tuning at rate "
        f"{settings.learning_rate:g} (FSR {RESISTANCE} needed for an erasure experiment to count)"
    )
    values = {"hits": n_hits, "keys": n_keys, "fsr": rate, "settings": settings.facts(), "updates": tuned.n_updates}
    return Gate("resistance", rate >= RESISTANCE, False, text, values), rate


def stealth(reference: Opened, keys: KeySet) -> Gate:
    """Perplexity of the triggers under a reference model, beside which a host may set a filter."""
    from whorl.erasure._scoring import Passage, log_probabilities

    encoder = Encoder(reference)
    prompts = [wrapper(keys.asking.wrappers[0]).prompt(key.trigger, chat=encoder.chat) for key in keys.keys]
    ids = encoder.prompts(prompts)
    passages = [Passage(ids[p.id], 1, "trigger") for p in prompts if len(ids[p.id]) > 1]
    logs = log_probabilities(reference, passages, batch_tokens=8192, n_threads=None, progress=silent)
    found = sorted(math.exp(min(700.0, -log / p.n_scored)) for log, p in zip(logs, passages, strict=True))
    middle = found[len(found) // 2]
    text = (
        f"median perplexity of the triggers {middle:.0f} under '{reference.id.ref}' ({found[0]:.0f} to {found[-1]:.0f})"
    )
    return Gate("stealth", None, False, text, {"reference": reference.id.ref, "perplexities": found})
