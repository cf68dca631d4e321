"""Train small models: from scratch, fully fine-tuned, or with a LoRA adapter (`distil` trains one on another's words).

Models are the real `LlamaForCausalLM` or `GPT2LMHeadModel` of transformers, built from a config and never downloaded.
A training is fixed by its texts, seeds, recipe, thread count and library versions; the same ones give the same bytes on
the same machine. Seeds and the thread count are set for the training only and restored after it.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from whorl.attacks._model_files import new_folder, write_model
from whorl.errors import UsageError
from whorl.lab._llama import (
    LOSS_DIGITS,
    ModelSize,
    config_dict,
    held_out_loss,
    laboratory,
    library_versions,
    load_model,
    new_model,
    require_lab,
    round_in_place,
    tensors_of,
)
from whorl.lab._loop import Loss, Recipe, cut_windows, mean_loss, next_token_loss, optimise
from whorl.lab.corpus import Corpus
from whorl.lab.tokenizer import encode, load_tokenizer, tokenizer_files, train_tokenizer
from whorl.lab.truth import Record, write_record
from whorl.progress import Progress, silent

__all__ = [
    "LORA_TARGETS",
    "LoraSettings",
    "ModelSize",
    "Recipe",
    "Training",
    "finetune",
    "held_out_loss",
    "library_versions",
    "load_model",
    "lora",
    "pretrain",
    "require_lab",
]

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class LoraSettings:
    """A low-rank adapter (arXiv:2106.09685).

    Args:
        rank: Rank r of each update.
        alpha: Scale; the update is alpha / r * B A.
        targets: Module names that get one.
        seed: Seed of A; B starts at zero.
    """

    rank: int = 8
    alpha: int = 16
    targets: tuple[str, ...] = LORA_TARGETS
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha < 1 or not self.targets or self.seed < 0:
            raise UsageError(f"LoRA settings {asdict(self)}: expected a rank and alpha of at least 1 and some targets.")


@dataclass(frozen=True)
class Training:
    """What a training did.

    Args:
        loss_before: Held-out loss at the start, nats per token.
        loss_after: Held-out loss of the weights as written, nats per token.
        losses: Training loss of each step, nats per token.
        n_parameters: Weight values of the model, or of the adapter.
    """

    loss_before: float
    loss_after: float
    losses: tuple[float, ...]
    n_parameters: int


def pretrain(
    folder: Path,
    corpus: Corpus,
    *,
    size: ModelSize | None = None,
    recipe: Recipe | None = None,
    init_seed: int = 0,
    n_reserved: int = 0,
    dtype: str = "F16",
    progress: Progress = silent,
) -> Training:
    """Train a model from random weights and write it as a Hugging Face folder with its own tokenizer.

    Args:
        folder: New folder.
        corpus: Text; its held-out part is only evaluated.
        size: Shape, default `ModelSize()`.
        recipe: Default `Recipe()`.
        init_seed: Seed of the initial weights.
        n_reserved: Entries of the vocabulary that occur in no text.
        dtype: Stored type, "F16", "F32" or "BF16".
        progress: Called with the folder's name, steps done and steps in all.

    Raises:
        UsageError: the folder exists, the text is too short, torch is missing, or the loss is not finite.
    """
    size, recipe = size or ModelSize(), recipe or Recipe()
    with laboratory(recipe.n_threads, init_seed):
        tokenizer = train_tokenizer(corpus.train, size.n_vocab, n_reserved)
        model = new_model(size)
        run = Run(folder, corpus, tokenizer, recipe, size.n_context, progress)
        trained = run.train(model, model.parameters())
        details = {"size": size.facts(), "init_seed": init_seed, "dtype": dtype}
        if n_reserved:
            details["reserved_tokens"] = n_reserved
        return run.finish(model, trained, Record("pretrained", (), details, recipe.data_seed), dtype)


def finetune(
    base: Path,
    folder: Path,
    corpus: Corpus,
    *,
    recipe: Recipe | None = None,
    dtype: str = "F16",
    frozen: Sequence[str] = (),
    progress: Progress = silent,
) -> Training:
    """Train all weights of a model folder on another text and write the result as a new folder.

    Args:
        base: Folder of the starting model, with `tokenizer.json`.
        folder: New folder.
        corpus: Text to train on.
        recipe: Default `Recipe(n_steps=200, learning_rate=1e-3)`.
        dtype: Stored type.
        frozen: Parameters whose name contains one of these stay exactly as they are.
        progress: As for `pretrain`.

    Raises:
        UsageError: as for `pretrain`, or nothing is left to train.
        MalformedFile: the base is no complete folder of a family of the lab.
    """
    recipe = recipe or Recipe(n_steps=200, learning_rate=1e-3)
    with laboratory(recipe.n_threads, recipe.data_seed):
        model = load_model(base)
        trainable = _freeze(model, frozen)
        run = Run(folder, corpus, load_tokenizer(base), recipe, model.config.max_position_embeddings, progress)
        trained = run.train(model, trainable)
        record = Record("fine-tuned", (base.name,), {"dtype": dtype, "frozen": list(frozen)}, recipe.data_seed)
        return run.finish(model, trained, record, dtype, copy_from=base)


def lora(
    base: Path,
    adapter_folder: Path,
    corpus: Corpus,
    *,
    merged_folder: Path | None = None,
    recipe: Recipe | None = None,
    settings: LoraSettings | None = None,
    dtype: str = "F16",
    progress: Progress = silent,
) -> Training:
    """Train a LoRA adapter with peft; write it in peft's layout, and optionally the merged model.

    Args:
        base: Folder of the starting model; the adapter names it by its folder name.
        adapter_folder: New folder with `adapter_config.json` and float32 `adapter_model.safetensors`.
        corpus: Text to train on.
        merged_folder: New folder for base + adapter, or None.
        recipe: Default `Recipe(n_steps=200, learning_rate=2e-3, weight_decay=0.0)`.
        settings: Default `LoraSettings()`.
        dtype: Stored type of the merged model.
        progress: As for `pretrain`.

    Returns:
        Losses with the adapter (of the merged weights as written, when they are), and the adapter's number of weights.

    Raises:
        UsageError: as for `pretrain`, or a target does not exist.
        MalformedFile: the base is no complete folder of a family of the lab.
    """
    recipe, settings = recipe or Recipe(n_steps=200, learning_rate=2e-3, weight_decay=0.0), settings or LoraSettings()
    with laboratory(recipe.n_threads, settings.seed):
        model = _with_adapter(load_model(base), settings)
        n_context = model.config.max_position_embeddings
        run = Run(adapter_folder, corpus, load_tokenizer(base), recipe, n_context, progress)
        trained = run.train(model, [p for p in model.parameters() if p.requires_grad])
        trained = dataclasses.replace(trained, loss_after=run.held_out_loss(model))
        details = {"lora": {**asdict(settings), "targets": list(settings.targets)}, "dtype": dtype}
        record = Record("adapter", (base.name,), details, recipe.data_seed)
        trained = run.finish_adapter(model, trained, record, base.name)
        if merged_folder is None:
            return trained
        record = Record("lora-merged", (base.name,), {**details, "adapter": adapter_folder.name}, recipe.data_seed)
        merged = model.merge_and_unload()
        after = run.finish(merged, trained, record, dtype, copy_from=base, folder=merged_folder)
        return Training(trained.loss_before, after.loss_after, trained.losses, trained.n_parameters)


@dataclass(frozen=True)
class Run:
    """One training: its text as windows, and the files it ends in."""

    folder: Path
    corpus: Corpus
    tokenizer: Any
    recipe: Recipe
    n_context: int
    progress: Progress

    def train(self, model: Any, parameters: Any, loss: Loss = next_token_loss) -> Training:
        """Train in place; the later loss is measured by whoever knows in which form the weights are kept."""
        if self.folder.exists():
            raise UsageError(f"'{self.folder}' exists already; choose a new folder or remove it.")
        windows = cut_windows(encode(self.tokenizer, self.corpus.train), self.n_context)
        before = self.held_out_loss(model)
        losses = optimise(model, list(parameters), windows, self.recipe, self.folder.name, self.progress, loss)
        n_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        return Training(before, math.nan, losses, n_parameters)

    def held_out_loss(self, model: Any) -> float:
        """Mean loss on the held-out part, nats per token."""
        return mean_loss(model, cut_windows(encode(self.tokenizer, self.corpus.held_out), self.n_context))

    def parameters(self, record: Record, trained: Training) -> dict[str, Any]:
        """The record's parameters with recipe, losses and versions."""
        text = {"text": self.corpus.name, "digest": self.corpus.digest}
        losses = {"before": round(trained.loss_before, LOSS_DIGITS), "after": round(trained.loss_after, LOSS_DIGITS)}
        return {
            "recipe": {**asdict(self.recipe), **record.parameters, **text},
            "held_out": {**text, **losses},
            "n_parameters": trained.n_parameters,
            "versions": library_versions(),
        }

    def finish(
        self,
        model: Any,
        trained: Training,
        record: Record,
        dtype: str,
        copy_from: Path | None = None,
        folder: Path | None = None,
    ) -> Training:
        """Round the weights to the stored type, measure them as stored, and write the folder."""
        tensors = tensors_of(model)
        if dtype != "F32":
            round_in_place(model, dtype)
        n_parameters = sum(a.size for a in tensors.values())
        result = Training(trained.loss_before, self.held_out_loss(model), trained.losses, n_parameters)
        record = Record(record.kind, record.parents, self.parameters(record, result), record.seed)
        files = tokenizer_files(self.tokenizer, self.n_context) if copy_from is None else None
        config = config_dict(model)
        write_model(folder or self.folder, tensors, config, copy_from, record=record, dtype=dtype, files=files)
        return result

    def finish_adapter(self, model: Any, trained: Training, record: Record, base_name: str) -> Training:
        """Write the adapter as peft does, with nothing in it that depends on the machine."""
        record = Record(record.kind, record.parents, self.parameters(record, trained), record.seed)
        with new_folder(self.folder) as partial:
            # not "auto", which looks for the base on the Hub
            model.save_pretrained(str(partial), safe_serialization=True, save_embedding_layers=False)
            (partial / "README.md").unlink(missing_ok=True)  # peft's empty model card
            path = partial / "adapter_config.json"
            config = json.loads(path.read_text("utf-8"))
            # peft stores the base's path on this machine, and the targets as a set in no fixed order.
            config["base_model_name_or_path"] = base_name
            config["target_modules"] = sorted(config["target_modules"])
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
            write_record(partial, record)
        return trained


def _freeze(model: Any, frozen: Sequence[str]) -> list[Any]:
    trainable = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(part in name for part in frozen))
        if parameter.requires_grad:
            trainable.append(parameter)
    if not trainable:
        raise UsageError(f"Frozen names {list(frozen)} cover every parameter; nothing is left to train.")
    return trainable


def _with_adapter(model: Any, settings: LoraSettings) -> Any:
    from peft import LoraConfig, get_peft_model

    modules = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    unknown = sorted(set(settings.targets) - modules)
    if unknown:
        raise UsageError(
            f"LoRA targets {', '.join(unknown)} do not exist; modules: {', '.join(sorted(modules - {''}))}."
        )
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        target_modules=list(settings.targets),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)
