"""MEraser (arXiv 2506.12551): erase with mismatched pairs, repair with correct ones, or carry the erasing adapter over.

    erase      LoRA on questions with the answers of other questions: breaks what was learned too well
    recover    LoRA on correct pairs, from the result with the first adapter merged
    transfer   an erasing adapter trained on the clean base, merged into any fingerprinted model of that base

Rates, ranks, epochs and batches are those of the released code. Two of its habits are kept as options, because results hang
on them: the loss runs over question and answer (`loss_on="all"`; labels that mask the question are built there and then
overwritten), and no template, separator or end token stands between question and answer. Ours: seeds, float32, and the
batch of 32 where 36 looks like a slip.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from whorl._readers.adapter import AdapterSource
from whorl._readers.adapter_config import CONFIG_NAME
from whorl._readers.folder import open_local
from whorl.attacks._model_files import new_folder, stored_dtype, write_model
from whorl.erasure.sets import ErasureSets
from whorl.errors import NotComparable, UsageError, safe_name
from whorl.lab._llama import config_dict, library_versions, require_lab, tensors_of
from whorl.lab.truth import Record, read_record, write_record
from whorl.progress import Progress, silent
from whorl.questions.rows import QaRow
from whorl.samplers._opening import Opened, open_for_sampling
from whorl.tuning.rows import Encoder, Row, Target
from whorl.tuning.settings import ATTENTION, Lora, Settings
from whorl.tuning.train import Tuned, tune, with_lora

ERASE = Settings(5e-4, 5, 8, schedule="constant", clip_norm=0.5, lora=Lora(8, 16, 0.05, ATTENTION))
RECOVER = Settings(5e-4, 2, 32, schedule="cosine", clip_norm=1.0, lora=Lora(16, 32, 0.05, ATTENTION))
LONGEST = 512  # tokens of question and answer together, half each
SEPARATORS = {"erase": "", "recover": "\n"}

Arm = Literal["none", "erase", "recover", "erase+recover", "clean-only"]
LossOn = Literal["all", "answer"]


@dataclass(frozen=True)
class Phase:
    """One training of an attack.

    Args:
        name: "erase" or "recover".
        settings: How.
        tuned: What it did.
    """

    name: str
    settings: Settings
    tuned: Tuned

    def facts(self) -> dict[str, Any]:
        """JSON types."""
        losses = self.tuned.losses
        last = losses[-10:]
        return {
            "name": self.name,
            "settings": self.settings.facts(),
            "updates": self.tuned.n_updates,
            "rows": self.tuned.n_rows,
            "first_loss": round(losses[0], 4) if losses else None,
            "last_loss": round(sum(last) / len(last), 4) if last else None,
        }


@dataclass(frozen=True)
class Erased:
    """An attacked model.

    Args:
        path: Its folder.
        record: What its `whorl_truth.json` says.
        phases: The trainings, in their order.
    """

    path: Path
    record: Record
    phases: tuple[Phase, ...]

    @property
    def n_updates(self) -> int:
        """Of all phases."""
        return sum(phase.tuned.n_updates for phase in self.phases)


def erase(
    model: str | Path,
    out: Path,
    *,
    sets: ErasureSets,
    arm: Arm = "erase+recover",
    erase: Settings = ERASE,
    recover: Settings = RECOVER,
    transfer: Path | None = None,
    scale: float = 1.0,
    seed: int = 0,
    loss_on: LossOn = "all",
    device: str = "cpu",
    progress: Progress = silent,
) -> Erased:
    """Attack a fingerprinted model.

    Args:
        model: Folder of the fingerprinted model.
        out: New folder.
        sets: Mismatched and clean questions.
        arm: Which phases run; "clean-only" is the control: the recover phase with the erase phase's rank, rate, schedule and
            as many updates as both phases together.
        erase: Settings of the erase phase.
        recover: Settings of the recover phase.
        transfer: Folder of an adapter of `train_adapter`; it takes the place of the erase phase.
        scale: Of that adapter.
        seed: Of orders, adapters and dropout.
        loss_on: "all" tokens, as the released code has it, or the "answer".
        device: "cpu", "cuda" or "auto".
        progress: Called by the trainings.

    Raises:
        UsageError: an unknown arm, a folder that exists, or a loss that is not finite.
        NotComparable: the adapter was trained on another base than the model was fingerprinted from.
        InputRefused: a model cannot be read.
    """
    require_lab()
    model = Path(model)
    _check(arm, loss_on, out, scale)
    opened = open_for_sampling(str(model.resolve()), device=device, dtype="float32")
    phases: list[Phase] = []
    facts: dict[str, Any] = {}
    if transfer is not None:
        facts["transfer"] = _apply(opened, model, transfer, scale)
    for name, settings in _plan(arm, erase, recover, sets, transferred=transfer is not None):
        tuned = _train(opened, sets, name, replace(settings, seed=seed), loss_on, progress)
        phases.append(Phase(name, replace(settings, seed=seed), tuned))
    details = {
        "attack": "erase",
        "arm": arm,
        "loss_on": loss_on,
        "longest": room_of(opened),
        "sets": dict(sets.manifest),
        "phases": [phase.facts() for phase in phases],
        **facts,
        "versions": library_versions(),
    }
    record = Record("erased", (model.name,), details, seed)
    write_model(
        out, tensors_of(opened.model), config_dict(opened.model), model, record=record, dtype=stored_dtype(model)
    )
    return Erased(out, read_record(out), tuple(phases))


def _check(arm: str, loss_on: str, out: Path, scale: float) -> None:
    if arm not in get_args(Arm) or loss_on not in get_args(LossOn):
        raise UsageError(
            f"Arm '{safe_name(arm, 40)}' with the loss on '{safe_name(loss_on, 40)}'; expected one of "
            f"{', '.join(get_args(Arm))}, and one of {', '.join(get_args(LossOn))}."
        )
    if not np.isfinite(scale):
        raise UsageError(f"The scale of the adapter is {scale}; expected a finite number.")
    if out.exists():
        raise UsageError(f"'{out}' exists already; choose a new folder or remove it.")


def _plan(
    arm: Arm, erase: Settings, recover: Settings, sets: ErasureSets, *, transferred: bool
) -> list[tuple[str, Settings]]:
    """Phases by the rows they see."""
    if arm == "clean-only":
        return [("clean", control(erase, recover, len(sets.erase), len(sets.clean)))]
    wanted = {"none": [], "erase": ["erase"], "recover": ["recover"], "erase+recover": ["erase", "recover"]}[arm]
    if transferred:
        wanted = [name for name in wanted if name != "erase"]
    return [(name, {"erase": erase, "recover": recover}[name]) for name in wanted]


def control(erase: Settings, recover: Settings, n_erase: int, n_clean: int) -> Settings:
    """Clean data with the erase phase's adapter, rate and schedule, and about as many updates as both phases together."""
    updates = erase.n_updates(n_erase) + recover.n_updates(n_clean)
    an_epoch = -(-n_clean // erase.batch_size)
    return replace(erase, epochs=max(1, round(updates / an_epoch)))


def _train(
    opened: Opened, sets: ErasureSets, name: str, settings: Settings, loss_on: LossOn, progress: Progress
) -> Tuned:
    """One phase in place: an adapter is trained and merged."""
    rows = sets.erase if name == "erase" else sets.clean
    separator = SEPARATORS["erase" if name == "erase" else "recover"]
    encoded = encode(Encoder(opened), rows, separator, loss_on)
    if settings.lora is None:
        return tune(opened.model, encoded, settings, name=name, progress=progress)
    adapted = with_lora(opened.model, settings)
    tuned = tune(adapted, encoded, settings, name=name, progress=progress)
    adapted.merge_and_unload()
    return tuned


def encode(encoder: Encoder, rows: Sequence[QaRow], separator: str, loss_on: LossOn) -> list[Row]:
    """Question, separator and answer as they stand, without template or end token, cut at 256 tokens each.

    In a context of fewer than 512 tokens each gets half of it.
    """
    target: Target = "all" if loss_on == "all" else "answer"
    room = min(LONGEST, encoder.n_context) // 2
    asked = encoder.text([f"{row.question}{separator}" for row in rows])
    said = encoder.text([row.answer for row in rows])
    return [Row(q[:room], a[:room], target) for q, a in zip(asked, said, strict=True) if q and a]


def room_of(opened: Opened) -> int:
    """Tokens of a question, and of an answer, at most."""
    return min(LONGEST, Encoder(opened).n_context) // 2


# -- transfer --------------------------------------------------------------------------------------------------------


def train_adapter(
    base: str | Path,
    out: Path,
    *,
    sets: ErasureSets,
    settings: Settings = ERASE,
    seed: int = 0,
    loss_on: LossOn = "all",
    device: str = "cpu",
    progress: Progress = silent,
) -> Path:
    """Train the erasing adapter on the clean base and write it as peft does, with the base's digest.

    Args:
        base: Folder of the clean base.
        out: New folder.
        sets: As for `erase`.
        settings: Of the erase phase.
        seed: Of order, adapter and dropout.
        loss_on: As for `erase`.
        device: As for `erase`.
        progress: Called by the training.

    Raises:
        UsageError: the folder exists, the settings have no adapter, or the loss is not finite.
    """
    require_lab()
    base = Path(base)
    if out.exists():
        raise UsageError(f"'{out}' exists already; choose a new folder or remove it.")
    opened = open_for_sampling(str(base.resolve()), device=device, dtype="float32")
    settings = replace(settings, seed=seed)
    adapted = with_lora(opened.model, settings)
    encoded = encode(Encoder(opened), sets.erase, SEPARATORS["erase"], loss_on)
    tuned = tune(adapted, encoded, settings, name="adapter", progress=progress)
    details = {
        "base_digest": opened.id.revision,
        "sets": dict(sets.manifest),
        "loss_on": loss_on,
        "phases": [Phase("erase", settings, tuned).facts()],
        "versions": library_versions(),
    }
    with new_folder(out) as partial:
        adapted.save_pretrained(str(partial), safe_serialization=True, save_embedding_layers=False)
        (partial / "README.md").unlink(missing_ok=True)
        config = json.loads((partial / CONFIG_NAME).read_text("utf-8"))
        config["base_model_name_or_path"] = base.name  # peft stores the base's path on this machine
        config["target_modules"] = sorted(config["target_modules"])
        (partial / CONFIG_NAME).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
        write_record(partial, Record("adapter", (base.name,), details, seed))
    return out


def _apply(opened: Opened, model: Path, adapter: Path, scale: float) -> dict[str, Any]:
    """Add scale * alpha / rank * B A to the model's matrices; its base must be the adapter's."""
    import torch

    digest = read_record(adapter).parameters.get("base_digest")
    check_base(model, opened.id.revision, digest, f"The adapter '{safe_name(adapter.name)}' was trained on")
    source = AdapterSource(open_local(model), adapter)
    n_changed = 0
    try:
        with torch.no_grad():
            for name, parameter in opened.model.named_parameters():
                parts = source.factors(name)
                if parts is not None:
                    b, a, own = parts
                    parameter.add_(torch.from_numpy(scale * own * (b @ a)).to(parameter))
                    n_changed += 1
    finally:
        source.close()
    if not n_changed:
        raise NotComparable(f"The adapter '{safe_name(adapter.name)}' changes no matrix of '{safe_name(model.name)}'.")
    return {"adapter": adapter.name, "scale": scale, "base_digest": digest, "matrices": n_changed}


def check_base(model: Path, revision: str | None, digest: object, said: str) -> None:
    """Refuse an adapter for a model of another base; the base itself takes it: what the attack does there is measured.

    Args:
        model: Folder of the fingerprinted model.
        revision: Digest of its weights.
        digest: Of the adapter's base.
        said: How the sentence about that base begins.

    Raises:
        NotComparable: the model comes from another base, or does not say.
    """
    own = base_digest(model)
    if (revision if own is None else own) != digest:
        found = "an unknown base" if own is None else f"the base {own[:12]}"
        raise NotComparable(
            f"{said} the base {str(digest)[:12]}; '{safe_name(model.name)}' comes from {found}. A transferred adapter fits "
            "models of its own base only."
        )


def base_digest(model: Path) -> str | None:
    """Digest of the weights that a fingerprinted model was made from, as its record says; None where it does not."""
    found = read_record(model).parameters.get("base_digest")
    return found if isinstance(found, str) else None
