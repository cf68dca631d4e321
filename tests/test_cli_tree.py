"""`whorl tree` from real folders: the public function, the command, its files, and bad input."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import whorl
from llama_folder import config, folder, tensors
from whorl.cli.main import app
from whorl.errors import InputRefused, UsageError
from whorl.reports.stored import checked, read_result
from whorl.testing import write_model_folder

RUN = CliRunner()


def tuned(found, seed, share=0.3):
    rng = np.random.default_rng(seed)
    return {
        n: x if x.ndim < 2 else (x + share * x.std() * rng.standard_normal(x.shape)).astype(x.dtype)
        for n, x in found.items()
    }


@pytest.fixture(scope="module")
def kin(tmp_path_factory):
    """A base, two children, their even merge, and a byte-identical copy of the base, by exact shared embeddings."""
    path = tmp_path_factory.mktemp("kin")
    base = tensors(1)
    one, two = tuned(base, 2), tuned(base, 3)
    soup = {n: (one[n].astype(np.float64) + two[n]) / 2 for n in base}
    made = {"base": base, "one": one, "two": two, "soup": soup, "copy": base}
    for found in made.values():
        # One frozen matrix, as partly frozen fine-tunings leave it: an exact relation, which needs no calibration.
        name = "model.layers.0.self_attn.q_proj.weight"
        found[name] = base[name]
    for name, found in made.items():
        write_model_folder(path / name, {n: x.astype(np.float32) for n, x in found.items()}, config())
    return [str(path / name) for name in made]


@pytest.fixture(scope="module")
def found(kin):
    return whorl.tree(kin, ["head-spectra"], draws=20, offline=True)


def test_the_tree_of_a_family(found):
    edges = {(e.parent, e.child) for e in found.graph.edges}
    assert edges == {("base", "one"), ("base", "two"), ("one", "soup"), ("two", "soup")}
    assert found.graph.nodes[0].copies == ("copy",)
    assert found.graph.roots == ("base",)
    assert [round(e.share, 3) for e in found.graph.parents("soup")] == [0.5, 0.5]


def test_every_pair_is_reported(found):
    assert len(found.pairs) == 10
    assert all(p.related for p in found.pairs)
    assert {p.measured for p in found.pairs} == {"stored"}


def test_files_by_ending(found, tmp_path):
    data = json.loads(found.save(tmp_path / "t.json").read_text())
    assert data == json.loads(json.dumps(found.to_dict()))
    assert found.save(tmp_path / "t.svg").read_text().startswith("<svg")
    assert found.save(tmp_path / "t.nwk").read_text().endswith("'parent not in the set';\n")
    page = found.save(tmp_path / "t.html").read_text()
    assert 'class="whorl-tree"' in page
    assert "Lineage of 5 models" in page
    with pytest.raises(UsageError, match=r"\.json, \.svg, \.nwk, \.html"):
        found.save(tmp_path / "t.pdf")
    assert "<svg" in found._repr_html_()
    assert "5 models" in repr(found)


def test_a_saved_tree_gives_the_same_page(found, tmp_path):
    direct = whorl.report([found], tmp_path / "a.html").read_bytes()
    again = whorl.report([found.save(tmp_path / "t.json")], tmp_path / "b.html").read_bytes()
    assert direct == again


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["edges"][0].update(parent="elsewhere"), "not in the tree"),
        (lambda d: d["edges"][0].update(parent=d["edges"][0]["child"]), "circle"),
        (lambda d: d["nodes"].append({"name": "ghost", "copies": []}), "not the models"),
        (lambda d: d["edges"][0].update(support=2.0), "less than or equal to 1"),
        (lambda d: d.update(extra=1), "extra"),
        (lambda d: d["edges"].append(d["edges"][0]), "first parent"),
    ],
)
def test_a_crafted_result_is_refused(found, tmp_path, change, message):
    data = json.loads(json.dumps(found.to_dict()))
    change(data)
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(data))
    with pytest.raises(InputRefused, match=message):
        checked(read_result(path), "bad.json")


def test_command_writes_and_answers_with_its_exit_code(kin, tmp_path):
    out = tmp_path / "t.svg"
    done = RUN.invoke(app, ["tree", *kin, "--method", "head-spectra", "--out", str(out)])
    assert done.exit_code in {0, 4}, done.output
    assert "base = copy" in done.stdout
    assert "merged: 0.50 one + 0.50 two" in done.stdout
    assert "parent not in the set" in done.stdout
    assert out.exists()


def test_json_is_one_object(kin):
    done = RUN.invoke(app, ["tree", *kin[:2], "--method", "head-spectra", "--json"])
    data = json.loads(done.stdout)
    assert data["kind"] == "tree"
    assert done.exit_code == 4  # two models: the direction is open
    assert data["edges"][0]["basis"] in {"prior", "none"}


def test_a_bad_ending_is_refused_before_anything_is_read():
    done = RUN.invoke(app, ["tree", "./nowhere", "./nothing", "--out", "t.pdf"])
    assert done.exit_code == 2


def test_different_widths_depths_and_vocabularies_are_listed_not_zero(kin, tmp_path):
    others = {
        "wide": {"hidden_size": 64, "head_dim": 16},
        "deep": {"num_hidden_layers": 10},
        "words": {"vocab_size": 96},
    }
    paths = [folder(tmp_path / name, seed=7 + i, **changes) for i, (name, changes) in enumerate(others.items())]
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    found = whorl.tree([kin[0], kin[1], *paths, str(broken)], ["head-spectra"], draws=5, offline=True)
    assert [s.name for s in found.skipped] == ["broken"]
    assert {(e.parent, e.child) for e in found.graph.edges} in [{("base", "one")}, {("one", "base")}]
    open_pairs = [p for p in found.pairs if p.related is None]
    assert len(open_pairs) == 9
    assert all(p.distance is None and p.why for p in open_pairs)
    assert len(found.graph.undecided) == 9
    assert found.to_dict()["status"] == "partial"


def test_one_model_or_a_bad_rate_is_a_usage_error(kin):
    with pytest.raises(UsageError, match="at least two"):
        whorl.tree(kin[:1])
    with pytest.raises(UsageError, match="fdr"):
        whorl.tree(kin[:2], fdr=0)
    with pytest.raises(UsageError, match="alpha"):
        whorl.tree(kin[:2], alpha=0.5)
