"""The results page of the weight-vector study: every figure and every verdict sentence follows from the measurements."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from whorl.lab.weight_vectors import FULL_RATES, LORA_RANKS, LORA_RATES, SEEDS, STEPS, TEXTS

Row = Mapping[str, Any]

ALPHA = 0.05
GRID_LABELS = (
    "V_std cosine",
    "V_std Pearson",
    "V_std gauge cosine",
    "CV r=16",
    "CV r=16 ARI",
    "CV r=64",
    "head spectra",
)


def page(data: Mapping[str, Any]) -> str:
    """The page as Markdown, from `weight_vectors_results.measure`."""
    sections = (
        _head(data),
        _null(data),
        _controls(data),
        _grid(data, "C5", "LoRA", f"rank {_list(LORA_RANKS)} x rate {_list(LORA_RATES)} x text {_list(TEXTS)}"),
        _grid(data, "C6", "Full fine-tuning", f"rate {_list(FULL_RATES)} x text {_list(TEXTS)}"),
        _variants(data),
        _claims(data),
    )
    return "\n\n".join(sections) + "\n"


def _list(values: Iterable[Any]) -> str:
    return "{" + ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values) + "}"


def _head(data: Mapping[str, Any]) -> str:
    losses = [v for k, v in data["losses"].items() if k.startswith("seed-")]
    before, after = np.mean([v[0] for v in losses]), [v[1] for v in losses]
    shape = data["shape"]
    return f"""# Weight vectors: what the two vectors of arXiv 2509.19122 show, and what they do not

Printed by `whorl lab weight-vectors --out runs/weight-vectors --page docs/results/weight-vectors.md`. Do not edit.

Models: Llama of {data["n_parameters"]:,} weights ({shape["n_layers"]} layers, width {shape["d_model"]},
{shape["n_heads"]} query and {shape["n_kv_heads"]} KV heads of width {shape["d_head"]}, MLP {shape["d_mlp"]}), trained from
scratch on the docstrings of the standard library. {len(SEEDS)} independent seeds (other initial weights and other data
order): held-out loss {before:.2f} nats per token before, {min(after):.3f} to {max(after):.3f} after training. Fine-tunings
take {STEPS} steps. **The models are tiny**: width 64 leaves at most 32 singular values in keys and values, so "r=64" means
32 here, and rank 64 LoRA is a full-rank update. Conclusions on outlier features of models of a billion weights do not
follow from these.

All values are similarities; 1 is equality. In brackets: percentile within C1, the share of unrelated same-recipe pairs
that are *less* alike. To recognise a fine-tune 100 is necessary, not sufficient: strangers outside C1 may show it too (see
"Telling models apart"). Seven lineages are seven independent units: the
smallest possible rank p-value is 1/7, so no threshold at 1 % can be drawn from these and none is."""


def _null(data: Mapping[str, Any]) -> str:
    rows = []
    for label, null in data["null"].items():
        tuned = [r["values"][label] for r in data["cells"] if r["control"] == "C6"]
        rows.append((label, *_range(null, label), *_range(data["random"][label], label), *_range(tuned, label)))
    table = _table(
        (
            "reading",
            "C1 lowest",
            "median",
            "highest",
            "C2 lowest",
            "median",
            "highest",
            "C6 lowest",
            "median",
            "highest",
        ),
        rows,
    )
    return f"""## The null: unrelated models of one recipe are almost equal

C1: {len(next(iter(data["null"].values())))} pairs of trained seeds. C2: 3 pairs of random weights of the same config. C6:
the 8 full fine-tunings against their base, for comparison.

{table}"""


def _controls(data: Mapping[str, Any]) -> str:
    rows = [
        (_name(r), *(_with_percentile(r, label) for label in data["null"]))
        for r in data["cells"]
        if r["control"] not in {"C5", "C6"}
    ]
    labels = list(data["null"])
    half = (len(labels) + 1) // 2
    first = _table(("cell against the base", *labels[:half]), [row[: half + 1] for row in rows])
    second = _table(("cell against the base", *labels[half:]), [(row[0], *row[half + 1 :]) for row in rows])
    return f"""## Controls C2 to C4, C7 and C8

C2 random weights; C3 the base with its layers permuted (another function, the same matrices); C4 the base rescaled at
random without any change of its function (A1, A3, M2, N1): by scalars, or by general maps where attention allows them; C7
wider and deeper models of the same recipe and data; C8 8- and 4-bit round trips and the mean of two fine-tunings.

{first}

{second}

Both C4 models compute what the base computes: a reading that moves there can be forged at no cost. The gauge readings are
made to withstand the scalars; general maps of values and outputs still move them."""


def _grid(data: Mapping[str, Any], control: str, title: str, what: str) -> str:
    rows = []
    for r in (r for r in data["cells"] if r["control"] == control):
        weyl = f"{r['weyl']:.3f}" + (" (trivial)" if r["weyl"] < 0.01 else "")
        loss = f"{r['loss'][0]:.3f} → {r['loss'][1]:.3f}"
        rows.append((_name(r), f"{r['update']:.4f}", weyl, loss, *(_with_percentile(r, k) for k in GRID_LABELS)))
    table = _table(("cell", "‖dW‖F/‖W‖F", "max ‖dW‖₂/σ₁₆", "held-out loss", *GRID_LABELS), rows)
    return f"""## {control}: {title}

{what}, {len(rows)} cells.
Held-out loss is on the text of the fine-tuning. By Weyl's inequality no singular value moves by more than ‖dW‖₂; below 0.01 of
σ₁₆ ("trivial") a stable clustering vector shows only that the update was small.

{table}"""


def _variants(data: Mapping[str, Any]) -> str:
    rows = [
        (v["label"], *_range(v["null"]), *_range(v["tuned"]), "–" if v["auc"] is None else f"{v['auc']:.3f}")
        for v in data["variants"]
    ]
    table = _table(("choice", "C1 lowest", "median", "highest", "C5+C6 lowest", "median", "highest", "AUC"), rows)
    return f"""## The clustering vector under other choices

Rank 16, three K-means seeds each. AUC: how often a LoRA or full fine-tuning of C5 and C6 is more like its base than an
unrelated pair of C1 is alike (0.5 = no information).

{table}"""


def _claims(data: Mapping[str, Any]) -> str:
    return f"""## The paper's two claims

**"The standard-deviation vector follows the data set."** {_data_verdict(data)}

**"The clustering vector is unaffected by LoRA."** {_lora_verdict(data["claims"]["lora"])}

**Telling models apart.** {_separation(data)}"""


def _data_verdict(data: Mapping[str, Any]) -> str:
    claim = data["claims"]["data"]
    sentences = [_data_sentence(claim[c], name) for c, name in (("C5", "LoRA"), ("C6", "full fine-tuning"))]
    return " ".join(sentences) + (
        f" A setting is one learning rate (and rank), run on both texts. {_shared(data)}"
        " Two texts and one base model: that the vector follows these two texts is not yet that it identifies a data set."
    )


def _shared(data: Mapping[str, Any]) -> str:
    """What trainings on one text have in common, from the seeds they were made with."""
    for control in ("C5", "C6"):
        facts = [r["facts"] for r in data["cells"] if r["control"] == control]
        settings = {(f.get("rank"), f["rate"]) for f in facts}
        if len({(f.get("seed"), f.get("rank"), f["rate"]) for f in facts}) != len(settings):
            return "The texts of one setting differ in data order, so labels cannot be exchanged cleanly."
        if len({f.get("seed") for f in facts}) != len(settings):
            return "Settings share their data order, so that cells of one text share more than the text."
    return (
        "Each setting has its own data order and adapter start, so that cells of one text share nothing else but the text "
        "(and the base)."
    )


def _data_sentence(c: Mapping[str, Any], name: str) -> str:
    if c["p_value"] is None:
        return f"For {name} the claim is not comparable: {c['reason']}."
    smallest = 2.0 ** (1 - c["settings"])
    return (
        f"For {name} the claim {_decision(c, smallest)}: changes of ln sigma point the same way with mean cosine "
        f"{c['same_text']:.3f} on the same text under other settings and {c['other_text']:.3f} on other texts "
        f"(difference {c['difference']:.3f}; exact p = {c['p_value']:.3g} over exchanges of the text label in "
        f"{c['settings']} settings; the smallest possible is {smallest:.3g}). The changes themselves "
        f"are between {c['size_of_change'][0]:.1e} and {c['size_of_change'][1]:.1e} long (L2 norm of the change of seven "
        "logarithms)."
    )


def _decision(c: Mapping[str, Any], smallest: float) -> str:
    if smallest > ALPHA:
        place = "the most extreme" if c["p_value"] <= smallest else "not the most extreme"
        return f"cannot be decided with {c['settings']} settings (the observed labelling is {place})"
    return "holds here" if c["p_value"] <= ALPHA else "is not shown here"


def _lora_verdict(claim: Mapping[str, Any]) -> str:
    lora, full = claim["C5 CV r=16"], claim["C6 CV r=16"]
    return (
        f"At rank 16, {lora['exactly_one']} of {lora['cells']} LoRA cells keep the clustering vector exactly (lowest "
        f"{lora['lowest']:.3f}). {lora['trivial']} of all {lora['cells']} are trivial by Weyl's inequality; of the "
        f"{lora['cells'] - lora['trivial']} others {lora['not_trivial_exactly_one']} keep it. Full fine-tuning: "
        f"{full['exactly_one']} of {full['cells']} keep it (lowest {full['lowest']:.3f}). The vector says little about "
        f"kinship even where it stays: unrelated seeds reach {lora['unrelated_highest']:.3f} (median "
        f"{lora['unrelated_median']:.3f}), and {lora['above_all_unrelated']} of {lora['cells']} LoRA cells and "
        f"{full['above_all_unrelated']} of {full['cells']} full fine-tunings are above all unrelated pairs."
    )


def _separation(data: Mapping[str, Any]) -> str:
    found = []
    for label in ("V_std cosine", "V_std gauge cosine", "CV r=16", "CV r=64", "curves raw", "head spectra"):
        rows = [r for r in data["cells"] if r["control"] in {"C5", "C6"}]
        above = sum(r["percentile"][label] == 100.0 for r in rows)
        found.append(f"{label} {above} of {len(rows)}")
    return (
        "Fine-tunings of C5 and C6 that are more like their base than every unrelated pair: " + "; ".join(found) + ". "
        f"{_strangers(data)} "
        "Controls that keep the function (C4) or keep all matrices (C3) must be read beside this: see their table."
    )


def _strangers(data: Mapping[str, Any]) -> str:
    """Which unrelated cells a reading places above all unrelated pairs of C1, as it does its fine-tunings."""
    cells = [r for r in data["cells"] if r["control"] in {"C2", "C7"}]
    names = {label: [_name(r) for r in cells if r["percentile"][label] == 100.0] for label in data["null"]}
    found = [f"{label} ({', '.join(above)})" for label, above in names.items() if above]
    if not found:
        return "No stranger (C2, C7) shows 100 in any reading."
    return f"Strangers that show 100 as well: {'; '.join(found)}."


def _name(row: Row) -> str:
    return f"{row['control']} {row['name']}"


def _with_percentile(row: Row, label: str) -> str:
    value, place = row["values"][label], row["percentile"][label]
    if value is None:
        return "not comparable"
    return f"{_figure(label, value)} ({'–' if place is None else format(place, '.0f')})"


def _figure(label: str, value: float) -> str:
    """More digits for the vector whose cosines are all near 1."""
    return f"{value:.6f}" if label.startswith("V_std") else f"{value:.4f}"


def _range(values: Sequence[float | None], label: str = "") -> tuple[str, str, str]:
    usable = [v for v in values if v is not None]
    if not usable:
        return ("–", "–", "–")
    low, middle, high = (_figure(label, float(v)) for v in (min(usable), np.median(usable), max(usable)))
    return (low, middle, high)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
