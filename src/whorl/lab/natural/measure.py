"""Accuracies of a run, each kept as one line of JSON: factors, controls, ablations, learning curve, n-grams.

Everything is 3-way classification of answers by model, 5-fold by prompt group. What is looked at first was fixed before
any figure was seen: `HEADLINE` carries the verdict, the other classifiers and the second condition are shown beside it.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from whorl.errors import NotEnoughEvidence
from whorl.lab._jobs import Row, run_jobs
from whorl.lab.natural import answers as said
from whorl.lab.natural.config import Experiment, cells, levels
from whorl.lab.natural.text import prepare
from whorl.lab.natural.train import folder_of, losses, rerun_of_baseline, weights_digest
from whorl.outputs.accuracy import Scores, cross_validated, learning_curve
from whorl.outputs.features import CHAR_TFIDF, SUBWORD_COUNTS, WORD_TFIDF, Ngrams
from whorl.outputs.ngrams import characteristic
from whorl.progress import Progress, silent
from whorl.transcripts.answers import Answers

CLASSIFIERS: dict[str, tuple[Ngrams, ...]] = {
    "sub-word counts": SUBWORD_COUNTS,
    "word 1-2-grams": WORD_TFIDF,
    "character 1-4-grams": CHAR_TFIDF,
}
HEADLINE = "character 1-4-grams"
YARDSTICK = "both"
ABLATIONS = ("no_special", "shuffle_words", "shuffle_letters", "markdown_only")
C1_HALF_WIDTH = 0.02  # the interval of C1 may be no wider than two points on each side of its middle
POOLS = (1, 2, 4, 8, 16, 32, 64)
FIRST_CURVE = 128
DIGITS = 5


def measure(experiment: Experiment, out: Path, progress: Progress = silent) -> dict[str, Row]:
    """All rows of a run; those in `<out>/scores.jsonl` are not computed again.

    A factor is measured in a replicate when all its models have answered. C1 is repeated once, with new streams and twice
    the draws, when it fails.
    """
    path = out / "scores.jsonl"
    rows = run_jobs(keys(experiment, out), partial(measure_one, experiment, out), path, "measurements", progress)
    again = [_again(key) for key, row in rows.items() if key.startswith("c1|") and not passes_c1(row)]
    if again:
        said.sample_all(experiment, out, attempts=2, progress=progress)
        rows |= run_jobs(again, partial(measure_one, experiment, out), path, "control C1 again", progress)
    return rows


def holds_chance(row: Row) -> bool:
    """Whether the interval of a control contains chance."""
    return bool(row["low"] <= 1 / row["n_models"] <= row["high"])


def passes_c1(row: Row) -> bool:
    """Whether a C1 contains chance in an interval that is narrow enough to say so."""
    return holds_chance(row) and row["high"] - row["low"] <= 2 * C1_HALF_WIDTH


def _again(key: str) -> str:
    """The key of a control's repetition."""
    return f"{key.rpartition('|')[0]}|1"


def keys(experiment: Experiment, out: Path) -> list[str]:
    """Names of all measurements for which the models have answered, `kind|condition|...`."""
    found = []
    for condition in said.conditions(experiment):
        pairs = [(f, r) for f in said.factors_of(experiment, condition) for r in range(experiment.replicates)]
        ready = [(f, r) for f, r in pairs if _ready(experiment, out, condition, f, r)]
        for name in CLASSIFIERS:
            found.append(f"c1|{condition}|{name}|0")
            found += [f"factor|{condition}|{name}|{f}|{r}" for f, r in ready]
            found += [f"c3|{condition}|{name}|{r}" for f, r in ready if f == YARDSTICK]
    for replicate in range(experiment.replicates):
        if YARDSTICK in experiment.factors and _ready(experiment, out, said.PROMPTS, YARDSTICK, replicate):
            found += [f"ablation|{name}|{HEADLINE}|{replicate}" for name in ABLATIONS]
            found += [f"curve|{name}|{replicate}" for name in CLASSIFIERS]
    if YARDSTICK in experiment.factors and _ready(experiment, out, said.PROMPTS, YARDSTICK, 0):
        found.append("ngrams|prompts|0")
    return [*found, "c2"]


def measure_one(experiment: Experiment, out: Path, key: str) -> Row:
    """One measurement."""
    kind, *rest = key.split("|")
    return MEASUREMENTS[kind](experiment, out, *rest)


def _ready(experiment: Experiment, out: Path, condition: str, factor: str, replicate: int) -> bool:
    chosen = levels(experiment, factor, replicate)
    if not all(folder_of(out, cell).is_dir() for cell in chosen):
        return False
    try:
        said.table(experiment, out, chosen, condition)
    except NotEnoughEvidence:
        return False
    return True


def _table(experiment: Experiment, out: Path, condition: str, factor: str, replicate: str) -> Answers:
    return said.table(experiment, out, levels(experiment, factor, int(replicate)), condition)


def _scores(experiment: Experiment, table: Answers, name: str, **options: Any) -> Scores:
    return cross_validated(table, CLASSIFIERS[name], tokenizer=prepare(experiment).tokenizer, **options)


def _row(scores: Scores) -> Row:
    low, high = scores.interval()
    return {
        "accuracy": round(scores.accuracy, DIGITS),
        "low": round(low, DIGITS),
        "high": round(high, DIGITS),
        "n_models": len(scores.confusion),
        "n_texts": int(scores.confusion.sum()),
        "confusion": scores.confusion.tolist(),
        "cs": [float(c) for c in scores.cs],
    }


def _c1(experiment: Experiment, out: Path, condition: str, name: str, attempt: str) -> Row:
    return _row(_scores(experiment, said.control_table(experiment, out, condition, int(attempt)), name))


def _c2(experiment: Experiment, out: Path) -> Row:
    again, base = rerun_of_baseline(experiment)
    digests = [weights_digest(out, cell) for cell in (again, base)]
    return {"equal": digests[0] == digests[1], "largest_difference": _largest_difference(out, experiment)}


def _largest_difference(out: Path, experiment: Experiment) -> float:
    from safetensors.numpy import load_file

    a, b = (load_file(folder_of(out, cell) / "model.safetensors") for cell in rerun_of_baseline(experiment))
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


def _c3(experiment: Experiment, out: Path, condition: str, name: str, replicate: str) -> Row:
    table = _table(experiment, out, condition, YARDSTICK, replicate)
    return _row(_scores(experiment, table, name, permute_labels=True))


def _factor(experiment: Experiment, out: Path, condition: str, name: str, factor: str, replicate: str) -> Row:
    scores = _scores(experiment, _table(experiment, out, condition, factor, replicate), name)
    found = scores.pooled(POOLS)
    chosen = levels(experiment, factor, int(replicate))
    return {
        **_row(scores),
        "pooled": {str(n): round(found[n], DIGITS) for n in found},
        "losses": [losses(out, cell) for cell in chosen],
    }


def _ablation(experiment: Experiment, out: Path, transform: str, name: str, replicate: str) -> Row:
    table = _table(experiment, out, said.PROMPTS, YARDSTICK, replicate)
    retrained = _scores(experiment, table, name, transform_train=transform, transform_test=transform)
    kept = _scores(experiment, table, name, transform_test=transform)
    return {"retrained": _row(retrained), "tested": _row(kept)}


def _curve(experiment: Experiment, out: Path, name: str, replicate: str) -> Row:
    table = _table(experiment, out, said.PROMPTS, YARDSTICK, replicate)
    sizes = _doubling(len(table.prompts) * 4 // 5)
    found = learning_curve(table, CLASSIFIERS[name], sizes, tokenizer=prepare(experiment).tokenizer)
    return {"accuracy": {str(n): round(found[n].accuracy, DIGITS) for n in found}}


def _doubling(largest: int) -> Sequence[int]:
    sizes = [FIRST_CURVE * 2**i for i in range(20) if FIRST_CURVE * 2**i < largest]
    return [*sizes, largest]


def _ngrams(experiment: Experiment, out: Path, condition: str, replicate: str) -> Row:
    table = _table(experiment, out, condition, YARDSTICK, replicate)
    found = {
        model: [
            {
                "text": n.text,
                "log_odds": round(n.log_odds, 3),
                "inside": round(n.inside, 1),
                "outside": round(n.outside, 1),
            }
            for n in characteristic(table, model, analyzer="word", n=12)
        ]
        for model in table.models
    }
    return {"models": found, "losses": [losses(out, c) for c in cells(experiment)[:1]]}


MEASUREMENTS: Mapping[str, Callable[..., Row]] = {
    "c1": _c1,
    "c2": _c2,
    "c3": _c3,
    "factor": _factor,
    "ablation": _ablation,
    "curve": _curve,
    "ngrams": _ngrams,
}
