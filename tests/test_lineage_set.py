"""The derivatives of a lineage: all there, with their records, fast, and made without torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from whorl._readers.folder import open_local
from whorl.canonical import CanonicalModel
from whorl.errors import UsageError
from whorl.lab.lineage_plans import (
    DERIVED_EVERY,
    GPT2,
    calibration_plans,
    distilled_plans,
    gpt2_plans,
    held_out_plans,
)
from whorl.lab.lineage_set import EDIT_KINDS, edits_for, edits_of, single_edits
from whorl.lab.truth import read_record
from whorl.lab.zoo import PLANS, _check_same_plan, zoo_folder

ROOT = Path(__file__).parents[1]
STUDY = ROOT / "runs" / "lineage"


@pytest.fixture(scope="module")
def family():
    folder = zoo_folder()
    if not (folder / "base-0").is_dir():
        pytest.skip("the example family is not in this checkout")
    return folder


@pytest.fixture(scope="module")
def edits(family, tmp_path_factory):
    out = tmp_path_factory.mktemp("edits")
    names = {
        "tuned": "base-0-topics",
        "other": "base-0-code",
        "long": "base-0-topics-code",
        "lora": "base-0-topics-code",
    }
    children = {key: family / name for key, name in names.items()}
    return (family / "base-0", children), out, edits_of(family / "base-0", out, 5, children)


def shape_of(folder):
    weights = next(folder.glob("*.gguf"), folder)
    source = open_local(weights)
    try:
        return CanonicalModel(source).shape
    finally:
        source.close()


def test_every_derivative_reads_back_and_has_a_record(edits):
    (root, children), out, found = edits
    assert list(found) == [edit.key for edit in edits_for(8)]
    names = {root.name, *(child.name for child in children.values())} | {folder.name for folder in found.values()}
    for key, folder in found.items():
        assert folder == out / f"base-0-{key}"
        record = read_record(folder)
        assert record.parents
        assert set(record.parents) <= names
    shapes = {key: shape_of(folder) for key, folder in found.items()}
    assert shapes["width-pruned"].d_model == 48
    assert shapes["heads-pruned"].n_heads == 2
    assert shapes["neurons-pruned"].d_mlp == 72
    depths = {"dropped": 7, "duplicated": 10, "inserted": 10, "tuned-dropped": 7, "long-dropped": 7}
    assert {key: shape.n_layers for key, shape in shapes.items() if shape.n_layers != 8} == depths
    assert "token" in (found["disguised"] / "tokenizer.json").read_text("utf-8")
    assert "endoftext" not in (found["disguised-renamed"] / "tokenizer.json").read_text("utf-8")


def test_finished_folders_are_kept_and_another_seed_is_refused(edits):
    (root, children), out, found = edits
    stamps = {key: (folder / "whorl_truth.json").stat().st_mtime_ns for key, folder in found.items()}
    assert edits_of(root, out, 5, children) == found
    assert {k: (f / "whorl_truth.json").stat().st_mtime_ns for k, f in found.items()} == stamps
    with pytest.raises(UsageError, match="'base-0-disguised' was made with another seed"):
        edits_of(root, out, 6, children)
    with pytest.raises(UsageError, match="'base-0-merged' was made with another parents"):
        edits_of(root, out, 5, children | {"tuned": children["other"], "other": children["tuned"]})


def test_what_is_made_from_missing_children_is_left_out(family, tmp_path):
    found = edits_of(family / "base-0", tmp_path, 5, only=("int4", "merged", "dropped"))
    assert list(found) == ["int4", "dropped"]


def test_each_edit_by_itself(family, tmp_path):
    found = single_edits(family / "base-0-topics", "base-0", tmp_path, 3)
    assert list(found) == list(EDIT_KINDS)
    weights = {(folder / "model.safetensors").read_bytes() for folder in found.values()}
    assert len(weights) == len(EDIT_KINDS) - 1  # V1 and V2 permute alike and differ in the tokenizer
    for kind, folder in found.items():
        parameters = read_record(folder).parameters
        expected = {"V2": ["V1"], "L1": None}.get(kind, [kind])
        assert parameters.get("edits") == expected
        assert parameters.get("skipped", {}) == {}
    assert single_edits(family / "base-0-topics", "base-0", tmp_path, 3) == found
    with pytest.raises(UsageError, match="'base-0-edit-R1' was made with another parents"):
        single_edits(family / "base-0-code", "base-0", tmp_path, 3)


def test_the_set_needs_no_torch():
    code = "import sys, whorl.lab.lineage_set\nprint(*{'torch', 'transformers', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# Plans


def test_members_from_before_there_were_families_count_as_made_by_the_same_plan(family):
    for plan in PLANS:
        _check_same_plan(plan, family / plan.name)


@pytest.mark.parametrize(("part", "plans"), [("cal", calibration_plans()), ("test", held_out_plans())])
def test_what_the_study_has_trained_counts_as_made_by_its_plans(part, plans):
    there = [plan for plan in plans if (STUDY / part / plan.name / "whorl_truth.json").is_file()]
    if not there:
        pytest.skip("the study is not on this machine")
    for plan in there:
        _check_same_plan(plan, STUDY / part / plan.name)


def test_another_family_is_another_plan(family):
    root = PLANS[0]
    changed = {**root.settings, "size": {**root.settings["size"], "family": "llama"}}
    _check_same_plan(type(root)(root.name, root.kind, (), changed), family / root.name)
    with pytest.raises(UsageError, match="another size"):
        _check_same_plan(type(root)(root.name, root.kind, (), {**changed, "size": GPT2.facts()}), family / root.name)


def test_plans_share_no_names_and_no_seeds():
    plans = [*calibration_plans(), *held_out_plans(), *gpt2_plans(40), *distilled_plans()]
    assert len({plan.name for plan in plans}) == len(plans)
    fresh = [plan for plan in plans if not plan.parents and not plan.name.endswith("-init")]
    assert len({plan.settings["init_seed"] for plan in fresh}) == len(fresh)
    data = [plan.settings["data_seed"] for plan in plans if plan.kind != "adapter"]
    assert len(set(data)) == len(data)
    json.dumps([dict(plan.settings) for plan in plans])


def test_the_second_architecture_has_a_child_for_every_13th_root():
    plans = gpt2_plans(14)
    assert [plan.name for plan in plans if plan.parents] == ["gpt-000-topics", "gpt-013-topics"]
    assert len(plans) == 14 + len(range(0, 14, DERIVED_EVERY))
    assert plans[0].settings["size"]["family"] == "gpt2"
    assert "family" not in calibration_plans()[0].settings["size"]
