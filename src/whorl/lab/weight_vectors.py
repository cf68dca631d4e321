"""The study of arXiv 2509.19122 at CPU size: what the two weight vectors show, with the controls C1 to C8.

Every cell is one model folder, made once and kept; the same command goes on where it stopped. C1 is seven independent
trainings of one recipe (other initial weights, other data order), the null for every statement; C2 random weights; C3
permuted layers; C4 rescalings that keep the function; C5 a grid of LoRA trainings and C6 of full fine-tunings, each on two
data sets; C7 other sizes; C8 8- and 4-bit copies and a merge. `whorl.lab.weight_vectors_page` measures and prints.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from whorl._atomic import write_text
from whorl.attacks._model_files import read_model, write_model
from whorl.attacks.layers import arrange_layers
from whorl.attacks.merge import merge_linear
from whorl.attacks.quantise import quantise
from whorl.errors import UsageError
from whorl.lab.truth import Record
from whorl.progress import Progress, silent

SEEDS = range(40, 47)  # none of the example family, so that a calibration from them never judges its own members
BASE = "seed-40"
RANDOM_SEEDS = range(100, 103)
TEXTS = ("topics", "code")
LORA_RANKS = (8, 64)
LORA_RATES = (1e-5, 1e-4, 5e-4, 2e-3)
FULL_RATES = (1e-5, 5e-5, 2e-4, 1e-3)
STEPS = 150
THREADS = 1  # models this small gain little from a second core, and one core is measured more evenly
SETTINGS = "study.json"


@dataclass(frozen=True)
class Cell:
    """One model of the study.

    Args:
        name: Its folder.
        control: "C1" to "C8".
        facts: What distinguishes it inside the control (text, rank, learning rate, ...).
        parent: Cell it was made from, None for trainings from scratch and random weights.
    """

    name: str
    control: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    parent: str | None = None


def cells() -> tuple[Cell, ...]:
    """All cells, parents before children."""
    base = BASE
    found = [Cell(f"seed-{s}", "C1", {"seed": s}) for s in SEEDS]
    found += [Cell(f"random-{s}", "C2", {"seed": s}) for s in RANDOM_SEEDS]
    found += [Cell("layers-permuted", "C3", {}, base)]
    found += [Cell("rescaled-scalars", "C4", {"edits": "A1, A3, M2, N1 as scalars"}, base)]
    found += [Cell("rescaled-maps", "C4", {"edits": "A1, A3, M2, N1 as general maps"}, base)]
    for text in TEXTS:
        for rank in LORA_RANKS:
            for rate in LORA_RATES:
                # Each setting has its own data order and adapter start, so that cells of one text share the text only.
                seed = 1 + LORA_RANKS.index(rank) * len(LORA_RATES) + LORA_RATES.index(rate)
                facts = {"text": text, "rank": rank, "rate": rate, "seed": seed}
                found.append(Cell(f"lora-{text}-r{rank}-{rate:.0e}", "C5", facts, base))
        for seed, rate in enumerate(FULL_RATES, 1):
            found.append(Cell(f"full-{text}-{rate:.0e}", "C6", {"text": text, "rate": rate, "seed": seed}, base))
    found += [Cell("wider", "C7", {"seed": 50, "d_model": 96}), Cell("deeper", "C7", {"seed": 51, "n_layers": 12})]
    found += [Cell(f"int{b}", "C8", {"bits": b}, base) for b in (8, 4)]
    found += [Cell("merged", "C8", {"of": ["full-topics-1e-03", "full-code-1e-03"]}, base)]
    return tuple(found)


def build(out: Path, progress: Progress = silent) -> tuple[Cell, ...]:
    """Make every missing cell below `out`, one training at a time.

    Args:
        out: Folder of the study; made when missing.
        progress: Called with the cell and the number of cells done.

    Raises:
        UsageError: `out` holds a study with other settings, or the extra `lab` is not installed.
    """
    from whorl.lab.training import require_lab

    require_lab()
    _same_settings(out)
    plan = cells()
    for done, cell in enumerate(plan):
        progress(cell.name, done, len(plan))
        if not (out / cell.name).exists():
            _MAKERS[cell.control](out, cell)
    return plan


def _same_settings(out: Path) -> None:
    """A folder belongs to one setting; another one must not be mixed in."""
    mine = {"steps": STEPS, "cells": [[c.name, c.control, dict(c.facts), c.parent] for c in cells()]}
    path = out / SETTINGS
    if not path.exists():
        write_text(path, json.dumps(mine, indent=1) + "\n")
    elif json.loads(path.read_text("utf-8")) != json.loads(json.dumps(mine)):
        raise UsageError(f"'{out}' holds a study with other settings ('{SETTINGS}' differs); choose another folder.")


def _train_from_scratch(out: Path, cell: Cell) -> None:
    from whorl.lab.corpus import load_corpus
    from whorl.lab.training import ModelSize, Recipe, pretrain

    facts = dict(cell.facts)
    seed = facts.pop("seed")
    recipe = Recipe(data_seed=1000 + seed, n_threads=THREADS)
    pretrain(out / cell.name, load_corpus("docstrings"), size=ModelSize(**facts), recipe=recipe, init_seed=seed)


def _random(out: Path, cell: Cell) -> None:
    """The initial weights of a training, in the config and with the tokenizer of the first seed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    _, config = read_model(out / BASE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cell.facts["seed"])
        model = LlamaForCausalLM(LlamaConfig.from_dict(config))
    tensors = {name: p.detach().numpy() for name, p in model.named_parameters()}
    _write(out, cell, tensors, config, "random weights")


def _permute_layers(out: Path, cell: Cell) -> None:
    tensors, config = read_model(out / BASE)
    n = config["num_hidden_layers"]
    order = np.random.default_rng(0).permutation(n).tolist()
    tensors, config = arrange_layers(tensors, config, order)
    _write(out, cell, tensors, config, "layers permuted", order=order)


def _rescale(out: Path, cell: Cell) -> None:
    from whorl.attacks.disguise import write_disguised

    if cell.name == "rescaled-maps":
        write_disguised(out / BASE, out / cell.name, seed=0, edits=("A1", "A3", "M2", "N1"), dtype="F32")
        return
    tensors, config = read_model(out / BASE)
    groups, layers = config["num_key_value_heads"], range(config["num_hidden_layers"])
    rng = np.random.default_rng(0)
    for layer in layers:
        _rescale_layer(tensors, f"model.layers.{layer}.", groups, rng)
    _write(out, cell, tensors, config, "rescaled", edits=cell.facts["edits"])


def _rescale_layer(tensors: dict[str, Any], prefix: str, groups: int, rng: np.random.Generator) -> None:
    """One factor for each KV group of q and k, of v and o, for each neuron of up and down, each channel of a gain."""

    def scale(name: str, factors: Any, axis: int) -> None:
        w = tensors[prefix + name].astype(np.float64)
        shaped = np.repeat(factors, w.shape[axis] // len(factors))
        tensors[prefix + name] = w * (shaped[:, None] if w.ndim == 2 and axis == 0 else shaped)

    a, b = np.exp(rng.normal(0, 0.7, (2, groups)))
    c = np.exp(rng.normal(0, 0.7, tensors[prefix + "mlp.up_proj.weight"].shape[0]))
    for name, factors, axis in (("q", a, 0), ("k", 1 / a, 0), ("v", b, 0), ("o", 1 / b, 1)):
        scale(f"self_attn.{name}_proj.weight", factors, axis)
    scale("mlp.up_proj.weight", c, 0)
    scale("mlp.down_proj.weight", 1 / c, 1)
    attention, mlp = ("self_attn.q", "self_attn.k", "self_attn.v"), ("mlp.gate", "mlp.up")
    for gain, readers in (("input_layernorm", attention), ("post_attention_layernorm", mlp)):
        e = np.exp(rng.normal(0, 0.5, len(tensors[f"{prefix}{gain}.weight"])))
        scale(f"{gain}.weight", e, 0)
        for reader in readers:
            scale(f"{reader}_proj.weight", 1 / e, 1)


def _lora(out: Path, cell: Cell) -> None:
    from whorl.lab.corpus import load_corpus
    from whorl.lab.training import LoraSettings, Recipe, lora

    facts = cell.facts
    recipe = Recipe(
        n_steps=STEPS, learning_rate=facts["rate"], weight_decay=0.0, data_seed=facts["seed"], n_threads=THREADS
    )
    settings = LoraSettings(rank=facts["rank"], alpha=2 * facts["rank"], seed=facts["seed"])
    adapter = out / "adapters" / cell.name
    if adapter.exists():  # an earlier run stopped between the adapter and the merged model
        import shutil

        shutil.rmtree(adapter)
    corpus = load_corpus(facts["text"])
    lora(out / BASE, adapter, corpus, merged_folder=out / cell.name, recipe=recipe, settings=settings, dtype="F32")


def _full(out: Path, cell: Cell) -> None:
    from whorl.lab.corpus import load_corpus
    from whorl.lab.training import Recipe, finetune

    recipe = Recipe(n_steps=STEPS, learning_rate=cell.facts["rate"], data_seed=cell.facts["seed"], n_threads=THREADS)
    finetune(out / BASE, out / cell.name, load_corpus(cell.facts["text"]), recipe=recipe, dtype="F32")


def _copies(out: Path, cell: Cell) -> None:
    if "of" in cell.facts:
        parents = [read_model(out / name)[0] for name in cell.facts["of"]]
        _write(out, cell, merge_linear(parents), read_model(out / BASE)[1], "merged", of=cell.facts["of"])
        return
    tensors, config = read_model(out / BASE)
    changed = quantise(tensors, bits=cell.facts["bits"], group=32)
    _write(out, cell, changed, config, "quantised", bits=cell.facts["bits"])


def _write(out: Path, cell: Cell, tensors: Any, config: Any, kind: str, **parameters: Any) -> None:
    parents = () if cell.parent is None else (cell.parent,)
    record = Record(kind, parents, parameters, cell.facts.get("seed"))
    write_model(out / cell.name, tensors, config, out / BASE, record=record, dtype="F32")


_MAKERS: dict[str, Callable[[Path, Cell], None]] = {
    "C1": _train_from_scratch,
    "C2": _random,
    "C3": _permute_layers,
    "C4": _rescale,
    "C5": _lora,
    "C6": _full,
    "C7": _train_from_scratch,
    "C8": _copies,
}


def held_out_losses(out: Path, cell: Cell) -> tuple[float, float] | None:
    """Held-out loss before and after the cell's training in nats per token; None where nothing was trained."""
    record = json.loads((out / cell.name / "whorl_truth.json").read_text("utf-8"))
    losses = record["parameters"].get("held_out")
    return None if losses is None else (losses["before"], losses["after"])


def update_size(out: Path, cell: Cell, rank: int) -> tuple[float, float] | None:
    """||dW||_F / ||W||_F over all layer matrices, and the largest ||dW||_2 / sigma_rank(W) of one of them.

    None where a difference of weights means nothing (no parent, or another layout of the same function).
    """
    if cell.parent is None or cell.control in {"C3", "C4"}:
        return None
    base, now = (read_model(out / name)[0] for name in (cell.parent, cell.name))
    squares = np.zeros(2)
    worst = 0.0
    for w, dw in _differences(base, now):
        squares += float((dw**2).sum()), float((w**2).sum())
        values = np.linalg.svd(w, compute_uv=False)
        worst = max(worst, float(np.linalg.norm(dw, 2) / values[min(rank, len(values)) - 1]))
    return float(np.sqrt(squares[0] / squares[1])), worst


def _differences(base: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    for name in sorted(base):
        if base[name].ndim == 2 and ".layers." in name:
            w = base[name].astype(np.float64)
            yield w, now[name].astype(np.float64) - w
