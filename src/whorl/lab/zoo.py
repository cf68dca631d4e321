"""The example family: small models whose lineage is known, built on any machine from texts that come with Python.

Four independent seeds of one config and two other sizes are the roots; every other member is made from them by one
step (`fine-tuned`, `quantised`, `merged`, ...). A member's folder appears whole or not at all, so an interrupted build
goes on where it stopped.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from whorl._atomic import write_text
from whorl.attacks._model_files import Array, cast, new_folder, read_model, write_model
from whorl.attacks.layers import drop_layers
from whorl.attacks.merge import merge_linear
from whorl.attacks.prune import prune_magnitude
from whorl.attacks.quantise import quantise
from whorl.errors import UsageError
from whorl.lab import training
from whorl.lab.corpus import load_corpus
from whorl.lab.training import LoraSettings, ModelSize, Recipe
from whorl.lab.truth import TRUTH_NAME, HeldOut, Member, Record, Truth, read_record, truth_to_json, write_record
from whorl.progress import Progress, silent

BASE = ModelSize()
SMALL = ModelSize(d_model=48, n_layers=6, n_heads=3, n_kv_heads=1, d_mlp=96)
LARGE = ModelSize(d_model=96, n_layers=6, n_heads=6, n_kv_heads=3, d_mlp=160)
PRETRAINING = Recipe(n_steps=400, batch_size=16, learning_rate=4e-3)
TUNING = Recipe(n_steps=150, batch_size=16, learning_rate=1e-3)
ADAPTING = Recipe(n_steps=150, batch_size=16, learning_rate=2e-3, weight_decay=0.0)
_NUMPY_TYPES = {"F16": "float16", "F32": "float32"}
# Data orders are seeded apart from weights, so that two roots share neither.
DATA_SEED_OFFSET = 1000


@dataclass(frozen=True)
class Plan:
    """One member to make.

    Args:
        name: Its folder.
        kind: As in its record; chooses the step.
        parents: Members it is made from.
        settings: What the step needs, JSON values.
        with_member: Another member that the same step makes (an adapter and its merged copy).
    """

    name: str
    kind: str
    parents: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    with_member: str | None = None


def _root(name: str, size: ModelSize, seed: int) -> Plan:
    recipe = dataclasses.replace(PRETRAINING, data_seed=DATA_SEED_OFFSET + seed)
    return Plan(
        name, "pretrained", (), {"text": "docstrings", "size": size.facts(), "init_seed": seed, **asdict(recipe)}
    )


def _tuned(name: str, parent: str, text: str, data_seed: int) -> Plan:
    recipe = dataclasses.replace(TUNING, data_seed=data_seed)
    return Plan(name, "fine-tuned", (parent,), {"text": text, **asdict(recipe)})


def _adapted(kind: str, name: str, other: str, data_seed: int) -> Plan:
    recipe = dataclasses.replace(ADAPTING, data_seed=data_seed)
    lora = {**asdict(LoraSettings(seed=data_seed)), "targets": list(training.LORA_TARGETS)}
    return Plan(name, kind, ("base-1",), {"text": "topics", "lora": lora, **asdict(recipe)}, other)


PLANS: tuple[Plan, ...] = (
    *(_root(f"base-{seed}", BASE, seed) for seed in range(4)),
    _root("small-0", SMALL, 10),
    _root("large-0", LARGE, 11),
    _tuned("base-0-topics", "base-0", "topics", 20),
    _tuned("base-0-code", "base-0", "code", 21),
    _tuned("base-1-code", "base-1", "code", 22),
    _tuned("base-0-topics-code", "base-0-topics", "code", 23),
    _adapted("adapter", "base-1-adapter", "base-1-lora", 24),
    _adapted("lora-merged", "base-1-lora", "base-1-adapter", 24),
    Plan("base-0-int8", "quantised", ("base-0",), {"bits": 8, "group": None, "symmetric": True}),
    Plan("base-1-int4", "quantised", ("base-1",), {"bits": 4, "group": 32, "symmetric": True}),
    Plan("base-0-pruned", "pruned", ("base-0",), {"share": 0.5}),
    Plan("base-2-dropped", "layers-dropped", ("base-2",), {"dropped": [5]}),
    Plan("base-0-merged", "merged", ("base-0-topics", "base-0-code"), {"coefficients": [0.5, 0.5]}),
    Plan("base-2-shards", "re-laid-out", ("base-2",), {"dtype": "F32", "n_shards": 3}),
    Plan("base-1-gguf", "gguf", ("base-1",), {"quantisation": "Q8_0"}),
    Plan("base-0-disguised", "disguised", ("base-0",), {"seed": 25}),
)


def zoo_folder() -> Path:
    """The family that whorl ships, with its `truth.json`."""
    return Path(str(files("whorl").joinpath("examples", "zoo")))


def build_zoo(
    out: Path,
    *,
    only: Sequence[str] | None = None,
    resume: bool = True,
    plans: Sequence[Plan] = PLANS,
    progress: Progress = silent,
) -> Truth:
    """Build the family into a folder, one member at a time, and write `truth.json`.

    Building again with the same libraries on the same machine gives the same bytes.

    Args:
        out: Folder of the family; made when missing.
        only: Names to build; their missing parents are built too. None is all.
        resume: Keep members that are there and were made by the same plan; otherwise they are made again. Making a
            member removes what was made from an earlier copy of it.
        plans: The members, parents first.
        progress: Called with "members" and their count, and within a training with its name and steps.

    Returns:
        Truth of all members that are there afterwards.

    Raises:
        UsageError: an unknown name, a member made by another plan (with resume), or the extra `lab` is missing.
    """
    training.require_lab()
    out.mkdir(parents=True, exist_ok=True)
    wanted = _with_parents(only, plans)
    made: set[str] = set()
    for count, plan in enumerate(wanted):
        progress("members", count, len(wanted))
        if plan.with_member in made:
            continue  # the step that made the other one made this one too
        if resume and (out / plan.name).exists():
            _check_same_plan(plan, out / plan.name)
            continue
        _discard(out, plan.name, plans)
        _STEPS[plan.kind](out, plan, progress)
        made.add(plan.name)
        write_text(out / TRUTH_NAME, truth_to_json(read_family(out, plans)))
    write_text(out / TRUTH_NAME, truth_to_json(read_family(out, plans)))
    progress("members", len(wanted), len(wanted))
    return read_family(out, plans)


def read_family(out: Path, plans: Sequence[Plan] = PLANS) -> Truth:
    """The truth about the members that are there, from their own records."""
    members: list[Member] = []
    groups: dict[str, str] = {}
    for plan in plans:
        if not (out / plan.name).is_dir() or not all(parent in groups for parent in plan.parents):
            continue
        groups[plan.name] = groups[plan.parents[0]] if plan.parents else plan.name
        members.append(_member(plan.name, groups[plan.name], read_record(out / plan.name)))
    return Truth(tuple(members))


def _member(name: str, group: str, record: Record) -> Member:
    recipe = dict(record.parameters["recipe"])
    held_out = record.parameters["held_out"]
    seeds = {
        "init": recipe.get("init_seed"),
        "data": recipe.get("data_seed"),
        "lora": recipe.get("lora", {}).get("seed"),
    }
    if record.seed is not None and "data_seed" not in recipe:
        seeds["edit"] = record.seed
    return Member(
        name=name,
        kind=record.kind,
        parents=record.parents,
        group=group,
        seeds={key: seed for key, seed in seeds.items() if seed is not None},
        recipe=recipe,
        held_out=HeldOut(**held_out) if held_out else None,
        n_parameters=record.parameters["n_parameters"],
        versions=record.parameters["versions"],
    )


def _with_parents(only: Sequence[str] | None, plans: Sequence[Plan]) -> list[Plan]:
    if only is None:
        return list(plans)
    by_name = {plan.name: plan for plan in plans}
    unknown = sorted(set(only) - set(by_name))
    if unknown:
        raise UsageError(f"Unknown members {', '.join(unknown)}; there are: {', '.join(by_name)}.")
    needed: set[str] = set()
    waiting = list(only)
    while waiting:
        plan = by_name[waiting.pop()]
        if plan.name not in needed:
            needed.add(plan.name)
            waiting.extend([*_sources(plan), *([plan.with_member] if plan.with_member else [])])
    return [plan for plan in plans if plan.name in needed]


def _discard(out: Path, name: str, plans: Sequence[Plan]) -> None:
    """Remove a member and what was made from it: a child of a replaced parent would belie its record."""
    shutil.rmtree(out / name, ignore_errors=True)
    for plan in plans:
        if name in _sources(plan):
            _discard(out, plan.name, plans)


def _sources(plan: Plan) -> tuple[str, ...]:
    """Members that must be there first: parents, and the teacher of a distilled one, which is no parent."""
    return (*plan.parents, plan.settings["teacher"]) if "teacher" in plan.settings else plan.parents


def _check_same_plan(plan: Plan, folder: Path) -> None:
    record = read_record(folder)
    made = {"kind": record.kind, "parents": list(record.parents), **record.parameters["recipe"]}
    asked = {"kind": plan.kind, "parents": list(plan.parents), **plan.settings}
    if isinstance(asked.get("size"), dict):
        asked["size"] = ModelSize(**asked["size"]).facts()
    changed = sorted(key for key in asked if made.get(key) != json.loads(json.dumps(asked[key])))
    if changed:
        raise UsageError(
            f"'{folder.name}' was made with another {', '.join(changed)}; build into a new folder, "
            "or without resume to make it again."
        )


def _pretrain(out: Path, plan: Plan, progress: Progress) -> None:
    training.pretrain(
        out / plan.name,
        load_corpus(plan.settings["text"]),
        size=ModelSize(**plan.settings["size"]),
        recipe=_recipe(plan),
        init_seed=plan.settings["init_seed"],
        progress=progress,
    )


def _distil(out: Path, plan: Plan, progress: Progress) -> None:
    from whorl.lab.distil import distil

    size = plan.settings.get("size")
    distil(
        out / plan.settings["teacher"],
        out / plan.name,
        load_corpus(plan.settings["text"]),
        size=None if size is None else ModelSize(**size),
        recipe=_recipe(plan),
        init_seed=plan.settings["init_seed"],
        temperature=plan.settings.get("temperature", 1.0),
        progress=progress,
    )


def _finetune(out: Path, plan: Plan, progress: Progress) -> None:
    corpus = load_corpus(plan.settings["text"])
    training.finetune(out / plan.parents[0], out / plan.name, corpus, recipe=_recipe(plan), progress=progress)


def _lora(out: Path, plan: Plan, progress: Progress) -> None:
    """Make the adapter and its merged copy, whichever of them the plan names."""
    names = {plan.kind: plan.name, ("lora-merged" if plan.kind == "adapter" else "adapter"): str(plan.with_member)}
    for name in names.values():
        shutil.rmtree(out / name, ignore_errors=True)
    training.lora(
        out / plan.parents[0],
        out / names["adapter"],
        load_corpus(plan.settings["text"]),
        merged_folder=out / names["lora-merged"],
        recipe=_recipe(plan),
        settings=LoraSettings(**{**plan.settings["lora"], "targets": tuple(plan.settings["lora"]["targets"])}),
        progress=progress,
    )


def _recipe(plan: Plan) -> Recipe:
    names = {f.name for f in dataclasses.fields(Recipe)}
    return Recipe(**{key: value for key, value in plan.settings.items() if key in names})


def _quantise(out: Path, plan: Plan, progress: Progress) -> None:
    tensors, config = read_model(out / plan.parents[0])
    _write_edit(out, plan, quantise(tensors, **plan.settings), config, progress)


def _prune(out: Path, plan: Plan, progress: Progress) -> None:
    tensors, config = read_model(out / plan.parents[0])
    _write_edit(out, plan, prune_magnitude(tensors, **plan.settings), config, progress)


def _drop(out: Path, plan: Plan, progress: Progress) -> None:
    tensors, config = read_model(out / plan.parents[0])
    _write_edit(out, plan, *drop_layers(tensors, config, plan.settings["dropped"]), progress)


def _merge(out: Path, plan: Plan, progress: Progress) -> None:
    models = [read_model(out / parent) for parent in plan.parents]
    merged = merge_linear([tensors for tensors, _ in models], plan.settings["coefficients"])
    _write_edit(out, plan, merged, models[0][1], progress)


def _relay(out: Path, plan: Plan, progress: Progress) -> None:
    tensors, config = read_model(out / plan.parents[0])
    _write_edit(out, plan, tensors, config, progress, dtype=plan.settings["dtype"], n_shards=plan.settings["n_shards"])


def _write_edit(
    out: Path,
    plan: Plan,
    tensors: Mapping[str, Array],
    config: Mapping[str, Any],
    progress: Progress,
    dtype: str = "F16",
    n_shards: int = 1,
) -> None:
    parent = out / plan.parents[0]
    stored = {name: cast(name, array, np.dtype(_NUMPY_TYPES[dtype])) for name, array in tensors.items()}
    record = Record(plan.kind, plan.parents, _facts(parent, plan, stored, config), plan.settings.get("seed"))
    write_model(out / plan.name, stored, config, parent, record=record, dtype=dtype, n_shards=n_shards)
    progress(plan.name, 1, 1)


def _facts(
    parent: Path, plan: Plan, tensors: Mapping[str, Array], config: Mapping[str, Any], tokenizer: Path | None = None
) -> dict[str, Any]:
    """The record's parameters of an edit: settings, and the loss on the roots' text before and after."""
    corpus = load_corpus("docstrings")
    before, config_before = read_model(parent)
    losses = {
        "before": training.held_out_loss(before, config_before, parent, corpus),
        "after": training.held_out_loss(tensors, config, tokenizer or parent, corpus),
    }
    return {
        "recipe": dict(plan.settings),
        "held_out": {"text": corpus.name, "digest": corpus.digest, **losses},
        "n_parameters": int(sum(array.size for array in tensors.values())),
        "versions": training.library_versions(),
    }


def _gguf(out: Path, plan: Plan, progress: Progress) -> None:
    from whorl._readers.gguf_write import write_gguf

    parent = out / plan.parents[0]
    tensors, config = read_model(parent)
    with new_folder(out / plan.name) as partial:
        path = partial / f"{plan.name}.gguf"
        write_gguf(path, tensors, config, plan.settings["quantisation"])
        stored, _ = read_model(path)
        write_record(partial, Record(plan.kind, plan.parents, _facts(parent, plan, stored, config)))
    progress(plan.name, 1, 1)


def _disguise(out: Path, plan: Plan, progress: Progress) -> None:
    from whorl.attacks.disguise import write_disguised

    parent, made = out / plan.parents[0], out / f".{plan.name}.made"
    shutil.rmtree(made, ignore_errors=True)  # of a run that was killed
    result = write_disguised(parent, made, plan.settings["seed"], dtype="F16")
    facts = _facts(parent, plan, *read_model(made), tokenizer=made)
    facts["recipe"]["edits"] = list(result.applied)
    write_record(made, Record(plan.kind, plan.parents, facts, plan.settings["seed"]))
    made.rename(out / plan.name)
    progress(plan.name, 1, 1)


_Step = Callable[[Path, Plan, Progress], None]
_STEPS: dict[str, _Step] = {
    "pretrained": _pretrain,
    "distilled": _distil,
    "fine-tuned": _finetune,
    "adapter": _lora,
    "lora-merged": _lora,
    "quantised": _quantise,
    "pruned": _prune,
    "layers-dropped": _drop,
    "merged": _merge,
    "re-laid-out": _relay,
    "gguf": _gguf,
    "disguised": _disguise,
}
