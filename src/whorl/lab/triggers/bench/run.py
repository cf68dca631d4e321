"""The whole benchmark: make what is missing, measure what is missing, judge everything."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from whorl._atomic import write_text
from whorl._readers.strict_json import parse_object
from whorl.errors import UsageError, safe_name
from whorl.lab._jobs import read_rows, run_jobs
from whorl.lab.triggers.bench.cells import BASE, Model, asked_of_base, cells, models
from whorl.lab.triggers.bench.config import MAX_CONFIG_BYTES, Bench, check
from whorl.lab.triggers.bench.place import Place, parts
from whorl.lab.triggers.bench.planting import prepare
from whorl.lab.triggers.bench.results import Results, evaluate
from whorl.lab.triggers.bench.rows import keep
from whorl.lab.triggers.bench.work import Worker
from whorl.progress import Progress, silent
from whorl.triggers.material import read_material

CONFIG, ROWS = "bench.json", "cells.jsonl"
MAY_CHANGE = ("budget", "alpha", "attack_seeds")  # judged anew, or more columns
MAY_GROW = ("schemes", "weight_attacks", "serving_attacks", "siblings", "adapters")
GROWS_WITHIN = ("seeds", "points", "plantings", "without_keys")


def run(
    bench: Bench,
    out: Path,
    *,
    schemes: Sequence[str] = (),
    attacks: Sequence[str] = (),
    keep_models: bool = False,
    progress: Progress = silent,
) -> Results:
    """Measure what is missing and judge everything; cells that were not run are tried again.

    Args:
        bench: The settings.
        out: Folder of the run.
        schemes: Labels to measure now; none for all.
        attacks: Labels to measure now; none for all.
        keep_models: Keep attacked models under `attacked/`.
        progress: Called with the step, what is done and what there is to do.

    Raises:
        UsageError: an unknown label, kind or option, or the folder belongs to another configuration.
    """
    check(bench)
    wanted = cells(bench, schemes, attacks)
    same_settings(bench, out)
    place = Place(bench, out)
    failed = prepare(place, list({cell.model.name: cell.model for cell in wanted}.values()), progress)
    asked = _asked(place)
    path = out / ROWS
    cells_by_key = {cell.key: cell for cell in wanted}
    keep(path, lambda row: row["key"] not in cells_by_key or _stays(bench, row, asked))
    worker = Worker(place, cells_by_key, asked, failed, spared(place, asked), keep_models)
    run_jobs([cell.key for cell in wanted], worker, path, "cells", progress)
    return judged(bench, out)


def spared(place: Place, there: Sequence[Model]) -> frozenset[str]:
    """Plantings that failed a deciding gate while another of their scheme passed: attacking them would say nothing."""
    passed = {model: bool(read_material(place.keys(model)).gates["planted"]) for model in there}
    sound = {model.scheme for model in there if passed[model]}
    return frozenset(model.name for model in there if not passed[model] and model.scheme in sound)


def judged(bench: Bench, out: Path) -> Results:
    """What the rows of a run say, without measuring anything.

    Raises:
        UsageError: the folder belongs to another configuration.
    """
    same_settings(bench, out)
    return evaluate(bench, read_rows(out / ROWS))


def counts(bench: Bench, out: Path, schemes: Sequence[str] = (), attacks: Sequence[str] = ()) -> dict[str, int]:
    """How much there is to do, without doing it."""
    check(bench)
    wanted = cells(bench, schemes, attacks)
    rows = read_rows(out / ROWS)
    done = sum(rows.get(cell.key, {}).get("status") in {"done", "ruined"} for cell in wanted)
    place = Place(bench, out)
    there = {cell.model.name: cell.model for cell in wanted if cell.model.kind != "clean base"}
    missing = [name for name, model in there.items() if not _is_planted(place, model)]
    return {"cells": len(wanted), "done": done, "models": len(there), "models_to_plant": len(missing)}


def _is_planted(place: Place, model: Model) -> bool:
    return (place.keys(model) / "gates.json").is_file()


def _asked(place: Place) -> tuple[Model, ...]:
    """Key sets that the clean base is asked: those of all plantings that exist."""
    return tuple(m for m in models(place.bench) if m.kind == "planted" and _is_planted(place, m))


def _stays(bench: Bench, row: dict[str, Any], asked: Sequence[Model]) -> bool:
    """Whether a row need not be measured again: it was, and on the clean base with the keys of every planting it is asked."""
    if row["status"] == "not run":
        return False
    name, attack, *_ = row["key"].split("|")
    return name != BASE or {model.name for model in asked_of_base(bench, attack, asked)} <= set(row["asked"])


def same_settings(bench: Bench, out: Path) -> None:
    """Keep the settings beside the results; other ones are never mixed in.

    Raises:
        UsageError: names the settings that differ.
        MalformedFile: the kept settings cannot be read.
    """
    path = out / CONFIG
    now: dict[str, Any] = {
        "config": bench.model_dump(mode="json"),
        "base": _digest(Path(bench.base)),
        "questions": _questions(bench),
    }
    if path.is_file():
        before = parse_object(path.read_bytes(), "config", path.name, max_bytes=2 * MAX_CONFIG_BYTES)
        changed = _changed(before, now)
        if changed:
            raise UsageError(
                f"'{safe_name(out)}' was begun with other settings: {', '.join(changed)}. Use a new --out folder, or "
                f"the settings in its {CONFIG}."
            )
        for name in MAY_GROW:  # what is left out now may come back, but not changed
            labels = {item["name"] for item in now["config"][name]}
            now["config"][name] += [item for item in before["config"].get(name, []) if item["name"] not in labels]
    write_text(path, json.dumps(now, indent=1, allow_nan=False) + "\n")


def _changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    found = [f"the files of the {name}" for name in ("base", "questions") if before.get(name) != now[name]]
    old = before.get("config", {})
    for name, value in now["config"].items():
        if name in MAY_GROW:
            found += [f"{name} '{safe_name(item, 40)}'" for item in _differing(old.get(name, []), value)]
        elif name not in MAY_CHANGE and old.get(name) != value:
            found.append(name)
    return found


def _differing(old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]) -> list[str]:
    """Labels that mean something else than before; new ones, and more seeds or points, are welcome."""
    known = {item["name"]: _fixed(item) for item in old}
    return [item["name"] for item in new if item["name"] in known and _fixed(item) != known[item["name"]]]


def _fixed(item: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name not in GROWS_WITHIN}


def _questions(bench: Bench) -> str:
    return parts(bench.questions).test.digest


def _digest(folder: Path) -> str:
    """SHA-256 over config, tokenizer and weights of a folder.

    Raises:
        UsageError: it is no folder of a model.
    """
    files = sorted(
        p for p in folder.glob("*") if p.suffix == ".safetensors" or p.name in {"config.json", "tokenizer.json"}
    )
    if not files:
        raise UsageError(
            f"'{safe_name(folder)}' is no folder of a model; make it with `whorl lab`, or name another base."
        )
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            total.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()
