"""The models that a benchmark needs before any attack: siblings, adapters and plantings, made where they are missing."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from whorl.errors import UsageError, WhorlError, safe_name
from whorl.lab._jobs import Row, run_jobs
from whorl.lab.triggers.bench.cells import BASE, Model, models, row_of
from whorl.lab.triggers.bench.config import Adapter, Bench, Sibling
from whorl.lab.triggers.bench.place import Place, parts, write_attacker
from whorl.lab.triggers.bench.rows import forget
from whorl.progress import Progress


def prepare(place: Place, wanted: Sequence[Model], progress: Progress) -> dict[str, str]:
    """Make what is missing, a process a core; what failed is tried again.

    Args:
        place: The run.
        wanted: Models whose cells are to be measured.
        progress: Called after each model.

    Returns:
        Model, sibling or adapter -> why it could not be made.

    Raises:
        UsageError: a folder holds keys of another scheme than the configuration says.
    """
    write_attacker(place)
    beside = [item.name for item in place.bench.beside]
    failed = _make(place, "beside.jsonl", [n for n in beside if not place.side(n).exists()], _beside, progress)
    planted = [model for model in wanted if model.name != BASE]
    missing = [model.name for model in planted if not (place.keys(model) / "gates.json").is_file()]
    failed |= _make(place, "planted.jsonl", missing, _plant, progress)
    for model in planted:
        if model.name not in failed:
            _check_scheme(place, model)
    return failed


def _make(place: Place, file: str, names: Sequence[str], work: Any, progress: Progress) -> dict[str, str]:
    """Reasons of what could not be made."""
    if not names:
        return {}
    path = place.out / file
    forget(path, set(names))
    what = "planted models" if file.startswith("planted") else "models beside"
    rows = run_jobs(list(names), partial(_tried, place, work), path, what, progress)
    return {name: str(row["reason"]) for name, row in rows.items() if row["reason"] is not None}


def _tried(place: Place, work: Any, name: str) -> Row:
    try:
        return {"reason": None, **work(place, name)}
    except WhorlError as error:
        return {"reason": without_paths(str(error), place)}


def without_paths(text: str, place: Place) -> str:
    """A message without the folders of this machine."""
    for folder in (place.out, Path(place.bench.base).parent):
        for form in {str(folder.resolve()), str(folder)} - {".", "/"}:
            text = text.replace(f"{form}/", "")
    return text


def _beside(place: Place, name: str) -> Row:
    item = next(item for item in place.bench.beside if item.name == name)
    base, out = Path(place.bench.base).resolve(), place.side(name)
    if isinstance(item, Sibling):
        from whorl.attacks.suite import attack

        none = Model(BASE, "clean base")
        beside = [Path(path) for path in place.filled(item.beside, none)]
        attack(item.kind, [base, *beside], out, seed=item.seed, **place.filled(item.options, none))
    else:
        _train_adapter(place, item, out)
    return {}


def _train_adapter(place: Place, item: Adapter, out: Path) -> None:
    from whorl.attacks.erase import erase_settings
    from whorl.erasure.phases import train_adapter
    from whorl.erasure.sets import build_sets

    sets = build_sets(parts(place.bench.questions).attacker, seed=item.seed, n_rows=item.rows)
    settings = erase_settings(item.rate, item.rank, 1)
    train_adapter(Path(place.bench.base), out, sets=sets, settings=settings, seed=item.seed, loss_on=item.loss_on)


def _plant(place: Place, name: str) -> Row:
    from whorl.triggers.embed import embed
    from whorl.triggers.schemes import make

    bench: Bench = place.bench
    model = next(model for model in models(bench) if model.name == name)
    row, dealt = row_of(bench, model), parts(bench.questions)
    planting = row.planting.planting()
    if model.kind == "without keys":
        planting = replace(planting, repeats=0)
    shutil.rmtree(place.model(model), ignore_errors=True)  # without gates: cut off after the training
    made = embed(
        bench.base,
        place.model(model),
        place.keys(model),
        scheme=make(row.scheme, **row.arguments()),
        planting=planting,
        ordinary=dealt.owner,
        test=replace(dealt.test, rows=dealt.test.rows[: bench.test_rows]),
        attacker=dealt.attacker,
        clean=bench.clean_models,
        seed=model.seed,
        key_seed=model.seed,
    )
    return {"updates": made.n_updates}


def _check_scheme(place: Place, model: Model) -> None:
    from whorl.triggers.keyset_file import read_key_set
    from whorl.triggers.material import KEYS
    from whorl.triggers.schemes import make

    row = row_of(place.bench, model)
    found, wanted = read_key_set(place.keys(model) / KEYS).scheme, make(row.scheme, **row.arguments()).name
    if found != wanted:
        raise UsageError(f"'{model.name}' holds keys of '{safe_name(found)}'; the configuration says '{wanted}'.")
