"""Bundles on disk: what was saved is what is read, and whatever was tampered with is refused."""

import hashlib
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load as arrays_of
from safetensors.numpy import save as bytes_of

from attribution_cases import Source, records
from whorl.attribution.bundle import ARRAYS_FILE, JSON_FILE, load, save
from whorl.attribution.enrol import enrol
from whorl.attribution.fit import fit
from whorl.attribution.predict import predict
from whorl.errors import InputRefused, MalformedFile, UnsafeFile, UnsupportedFile, UsageError
from whorl.reports.attribution_page import attribution_report
from whorl.transcripts.record import digest

HOSTILE = '<script>alert(1)</script>"\u202e'
N_PROMPTS = 150


@pytest.fixture(scope="module")
def made():
    """Three models, one with a hostile name that also writes markup."""
    sources = [Source(name, own=0.8) for name in ("one", "two")]
    evil = Source(HOSTILE, own=0.8, words=("<img", "src=x", "onerror=alert(1)>", "<b>", "</script>"))
    return fit(records([*sources, evil], N_PROMPTS), shares=(0.4, 0.45))


@pytest.fixture
def bundle(made, tmp_path):
    return save(made, tmp_path / "bundle")


def values(bundle):
    return json.loads((bundle / JSON_FILE).read_text())


def rewrite(bundle, changed, arrays=None):
    """Write a bundle whose digests are right, whatever else is wrong with it."""
    if arrays is not None:
        data = (
            arrays if isinstance(arrays, bytes) else bytes_of({k: np.ascontiguousarray(v) for k, v in arrays.items()})
        )
        (bundle / ARRAYS_FILE).write_bytes(data)
    changed["arrays_sha256"] = hashlib.sha256((bundle / ARRAYS_FILE).read_bytes()).hexdigest()
    changed.pop("digest", None)
    (bundle / JSON_FILE).write_text(json.dumps(changed | {"digest": digest(changed)}))


def test_a_bundle_says_the_same_after_reading(made, bundle):
    again = load(bundle)
    texts = [Source("one", own=0.8).text(i) for i in range(5)]
    assert predict(again, texts) == predict(made, texts)
    assert predict(again, texts, together=True) == predict(made, texts, together=True)
    assert again.settings == made.settings
    assert again.classes == made.classes
    assert again.thresholds == made.thresholds
    assert again.corpus.texts == made.corpus.texts
    assert again.evaluation == json.loads(json.dumps(made.evaluation))


def test_saving_twice_gives_the_same_bytes_and_never_overwrites(made, bundle, tmp_path):
    other = save(load(bundle), tmp_path / "other")
    for name in (JSON_FILE, ARRAYS_FILE):
        assert (bundle / name).read_bytes() == (other / name).read_bytes()
    assert sorted(p.name for p in bundle.iterdir()) == [ARRAYS_FILE, JSON_FILE]
    with pytest.raises(UsageError, match="exists already"):
        save(made, bundle)


def test_a_read_bundle_can_be_enlarged(bundle):
    larger = enrol(load(bundle), records([Source("four", own=0.8)], N_PROMPTS))
    assert larger.names[-1] == "four"
    assert larger.evaluation["contents"]["texts"]["train"] > load(bundle).evaluation["contents"]["texts"]["train"]


def test_nothing_is_pickled(bundle):
    for path in bundle.iterdir():
        with pytest.raises(Exception):  # noqa: B017 - any failure to unpickle
            pickle.loads(path.read_bytes())  # noqa: S301


@pytest.mark.parametrize("name", [JSON_FILE, ARRAYS_FILE])
def test_any_changed_byte_is_noticed(bundle, name):
    data = (bundle / name).read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(data), 40):
        changed = bytearray(data)
        changed[at] = (changed[at] + 1) % 256
        (bundle / name).write_bytes(changed)
        try:
            load(bundle)
        except InputRefused:
            continue
        assert json.loads(changed) == json.loads(data)  # white space between fields carries nothing
    (bundle / name).write_bytes(data[:-7])
    with pytest.raises(InputRefused):
        load(bundle)


def test_what_is_missing(tmp_path, bundle):
    with pytest.raises(UsageError, match="There is no bundle"):
        load(tmp_path / "nothing")
    (bundle / ARRAYS_FILE).unlink()
    with pytest.raises(MalformedFile):
        load(bundle)


def change(*path, to):
    def apply(found, arrays):
        at = found
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = to

    return apply


def array(name, make):
    def apply(found, arrays):
        arrays[name] = make(arrays[name])

    return apply


def poked(value):
    def make(x):
        x = x.copy()
        x.flat[0] = value
        return x

    return make


HOSTILE_CHANGES = {
    "schema": (change("schema", to="whorl.attribution/2"), UnsupportedFile, "schema whorl.attribution/2"),
    "unknown field": (change("extra", to=1), MalformedFile, "field 'extra'"),
    "gamma above one": (change("gamma", to=1.5), MalformedFile, "field 'gamma'"),
    "temperature zero": (change("temperature", to=0.0), MalformedFile, "field 'temperature'"),
    "alpha as text": (change("settings", "alpha", to="0.05"), MalformedFile, "field 'settings.alpha'"),
    "rate above one": (change("evaluation", "closed_set", "accuracy", to=1.5), MalformedFile, "closed_set.accuracy"),
    "table missing": (change("evaluation", "open_set", to={}), MalformedFile, "evaluation.open_set"),
    "confusion": (change("evaluation", "closed_set", "confusion", to=[[1]]), MalformedFile, "confusion matrix"),
    "prompts": (change("prompts", to=["0" * 16 + " x"]), MalformedFile, "prompts that are not those of the digest"),
    "weights shape": (array("weights", lambda x: x[:, 1:]), MalformedFile, "array 'weights' of float32"),
    "weights type": (array("weights", lambda x: x.astype(np.float64)), MalformedFile, "array 'weights' of float64"),
    "weights NaN": (array("weights", poked(np.nan)), MalformedFile, "'weights' with a number that is not finite"),
    "bias infinite": (array("bias", poked(np.inf)), MalformedFile, "'bias' with a number that is not finite"),
    "spread zero": (array("typical.spread", lambda x: 0 * x), MalformedFile, "calibration scores"),
    "scores not sorted": (array("scores", lambda x: x[::-1]), MalformedFile, "calibration scores"),
    "offsets": (array("texts.offsets", lambda x: x[::-1]), MalformedFile, "offsets of 'texts'"),
    "label": (array("labels", poked(99)), MalformedFile, "'labels' out of range"),
    "negative prompt": (array("prompts", poked(-1)), MalformedFile, "'prompts' out of range"),
    "texts": (array("texts", poked(255)), MalformedFile, "a text that is not UTF-8"),
    "n-gram code": (array("space.0.codes", poked(-5)), MalformedFile, "no feature space"),
    "idf NaN": (array("space.0.idf", poked(np.nan)), MalformedFile, "feature space"),
    "other array": (lambda f, a: a.update(more=np.zeros(1)), MalformedFile, "an array 'more'"),
    "no array": (lambda f, a: a.pop("bias"), MalformedFile, "no array 'bias'"),
}


@pytest.mark.parametrize("name", HOSTILE_CHANGES)
def test_hostile_bundles_are_refused(bundle, name):
    apply, error, message = HOSTILE_CHANGES[name]
    found, arrays = values(bundle), dict(arrays_of((bundle / ARRAYS_FILE).read_bytes()))
    apply(found, arrays)
    rewrite(bundle, found, arrays)
    with pytest.raises(error, match=message):
        load(bundle)


@pytest.mark.parametrize("changed", [{"analyzer": "subword"}, {"high": 10**9}, {"low": 0}, {"more": 1}])
def test_features_of_another_kind_are_refused(bundle, changed):
    found, arrays = values(bundle), dict(arrays_of((bundle / ARRAYS_FILE).read_bytes()))
    settings = json.loads(bytes(arrays["space.settings"]))
    settings[0] |= changed
    arrays["space.settings"] = np.frombuffer(json.dumps(settings).encode(), np.uint8)
    rewrite(bundle, found, arrays)
    with pytest.raises(UnsupportedFile, match="unknown features"):
        load(bundle)


def test_no_safetensors_and_keys_twice(bundle):
    found = values(bundle)
    rewrite(bundle, dict(found), b"\x80\x04K\x01.")
    with pytest.raises(MalformedFile, match=r"arrays\.safetensors"):
        load(bundle)
    text = (bundle / JSON_FILE).read_text()
    (bundle / JSON_FILE).write_text(text.replace("{", '{"schema": "whorl.attribution/1", ', 1))
    with pytest.raises(UnsafeFile, match="the key 'schema' twice"):
        load(bundle)


def test_the_page_escapes_what_models_write(made, tmp_path):
    page = attribution_report(made, tmp_path / "page.html").read_text()
    body, data = page.split('<script type="application/json"')
    assert "<script" not in body
    assert "<img" not in page
    assert "<code>&lt; img</code>" in body
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in body
    assert "\u202e" not in page
    assert data.count("</script>") == 1
    assert "script-src" not in body
    assert "default-src &#39;none&#39;" in body
    for words in (
        "claim about style",
        "can be imitated",
        "no proof of ownership",
        "Who is taken for whom",
        "Texts of strangers",
    ):
        assert words in body
    assert body.count("<svg") == body.count("</svg>") >= 4
    shown = json.loads(data[data.index(">") + 1 : data.index("</script>")])
    assert shown["evaluation"]["closed_set"] == json.loads(json.dumps(made.evaluation["closed_set"]))
    assert attribution_report(made, tmp_path / "again.html").read_text() == page


def test_imports_are_light():
    code = "import sys, whorl.cli.main\nprint(*sorted({'sklearn', 'scipy', 'torch', 'whorl.attribution.fit'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
