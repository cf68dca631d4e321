"""Surveys: all pairs, tables, trees, skipped models, and the command lines that show them."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import llama_folder
import whorl
from whorl.demo import run_demo
from whorl.errors import UsageError
from whorl.lab.truth import Member, Truth, truth_to_json
from whorl.reports.lineages import Lineage
from whorl.reports.text import matrix_lines
from whorl.surveys import survey, tree
from whorl.testing import write_model_folder

METHODS = ("std-vector", "head-spectra")
SHORT = {"num_hidden_layers": 3}  # head-spectra needs four layers


def whorl_command(*arguments):
    code = [sys.executable, "-c", "from whorl.cli.main import run; run()"]
    env = os.environ | {"NO_COLOR": "1", "COLUMNS": "140"}
    return subprocess.run([*code, *map(str, arguments)], capture_output=True, text=True, env=env, check=False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("family")
    base = llama_folder.tensors(0)
    rng = np.random.default_rng(5)
    tuned = {n: a + 0.1 * a.std() * rng.standard_normal(a.shape).astype(a.dtype) for n, a in base.items()}
    write_model_folder(root / "base", base, llama_folder.config())
    write_model_folder(root / "copy", base, llama_folder.config())
    write_model_folder(root / "tuned", tuned, llama_folder.config())
    llama_folder.folder(root / "stranger", 1)
    llama_folder.folder(root / "short", 2, **SHORT)
    return {name: str(root / name) for name in ("base", "copy", "tuned", "stranger", "short")}


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    path = Path(llama_folder.folder(tmp_path_factory.mktemp("broken") / "broken", 3))
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return str(path)


@pytest.fixture(scope="module")
def found(folders):
    return survey(folders, METHODS)


def test_each_model_is_read_once(folders):
    starts = []
    survey(folders, METHODS, progress=lambda what, done, _: starts.append(what) if done == 0 else None)
    assert [Path(s).name for s in starts] == [*folders, "pairs"]


def test_values_are_those_of_compare(found, folders):
    single = whorl.compare(folders["base"], folders["tuned"], METHODS)
    i, j = found.names.index("base"), found.names.index("tuned")
    assert [t.values[i][j] for t in found.tables] == [e.value for e in single.evidence]
    assert found.pair("tuned", "base").to_dict() == single.to_dict()


def test_tables_are_symmetric_and_leave_the_diagonal_empty(found):
    for table in found.tables:
        n = len(found.names)
        assert all(table.values[i][j] == table.values[j][i] for i in range(n) for j in range(n))
        assert all(table.values[i][i] is None for i in range(n))


def test_every_pair_is_found_under_its_names(found):
    n = len(found.names)
    assert len(found.comparisons) == n * (n - 1) // 2
    for a in found.names:
        for b in found.names:
            if a != b:
                pair = found.pair(a, b)
                assert {Path(pair.a.typed).name, Path(pair.b.typed).name} == {a, b}


def test_not_comparable_is_none_with_a_reason_and_left_out_of_the_tree(found):
    table = found.tables[1]
    at = found.names.index("short")
    assert all(table.values[at][j] is None for j in range(len(found.names)))
    assert table.tree.left_out == ("short",)
    assert sorted(table.tree.leaves) == ["base", "copy", "stranger", "tuned"]
    reasons = [p["not_comparable"] for p in found.to_dict()["pairs"] if at in (p["a"], p["b"])]
    assert all("layers" in r[table.method] for r in reasons)
    assert found.tables[0].tree.left_out == ()


def test_copies_are_found_by_their_bytes_and_kin_before_strangers(found):
    assert found.pair("base", "copy").relation == "identical"
    assert found.pair("base", "stranger").verdict == "undecided"
    for table in found.tables:
        base, tuned, stranger = (found.names.index(n) for n in ("base", "tuned", "stranger"))
        assert table.values[base][tuned] > table.values[base][stranger]


def test_the_same_values_stored_as_half_precision_are_identical(folders, tmp_path):
    half = {n: a.astype(np.float16) for n, a in llama_folder.tensors(0).items()}
    write_model_folder(tmp_path / "half", half, llama_folder.config())
    result = survey({"base": folders["base"], "half": str(tmp_path / "half")}, ["std-vector"])
    assert result.pair("base", "half").relation == "identical"


def test_a_refused_model_does_not_stop_the_others(folders, broken):
    result = survey({"bad": broken, "a": folders["base"], "b": folders["stranger"]}, ["std-vector"])
    assert result.names == ("a", "b")
    assert [(s.name, s.kind) for s in result.skipped] == [("bad", "MalformedFile")]
    assert result.skipped[0].why.startswith("Refused ")
    assert result.to_dict()["status"] == "partial"


def test_stored_fingerprints_give_the_same_tables(found, tmp_path):
    files = [f.save(tmp_path / f"{n}.json") for n, f in zip(found.names, found.fingerprints, strict=True)]
    again = survey([str(f) for f in files])
    assert again.names == found.names
    tables = {t.method: t for t in again.tables}
    assert all(tables[t.method].values == t.values for t in found.tables)
    assert "holds no weights" in again.pair("base", "stranger").skipped[0]


@pytest.mark.parametrize(
    ("refs", "message"),
    [
        ([], "at least two"),
        (["./one"], "at least two"),
        ("./one", "not one text"),
        (["./a/m", "./a/m"], "'./a/m' is given twice"),
    ],
)
def test_wrong_lists_are_usage_errors(refs, message):
    with pytest.raises(UsageError, match=message):
        survey(refs, ["std-vector"])


def test_unknown_names_and_self_pairs_are_usage_errors(found):
    with pytest.raises(UsageError, match="No model 'nobody'"):
        found.pair("base", "nobody")
    with pytest.raises(UsageError, match="with itself"):
        found.pair("base", "base")
    with pytest.raises(UsageError, match=r"at most 0\.05"):
        survey(["./a", "./b"], alpha=0.7)


def test_equal_last_parts_get_their_whole_reference(folders, tmp_path):
    other = llama_folder.folder(tmp_path / "base", 4)
    result = survey([folders["base"], other, folders["copy"]], ["std-vector"])
    assert result.names == (folders["base"], other, "copy")


def test_average_linkage_of_a_known_table():
    values = ((None, 0.9, 0.2), (0.9, None, 0.4), (0.2, 0.4, None))
    found = tree(("a", "b", "c"), values, "similarity")
    assert found.leaves in {("a", "b", "c"), ("c", "b", "a"), ("c", "a", "b"), ("b", "a", "c")}
    (left, right, low), (_, _, high) = found.merges
    assert {found.leaves[left], found.leaves[right]} == {"a", "b"}
    assert (low, high) == pytest.approx((0.1, 0.7))  # mean of 0.8 and 0.6
    distances = tuple(tuple(None if v is None else 1 - v for v in row) for row in values)
    assert tree(("a", "b", "c"), distances, "distance").merges[1][2] == pytest.approx(0.7)


def test_similarities_above_one_by_rounding_give_height_zero():
    values = ((None, 1 + 1e-12), (1 + 1e-12, None))
    assert tree(("a", "b"), values, "similarity").merges == ((0, 1, 0.0),)


def test_a_table_without_comparable_pairs_has_no_tree():
    assert tree(("a", "b"), ((None, None), (None, None)), "similarity") is None


def test_json_is_finite_and_html_escapes_names(found):
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert json.loads(text)["pairs"][0]["relation"] == "identical"
    hostile = dataclasses.replace(found, names=("<script>", *found.names[1:]))
    assert "<script>" not in hostile._repr_html_()
    assert "&lt;script&gt;" in hostile._repr_html_()


def test_matrix_lines_write_gaps_ones_and_never_round_up():
    values = ((None, 1.0, 0.99996), (1.0, None, None), (0.99996, None, None))
    lines = matrix_lines(values, ("a", "b\x1b[31m", "c"), {"a": Lineage("x"), "c": Lineage("x")}, 60)
    assert [line.split() for line in lines] == [
        ["1", "2"],
        ["1", "A", "a"],
        ["2", "A", "c", "999"],
        ["3", "b\\x1b[31m", "=", "n/c"],
    ]
    assert matrix_lines(((None, -0.25), (-0.25, None)), ("a", "b"), {}, 60)[2].split() == ["2", "b", "-25"]


def test_lines_fit_a_narrow_terminal():
    names = tuple(f"a-rather-long-name-of-a-model-{i}" for i in range(20))
    values = tuple(tuple(None if i == j else 0.5 for j in range(20)) for i in range(20))
    assert max(map(len, matrix_lines(values, names, {}, 100))) <= 100


def test_command_line_survey_writes_json_and_page(folders, tmp_path):
    out, page = tmp_path / "s.json", tmp_path / "s.html"
    arguments = ["--method", "std-vector", "--out", out, "--page", page]
    done = whorl_command("survey", folders["base"], folders["copy"], folders["stranger"], *arguments)
    assert done.returncode == 0, done.stderr
    assert "1 of 3 pairs have a verdict, 2 are undecided." in done.stdout
    assert done.stdout.splitlines()[-1] == f"written: {page}"
    assert json.loads(out.read_text())["kind"] == "survey"


def test_command_line_survey_with_a_refused_model_ends_in_4(folders, broken):
    done = whorl_command("survey", folders["base"], folders["stranger"], broken, "--method", "std-vector", "--json")
    assert done.returncode == 4
    assert json.loads(done.stdout)["skipped"][0]["kind"] == "MalformedFile"
    assert "skipped broken: Refused" in done.stderr


@pytest.fixture(scope="module")
def zoo(folders, tmp_path_factory):
    """A family like the shipped one, of the models of this file."""
    root = tmp_path_factory.mktemp("zoo")
    plans = [("base", "pretrained", (), "base"), ("stranger", "pretrained", (), "stranger")]
    plans += [("tuned", "fine-tuned", ("base",), "base"), ("copy", "re-laid-out", ("base",), "base")]
    members = []
    for name, kind, parents, group in plans:
        (root / name).symlink_to(folders[name])
        members.append(Member(name, kind, parents, group, {}, {}, None, 1, {}))
    (root / "truth.json").write_text(truth_to_json(Truth(tuple(members))))
    return root


def test_demo_writes_everything_and_tells_the_story(zoo, tmp_path):
    made = run_demo(tmp_path / "out", zoo=zoo)
    names = {str(f.relative_to(tmp_path / "out")) for f in made.files}
    pairs = {"base_copy", "base_tuned", "base_stranger"}
    wanted = {f"fingerprints/{n}.json" for n in made.survey.names} | {f"comparisons/{p}.json" for p in pairs}
    wanted |= {"identifications/tuned.json", "gallery.sqlite", "tree.json", "tree.svg", "tree.nwk"}
    assert names == wanted | {"survey.json", "report.html"}
    assert made.files[-1].name == "report.html"
    assert {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()} == names
    assert [(e.a, e.b) for e in made.examples] == [("base", "copy"), ("base", "tuned"), ("base", "stranger")]
    assert made.examples[0].comparison.verdict == "related"
    assert made.examples[2].comparison.verdict != "related"
    assert [(q.name, len(q.answer.candidates)) for q in made.queries] == [("tuned", 2)]
    assert {n.name for n in made.tree.graph.nodes} | {c for n in made.tree.graph.nodes for c in n.copies} == {
        "base", "tuned", "copy",
    }  # fmt: skip
    text = made.files[-1].read_text(encoding="utf-8")
    assert text.index("base | ") < text.index("among 2 known models") < text.index("Lineage of") < text.index("6 pairs")


@pytest.mark.slow
def test_the_demo_writes_the_same_page_twice(zoo, tmp_path):
    pages = [run_demo(tmp_path / name, zoo=zoo).files[-1].read_bytes() for name in ("one", "two")]
    assert pages[0] == pages[1]


def test_demo_without_models_says_so(tmp_path):
    with pytest.raises(UsageError, match="no example models"):
        run_demo(tmp_path / "out", zoo=tmp_path / "nothing")


@pytest.mark.slow
def test_demo_of_the_shipped_models_prints_the_report_last(tmp_path):
    done = whorl_command("demo", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"Report: {tmp_path / 'report.html'}"
    assert max(map(len, done.stdout.splitlines())) <= 140
    assert "base-0 | base-0-disguised (disguised, made from base-0)" in done.stdout
    assert "base-0 | base-2 (strangers: one config, two seeds)" in done.stdout
    assert "found: base-0; pruned" in done.stdout
    assert "\n     base-0-topics  (fine-tuned" in done.stdout
    quiet = whorl_command("demo", "--out", tmp_path, "--quiet")
    assert quiet.stdout == f"{tmp_path / 'report.html'}\n"


def test_demo_and_report_load_no_torch():
    code = "import sys, whorl.demo, whorl.lab.zoo, whorl.reports.pages; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
