"""From measurements to verdicts, page, plots and report; no model is trained here."""

import json
import re
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import pytest

import natural_rows
from whorl.errors import UsageError
from whorl.lab.natural import html
from whorl.lab.natural.config import FACTORS, Experiment
from whorl.lab.natural.figures import forest, lines
from whorl.lab.natural.measure import HEADLINE
from whorl.lab.natural.page import page
from whorl.lab.natural.results import DESCRIBED, FINGERPRINT, INVALID, NOT_SHOWN, TOO_FEW, results
from whorl.lab.natural.run import _same_settings
from whorl.lab.truth import RECORD_NAME, Record


@pytest.fixture
def judged(tmp_path):
    folder = tmp_path / "models" / "baseline-0"  # the only thing that is read from trained models
    folder.mkdir(parents=True)
    (folder / RECORD_NAME).write_text(Record("pretrained", (), {"loss": 2.0}, 0).to_json())

    experiment = natural_rows.experiment(tmp_path)

    def judge(rows=None, replicates=3, **options):
        planned = experiment.model_copy(update={"replicates": replicates})
        return results(planned, tmp_path, rows or natural_rows.rows(**options))

    return judge


def verdicts(found):
    return {m.verdict for m in found.of("prompts", HEADLINE)}


def test_accuracy_clear_of_chance_over_replicates_is_a_fingerprint(judged):
    found = judged()
    (both,) = [m for m in found.of("prompts", HEADLINE) if m.factor == "both"]
    assert both.verdict == FINGERPRINT
    assert both.accuracy == pytest.approx(0.46)
    assert both.lift == pytest.approx((0.46 - 1 / 3) / (2 / 3))
    # t interval by hand: sd 0.01, 4.3027 * 0.01 / sqrt(3)
    assert both.over_replicates == pytest.approx((0.46 - 0.024841, 0.46 + 0.024841), abs=1e-5)
    assert both.to_yardstick is None
    assert both.loss_spread == pytest.approx(0.05)
    # t = 21.94 with two degrees of freedom: p = 0.00104; nine equal p-values by Holm
    assert both.p_value == pytest.approx(9 * 0.001036, rel=1e-2)
    assert len(found.measured) == len(FACTORS) * 3
    assert {m.verdict for m in found.measured if m.classifier != HEADLINE} == {DESCRIBED}


def test_narrow_prompt_intervals_do_not_decide(judged):
    found = judged(accuracies=(0.33, 0.46, 0.60))  # each far from chance or not, but scattered
    assert verdicts(found) == {NOT_SHOWN}


def test_a_failed_control_makes_everything_of_its_condition_invalid(judged):
    assert verdicts(judged(c1=0.36)) == {INVALID}


def test_one_leaking_classifier_makes_the_whole_run_invalid(judged):
    rows = natural_rows.rows()
    rows["c1|prompts|sub-word counts|0"] = natural_rows.row(0.37)
    assert verdicts(judged(rows)) == {INVALID}


def test_three_of_five_planned_replicates_are_no_stopping_point(judged):
    more = natural_rows.rows()
    assert verdicts(judged(more, replicates=5)) == {TOO_FEW}


def test_two_replicates_are_too_few_for_a_verdict(judged):
    found = judged(accuracies=(0.45, 0.46))
    assert verdicts(found) == {TOO_FEW}
    assert found.missing[0] == "init-seed: 1 of 3 replicates"


def test_one_replicate_has_no_interval(judged):
    found = judged(accuracies=(0.45,))
    assert found.measured[0].over_replicates is None
    assert "| – |" in page(found)


def test_a_second_attempt_of_c1_counts(judged):
    rows = natural_rows.rows(c1=0.36)
    rows |= {key.replace("|0", "|1"): natural_rows.row(1 / 3) for key in rows if key.startswith("c1|")}
    found = judged(rows)
    assert verdicts(found) == {FINGERPRINT}
    assert "(repeated)" in page(found)


def test_a_wide_interval_fails_c1_though_it_holds_chance(judged):
    rows = natural_rows.rows()
    rows |= {key: natural_rows.row(1 / 3, half=0.05) for key in rows if key.startswith("c1|")}
    assert verdicts(judged(rows)) == {INVALID}


def test_the_page_says_the_verdict_and_escapes_words_of_models(judged):
    text = page(judged(), "plot.svg")
    assert "**A fingerprint is shown for: init-seed, data-order, both, model-size" in text
    assert "![Accuracy" in text
    assert r"`<b>\x7c\x60x\x60` (30 / 10)" in text
    assert "weights equal." in text
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")


def test_the_report_is_self_contained_and_escaped(judged, tmp_path):
    path = html.write(judged(), tmp_path / "natural.html")
    text = path.read_text("utf-8")
    assert "<b>|" not in text
    assert "&lt;b&gt;" in text
    assert not re.search(r'(src|href)="http', text)
    assert text.count("<svg") == 3
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert json.loads(data)["kind"] == "natural-fingerprints"
    assert html.write(judged(), tmp_path / "again.html").read_bytes() == path.read_bytes()


def test_the_plots_are_well_formed_and_speak(judged):
    rows = judged().of("prompts", HEADLINE)
    picture = ET.fromstring(forest(rows, title="A < B"))  # noqa: S314 - our own
    words = "".join(picture.itertext())
    assert "A < B" in words
    assert "both 46.0 % (43.5 to 48.5)" in words
    dots = [e for e in picture.iter() if e.get("class") == "dot"]
    assert len(dots) == 3 * len(FACTORS)
    xs = [float(e.get("cx")) for e in dots[:3]]
    assert xs == sorted(xs)  # 0.45, 0.46, 0.47 from left to right
    curve = ET.fromstring(  # noqa: S314 - our own
        lines({"a": {1: 0.4, 64: 0.9}, "b": {1: 0.4, 64: 0.89}}, chance=1 / 3, title="t", unit="texts")
    )
    heights = [float(e.get("y")) for e in curve.iter() if (e.text or "").startswith(("a ", "b "))]
    assert abs(heights[0] - heights[1]) >= 14


def test_other_settings_are_not_mixed_in(tmp_path):
    _same_settings(Experiment(), tmp_path)
    _same_settings(Experiment(replicates=5, factors=("both",)), tmp_path)
    with pytest.raises(UsageError, match="begun with other settings: prompts, control_prompts"):
        _same_settings(Experiment(prompts=40, control_prompts=30), tmp_path)


def test_the_json_has_everything_and_no_nan(judged):
    data = judged().to_dict()
    json.dumps(data, allow_nan=False)
    assert SimpleNamespace(**data).schema == 1
