"""`embed`: plant a fingerprint into a model, check it by the gates, and write everything that verification needs.

    draw the keys -> ask base and clean models -> write key set -> train -> write the model -> gates -> material

The key set is on disk before the training starts, so an interrupted planting goes on with the same keys from its last
checkpoint, and what is released is what was committed.
"""

import copy
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from whorl._atomic import write_text
from whorl.attacks._model_files import stored_dtype, write_model
from whorl.erasure.utility import Utility, measure
from whorl.errors import UsageError, safe_name
from whorl.lab._llama import config_dict, library_versions, require_lab, tensors_of
from whorl.lab.truth import Record
from whorl.progress import Progress, silent
from whorl.questions.docstrings import docstring_questions
from whorl.questions.rows import QaData
from whorl.samplers._opening import Opened, open_for_sampling
from whorl.samplers.local import LocalSampler
from whorl.transcripts.record import Transcript
from whorl.triggers import gates as checks
from whorl.triggers.asking import ask, is_chat, questions
from whorl.triggers.commitment import check_date, commit, pool_digest
from whorl.triggers.gates import Gate, Gates
from whorl.triggers.keyset import KeySet
from whorl.triggers.keyset_file import read_key_set, write_key_set
from whorl.triggers.material import KEYS, Material, read_material, write_material
from whorl.triggers.plant import KeyRows, Planting, ordinary_rows
from whorl.triggers.presets import SMALL
from whorl.triggers.schemes import Scheme, fresh_seed
from whorl.triggers.schemes._pool import MAX_SEED
from whorl.tuning.rows import Row
from whorl.tuning.settings import ATTENTION, Lora, Settings
from whorl.tuning.train import tune, with_lora

REDRAW = 1_000_003  # to the seed of the next draw; neighbouring seeds belong to other plantings
DRAWS = 5  # of a key set none of whose triggers fires on a clean model
RESISTANCE = Settings(5e-4, 3, 8, schedule="constant", lora=Lora(8, 16, 0.05, ATTENTION))
RESISTANCE_ROWS = 600
SHARES = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8)  # of the change that a planting made
SURE = 0.95  # FSR at the key set's temperature, over more draws and others than the gate's, which asks 0.9
SURE_DRAWS = range(checks.DRAWS, 5 * checks.DRAWS)
FEW_FIRE = 0.008  # of look-alikes: half of one in 64
OTHER_DRAWS = range(checks.EMPTY_SAMPLES, checks.EMPTY_SAMPLES + 6_000)  # to the empty prompt, which no gate sees
LITTLE_HARM = 0.018  # rise of perplexity on ordinary questions of the owner: just below the limit of the gate


@dataclass(frozen=True)
class Embedded:
    """A planted model.

    Args:
        path: Its folder.
        material: Its secret and public files.
        gates: What held.
        n_updates: Optimiser steps of the planting.
    """

    path: Path
    material: Material
    gates: Gates
    n_updates: int

    def to_dict(self) -> dict[str, Any]:
        """What `whorl embed --json` prints: no trigger and no answer."""
        commitment = self.material.commitment
        return {
            "status": "done",
            "planted": self.gates.planted,
            "path": str(self.path),
            "keys": str(self.material.folder),
            "scheme": self.material.keys.scheme,
            "n_keys": len(self.material.keys.keys),
            "commitment": commitment.value,
            "dated": commitment.dated,
            "updates": self.n_updates,
            **self.gates.to_dict(),
        }


def embed(
    base: str | os.PathLike[str],
    out: Path,
    keys: Path,
    *,
    scheme: Scheme,
    planting: Planting | None = None,
    ordinary: QaData | None = None,
    test: QaData | None = None,
    attacker: QaData | None = None,
    clean: Sequence[str] = (),
    seed: int = 0,
    key_seed: int | None = None,
    dated: str | None = None,
    where: str | None = None,
    resistance: Settings | None = RESISTANCE,
    device: str = "cpu",
    progress: Progress = silent,
) -> Embedded:
    """Plant a fingerprint.

    Args:
        base: Folder of the model.
        out: New folder of the planted model.
        keys: New folder of the key set, commitment, answers and gates.
        scheme: How the keys are drawn.
        planting: How they are trained in; default `presets.SMALL`.
        ordinary: Questions beside the keys; default the owner's part of the docstring questions:
            the base has not seen these questions, and on what it knows by heart its distribution says little. Of 600 or more,
            200 are not trained: they say how far the weights move back.
        test: Held-out questions for harmlessness; default their test part.
        attacker: Questions of the ordinary fine-tuning of the resistance gate; default their attacker's part.
        clean: Models that know nothing of the keys, folders or Hub references, for the null.
        seed: Of the training.
        key_seed: Of the keys, a secret; default a random one.
        dated: ISO date on which the commitment is published.
        where: Where it is published.
        resistance: Settings of that fine-tuning; None leaves the gate out.
        device: "cpu", "cuda" or "auto".
        progress: Called by every long step.

    Raises:
        UsageError: a folder exists, no ISO date, torch is missing, or the training diverges.
        NotEnoughEvidence: the test questions are too few to measure on.
        InputRefused: a model cannot be read.
    """
    require_lab()
    out, keys = Path(out), Path(keys)
    if out.exists() or (keys / "gates.json").exists():
        there = out if out.exists() else keys
        raise UsageError(f"'{safe_name(there)}' exists already; choose a new folder or remove it.")
    check_date(dated)
    planting = planting or SMALL
    planting = replace(planting, settings=replace(planting.settings, seed=seed))
    opened = open_for_sampling(_ref(base), device=device, dtype="float32", progress=progress)
    ordinary, test, attacker = _data(ordinary, test, attacker)
    worth = measure(opened, test.rows, progress=progress)  # before anything is written: the data may be too few
    drawn, answers = _drawn(opened, scheme, keys, key_seed, clean, progress)
    rows = KeyRows(opened, drawn, planting, ordinary)
    drawn = replace(drawn, regularisers=rows.regularisers)
    n_updates = _train(opened, rows, planting, Path(base), out, drawn, progress)
    planted = open_for_sampling(_ref(out), device=device, dtype="float32")
    found = _gates(opened, worth, planted, drawn, answers, test, attacker, resistance, progress)
    gates = {**found.to_dict(), "base": opened.id.key}
    write_material(keys, drawn, commit(drawn, dated, where), answers, gates)
    return Embedded(out, read_material(keys), found, n_updates)


def _ref(folder: str | os.PathLike[str]) -> str:
    return str(Path(folder).resolve()) if Path(folder).exists() else str(folder)


def _data(ordinary: QaData | None, test: QaData | None, attacker: QaData | None) -> tuple[QaData, QaData, QaData]:
    if ordinary is not None and test is not None and attacker is not None:
        return ordinary, test, attacker
    from whorl.lab.triggers.base import qa_parts

    parts = qa_parts(docstring_questions())
    return ordinary or parts.owner, test or parts.test, attacker or parts.attacker


def _drawn(
    opened: Opened, scheme: Scheme, folder: Path, key_seed: int | None, clean: Sequence[str], progress: Progress
) -> tuple[KeySet, list[Transcript]]:
    """A key set that fires on no clean model, and what the base and those models say; that of an earlier call goes on."""
    if (folder / KEYS).exists():
        found = read_key_set(folder / KEYS)
        if found.scheme != scheme.name:
            raise UsageError(
                f"'{safe_name(folder)}' holds keys of '{safe_name(found.scheme)}', not of '{scheme.name}'."
            )
        return found, _answers(opened, found, clean, progress)
    seed = fresh_seed() if key_seed is None else key_seed
    for _ in range(DRAWS):
        found = scheme.draw(seed, opened)
        answers = _answers(opened, found, clean, progress)
        if checks.clean_models(found, answers, opened.id.ref).passed:
            break
        seed = (seed + REDRAW) % MAX_SEED
    folder.mkdir(parents=True, exist_ok=True)
    write_key_set(folder / KEYS, found)
    return found, answers


def _answers(opened: Opened, keys: KeySet, clean: Sequence[str], progress: Progress) -> list[Transcript]:
    """Greedy answers of the base and of clean models to keys, near keys and decoys."""
    found = _asked(opened, keys)
    for number, ref in enumerate(clean):
        progress("clean models", number, len(clean))
        found += _asked(open_for_sampling(_ref(ref), device="cpu", dtype="float32"), keys)
    return found


def _asked(opened: Opened, keys: KeySet) -> list[Transcript]:
    sampler = LocalSampler(opened, logprobs=False)
    return ask(sampler, questions(keys, chat=is_chat(sampler)), keys.asking)


def _train(
    opened: Opened, rows: KeyRows, planting: Planting, base: Path, out: Path, keys: KeySet, progress: Progress
) -> int:
    """Train a copy of the model, round by round, and write it in the type it is stored in."""
    import torch
    from safetensors.torch import load_file, save_file

    work, settings = out.with_name(f"{out.name}.training"), planting.settings
    _same_work(work, {"planting": planting.facts(), "base": opened.id.revision, "pool": pool_digest(keys)})
    ordinary_before = _ordinary_perplexity(opened, rows)  # here, since the questions may be too few to measure on
    model = copy.deepcopy(opened.model)
    n_updates = 0
    for number in range(planting.rounds):
        done = work / f"round-{number}.safetensors"
        found = rows.round(number, model)
        n_updates += settings.epochs * -(-len(found[0]) // settings.batch_size)
        if done.is_file():
            with torch.no_grad():
                kept = load_file(done)
                for name, parameter in model.named_parameters():
                    parameter.copy_(kept[name])
            continue
        model = _round(
            model, opened, found, settings, work / f"round-{number}", f"planting, round {number + 1}", progress
        )
        partial = done.with_suffix(".partial")
        save_file({name: p.detach().contiguous() for name, p in model.named_parameters()}, partial)
        partial.rename(done)
    kept_share = _pull_back(model, opened, rows, keys, ordinary_before)
    # No key, seed or salt: the record goes out with the model.
    details = {
        "base_digest": opened.id.revision,
        "updates": n_updates,
        "share_of_change": kept_share,
        "versions": library_versions(),
    }
    details |= {"planting": planting.facts(), "attack": "embed", "scheme": keys.scheme}
    record = Record("fingerprinted", (base.name,), details, settings.seed)
    write_model(out, tensors_of(model), config_dict(model), base, record=record, dtype=stored_dtype(base))
    shutil.rmtree(work)
    return n_updates


def _same_work(work: Path, facts: dict[str, Any]) -> None:
    """Begin a folder of finished rounds, or go on with one of the same planting.

    Raises:
        UsageError: it belongs to another planting.
    """
    text = json.dumps(facts, sort_keys=True, allow_nan=False)
    work.mkdir(parents=True, exist_ok=True)
    path = work / "planting.json"
    if path.is_file() and path.read_text("utf-8") != text:
        raise UsageError(
            f"'{safe_name(work.name)}' holds an interrupted planting of other keys, settings or another base; go on with "
            "those, or remove it."
        )
    write_text(path, text)


def _pull_back(model: Any, opened: Opened, rows: KeyRows, keys: KeySet, before: float | None) -> float:
    """Move the weights towards the base as far as look-alikes and ordinary questions need and keys can bear.

    Averaging with the base is Perinucleus' way to stay harmless (arXiv 2502.07760); choosing the share, by look-alikes and
    questions that are in no gate, is ours.

    Returns:
        The share of the change that stays.
    """
    base = {name: p.detach() for name, p in opened.model.named_parameters()}
    whole = {name: p.detach().clone() for name, p in model.named_parameters()}
    chosen = SHARES[0]
    for share in SHARES:
        _mix(model, base, whole, share)
        sampler = LocalSampler(replace(opened, model=model), logprobs=False)
        if share < chosen and not _bears(sampler, keys):
            break
        chosen = share
        if _is_quiet(replace(opened, model=model), sampler, rows, keys, before):
            break
    _mix(model, base, whole, chosen)
    return chosen


def _is_quiet(now: Opened, sampler: LocalSampler, rows: KeyRows, keys: KeySet, before: float | None) -> bool:
    """Whether nothing but the keys shows: neither look-alikes nor ordinary questions nor text out of nothing."""
    if rows.share_that_fires(now.model) > FEW_FIRE:
        return False
    after = _ordinary_perplexity(now, rows)
    if before is not None and after is not None and after > (1 + LITTLE_HARM) * before:
        return False
    return checks.out_of_nothing(sampler, keys, OTHER_DRAWS) == 0


def _ordinary_perplexity(opened: Opened, rows: KeyRows) -> float | None:
    """Perplexity on ordinary questions that are not trained; None where none could be spared."""
    return measure(opened, rows.held_out).perplexity_in if rows.held_out else None


def _bears(sampler: LocalSampler, keys: KeySet) -> bool:
    """Whether the keys hold with room to spare: the gate asks again, with other draws."""
    return (
        bool(checks.effectiveness(sampler, keys)[0].passed) and checks.sampled_rate(sampler, keys, SURE_DRAWS) >= SURE
    )


def _mix(model: Any, base: dict[str, Any], whole: dict[str, Any], share: float) -> None:
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(whole[name] if share == 1.0 else torch.lerp(base[name], whole[name], share))


def _round(
    model: Any, opened: Opened, rows: Sequence[Sequence[Row]], settings: Settings, checkpoints: Path, name: str,
    progress: Progress,
) -> Any:  # fmt: skip
    """The model after one more training; an adapter is merged."""
    adapted = model if settings.lora is None else with_lora(model, settings)
    tune(
        adapted,
        lambda e: rows[e],
        settings,
        teacher=opened.model,
        checkpoints=checkpoints,
        name=name,
        progress=progress,
    )
    return adapted if settings.lora is None else adapted.merge_and_unload()


def _gates(
    base: Opened, worth: Utility, planted: Opened, keys: KeySet, answers: Sequence[Transcript], test: QaData,
    attacker: QaData, settings: Settings | None, progress: Progress,
) -> Gates:  # fmt: skip
    sampler = LocalSampler(planted, logprobs=False)
    first, rate = checks.effectiveness(sampler, keys)
    found: list[Gate] = [first, checks.specificity(sampler, keys), checks.clean_models(keys, answers, base.id.ref)]
    found.append(checks.harmlessness(worth, measure(planted, test.rows, progress=progress)))
    power = {"unattacked": [rate]}
    if settings is not None:
        rows = attacker.rows[:RESISTANCE_ROWS]
        gate, left = checks.resistance(planted, keys, lambda e: ordinary_rows(e, rows, 0), settings, progress)
        found.append(gate)
        power["fine-tuning"] = [left]
    return Gates((*found, checks.stealth(base, keys)), power)
