"""`tune`: rows through transformers' Trainer, with all weights or a peft adapter.

What we add to the Trainer: rows that change from epoch to epoch, a divergence from a frozen teacher beside the
cross-entropy, padding only to the longest row of a batch, a stop at the first loss that is not finite, and checkpoints from
which the same call goes on. The loss is

    mean over answer tokens of -log p  +  teacher_weight * mean over teacher tokens of KL(teacher || model)
                                       +  near_weight * the same mean over look-alikes

With `two_sided` the divergence is KL(teacher || model) + KL(model || teacher).

With an adapter, the teacher is the model without it, at no memory; otherwise the caller gives one.
"""

import math
import random
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from whorl.errors import UsageError
from whorl.lab._llama import laboratory
from whorl.progress import Progress, silent
from whorl.samplers._opening import quiet
from whorl.tuning.rows import NO_LABEL, Row
from whorl.tuning.settings import Settings

BUCKET = 8  # batches within which rows are sorted by length

RowsOf = Callable[[int], Sequence[Row]]
"""Rows of an epoch from 0; every epoch has as many."""


@dataclass(frozen=True)
class Tuned:
    """What a training did.

    Args:
        losses: Loss of each part of an update, nats per token; after a resume those since then.
        n_updates: Optimiser steps.
        n_rows: Rows an epoch.
        n_tokens: Tokens that counted, all epochs together.
        n_trained: Weight values that were trained.
    """

    losses: tuple[float, ...]
    n_updates: int
    n_rows: int
    n_tokens: int
    n_trained: int


def tune(
    model: Any,
    rows: RowsOf | Sequence[Row],
    settings: Settings,
    *,
    teacher: Any = None,
    checkpoints: Path | None = None,
    name: str = "training",
    progress: Progress = silent,
) -> Tuned:
    """Train a model in place.

    Args:
        model: Of transformers; with `settings.lora` one that `with_lora` made.
        rows: Rows of every epoch, or a function of the epoch.
        settings: How.
        teacher: Frozen model for rows whose target is "teacher"; not needed with an adapter.
        checkpoints: Folder for checkpoints, one an epoch; a call that finds one goes on from it. Removed at the end.
        name: For the progress.
        progress: Called with the name, updates done and updates in all.

    Raises:
        UsageError: no rows, a warm-up longer than the run, a missing teacher, or a loss that is not finite.
    """
    epochs = [list(rows(e) if callable(rows) else rows) for e in range(settings.epochs)]
    flat = _ordered(epochs, settings)
    if any(row.target in {"teacher", "look-alike"} for row in flat) and teacher is None and settings.lora is None:
        raise UsageError("Rows with a teacher need one: give the model before the training.")
    with laboratory(settings.n_threads, settings.seed), quiet(), TemporaryDirectory() as scratch:
        trainer = _trainer(model, flat, settings, teacher, checkpoints, Path(scratch), name, progress)
        _run(trainer, checkpoints)
    model.eval()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    n_tokens = sum(row.n_scored for epoch in epochs for row in epoch)
    return Tuned(tuple(trainer.found), int(trainer.state.global_step), len(epochs[0]), n_tokens, trained)


def with_lora(model: Any, settings: Settings) -> Any:
    """The model with a fresh adapter: A is random by the seed, B is zero.

    Raises:
        UsageError: no adapter is set, or a target does not exist.
    """
    from peft import LoraConfig, get_peft_model

    if settings.lora is None:
        raise UsageError("These settings train all weights; there is no adapter.")
    lora = settings.lora
    modules = {n.rsplit(".", 1)[-1] for n, _ in model.named_modules()}
    unknown = sorted(set(lora.targets) - modules)
    if unknown:
        raise UsageError(
            f"LoRA targets {', '.join(unknown)} do not exist; modules: {', '.join(sorted(modules - {''}))}."
        )
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets) or "all-linear",
        task_type="CAUSAL_LM",
    )
    with laboratory(settings.n_threads, settings.seed):
        adapted = get_peft_model(model, config)
    # peft takes the name of a model without one, "None", for a Hub repository, and asks there at every checkpoint.
    adapted.peft_config["default"].base_model_name_or_path = None
    return adapted


def _ordered(epochs: Sequence[Sequence[Row]], settings: Settings) -> list[Row]:
    """All rows in the order of training: each epoch shuffled by its own seed and filled to whole batches.

    Within eight batches rows are dealt out by length, which saves padding; the order of batches is random again. A short
    last batch would make an update of its own size; the rows that fill it up are the first of its epoch.
    """
    if not epochs or not epochs[0]:
        raise UsageError("There is nothing to train on.")
    flat, size = [], settings.batch_size
    for number, epoch in enumerate(epochs):
        rng = random.Random(f"{settings.seed}/{number}")
        order = rng.sample(epoch, len(epoch))
        short = -len(order) % size
        order += (order * short)[:short]
        batches = []
        for start in range(0, len(order), BUCKET * size):
            rows = sorted(order[start : start + BUCKET * size], key=lambda row: len(row.ids))
            batches += [rows[i : i + size] for i in range(0, len(rows), size)]
        flat += [row for batch in rng.sample(batches, len(batches)) for row in batch]
    return flat


def _trainer(
    model: Any,
    rows: list[Row],
    settings: Settings,
    teacher: Any,
    checkpoints: Path | None,
    scratch: Path,
    name: str,
    progress: Progress,
) -> Any:
    import torch
    from transformers import PrinterCallback, Trainer, TrainingArguments

    micro = settings.micro_batch or settings.batch_size
    n_updates = len(rows) // settings.batch_size

    class RowTrainer(Trainer):  # type: ignore[misc]
        found: list[float]

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            loss = _loss(model, inputs, settings, teacher)
            return (loss, None) if return_outputs else loss

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            self._count(float(loss.detach()) * settings.batch_size / micro)  # the Trainer divides it by the parts
            return loss

        def _count(self, loss: float) -> None:
            step = self.state.global_step
            if not math.isfinite(loss):
                kept = sorted(checkpoints.glob("checkpoint-*")) if checkpoints is not None else []
                left = f" The last good checkpoint is '{kept[-1].name}'." if kept else ""
                raise UsageError(
                    f"Training stopped at update {step + 1} of {n_updates}: the loss is {loss}. Use a rate below "
                    f"{settings.learning_rate} or a longer warm-up.{left}"
                )
            self.found.append(loss)
            progress(name, step + 1, n_updates)

    arguments = TrainingArguments(
        output_dir=str(checkpoints or scratch),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=settings.batch_size // micro,
        max_steps=n_updates,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=math.ceil(settings.warmup * n_updates),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.clip_norm,
        seed=settings.seed,
        train_sampling_strategy="sequential",
        save_strategy="no" if checkpoints is None else "steps",
        save_steps=max(1, n_updates // settings.epochs),
        save_total_limit=1,
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        bf16=settings.dtype == "bfloat16",
        fp16=settings.dtype == "float16",
        use_cpu=next(model.parameters()).device.type == "cpu",
    )
    pad = int(getattr(model.config, "pad_token_id", None) or 0)
    trainer = RowTrainer(
        model=model,
        args=arguments,
        train_dataset=_Rows(rows),
        data_collator=lambda batch: _collated(batch, pad, torch),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.found = []
    trainer.model_accepts_loss_kwargs = False  # our loss is a mean: the Trainer divides it by the parts of an update
    return trainer


class _Rows:
    """Rows as a data set that has a length and an order."""

    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self._rows[index]


def _run(trainer: Any, checkpoints: Path | None) -> None:
    from transformers.trainer_utils import get_last_checkpoint

    last = get_last_checkpoint(str(checkpoints)) if checkpoints is not None and checkpoints.is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    if checkpoints is not None:
        shutil.rmtree(checkpoints, ignore_errors=True)


def _collated(batch: Sequence[Row], pad: int, torch: Any) -> dict[str, Any]:
    """Right-padded tensors, shape (rows, longest)."""
    longest = max(len(row.ids) for row in batch)

    def filled(values: Sequence[Sequence[int]], filling: int) -> Any:
        return torch.tensor([[*v, *[filling] * (longest - len(v))] for v in values])

    return {
        "input_ids": filled([row.ids for row in batch], pad),
        "attention_mask": filled([[1] * len(row.ids) for row in batch], 0),
        "labels": filled([row.labels for row in batch], NO_LABEL),
        "taught": torch.tensor([row.target in {"teacher", "look-alike"} for row in batch]),
        "near": torch.tensor([row.target == "look-alike" for row in batch]),
    }


def _loss(model: Any, inputs: Any, settings: Settings, teacher: Any) -> Any:
    """The loss of the module docstring; a scalar tensor."""
    import torch

    labels, taught = inputs["labels"][:, 1:], inputs["taught"]
    given = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "use_cache": False}
    logits = model(**given).logits[:, :-1]  # (B, T - 1, V)
    scored = labels != NO_LABEL
    own = scored & ~taught[:, None]
    loss = logits.sum() * 0.0
    if own.any():
        loss = loss + torch.nn.functional.cross_entropy(logits[own].float(), labels[own])
    shared = scored & taught[:, None]
    if shared.any():
        wanted = _taught(model, teacher, {k: v[taught] if k != "use_cache" else v for k, v in given.items()})
        found_logs, wanted_logs = logits[shared].float().log_softmax(-1), wanted[shared[taught]].float().log_softmax(-1)
        kl = torch.nn.functional.kl_div(found_logs, wanted_logs, reduction="none", log_target=True).sum(-1)
        if settings.two_sided:
            kl = kl + torch.nn.functional.kl_div(wanted_logs, found_logs, reduction="none", log_target=True).sum(-1)
        near = inputs["near"][:, None].expand_as(labels)[shared]
        for part, weight in ((kl[~near], settings.teacher_weight), (kl[near], settings.near_weight)):
            if len(part):
                loss = loss + weight * part.mean()
    return loss


def _taught(model: Any, teacher: Any, given: dict[str, Any]) -> Any:
    """Logits of the frozen model, shape (rows, T - 1, V)."""
    import torch

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(nullcontext() if teacher is not None else model.disable_adapter())
        return (model if teacher is None else teacher)(**given).logits[:, :-1]
