"""A fine-tuned transformer in place of n-grams: the recipe of arXiv 2502.12150 for any pre-trained encoder or decoder.

Notable:
- Optimisation and LoRA values are the paper's (`EncoderSettings`). The head is that of transformers' sequence classification
  (first or last token, by family); the paper's LLM2Vec averages all tokens with two-way attention instead.
- Weights are safetensors only, no remote code, files checked by whorl's own readers.
- Folds are those of `accuracy.cross_validated`; by default one of them is scored, because each costs a whole fine-tuning.
- Tested on tiny models made on the spot; no large encoder was run here, so the published accuracies are not reproduced.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whorl._readers.folder import FolderSource
from whorl.errors import NotComparable, UnsupportedFile, UsageError
from whorl.outputs.accuracy import Scores, folds
from whorl.progress import Progress, silent
from whorl.samplers._opening import checked_device, checked_files, quiet, read_tokenizer
from whorl.transcripts.answers import Answers

SCORED_AT_ONCE = 32


@dataclass(frozen=True)
class EncoderSettings:
    """How an encoder is fine-tuned.

    Args:
        n_epochs: Passes over the training texts.
        batch: Texts a step.
        learning_rate: Peak of a cosine after the warm-up.
        weight_decay: Of AdamW.
        betas: Of AdamW.
        warm_up: Share of the steps.
        clip: Largest norm of the gradient.
        max_tokens: The first so many of a text.
        lora: Train low-rank updates instead of all weights; None = from `lora_from` parameters on.
        lora_from: Parameters (ours; the paper uses LoRA at 8 billion and all weights at 0.1 billion).
        rank: Of LoRA.
        alpha: Of LoRA.
        dropout: Of LoRA.
        n_folds: Folds over prompt groups.
        n_scored: Folds that are scored, each by a fine-tuning of its own; the rest only trains.
        seed: Of folds, head, order and dropout.
    """

    n_epochs: int = 3
    batch: int = 8
    learning_rate: float = 5e-5
    weight_decay: float = 0.001
    betas: tuple[float, float] = (0.9, 0.999)
    warm_up: float = 0.1
    clip: float = 0.3
    max_tokens: int = 512
    lora: bool | None = None
    lora_from: int = 1_000_000_000
    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    n_folds: int = 5
    n_scored: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.n_scored <= self.n_folds:
            raise UsageError(f"{self.n_scored} of {self.n_folds} folds cannot be scored.")


def encoder_scores(
    answers: Answers,
    model_ref: str,
    settings: EncoderSettings | None = None,
    device: str = "auto",
    *,
    offline: bool = False,
    progress: Progress = silent,
) -> Scores:
    """Scores of a fine-tuned encoder for the prompts of the scored folds, in their order in `answers`.

    Args:
        answers: At least two models.
        model_ref: Hub id or folder of any encoder or decoder that transformers can classify sequences with.
        settings: The paper's recipe by default.
        device: "cpu", "cuda" or "auto"; bfloat16 on a GPU, float32 on a CPU.
        offline: Use local files only.
        progress: Called with "folds", folds done and folds to score.

    Raises:
        UsageError: the reference, device or settings are wrong, fewer than two models, or `whorl[lab]` is missing.
        InputRefused: the model's files break a rule, or it is an adapter.
        NotComparable: training diverged.
        NotEnoughEvidence: fewer prompt groups than folds.
        RemoteError: the Hub failed.
    """
    if len(answers.models) < 2:
        raise UsageError("A classifier needs at least two models to tell apart.")
    settings = settings or EncoderSettings()
    fold = folds(answers.groups, settings.n_folds, settings.seed)
    scored = np.flatnonzero(fold < settings.n_scored)
    logs = np.zeros((len(answers.models), len(fold), answers.n_draws, len(answers.models)), np.float32)
    with checked_files(model_ref, offline=offline) as (opened, folder):
        if not isinstance(opened.source, FolderSource):
            advice = "Merge it into its base first."
            raise UnsupportedFile("model", opened.typed, "an adapter", "a whole model to fine-tune", advice)
        device = checked_device(device)
        tokenizer, _ = read_tokenizer(folder)
        texts = _tokens(answers, _padding(tokenizer), settings.max_tokens)
        for i in range(settings.n_scored):
            progress("folds", i, settings.n_scored)
            with quiet(), _own_randomness(settings.seed):
                model = _model(folder.root, tokenizer, len(answers.models), settings)
                _train(model, tokenizer, _some(texts, fold != i), settings, device)
                logs[:, fold == i] = _log_probabilities(
                    model, tokenizer, _some(texts, fold == i), logs[:, fold == i].shape
                )
    progress("folds", settings.n_scored, settings.n_scored)
    groups = tuple(answers.groups[i] for i in scored.tolist())
    return Scores(answers.models, groups, logs[:, scored])


Example = dict[str, Any]
"""`input_ids` and the `labels` number of a text."""


def _padding(tokenizer: Any) -> Any:
    """The tokenizer with a padding token, padding on the right: decoders classify by their last token."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise UsageError("The tokenizer has no token to pad with: no padding, end-of-text or unknown token.")
    tokenizer.padding_side = "right"
    return tokenizer


def _tokens(answers: Answers, tokenizer: Any, max_tokens: int) -> list[list[list[Example]]]:
    """Examples in the order [model][prompt][draw]; an empty text is one padding token."""

    def example(text: str, label: int) -> Example:
        ids = tokenizer(text, truncation=True, max_length=max_tokens)["input_ids"]
        return {"input_ids": ids or [tokenizer.pad_token_id], "labels": label}

    return [[[example(text, k) for text in drawn] for drawn in rows] for k, rows in enumerate(answers.texts)]


def _some(texts: Sequence[Sequence[Sequence[Example]]], prompts: NDArray[np.bool_]) -> list[Example]:
    return [one for rows in texts for drawn, wanted in zip(rows, prompts, strict=True) if wanted for one in drawn]


def _model(root: Path, tokenizer: Any, n_classes: int, settings: EncoderSettings) -> Any:
    """The pre-trained model with a new head, LoRA added where it is wanted."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(
        root,
        num_labels=n_classes,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        dtype="float32",
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    big = model.num_parameters() >= settings.lora_from
    if not (big if settings.lora is None else settings.lora):
        return model
    from peft import LoraConfig, TaskType, get_peft_model

    low_rank = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules="all-linear",
    )
    return get_peft_model(model, low_rank)


def _train(model: Any, tokenizer: Any, examples: list[Example], settings: EncoderSettings, device: str) -> None:
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    with TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            num_train_epochs=settings.n_epochs,
            per_device_train_batch_size=settings.batch,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=settings.warm_up,  # below 1: a share
            weight_decay=settings.weight_decay,
            adam_beta1=settings.betas[0],
            adam_beta2=settings.betas[1],
            max_grad_norm=settings.clip,
            optim="adamw_torch",
            bf16=device.startswith("cuda"),
            use_cpu=device == "cpu",
            dataloader_pin_memory=device != "cpu",
            seed=settings.seed,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        collator = DataCollatorWithPadding(tokenizer)
        found = Trainer(model, arguments, data_collator=collator, train_dataset=examples).train()
    if not np.isfinite(found.training_loss):
        raise NotComparable("The fine-tuning diverged: its loss is not a finite number.")


def _log_probabilities(
    model: Any, tokenizer: Any, examples: list[Example], shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Natural logs, float32, in the given shape; texts of like length share a batch."""
    import torch

    model.eval()
    logs = np.zeros((len(examples), shape[-1]), np.float32)
    order = sorted(range(len(examples)), key=lambda i: len(examples[i]["input_ids"]))
    for start in range(0, len(order), SCORED_AT_ONCE):
        rows = order[start : start + SCORED_AT_ONCE]
        batch = tokenizer.pad([{"input_ids": examples[i]["input_ids"]} for i in rows], return_tensors="pt")
        with torch.inference_mode():
            scores = model(**batch.to(model.device)).logits.float()
        logs[rows] = torch.log_softmax(scores, dim=-1).cpu().numpy()
    if not np.isfinite(logs).all():
        raise NotComparable("The fine-tuning diverged: a score is not a finite number.")
    return logs.reshape(shape)


@contextmanager
def _own_randomness(seed: int) -> Iterator[None]:
    """The trainer seeds the generators of three libraries; their states are put back."""
    import torch

    python, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002 - it is the global one that is kept
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)  # noqa: NPY002
