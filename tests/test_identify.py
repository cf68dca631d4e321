"""`identify`: ranks, corrects over the whole gallery, and says "none of these" only when it may."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

import llama_folder
import whorl
from whorl.calibration import Calibration, Condition, Derived, Scores
from whorl.errors import UsageError
from whorl.gallery import Gallery
from whorl.identification import identify
from whorl.multiple import benjamini_yekutieli, first_threshold, harmonic
from whorl.testing import write_model_folder

SPECTRA = "head-spectra@1()"
ONE = ["head-spectra"]

P_VALUES = st.lists(st.floats(1e-12, 1.0), min_size=1, max_size=30)


@given(P_VALUES)
def test_benjamini_yekutieli_is_that_of_scipy(p):
    assert benjamini_yekutieli(p, len(p)) == pytest.approx(false_discovery_control(p, method="by"), rel=1e-12)


@given(P_VALUES, st.integers(0, 50))
def test_tests_without_a_p_value_count_as_one(p, more):
    full = false_discovery_control([*p, *[1.0] * more], method="by")[: len(p)]
    assert benjamini_yekutieli(p, len(p) + more) == pytest.approx(full, rel=1e-12)


def test_the_example_of_the_specification():
    assert harmonic(150) == pytest.approx(5.59, abs=0.005)
    assert first_threshold(150, 0.05) == pytest.approx(6.0e-5, rel=0.01)
    assert benjamini_yekutieli([first_threshold(150, 0.05)], 150)[0] == pytest.approx(0.05)


@pytest.mark.parametrize("p", [[0.0], [float("nan")], [1.1], [0.5, 0.5]])
def test_what_is_no_p_value_is_a_bug(p):
    with pytest.raises(ValueError, match="p-values lie in"):
        benjamini_yekutieli(p, 1)


def test_false_discoveries_are_kept_under_dependence():
    rng = np.random.default_rng(0)
    false = []
    for _ in range(400):
        common = rng.standard_normal()
        p = np.clip(2 * (1 - _phi(np.abs((common + rng.standard_normal(20)) / np.sqrt(2)))), 1e-12, 1.0)
        chosen = np.sort(p)[:3]  # a shortlist chosen by looking at the data
        false.append(bool((benjamini_yekutieli(chosen.tolist(), 20) <= 0.05).any()))
    assert np.mean(false) <= 0.05


def _phi(x):
    from scipy.stats import norm

    return norm.cdf(x)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("identify")
    found = {f"m{seed}": llama_folder.folder(root / f"m{seed}", seed) for seed in range(4)}
    rng = np.random.default_rng(9)
    tuned = {
        k: v + (1e-3 * v.std() * rng.standard_normal(v.shape)).astype(v.dtype)
        for k, v in llama_folder.tensors(0).items()
    }
    found["tuned"] = str(write_model_folder(root / "tuned", tuned, llama_folder.CONFIG))
    frozen = dict(tuned)
    for name in list(frozen)[:8]:
        frozen[name] = llama_folder.tensors(0)[name]
    found["frozen"] = str(write_model_folder(root / "frozen", frozen, llama_folder.CONFIG))
    found["half"] = str(
        write_model_folder(root / "half", llama_folder.tensors(1), llama_folder.CONFIG, n_shards=3, bf16=True)
    )
    return found


@pytest.fixture(scope="module")
def prints(folders):
    return {name: whorl.fingerprint(folder, ONE) for name, folder in folders.items()}


@pytest.fixture
def gallery(tmp_path, folders):
    with Gallery.open(tmp_path / "g.sqlite", write=True) as opened:
        for name in ("m0", "m1", "m2"):
            opened.add(whorl.fingerprint(folders[name], ONE), name=name)
        yield opened


def calibration(prints, n_pairs=2000, derived=0.98):
    """A calibration of this shape: unrelated values about 0, derivatives near 1."""
    rng = np.random.default_rng(0)
    unrelated = tuple(float(x) for x in np.clip(0.1 * rng.standard_normal(n_pairs), -0.5, 0.5))
    kinds = {"fine-tuned": Derived(tuple(map(str, range(40))), tuple(derived + 0.0004 * i for i in range(40)))}
    condition = Condition("same shape", vocabulary=True, differs={}, scores={SPECTRA: Scores(unrelated, kinds)})
    return (Calibration("test", prints["m0"].shape, {}, {}, (condition,)),)


def test_the_same_weights_are_found_and_need_no_correction(gallery, folders):
    found = identify(folders["m1"], gallery, ONE)
    first = found.candidates[0]
    assert (found.conclusion, found.best, found.resolution.n_entries) == ("found", "m1", 3)
    assert (first.comparison.relation, first.corrected_p) == ("identical", None)
    assert first.weights == "not needed: the digests are equal"


def test_a_cast_copy_is_found_where_the_weights_can_be_read_again(gallery, folders):
    found = identify(folders["half"], gallery, ONE)
    assert (found.best, found.candidates[0].comparison.relation) == ("m1", "identical")
    assert found.candidates[0].weights == "read again"
    alone = identify(folders["half"], gallery, ONE, read_weights=False)
    assert alone.conclusion == "undecided"
    assert alone.candidates[0].entry.name == "m1"
    assert alone.candidates[0].weights == "not read: not asked for"
    assert any("stored fingerprint holds no weights" in s for s in alone.candidates[0].comparison.skipped)


def test_frozen_matrices_are_found_by_their_digests_without_the_weights_of_the_entry(gallery, folders):
    found = identify(folders["frozen"], gallery, ONE, read_weights=False)
    assert (found.conclusion, found.best) == ("found", "m0")
    assert found.candidates[0].comparison.exact.relation == "shared tensors"
    assert found.candidates[0].n_shared >= 4


def test_weights_that_changed_or_went_away_are_said_to_have(gallery, folders, prints, tmp_path):
    moving = write_model_folder(tmp_path / "moving", llama_folder.tensors(7), llama_folder.CONFIG)
    gallery.add(whorl.fingerprint(str(moving), ONE), name="moving")
    write_model_folder(moving, llama_folder.tensors(8), llama_folder.CONFIG)
    by_name = {c.entry.name: c for c in identify(folders["m3"], gallery, ONE).candidates}
    assert by_name["moving"].weights.startswith("not read: what lies there now has other weights")
    for file in moving.iterdir():
        file.unlink()
    moving.rmdir()
    by_name = {c.entry.name: c for c in identify(folders["m3"], gallery, ONE).candidates}
    assert by_name["moving"].weights.startswith("not read: ")
    assert by_name["m0"].weights == "read again"


def test_a_calibrated_p_value_must_survive_the_whole_gallery(gallery, prints):
    shipped = calibration(prints)
    found = identify(prints["tuned"], gallery, ONE, calibrations=shipped)
    first = found.candidates[0]
    assert (found.conclusion, found.best) == ("found", "m0")
    assert first.comparison.p_value == pytest.approx(1 / 2001)
    assert first.corrected_p == pytest.approx(3 * harmonic(3) / 2001)
    assert found.resolution.is_enough


def test_a_larger_gallery_takes_a_discovery_back(gallery, prints):
    from gallery_worker import variant

    for i in range(20):
        gallery.add(variant(prints["m2"], str(i)), name=f"more-{i}")
    told = []
    found = identify(prints["tuned"], gallery, ONE, calibrations=calibration(prints, n_pairs=200), tell=told.append)
    first = found.candidates[0]
    assert (first.entry.name, first.comparison.verdict) == ("m0", "related")
    assert first.corrected_p == pytest.approx(23 * harmonic(23) / 201)
    assert (found.conclusion, found.best, first.verdict) == ("undecided", None, "undecided")
    assert "after correction over 23 entries is above 0.05" in found.why
    assert not found.resolution.is_enough
    assert told == [found.resolution.why]
    assert "calibrated p-values are never below 0.005" in told[0]


def test_stored_fingerprints_alone_never_say_none_of_these(gallery, prints):
    """Spectra are blind to long training, so a stored copy could be cleared by them."""
    found = identify(prints["m3"], gallery, ONE, calibrations=calibration(prints))
    assert (found.conclusion, found.best) == ("undecided", None)


def test_none_of_these_needs_weights_power_and_every_entry(tmp_path, folders, prints):
    aligned = ["aligned-operators"]
    scores = Scores(tuple(np.linspace(-1, 0.99, 2000)), {"fine-tuned": Derived(("x",) * 24, (0.999,) * 24)})
    condition = Condition("same shape", vocabulary=False, differs={}, scores={"aligned-operators@1()": scores})
    known = (Calibration("made", prints["m0"].shape, {}, {}, (condition,)),)
    with Gallery.open(tmp_path / "w.sqlite", write=True) as opened:
        for name in ("m0", "m1", "m2"):
            opened.add(folders[name], name=name)
        found = identify(folders["m3"], opened, [*ONE, *aligned], calibrations=known)
        assert (found.conclusion, found.best) == ("none of these", None)
        assert found.why.startswith("all 3 entries were compared, and each is unrelated")
        assert identify(folders["m3"], opened, [*ONE, *aligned], calibrations=()).conclusion == "undecided"
        opened.add(replace(prints["tuned"], shape=replace(prints["tuned"].shape, family="other")), name="other")
        more = identify(folders["m3"], opened, [*ONE, *aligned], calibrations=known)
        assert more.conclusion == "undecided"


def test_a_large_gallery_that_was_not_compared_whole_stays_undecided(gallery, prints):
    from gallery_worker import variant

    for i in range(50):
        gallery.add(variant(prints["m2"], str(i)), name=f"more-{i}")
    found = identify(prints["m3"], gallery, ONE, top=5, calibrations=calibration(prints))
    assert len(found.candidates) < 53
    assert (found.conclusion, found.resolution.n_entries) == ("undecided", 53)
    assert "blind to long training; the weights of both are needed" in found.why


def test_an_entry_asked_about_is_left_out_of_its_own_gallery(gallery):
    found = identify("gallery:m1", gallery, ONE)
    assert {c.entry.name for c in found.candidates} == {"m0", "m2"}
    assert found.resolution.n_entries == 2
    assert {c.weights for c in found.candidates} == {"not read: the model itself is a stored fingerprint"}


def test_a_damaged_entry_is_skipped_by_name(gallery, prints):
    gallery._connection.execute("UPDATE fingerprints SET data = x'00' WHERE entry = 3")
    found = identify(prints["m3"], gallery, ONE, calibrations=calibration(prints))
    assert [s.partition(":")[0] for s in found.skipped] == ["m2"]
    assert found.conclusion == "undecided"
    assert "2 of 2 compared entries are undecided" in found.why


def test_the_result_is_plain_json_and_escapes_foreign_text(gallery, prints, tmp_path):
    found = identify(prints["tuned"], gallery, ONE)
    data = json.loads(found.save(tmp_path / "r.json").read_text())
    assert data == json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert {"conclusion", "best", "candidates", "resolution", "gallery", "skipped", "does_not_show"} <= set(data)
    assert data["candidates"][0]["name"] == "m0"
    shown = replace(found, why="<script>x</script>")._repr_html_()
    assert "<script>" not in shown
    assert "undecided" in repr(found)


def test_same_input_same_bytes(gallery, prints):
    one, two = (json.dumps(identify(prints["m3"], gallery, ONE).to_dict()) for _ in range(2))
    assert one == two


@pytest.mark.parametrize(("change", "message"), [({"q": 0}, "false-discovery"), ({"q": 0.5}, "false-discovery"),
                                                 ({"top": 0}, "At least one"), ({"alpha": 1}, "alpha")])  # fmt: skip
def test_numbers_out_of_range_are_wrong_usage(gallery, prints, change, message):
    with pytest.raises(UsageError, match=message):
        identify(prints["m3"], gallery, ONE, **change)


def test_an_empty_gallery_has_no_answer(tmp_path, prints):
    with Gallery.open(tmp_path / "e.sqlite", write=True) as empty, pytest.raises(UsageError, match="no entry"):
        identify(prints["m0"], empty, ONE)
