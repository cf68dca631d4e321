"""Train small Llama models: from scratch, fully fine-tuned, or with a LoRA adapter.

Models are the real `LlamaForCausalLM` of transformers, built from a config and never downloaded. A training is fixed by
its texts, seeds, recipe, thread count and library versions; the same ones give the same bytes on the same machine.
Seeds, thread count and gradient state are set for the training only and restored after it.
"""

import contextlib
import json
import math
import platform
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whorl.attacks._model_files import Tensors, new_folder, read_model, write_model
from whorl.errors import MalformedFile, UsageError, safe_name
from whorl.lab.corpus import Corpus
from whorl.lab.tokenizer import END_ID, encode, load_tokenizer, tokenizer_files, train_tokenizer
from whorl.lab.truth import Record, write_record
from whorl.progress import Progress, silent

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
EVALUATION_BATCH = 32
LOSS_DIGITS = 4  # stored losses; further digits differ between machines


@dataclass(frozen=True)
class ModelSize:
    """Shape of a Llama model; the defaults have 279,616 weights.

    Args:
        d_model: Residual width.
        n_layers: Decoder layers.
        n_heads: Query heads.
        n_kv_heads: Key/value heads, a divisor of n_heads.
        d_head: Width of a head, even (rotary pairs).
        d_mlp: MLP width.
        n_vocab: Vocabulary entries, at least 257.
        n_context: Tokens per window.
        tied: Whether the output table is the embedding.
    """

    d_model: int = 64
    n_layers: int = 8
    n_heads: int = 4
    n_kv_heads: int = 2
    d_head: int = 16
    d_mlp: int = 96
    n_vocab: int = 512
    n_context: int = 128
    tied: bool = True

    def __post_init__(self) -> None:
        numbers = [v for k, v in asdict(self).items() if k != "tied"]
        if min(numbers) < 1 or self.n_heads % self.n_kv_heads or self.d_head % 2 or self.n_vocab < 257:
            raise UsageError(
                f"Model size {asdict(self)}: expected positive numbers, n_kv_heads dividing n_heads, "
                "an even d_head and n_vocab of at least 257."
            )


@dataclass(frozen=True)
class Recipe:
    """How to train: AdamW (arXiv:1711.05101) with a linear warm-up and a cosine decay to a tenth.

    Args:
        n_steps: Optimiser steps.
        batch_size: Windows per step.
        learning_rate: Peak rate.
        warmup_share: Share of the steps with a rising rate, in [0, 1).
        weight_decay: Decoupled decay of matrices; gains have none.
        clip_norm: Largest gradient norm.
        data_seed: Seed of the order of windows.
        n_threads: Threads of torch; sums depend on it in the last digits.
    """

    n_steps: int = 400
    batch_size: int = 16
    learning_rate: float = 4e-3
    warmup_share: float = 0.1
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    data_seed: int = 0
    n_threads: int = 2

    def __post_init__(self) -> None:
        if min(self.n_steps, self.batch_size, self.n_threads) < 1 or self.data_seed < 0:
            raise UsageError(f"Recipe {asdict(self)}: expected at least one step, one window and one thread.")
        if not (0 < self.learning_rate < math.inf and 0 <= self.warmup_share < 1 and self.weight_decay >= 0):
            raise UsageError(f"Recipe {asdict(self)}: expected a positive rate and a warm-up share in [0, 1).")


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
        dtype: Stored type, "F16", "F32" or "BF16".
        progress: Called with the folder's name, steps done and steps in all.

    Raises:
        UsageError: the folder exists, the text is too short, torch is missing, or the loss is not finite.
    """
    size, recipe = size or ModelSize(), recipe or Recipe()
    with _laboratory(recipe.n_threads, init_seed):
        tokenizer = train_tokenizer(corpus.train, size.n_vocab)
        model = _new_model(llama_config(size))
        run = _Run(folder, corpus, tokenizer, recipe, size.n_context, progress)
        trained = run.train(model, model.parameters())
        details = {"size": asdict(size), "init_seed": init_seed, "dtype": dtype}
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
    """Train all weights of a Llama folder on another text and write the result as a new folder.

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
        MalformedFile: the base is no complete Llama folder.
    """
    recipe = recipe or Recipe(n_steps=200, learning_rate=1e-3)
    with _laboratory(recipe.n_threads, recipe.data_seed):
        model = load_llama(base)
        trainable = _freeze(model, frozen)
        run = _Run(folder, corpus, load_tokenizer(base), recipe, model.config.max_position_embeddings, progress)
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
        MalformedFile: the base is no complete Llama folder.
    """
    recipe, settings = recipe or Recipe(n_steps=200, learning_rate=2e-3, weight_decay=0.0), settings or LoraSettings()
    with _laboratory(recipe.n_threads, settings.seed):
        model = _with_adapter(load_llama(base), settings)
        n_context = model.config.max_position_embeddings
        run = _Run(adapter_folder, corpus, load_tokenizer(base), recipe, n_context, progress)
        trained = run.train(model, [p for p in model.parameters() if p.requires_grad])
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
class _Run:
    """One training: its text as windows, and the files it ends in."""

    folder: Path
    corpus: Corpus
    tokenizer: Any
    recipe: Recipe
    n_context: int
    progress: Progress

    def train(self, model: Any, parameters: Any) -> Training:
        """Train in place; the later loss is that of the float32 weights."""
        if self.folder.exists():
            raise UsageError(f"'{self.folder}' exists already; choose a new folder or remove it.")
        windows = cut_windows(encode(self.tokenizer, self.corpus.train), self.n_context)
        held_out = cut_windows(encode(self.tokenizer, self.corpus.held_out), self.n_context)
        before = mean_loss(model, held_out)
        losses = _optimise(model, list(parameters), windows, self.recipe, self.folder.name, self.progress)
        n_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        return Training(before, mean_loss(model, held_out), losses, n_parameters)

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
        tensors = _tensors(model)
        if dtype != "F32":
            _round_in_place(model, dtype)
        held_out = cut_windows(encode(self.tokenizer, self.corpus.held_out), self.n_context)
        n_parameters = sum(a.size for a in tensors.values())
        result = Training(trained.loss_before, mean_loss(model, held_out), trained.losses, n_parameters)
        record = Record(record.kind, record.parents, self.parameters(record, result), record.seed)
        files = tokenizer_files(self.tokenizer, self.n_context) if copy_from is None else None
        config = _config_dict(model)
        write_model(folder or self.folder, tensors, config, copy_from, record=record, dtype=dtype, files=files)
        return result

    def finish_adapter(self, model: Any, trained: Training, record: Record, base_name: str) -> Training:
        """Write the adapter as peft does, with nothing in it that depends on the machine."""
        record = Record(record.kind, record.parents, self.parameters(record, trained), record.seed)
        with new_folder(self.folder) as partial:
            model.save_pretrained(str(partial), safe_serialization=True)
            (partial / "README.md").unlink(missing_ok=True)  # peft's empty model card
            path = partial / "adapter_config.json"
            config = json.loads(path.read_text("utf-8"))
            # peft stores the base's path on this machine, and the targets as a set in no fixed order.
            config["base_model_name_or_path"] = base_name
            config["target_modules"] = sorted(config["target_modules"])
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
            write_record(partial, record)
        return trained


def require_lab() -> None:
    """Check that the extra `lab` is installed.

    Raises:
        UsageError: torch, transformers or peft is missing.
    """
    from importlib.util import find_spec

    missing = [name for name in ("torch", "transformers", "peft", "tokenizers") if find_spec(name) is None]
    if missing:
        raise UsageError(f'Training needs {", ".join(missing)}: pip install "whorl[lab]".')


def library_versions() -> dict[str, str]:
    """Versions that a trained byte depends on."""
    names = ("numpy", "peft", "tokenizers", "torch", "transformers")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


@contextlib.contextmanager
def _laboratory(n_threads: int, seed: int) -> Iterator[None]:
    """Threads and every global random state set for a training, and put back after it."""
    require_lab()
    import torch

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - saved, not used
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(n_threads)
        random.seed(seed)
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            # peft asks transformers for a property under its old name
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
        torch.set_num_threads(threads)


def llama_config(size: ModelSize) -> Any:
    """The `transformers.LlamaConfig` of a size."""
    from transformers import LlamaConfig

    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=size.n_vocab,
        hidden_size=size.d_model,
        intermediate_size=size.d_mlp,
        num_hidden_layers=size.n_layers,
        num_attention_heads=size.n_heads,
        num_key_value_heads=size.n_kv_heads,
        head_dim=size.d_head,
        max_position_embeddings=size.n_context,
        tie_word_embeddings=size.tied,
        bos_token_id=END_ID,
        eos_token_id=END_ID,
    )


def _new_model(config: Any) -> Any:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM(config)


def load_llama(folder: Path) -> Any:
    """A Llama folder as a float32 `LlamaForCausalLM`, without touching random state.

    Raises:
        InputRefused: the folder cannot be read, is not a Llama, or its tensors do not fit its config.
    """
    return _llama_of(*read_model(folder), name=folder.name)


def held_out_loss(tensors: Tensors, config: Mapping[str, Any], tokenizer_folder: Path, corpus: Corpus) -> float:
    """Mean loss of a Llama on a text's held-out part, nats per token, rounded to 4 digits.

    Raises:
        MalformedFile: not a Llama, or tensors that do not fit the config.
    """
    require_lab()
    with _laboratory(n_threads=1, seed=0):
        model = _llama_of(tensors, config, name="model")
        tokens = encode(load_tokenizer(tokenizer_folder), corpus.held_out)
        return round(mean_loss(model, cut_windows(tokens, model.config.max_position_embeddings)), LOSS_DIGITS)


def _llama_of(tensors: Tensors, config: Mapping[str, Any], name: str) -> Any:
    require_lab()
    import torch
    from transformers import LlamaConfig

    if config.get("model_type") != "llama":
        found = f"model type '{safe_name(config.get('model_type'), 40)}'"
        raise MalformedFile("config", name, found, "'llama'", "The lab trains Llama models only.")
    with torch.random.fork_rng(devices=[]):
        model = _new_model(LlamaConfig.from_dict(dict(config)))
    given = {key: array.shape for key, array in tensors.items()}
    if model.config.tie_word_embeddings:
        given.pop("lm_head.weight", None)
    own = {key: tuple(parameter.shape) for key, parameter in model.named_parameters()}
    if own != given:
        key, shape = min(set(own.items()) ^ set(given.items()))
        found = f"tensor '{safe_name(key)}' {shape} in the config or in the weights only"
        raise MalformedFile("model", name, found, "the tensors of its config", "Fetch the model again.")
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(tensors[key].astype(np.float32)))
    return model


def _config_dict(model: Any) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=True))
    value.pop("_name_or_path", None)
    return {key: item for key, item in value.items() if item is not None}


def _tensors(model: Any) -> dict[str, NDArray[np.float32]]:
    return {name: p.detach().numpy().copy() for name, p in model.named_parameters()}


def _round_in_place(model: Any, dtype: str) -> None:
    import torch

    kind = {"F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(kind).to(torch.float32))


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


def cut_windows(tokens: NDArray[np.int64], n_context: int) -> NDArray[np.int64]:
    """Neighbouring windows, shape (n, n_context); a shorter rest is left out.

    Raises:
        UsageError: not even one window.
    """
    n_windows = tokens.size // n_context
    if n_windows == 0:
        raise UsageError(f"The text has {tokens.size} tokens in one part; at least {n_context} are needed.")
    return tokens[: n_windows * n_context].reshape(n_windows, n_context)


def window_order(n_windows: int, n_needed: int, seed: int) -> NDArray[np.int64]:
    """Which window comes when, shape (n_needed,): one random order of all windows after the other."""
    rng = np.random.default_rng(seed)
    n_rounds = -(-n_needed // n_windows)
    return np.concatenate([rng.permutation(n_windows) for _ in range(n_rounds)])[:n_needed]


def learning_rate(step: int, recipe: Recipe) -> float:
    """Rate of a step from 0: linear up to the peak, then a cosine down to a tenth of it."""
    n_warmup = round(recipe.warmup_share * recipe.n_steps)
    if step < n_warmup:
        return recipe.learning_rate * (step + 1) / n_warmup
    share = (step - n_warmup) / max(1, recipe.n_steps - n_warmup)
    return recipe.learning_rate * (0.55 + 0.45 * math.cos(math.pi * share))


def mean_loss(model: Any, windows: NDArray[np.int64]) -> float:
    """Mean next-token loss over windows, nats per token."""
    import torch

    model.eval()
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(windows), EVALUATION_BATCH):
            batch = windows[start : start + EVALUATION_BATCH]
            total += _loss(model, batch).item() * len(batch)
    return total / len(windows)


def _loss(model: Any, batch: NDArray[np.int64]) -> Any:
    import torch

    ids = torch.from_numpy(np.ascontiguousarray(batch))
    logits = model(input_ids=ids, use_cache=False).logits  # (B, T, V)
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def _optimise(
    model: Any, parameters: list[Any], windows: NDArray[np.int64], recipe: Recipe, name: str, progress: Progress
) -> tuple[float, ...]:
    import torch

    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW([g for g in groups if g["params"]], lr=recipe.learning_rate, betas=(0.9, 0.95))
    order = window_order(len(windows), recipe.n_steps * recipe.batch_size, recipe.data_seed)
    batches = order.reshape(recipe.n_steps, recipe.batch_size)
    losses = []
    model.train()
    for step, rows in enumerate(batches):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, recipe)
        loss = _loss(model, windows[rows])
        losses.append(_finite(loss.item(), step, recipe))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
        optimiser.step()
        progress(name, step + 1, recipe.n_steps)
    return tuple(losses)


def _finite(loss: float, step: int, recipe: Recipe) -> float:
    if not math.isfinite(loss):
        raise UsageError(
            f"Training stopped at step {step + 1} of {recipe.n_steps}: the loss is {loss}. "
            f"Use a learning rate below {recipe.learning_rate} or a longer warm-up."
        )
    return loss
