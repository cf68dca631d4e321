"""The conformance suite: every registered method, built in or plugged in, passes all of it."""

import copy
import dataclasses
import inspect
import json
import re
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

import llama_folder
import whorl
import whorl.testing
from whorl import registry
from whorl._readers.open import open_model
from whorl.canonical.model import CanonicalModel
from whorl.comparison import ALPHA, judge
from whorl.errors import InputRefused, MalformedFile, UsageError
from whorl.fingerprints import Fingerprint
from whorl.lineage.exact import ExactFinding
from whorl.weights.method import WeightMethod
from whorl.weights.part_statistics import PartStatistics
from whorl.weights.std_vector import StdVector

NAMES = whorl.method_names()
WEIGHT_NAMES = tuple(m.name for m in registry.weight_methods(None))
NOT_EXACT = ExactFinding(None, "not looked at")
PAPERS = Path(__file__).parents[1] / "docs" / "papers.md"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return [llama_folder.folder(root / f"seed-{seed}", seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def prints(models):
    return [whorl.fingerprint(m) for m in models]


@pytest.mark.parametrize("name", NAMES)
def test_canonical_name_rebuilds_the_method(name):
    method = registry.method(name)
    assert registry.method(method.canonical_name) == method
    assert copy.deepcopy(method) == method
    assert repr(method).startswith(type(method).__name__ + "(")


@pytest.mark.parametrize("name", NAMES)
def test_documented_defaults_match_the_signature(name):
    kind = type(registry.method(name))
    for parameter in inspect.signature(kind).parameters.values():
        assert parameter.default is not inspect.Parameter.empty
        assert f"{parameter.name}:" in kind.__doc__, f"{parameter.name} is not documented"


@pytest.mark.parametrize("name", WEIGHT_NAMES)
def test_same_model_same_bytes(name, models, prints):
    again = whorl.fingerprint(models[0], [name])
    key = registry.method(name).canonical_name
    for array, values in prints[0].methods[key].items():
        assert values.tobytes() == again.methods[key][array].tobytes()


@pytest.mark.parametrize("name", WEIGHT_NAMES)
def test_sublayers_are_left_unchanged(name, models):
    with open_model(models[0]) as opened:
        for part in list(CanonicalModel(opened.source).parts())[:2]:
            before = {role: array.copy() for role, array in part.raw.items()}
            registry.method(name).observe(PartStatistics(part, 1.0))
            for role, array in part.raw.items():
                np.testing.assert_array_equal(array, before[role])


@pytest.mark.parametrize("name", WEIGHT_NAMES)
def test_a_model_against_itself_is_at_the_same_end(name, prints):
    method = registry.method(name)
    values = prints[0].methods[method.canonical_name]
    shapes = (prints[0].shape, prints[0].shape)
    expected = 1.0 if method.direction == "similarity" else 0.0
    assert method.compare(values, values, shapes).value == pytest.approx(expected)


@pytest.mark.parametrize("name", WEIGHT_NAMES)
def test_order_of_the_pair_does_not_matter(name, prints):
    method = registry.method(name)
    a, b = (p.methods[method.canonical_name] for p in prints)
    there = method.compare(a, b, (prints[0].shape, prints[1].shape)).value
    back = method.compare(b, a, (prints[1].shape, prints[0].shape)).value
    assert there == pytest.approx(back, abs=1e-12)


@pytest.mark.parametrize("name", WEIGHT_NAMES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite_is_never_a_score(name, bad, prints):
    """Values that are not finite cannot come from a file; should a bug make them, no method may score them."""
    method = registry.method(name)
    spoiled = {k: np.full_like(v, bad) for k, v in prints[0].methods[method.canonical_name].items()}
    broken = dataclasses.replace(prints[0], methods={method.canonical_name: spoiled})
    result = judge(broken, prints[1], [method], NOT_EXACT)
    assert not result.evidence[0].comparable
    assert result.evidence[0].value is None
    assert result.verdict == "undecided"


@pytest.mark.parametrize("name", WEIGHT_NAMES)
def test_constant_weights_are_degenerate(name, tmp_path, prints):
    flat = {k: np.zeros_like(v) if ".layers." in k else v for k, v in llama_folder.tensors(0).items()}
    folder = whorl.testing.write_model_folder(tmp_path / "flat", flat, llama_folder.CONFIG)
    result = whorl.compare(whorl.fingerprint(str(folder), [name]), prints[0], [name])
    assert not result.evidence[0].comparable
    assert "degenerate" in result.evidence[0].why


@pytest.fixture(scope="module")
def with_identity_block(tmp_path_factory):
    """The first model with a layer that writes nothing, as depth up-scaling inserts them."""
    tensors = llama_folder.tensors(0)
    for writer in ("self_attn.o_proj", "mlp.down_proj"):
        tensors[f"model.layers.3.{writer}.weight"][:] = 0
    folder = tmp_path_factory.mktemp("identity") / "m"
    return str(whorl.testing.write_model_folder(folder, tensors, llama_folder.CONFIG))


@pytest.mark.parametrize("name", WEIGHT_NAMES)
def test_an_identity_block_is_no_obstacle(name, with_identity_block, prints, tmp_path):
    found = Fingerprint.load(whorl.fingerprint(with_identity_block, [name]).save(tmp_path / "print.json"))
    method = registry.method(name)
    for one, other in ((found, prints[0]), (prints[0], found), (found, found)):
        evidence = judge(one, other, [method], NOT_EXACT).evidence[0]
        assert evidence.comparable, evidence.why
        assert np.isfinite(evidence.value)
        assert name != "head-spectra" or evidence.value > 0.9


@pytest.mark.parametrize("name", WEIGHT_NAMES)
def test_round_trip_of_stored_values(name, prints):
    again = Fingerprint.from_dict(json.loads(json.dumps(prints[0].to_dict())))
    assert again.to_dict() == prints[0].to_dict()
    result = judge(again, prints[1], [registry.method(name)], NOT_EXACT)
    assert result.evidence == judge(prints[0], prints[1], [registry.method(name)], NOT_EXACT).evidence


@pytest.mark.parametrize("name", NAMES)
def test_paper_index_has_an_entry(name):
    assert f"\n## {name}:" in PAPERS.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", WEIGHT_NAMES)
def test_uncalibrated_models_are_never_called_related(name, prints):
    result = judge(prints[0], prints[1], [registry.method(name)], NOT_EXACT)
    assert result.evidence[0].comparable
    assert result.evidence[0].p_value is None
    assert result.evidence[0].place is None
    assert "no calibration covers these two models" in result.why
    assert result.verdict == "undecided"
    assert ALPHA == 0.01


class Plugged(StdVector):
    """A method from another package.

    Args:
        form: As in StdVector.
        measure: As in StdVector.
        normalise: As in StdVector.
    """

    name = "plugged"


def test_plugins_are_found_through_entry_points(monkeypatch):
    point = EntryPoint("plugged", "test_methods:Plugged", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == registry.GROUP else [])
    assert registry.method_names()[-1] == "plugged"
    assert isinstance(registry.method("plugged"), WeightMethod)


def test_a_plugin_of_the_wrong_kind_is_named(monkeypatch):
    point = EntryPoint("wrong", "json:dumps", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    with pytest.raises(UsageError, match="Plugin 'wrong' is not a WeightMethod or PairMethod of that name"):
        registry.method("wrong")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("std-vectr", "Unknown method 'std-vectr'. Did you mean 'std-vector'?"),
        ("std-vector@7", "Method 'std-vector' is at version 1 here, not 7."),
        ("std-vector(shape=round)", "has no parameter 'shape'; it has: form, measure, normalise."),
        ("clustering-vector(rank=many)", "Parameter 'rank' of method 'clustering-vector' is a int, not 'many'."),
        ("clustering-vector(joint=perhaps)", "is True or False, not 'perhaps'."),
        ("../evil", "is not a method name"),
    ],
)
def test_bad_method_names(text, message):
    with pytest.raises(UsageError) as error:
        registry.method(text)
    assert message in str(error.value)


def test_no_method_at_all():
    with pytest.raises(UsageError, match="No method chosen"):
        registry.resolve([])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema=99), "schema 99; expected schema 1"),
        (lambda d: d.update(extra=1), "field 'extra'"),
        (lambda d: d.pop("tensors"), "field 'tensors'"),
        (lambda d: d["tensors"][0].update(sha256="0" * 64), "digest does not fit"),
        (lambda d: d["tensors"].append(d["tensors"][0]), "one tensor name twice"),
        (lambda d: d["shape"].update(colour="red"), "unknown field 'shape.colour'"),
        (lambda d: d["shape"].update(d_model="32"), "field 'shape.d_model'"),
        (lambda d: d["shape"].update(n_layers=2.5), "field 'shape.n_layers'"),
        (lambda d: d["shape"].update(n_heads=-4), "field 'shape.n_heads' is -4"),
        (lambda d: d["shape"].pop("gated"), "field 'shape.gated'"),
        (lambda d: d.update(commit="main"), "field 'commit'"),
        (lambda d: d.update(resolved="a\x1b[2J"), "field 'resolved': Value error, control characters"),
        (lambda d: d["notes"].append("a\u202eb"), "control characters"),
        (lambda d: d["methods"].update({"nothing@1()": {}}), "Unknown method 'nothing'"),
        (lambda d: d["methods"].update({"std-vector": {}}), "method name 'std-vector'"),
        (lambda d: next(iter(next(iter(d["methods"].values())).values())).update(shape=[3, 3]), "values; expected 9"),
        (
            lambda d: next(iter(next(iter(d["methods"].values())).values()))["values"].__setitem__(0, float("nan")),
            "field",
        ),
    ],
)
def test_tampered_fingerprints_are_refused(change, message, prints):
    data = copy.deepcopy(prints[0].to_dict())
    change(data)
    with pytest.raises(InputRefused) as error:
        Fingerprint.from_dict(data, "x.json")
    assert message in str(error.value)


ONE = {"shape": [1], "values": [0.5]}


@pytest.mark.parametrize("name", WEIGHT_NAMES)
@pytest.mark.parametrize(
    "change", [lambda d: d.popitem(), lambda d: d.update(more=ONE), lambda d: d.update({min(d): ONE})]
)
def test_arrays_of_another_method_or_model_are_refused(name, change, prints):
    key = registry.method(name).canonical_name
    data = copy.deepcopy(prints[0].to_dict())
    optional = {part for part in data["methods"][key] if part.startswith("invariant.")}
    data["methods"][key] = {part: array for part, array in data["methods"][key].items() if part not in optional}
    assert Fingerprint.from_dict(data, "x.json").methods[key]
    change(data["methods"][key])
    with pytest.raises(MalformedFile, match=rf"{re.escape(key)}: (no|an unknown)?.*expected the arrays of this method"):
        Fingerprint.from_dict(data, "x.json")


def test_an_all_zero_matrix_leaves_only_finite_numbers(tmp_path, prints):
    tensors = llama_folder.tensors(0)
    tensors["model.layers.0.self_attn.q_proj.weight"][:] = 0
    folder = whorl.testing.write_model_folder(tmp_path / "m", tensors, llama_folder.config())
    found = whorl.fingerprint(str(folder), ["std-curves(form=invariant)"])
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["methods"]
    (method,) = found.methods
    assert "invariant.qk" not in found.methods[method]
    whole = whorl.fingerprint(prints[0].resolved, [method])
    assert "degenerate" in judge(found, whole, registry.resolve([method]), NOT_EXACT).evidence[0].why
