"""The deterministic derivatives of one lineage, for the bench: what `whorl.attacks` makes of a root and its children.

Nothing is trained and no torch is loaded. Every folder has its record and is kept when it is there already, so an
interrupted set goes on where it stopped.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whorl._readers.folder import open_local
from whorl.attacks import attack
from whorl.attacks._model_files import new_folder, read_model
from whorl.canonical.model import CanonicalModel
from whorl.errors import UsageError
from whorl.lab.truth import Record, read_record, write_record

GGUF = "gguf"
EDIT_KINDS = ("R1", "R2", "R3", "N1", "A1", "A3", "A4", "M1", "M2", "V1", "V2", "L1")
"""The function-preserving edits that a Llama allows, each by itself; V2 comes with V1, and L1 is an inserted layer."""
_DISGUISE_NAMES = {"rename_tokens": "tokens_renamed"}  # option -> its name in the record


@dataclass(frozen=True)
class Edit:
    """One derivative.

    Args:
        key: What the bench calls it.
        kind: Of the attack.
        of: Keys of the models it is made from: "root", "tuned", "other", "long", "lora" or an earlier edit.
        options: Of the kind.
    """

    key: str
    kind: str
    of: tuple[str, ...] = ("root",)
    options: Mapping[str, Any] = field(default_factory=dict)


def edits_for(n_layers: int) -> tuple[Edit, ...]:
    """All derivatives of a lineage whose root has so many layers, at least 4."""
    middle = n_layers // 2
    int4 = {"bits": 4, "group": 32}
    return (
        Edit("disguised", "disguise"),
        Edit("disguised-renamed", "disguise", options={"rename_tokens": True}),
        Edit("pruned-60", "prune", options={"share": 0.6}),
        Edit("pruned-2-4", "prune", options={"pattern": "2:4"}),
        Edit("neurons-pruned", "prune", options={"pattern": "neurons", "share": 0.25}),
        Edit("heads-pruned", "prune", options={"pattern": "heads", "share": 0.5}),
        Edit("width-pruned", "prune", options={"pattern": "width", "share": 0.25}),
        Edit("int8", "quantise", options={"bits": 8}),
        Edit("int4", "quantise", options=int4),
        Edit("bf16", "cast", options={"dtype": "BF16"}),
        Edit("f32", "cast", options={"dtype": "F32"}),
        Edit(GGUF, GGUF),
        Edit("dropped", "drop-layers", options={"layers": [middle]}),
        Edit("duplicated", "duplicate-layers", options={"layers": [middle - 1, middle]}),
        Edit("inserted", "insert-layers", options={"layers": [n_layers // 4, 3 * n_layers // 4]}),
        Edit("merged", "merge", ("tuned", "other")),
        Edit("merged-disguised", "disguise", ("merged",)),
        Edit("tuned-disguised", "disguise", ("tuned",)),
        Edit("tuned-int4", "quantise", ("tuned",), int4),
        Edit("lora-disguised", "disguise", ("lora",)),
        *(
            Edit(f"{child}-{edit.key}", edit.kind, (child,), edit.options)
            for child in ("tuned", "long")
            for edit in _reshaped(middle)
        ),
    )


def _reshaped(middle: int) -> tuple[Edit, ...]:
    """One edit for each way of changing the shape, for children that were trained before."""
    return (
        Edit("dropped", "drop-layers", options={"layers": [middle]}),
        Edit("neurons-pruned", "prune", options={"pattern": "neurons", "share": 0.25}),
        Edit("heads-pruned", "prune", options={"pattern": "heads", "share": 0.5}),
        Edit("width-pruned", "prune", options={"pattern": "width", "share": 0.25}),
    )


def edits_of(
    root: Path,
    out: Path,
    seed: int,
    children: Mapping[str, Path] | None = None,
    only: Collection[str] | None = None,
) -> dict[str, Path]:
    """Write the derivatives of one lineage, each as the folder `<root's name>-<key>`.

    Args:
        root: A Llama folder.
        out: Folder of the new folders.
        seed: Seed of what is random; each edit draws from its own, `seed` times 100 plus its place in the list.
        children: Trained children: "tuned", "other" and "long" (fine-tuned, of one shape), "lora" (with a merged
            adapter). What is made from a missing one is left out.
        only: Keys to make; None for all.

    Returns:
        Key -> folder, in the order of `edits_for`.

    Raises:
        UsageError: a folder is there that was made in another way.
        InputRefused: a model cannot be read.
    """
    made = {"root": root, **(children or {})}
    found: dict[str, Path] = {}
    for number, edit in enumerate(edits_for(_depth(root))):
        if not set(edit.of) <= set(made) or (only is not None and edit.key not in only):
            continue
        folder = out / f"{root.name}-{edit.key}"
        models = tuple(made[key] for key in edit.of)
        if folder.exists():
            _check_same(folder, edit, models, seed * 100 + number)
        elif edit.kind == GGUF:
            _write_gguf(models[0], folder)
        else:
            attack(edit.kind, models, folder, seed=seed * 100 + number, **edit.options)
        made[edit.key] = found[edit.key] = folder
    return found


def single_edits(model: Path, lineage: str, out: Path, seed: int) -> dict[str, Path]:
    """Write copies of a Llama folder, each with one of `EDIT_KINDS`, as `<lineage>-edit-<kind>`.

    Args:
        model: The model to edit.
        lineage: Name of its lineage.
        out: Folder of the new folders; those that are there are kept.
        seed: Seed of every edit.

    Returns:
        Kind -> folder, in the order of `EDIT_KINDS`.

    Raises:
        UsageError: a folder is there that was made in another way.
        InputRefused: the model cannot be read.
    """
    found: dict[str, Path] = {}
    for kind in EDIT_KINDS:
        folder = found[kind] = out / f"{lineage}-edit-{kind}"
        edit = _single_edit(kind, _depth(model))
        if folder.exists():
            _check_same(folder, edit, (model,), seed)
        else:
            attack(edit.kind, [model], folder, seed=seed, **edit.options)
    return found


def _single_edit(kind: str, n_layers: int) -> Edit:
    if kind == "L1":
        return Edit(kind, "insert-layers", options={"layers": [n_layers // 2]})
    if kind == "V2":
        return Edit(kind, "disguise", options={"edits": ["V1"], "rename_tokens": True})
    return Edit(kind, "disguise", options={"edits": [kind]})


def _depth(root: Path) -> int:
    source = open_local(root)
    try:
        return CanonicalModel(source).shape.n_layers
    finally:
        source.close()


def _write_gguf(model: Path, folder: Path) -> None:
    from whorl._readers.gguf_write import write_gguf

    tensors, config = read_model(model)
    with new_folder(folder) as partial:
        write_gguf(partial / f"{folder.name}.gguf", tensors, config, "Q8_0")
        write_record(partial, Record("gguf", (model.name,), {"attack": GGUF, "quantisation": "Q8_0"}))


def _recorded(edit: Edit) -> dict[str, Any]:
    """What the record must say; "all" edits of a disguise are recorded by name, so they are not checked."""
    if edit.kind == "disguise":
        return {"tokens_renamed": False, **{_DISGUISE_NAMES.get(k, k): value for k, value in edit.options.items()}}
    return {"attack": edit.kind, **edit.options}


def _check_same(folder: Path, edit: Edit, models: tuple[Path, ...], seed: int) -> None:
    record = read_record(folder)
    wanted = json.loads(json.dumps(_recorded(edit)))
    different = [key for key, value in wanted.items() if record.parameters.get(key) != value]
    if record.parents != tuple(model.name for model in models):
        different.append("parents")
    if record.seed not in {None, seed}:
        different.append("seed")
    if different:
        raise UsageError(f"'{folder.name}' was made with another {', '.join(different)}; use a new folder.")
