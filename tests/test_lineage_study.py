"""The lineage study: jobs that resume, scores with known answers, a small calibration, and p-values under their null."""

import json

import numpy as np
import pytest

from whorl.calibration import Calibration, Condition, Derived, Scores
from whorl.comparison import compare_sides
from whorl.errors import MalformedFile
from whorl.lab import lineage_null, lineage_scores, lineage_trees
from whorl.lab._jobs import read_rows, run_jobs
from whorl.lab._llama import ModelSize
from whorl.lab.lineage_bench import Item, items, method_texts, row_of
from whorl.lab.lineage_calibration import Roots, calibrate, keys_of, save
from whorl.lab.lineage_models import side
from whorl.lab.lineage_page import page
from whorl.lab.lineage_plans import DERIVED, N_CALIBRATION, calibration_plans, distilled_plans, held_out_plans
from whorl.lab.lineage_results import TRAINED_KINDS, Study, expected_relations
from whorl.lab.lineage_set import edits_for
from whorl.lineage.relation import ORDER
from whorl.registry import method, resolve
from whorl.testing import write_model_folder

SPECTRA = method("head-spectra").canonical_name
SMALL = ModelSize(d_model=32, n_layers=6, n_heads=2, n_kv_heads=1, d_head=16, d_mlp=32, n_vocab=300)


def squared(key):
    return {"square": int(key) ** 2}


def test_jobs_resume_and_a_cut_line_is_done_again(tmp_path):
    path = tmp_path / "rows.jsonl"
    first = run_jobs(["1", "2"], squared, path, "jobs")
    assert [row["square"] for row in first.values()] == [1, 4]
    path.write_text(path.read_text("utf-8") + '{"key": "3", "squ', "utf-8")
    seen = []
    found = run_jobs(["3", "1", "2"], squared, path, "jobs", lambda *step: seen.append(step))
    assert [row["square"] for row in found.values()] == [9, 1, 4]
    assert seen[0] == ("jobs", 2, 3)
    assert len(read_rows(path)) == 3


def test_a_damaged_results_file_is_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text("[1]\n", "utf-8")
    with pytest.raises(MalformedFile, match="line 1 is no measurement"):
        read_rows(tmp_path / "rows.jsonl")


def made_items():
    kin = [Item(f"r{i}", f"r{i}-int4", "related", "int4", (f"r{i}",)) for i in range(4)]
    far = [Item(f"r{i}", f"r{j}", "unrelated", "root", (f"r{i}", f"r{j}")) for i, j in ((0, 1), (2, 3), (0, 3), (1, 2))]
    return [*kin, *far, Item("r0", "r0-distilled", "apart", "distilled", ("r0",))]


def made_rows(values, verdicts):
    rows = {}
    for item, value, verdict in zip(made_items(), values, verdicts, strict=True):
        rows[item.key] = {
            "verdict": verdict,
            "relation": "requantised" if verdict == "related" else verdict,
            "exact": None,
            "parent": "a" if verdict == "related" else None,
            "covered": "same shape",
            "methods": {SPECTRA: {"value": value}},
        }
    return rows


VALUES = [0.9, 0.8, 0.3, None, 0.1, 0.2, 0.4, 0.1, 0.0]
VERDICTS = ["related"] * 2 + ["undecided"] * 2 + ["unrelated"] * 2 + ["related", "undecided"] + ["unrelated"]


def test_scores_have_the_known_answers():
    rows = made_rows(VALUES, VERDICTS)
    found = lineage_scores.separation(SPECTRA, made_items(), rows)
    assert (found.related.count, found.related.of, found.unrelated.count) == (3, 4, 4)
    assert found.auc == pytest.approx(11 / 12)  # of 3 x 4 comparisons only 0.3 < 0.4 is wrong
    assert found.tpr == pytest.approx(2 / 3)
    assert (found.lowest_related, found.highest_unrelated) == (0.3, 0.4)
    pairs, lineages = lineage_scores.false_positives(made_items(), rows)
    assert (pairs.count, pairs.of, lineages.count, lineages.of) == (1, 4, 2, 4)
    assert lineage_scores.found(made_items(), rows) == (lineage_scores.Rate(2, 4), lineage_scores.Rate(0, 2))
    assert lineage_scores.undecided(made_items(), rows) == lineage_scores.Rate(3, 8)
    assert lineage_scores.confusion(made_items(), rows) == {"int4": {"requantised": 2, "undecided": 2}}
    assert lineage_scores.directions(made_items(), rows) == {"int4": {"right": 2, "undecided": 2}}


@pytest.mark.parametrize(
    ("count", "of", "low", "high"), [(0, 45, 0.0, 0.0787), (18, 20, 0.683, 0.988), (2, 412, 0.0006, 0.0175)]
)
def test_exact_intervals(count, of, low, high):
    assert lineage_scores.Rate(count, of).interval == pytest.approx((low, high), abs=6e-4)


def test_a_distance_is_scored_downwards(monkeypatch):
    monkeypatch.setattr(type(method("head-spectra")), "direction", "distance")
    flipped = [None if v is None else -v for v in VALUES]
    found = lineage_scores.separation(SPECTRA, made_items(), made_rows(flipped, VERDICTS))
    assert found.auc == pytest.approx(11 / 12)
    assert found.lowest_related == -0.3


def test_tree_edges_are_counted_by_what_is_said_of_them():
    names = ["r", "r-topics", "r-code", "r-merged", "r-int4", "r-tuned-int4"]
    drawn = [("r", "r-topics"), ("r-code", "r"), ("r-topics", "r-merged"), ("r-code", "r-int4")]
    found = lineage_trees.score("r", drawn, names)
    assert found == {"edges": 6, "right": 2, "reversed": 1, "wrong": 2, "missing": 1}


def test_calibration_and_test_share_no_seed():
    plans = [calibration_plans(), (*held_out_plans(), *distilled_plans())]
    inits = [{p.settings["init_seed"] for p in found if p.kind in {"pretrained", "distilled"}} for found in plans]
    assert len(inits[0]) == N_CALIBRATION
    assert not inits[0] & inits[1]
    assert sum(p.kind == "fine-tuned" for p in plans[0]) == 2 * len(DERIVED)


def roots(folder, n):
    names = tuple(f"cal-{i:03d}" for i in range(n))
    for i, name in enumerate(names):
        source = lineage_null.random_model(SMALL, i)
        write_model_folder(folder / name, {k: source.rows(k) for k in source.tensors}, source.config)
    return Roots(folder, names)


def test_a_calibration_is_built_and_used(tmp_path):
    found = roots(tmp_path / "cal", 4)
    assert keys_of(found) == [f"cal-{i:03d}|cal-{i + 1:03d}|{t}" for t in "10" for i in (0, 2)]
    one = calibrate(found, {"made": "by a test"}, "small")
    path = save(one, tmp_path / "calibration.json")
    assert json.loads(path.read_text("utf-8"))["id"] == one.id
    assert [c.name for c in one.conditions] == ["same shape", "same shape, no token strings in common"]
    assert set(one.members) == set(found.names)
    with side(found.folder / "cal-000") as a, side(found.folder / "cal-003") as b:
        result = compare_sides(a, b, resolve(["head-spectra", "phi-u"]), calibrations=(one,))
    assert result.covering[1].name == "same shape, no token strings in common"
    assert result.evidence[0].place.pairs == 2
    assert result.verdict == "undecided", "two pairs carry no verdict"


def test_a_row_and_the_page_of_a_small_study(tmp_path):
    found = roots(tmp_path, 2)
    with side(found.folder / "cal-000") as a, side(found.folder / "cal-001") as b:
        row = row_of(compare_sides(a, b, resolve(method_texts())))
    json.dumps(row, allow_nan=False)
    assert set(row["methods"]) == set(method_texts())
    kin = Item("cal-000", "cal-000-int4", "related", "int4", ("cal-000",))
    far = Item("cal-000", "cal-001", "unrelated", "root", ("cal-000", "cal-001"))
    apart = Item("cal-000", "cal-000-distilled", "apart", "distilled", ("cal-000",))
    condition = Condition(
        "same shape", vocabulary=True, differs={}, scores={SPECTRA: Scores((0.1,), {"int4": Derived((), ())})}
    )
    known = Calibration("small", None, {"a": "0", "b": "1"}, {}, (condition,))
    null = {"0": {"tests": {SPECTRA: {"exact: nothing": 0.03}}}, "1": {"tests": {SPECTRA: {"exact: nothing": 0.5}}}}
    trees = ({"family": "cal-000", "edges": 2, "right": 1, "reversed": 0, "wrong": 1, "missing": 0},)
    edited = Item("cal-000", "cal-000-edit-R1", "related", "R1", ("cal-000",))
    rows = {item.key: row for item in (kin, far, apart, edited)}
    text = page(Study((kin, far, apart), (edited,), rows, method_texts(), SPECTRA, (known,), null, trees))
    assert "| unrelated pairs called related (false positives) | 0 of 1 | 0.0 % | 0.0 to 97.5 % |" in text
    assert "| `head-spectra` | exact: nothing | 2 | 0.500 |" in text
    assert "| all | 2 | 1 | 0 | 1 | 0 |" in text


def test_every_kind_of_the_bench_has_a_right_answer(tmp_path):
    for kind in ("lin-00-int4", "lin-00-topics", "lin-01"):
        (tmp_path / kind).mkdir()
    found = items(tmp_path, ["lin-00", "lin-01"], ["int4", "topics"], ["distilled"])
    assert [(i.truth, i.kind) for i in found if i.truth == "related"] == [("related", "int4"), ("related", "topics")]
    kinds = {*TRAINED_KINDS, *(edit.key for edit in edits_for(8))}
    assert kinds == set(expected_relations())
    assert {name for names in expected_relations().values() for name in names} <= set(ORDER)


def test_p_values_of_independent_random_models():
    """A few pairs; the study runs 500."""
    rows = {str(i): {"key": str(i), **lineage_null.measure_null(str(i))} for i in range(8)}
    for _, test, n, share in lineage_null.shares(rows):
        assert n <= 8
        if test.startswith("exact"):
            assert share <= 0.5
    exact = [p for row in rows.values() for tests in row["tests"].values() for t, p in tests.items() if "exact" in t]
    assert len(exact) == 8
    assert np.mean(exact) > 0.2
