"""The weight-vector study without its trainings: cells, figures, the two tests of the claims, the page."""

import json
import subprocess
import sys

import numpy as np
import pytest

import llama_folder
import whorl.testing
from whorl.canonical.model import CanonicalModel
from whorl.errors import UsageError
from whorl.lab import weight_vectors as study
from whorl.lab import weight_vectors_page as pages
from whorl.lab.weight_vectors_results import _exchange_test, auc, lora_claim, percentile, readings, save
from whorl.testing import MemorySource
from whorl.weights.moments import part_moments

# The plan


def test_cells_have_their_own_names_and_come_after_their_parents():
    seen = set()
    for cell in study.cells():
        assert cell.name not in seen
        assert cell.parent is None or cell.parent in seen
        assert {*cell.facts.get("of", ())} <= seen
        seen.add(cell.name)
    controls = {c.control for c in study.cells()}
    assert controls == {f"C{i}" for i in range(1, 9)}
    assert study.cells()[0].name == study.BASE


@pytest.mark.parametrize("control", ["C5", "C6"])
def test_each_setting_has_its_own_seed_and_both_texts_share_it(control):
    """The exchange test needs it: inside a setting only the text differs, between settings only the text may agree."""
    seeds = {}
    for c in study.cells():
        if c.control == control:
            seeds.setdefault((c.facts.get("rank"), c.facts["rate"]), []).append((c.facts["text"], c.facts["seed"]))
    for pair in seeds.values():
        assert sorted(text for text, _ in pair) == sorted(study.TEXTS)
        assert len({seed for _, seed in pair}) == 1
    assert len({pair[0][1] for pair in seeds.values()}) == len(seeds)


def test_a_folder_with_other_settings_is_not_mixed_in(tmp_path, monkeypatch):
    study._same_settings(tmp_path)
    study._same_settings(tmp_path)
    monkeypatch.setattr(study, "STEPS", study.STEPS + 1)
    with pytest.raises(UsageError, match=r"holds a study with other settings \('study.json' differs\)"):
        study._same_settings(tmp_path)


def test_rescaling_by_scalars_keeps_the_function():
    """Gauge moments see no difference, and no matrix is what it was."""
    tensors = llama_folder.tensors(0, np.float64)
    edited = dict(tensors)
    for layer in range(8):
        study._rescale_layer(edited, f"model.layers.{layer}.", 2, np.random.default_rng(layer))
    before, after = (
        [part_moments(part, 0.5) for part in CanonicalModel(MemorySource(t, llama_folder.CONFIG)).parts()]
        for t in (tensors, edited)
    )
    for x, y in zip(before, after, strict=True):
        for key in x:
            assert np.allclose(x[key][[0, 2]], y[key][[0, 2]], rtol=1e-9) == key.startswith("gauge."), key


def test_update_size_of_a_pair_made_by_hand(tmp_path):
    """W = diag(4, 3, 2, 1) everywhere, one of two layers moved by 0.5 in one entry."""
    config = llama_folder.config(num_hidden_layers=2)
    tensors = llama_folder.tensors(0, num_hidden_layers=2)
    matrices = [n for n, w in tensors.items() if w.ndim == 2 and ".layers." in n]
    for name in matrices:
        tensors[name] = np.zeros_like(tensors[name])
        np.fill_diagonal(tensors[name][:4, :4], [4, 3, 2, 1])
    whorl.testing.write_model_folder(tmp_path / "base", tensors, config)
    moved = {n: w.copy() for n, w in tensors.items()}
    moved["model.layers.1.self_attn.v_proj.weight"][5, 7] += 0.5
    moved["model.embed_tokens.weight"] += 1.0  # not a layer matrix
    whorl.testing.write_model_folder(tmp_path / "child", moved, config)
    size, weyl = study.update_size(tmp_path, study.Cell("child", "C6", {}, "base"), rank=3)
    assert size == pytest.approx(0.5 / np.sqrt(len(matrices) * 30))
    assert weyl == pytest.approx(0.5 / 2)
    assert study.update_size(tmp_path, study.Cell("child", "C3", {}, "base"), rank=3) is None
    assert study.update_size(tmp_path, study.Cell("child", "C7"), rank=3) is None


# The figures


def test_percentile_counts_what_is_less_alike():
    assert percentile(0.5, [0.1, 0.5, 0.6, None, 0.2]) == 50.0
    assert percentile(0.9, [0.1, 0.5]) == 100.0
    assert percentile(None, [0.1]) is None
    assert percentile(0.5, [None]) is None


def test_auc_counts_ties_half():
    assert auc([3, 1], [2, 1]) == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    assert auc([2, 2], [2]) == 0.5
    assert auc([None, 3], [1, None]) == 1.0
    assert auc([None], [1]) is None


def changes(rng, n, towards=0.0):
    """Changes of n settings on two texts; each text pulls in its own direction by `towards`."""
    pull = np.array([[1.0, 0, 0, 0, 0, 0, 0], [0, 1.0, 0, 0, 0, 0, 0]])
    return [tuple(x) for x in rng.standard_normal((n, 2, 7)) + rng.standard_normal((n, 1, 7)) + towards * pull]


def test_exchange_test_keeps_its_level():
    """128 labellings: p <= 0.05 has probability 6/128 = 0.047 when the text does not matter."""
    rng = np.random.default_rng(0)
    p = [_exchange_test(changes(rng, 8))["p_value"] for _ in range(1500)]
    assert 0.032 <= np.mean(np.array(p) <= 0.05) <= 0.070
    assert min(p) >= 2.0**-7


def test_exchange_test_finds_a_text_that_drives_the_direction():
    rng = np.random.default_rng(1)
    p = [_exchange_test(changes(rng, 8, towards=3.0))["p_value"] for _ in range(40)]
    assert np.mean(np.array(p) <= 0.05) > 0.9


def test_exchange_test_of_perfect_agreement():
    up, right = np.eye(7)[0], np.eye(7)[1]
    found = _exchange_test([(up, right), (2 * up, 3 * right), (up, right), (up, right)])
    assert (found["same_text"], found["other_text"], found["difference"]) == pytest.approx((1.0, 0.0, 1.0))
    assert found["p_value"] == 2.0**-3  # the smallest that four settings can give
    assert found["size_of_change"] == [1.0, 3.0]


def test_a_change_of_length_zero_has_no_direction():
    rng = np.random.default_rng(0)
    pairs = changes(rng, 4)
    pairs[2] = (pairs[2][0], np.zeros(7))
    found = _exchange_test(pairs)
    assert found["p_value"] is None
    assert found["reason"] == "1 of 8 changes have length 0 and so no direction"
    assert found["size_of_change"][0] == 0.0
    json.dumps(found, allow_nan=False)


def row(control, values, weyl=0.5, percent=None, rate=1e-4, seed=1):
    labels = [r.label for r in readings()]
    given = dict.fromkeys(labels, values) if not isinstance(values, dict) else dict.fromkeys(labels, 0.5) | values
    return {
        "name": f"cell-{control}", "control": control, "facts": {"rate": rate, "seed": seed}, "update": 0.1234, "weyl": weyl, "loss": [3.25, 2.125],
        "values": given, "percentile": percent or dict.fromkeys(labels, 50.0),
    }  # fmt: skip


def test_lora_claim_counts():
    null = {"CV r=16": [0.2, 0.4, None], "CV r=64": [0.1, 0.3]}
    one, moved = {"CV r=16": 1.0, "CV r=64": 1.0}, {"CV r=16": 0.7, "CV r=64": None}
    above = {"CV r=16": 100.0, "CV r=64": 100.0}
    rows = [
        row("C5", one, weyl=0.001, percent=above), row("C5", one), row("C5", moved), row("C6", moved), row("C6", one)
    ]  # fmt: skip
    found = lora_claim(rows, null)
    lora = found["C5 CV r=16"]
    assert (lora["cells"], lora["exactly_one"], lora["trivial"], lora["not_trivial_exactly_one"]) == (3, 2, 1, 1)
    assert (lora["lowest"], lora["above_all_unrelated"]) == (0.7, 1)
    assert (lora["unrelated_highest"], lora["unrelated_median"]) == (0.4, pytest.approx(0.3))
    assert (found["C5 CV r=64"]["lowest"], found["C6 CV r=64"]["exactly_one"]) == (1.0, 1)


# The page


def results(**data_claim):
    """The smallest results that have every part of a page."""
    labels = [r.label for r in readings()]
    null = {label: [0.25, 0.5] for label in labels}
    unrelated = dict.fromkeys(labels, 10.0) | {"head spectra": 100.0, "curves raw": None}
    rows = [
        row("C2", 0.1), row("C3", 1.0), row("C4", {"V_std cosine": 0.654321}), row("C5", 0.75), row("C6", 0.875),
        row("C7", 0.625, percent=unrelated), row("C8", {"CV r=16": None}),
    ]  # fmt: skip
    claim = {
        "settings": 8, "same_text": 0.8125, "other_text": 0.3125, "difference": 0.5, "p_value": 2.0**-7,
        "p_kind": "exact", "size_of_change": [1e-4, 0.5],
    }  # fmt: skip
    return {
        "n_parameters": 1234567,
        "shape": {"n_layers": 8, "d_model": 64, "n_heads": 4, "n_kv_heads": 2, "d_head": 16, "d_mlp": 128},
        "losses": {"seed-40": [6.5, 3.125], "seed-41": [6.5, 3.25]},
        "null": null,
        "random": {label: [0.125, 0.15] for label in labels},
        "cells": rows,
        "variants": [{"label": "k = 5", "null": [0.25], "tuned": [0.75], "auc": 0.987}],
        "claims": {"data": {"C5": claim, "C6": claim | data_claim}, "lora": lora_claim(rows, null)},
    }  # fmt: skip


def test_the_page_holds_the_figures():
    text = pages.page(results())
    for figure in ("1,234,567", "6.50 nats", "3.125 to 3.250", "0.654321 (50)", "not comparable", "0.987", "3.250 → 2.125",
                   "0.1234", "0.0078", "k = 5"):  # fmt: skip
        assert figure in text, figure
    assert "nan" not in text.lower()
    assert "None" not in text
    assert "seed |" not in text
    assert "A method that recognises a fine-tune shows 100" not in text


def test_the_page_says_which_strangers_show_100_too():
    text = pages.page(results())
    assert "necessary, not sufficient" in text
    assert "Strangers that show 100 as well: head spectra (C7 cell-C7)." in text
    none = results()
    none["cells"] = [r for r in none["cells"] if r["control"] != "C7"]
    assert "No stranger (C2, C7) shows 100 in any reading." in pages.page(none)


def test_the_page_on_a_claim_that_is_shown_or_not():
    assert "For LoRA the claim holds here" in pages.page(results())
    assert "For full fine-tuning the claim is not shown here" in pages.page(results(p_value=0.25))


@pytest.mark.parametrize(("p", "words"), [(0.125, "the most extreme"), (0.25, "not the most extreme")])
def test_the_page_on_too_few_settings(p, words):
    text = pages.page(results(settings=4, p_value=p))
    assert (
        f"For full fine-tuning the claim cannot be decided with 4 settings (the observed labelling is {words})" in text
    )
    assert "cells of one text share nothing else but the text" in text


def test_the_page_says_what_trainings_share():
    data = results()
    data["cells"] += [row("C5", 0.75, rate=2e-4, seed=1)]
    assert "cells of one text share more than the text" in pages.page(data)
    data["cells"][-1]["facts"]["rate"] = 1e-4
    data["cells"][-1]["facts"]["seed"] = 2
    assert "labels cannot be exchanged cleanly" in pages.page(data)


def test_the_page_on_a_change_without_direction():
    nothing = dict.fromkeys(("same_text", "other_text", "difference", "p_value"))
    text = pages.page(results(**nothing, reason="1 of 8 changes have length 0 and so no direction"))
    assert "For full fine-tuning the claim is not comparable: 1 of 8 changes have length 0 and so no direction." in text


def test_results_are_saved_as_strict_json(tmp_path):
    save(tmp_path / "results.json", results())
    assert pages.page(json.loads((tmp_path / "results.json").read_text())) == pages.page(results())
    with pytest.raises(ValueError, match="JSON compliant"):
        save(tmp_path / "bad.json", {"p_value": float("nan")})


def test_pages_and_results_need_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None\n"
        "import whorl.lab.weight_vectors_page, whorl.lab.weight_vectors_results"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
