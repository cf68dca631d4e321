"""The page and the text of one comparison: order, error rates, plots, layers, strictness about saved results."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import pytest
from scipy.stats import beta

import llama_folder
import report_cases as cases
import whorl
from whorl.errors import MalformedFile, UnsupportedFile
from whorl.lineage.relation import Direction
from whorl.pairs.run import PairResult
from whorl.reports.comparison_text import comparison_lines, headline, stored_comparison
from whorl.reports.layer_plots import layer_links, layer_map, layer_strip
from whorl.reports.place_plot import place_plot
from whorl.reports.shown import short_refs
from whorl.reports.stored import as_json, checked
from whorl.reports.stored_comparison import StoredAlignment
from whorl.reports.verdict_words import KindRow, direction_words, error_rate, kind_rows, percent, primary

HOSTILE = "</title></svg><script>alert(1)</script>\x1b[31m\u202e"


@pytest.fixture(scope="module")
def prints(tmp_path_factory):
    root = tmp_path_factory.mktemp("pair")
    return [whorl.fingerprint(llama_folder.folder(root / str(i), i), cases.METHODS) for i in range(2)]


@pytest.fixture(scope="module")
def related(prints):
    return cases.related(*prints)


@pytest.fixture(scope="module")
def unrelated(prints):
    return cases.unrelated(*prints)


@pytest.fixture(scope="module")
def undecided(prints):
    return cases.judged(*prints)


@pytest.fixture(scope="module")
def identical(prints):
    return cases.judged(prints[0], dataclasses.replace(prints[0], typed="./copy"))


def page(result, tmp_path, *calibrations, **options):
    return whorl.report([result], tmp_path / "c.html", calibrations=calibrations, **options).read_text("utf-8")


def calibration_of(result):
    return result.covering[0]


def in_order(text, *parts):
    places = [text.index(part) for part in parts]
    assert places == sorted(places), list(zip(parts, places, strict=True))


def test_reading_order_of_a_related_pair(related, tmp_path):
    text = page(related, tmp_path, calibration_of(related))
    in_order(
        text,
        '<svg class="icon related"',
        "<b>related</b>",
        "(layers dropped)",
        "0 of 104 unrelated pairs are as close, p = 0.0095 (never below 1/105)",
        "needs p at most 0.01, fixed before the data were read",
        "Calibration simulated, class &#39;same shape, same vocabulary&#39;: 208 independently trained lineages",
        "B was made from A: a layer can be left out, not invented (layer count)",
        "<h3>Where this pair lies</h3>",
        "this pair: ",
        "<h3>Evidence</h3>",
        "<h3>Layer by layer</h3>",
        "512 tokens with equal strings (rung 1 of 3); cosine on tokens that were not fitted: 0.987",
        "layers of A without a partner in B: 3",
        "Tests of the relation: 1 of 2 hold",
        "<h3>Known derivatives of this class</h3>",
        "<h3>What this does not show</h3>",
        "<h3>The two models</h3>",
        related.a.weights_digest,
        "Made with",
        'id="data"',
    )


def test_unrelated_names_what_it_excludes_and_what_not_with_exact_intervals(unrelated, tmp_path):
    text = page(unrelated, tmp_path, calibration_of(unrelated))
    assert (
        "Excluded, because they would have been found: fine-tuned and pruned. Not excluded: other-vocabulary." in text
    )
    rows = re.findall(r"<tr><td>([\w-]+)</td><td class=\"num\">(\d+) of 20</td><td class=\"num\">([^<]+)</td>", text)
    assert [kind for kind, _, _ in rows] == ["fine-tuned", "pruned", "other-vocabulary"]
    low = 100 * beta.ppf(0.025, 20, 1)  # Clopper and Pearson, 20 of 20
    assert rows[0][1:] == ("20", f"{low:.0f}\N{EN DASH}100 %")
    assert "such a copy could hide from this method" in text


def test_exact_interval_agrees_with_the_beta_quantiles(unrelated):
    stored = stored_comparison(unrelated)
    for row in kind_rows(stored, primary(stored.evidence)):
        assert row.low == pytest.approx(0.0 if not row.found else beta.ppf(0.025, row.found, row.n - row.found + 1))
        high = 1.0 if row.found == row.n else beta.ppf(0.975, row.found + 1, row.n - row.found)
        assert row.high == pytest.approx(high)


def test_outside_every_class_no_error_rate_is_stated(undecided, tmp_path):
    text = page(undecided, tmp_path)
    in_order(text, "<b>undecided</b>", "Outside every calibrated class", "no error rate can be stated", "Not known:")
    assert "threshold" not in text[text.index("Where this pair lies") : text.index("<h3>Evidence</h3>")]


def test_an_exact_relation_needs_no_error_rate(identical, tmp_path):
    text = page(identical, tmp_path)
    assert "(identical)" in text
    assert "Exact relation, no error rate applies: the numbers are the same, not alike." in text


def test_zero_of_n_is_never_zero_percent(related):
    words = " ".join(error_rate(stored_comparison(related)))
    assert "0 of 104" in words
    assert "1/105" in words
    assert "%" not in words


def test_direction_in_words(prints, related):
    stored = stored_comparison(related)
    assert direction_words(stored).startswith("B was made from A: ")
    for parent, said in (("b", "A was made from B"), (None, "Direction undecided: nothing tells.")):
        relation = dataclasses.replace(related.relation_found, direction=Direction(parent, "", "nothing tells"))
        changed = stored_comparison(dataclasses.replace(related, relation_found=relation))
        assert direction_words(changed).startswith(said)


def test_plot_holds_every_value_the_threshold_and_this_pair(unrelated):
    found = calibration_of(unrelated)
    e = primary(stored_comparison(unrelated).evidence)
    plot = place_plot(e, (found,))
    scores = found.conditions[0].scores[e.method]
    assert sum(int(b.title.split()[0]) for b in plot.bars) == sum(v is not None for v in scores.unrelated)
    assert {s.name: s.note for s in plot.strips} == {
        "fine-tuned": "20/20",
        "pruned": "20/20",
        "other-vocabulary": "8/20",
    }
    assert [s.name for s in plot.strips] == ["fine-tuned", "pruned", "other-vocabulary"]  # the closest first
    assert plot.pointer.x < plot.threshold.x < min(m.x for m in plot.strips[0].marks)
    assert all(plot.left <= x <= plot.right for x in (plot.pointer.x, plot.threshold.x))
    assert f"this pair at {e.value:.4f}".replace("-", "\N{MINUS SIGN}") in plot.alt


def test_distances_point_the_other_way(unrelated):
    e = primary(stored_comparison(unrelated).evidence)
    turned = e.model_copy(update={"similarity": None, "distance": 0.5, "threshold": 0.3})
    plot = place_plot(turned, (calibration_of(unrelated),))
    assert not plot.closer_right
    assert plot.threshold.x < plot.pointer.x


def test_no_plot_without_the_calibration_or_its_condition(unrelated, tmp_path):
    e = primary(stored_comparison(unrelated).evidence)
    found = calibration_of(unrelated)
    renamed = dataclasses.replace(found, conditions=(dataclasses.replace(found.conditions[0], name="other"),))
    assert place_plot(e, ()) is None
    assert place_plot(e, (dataclasses.replace(found, id="other"),)) is None
    assert place_plot(e, (renamed,)) is None
    assert "is not in the package that made this page" in page(unrelated, tmp_path)


def alignment(scores, path, layers=()):
    base = {"rung": 1, "n_tokens": 5, "held_out": 0.9, "why": "w"}
    return base | {"scores": scores, "path": path, "layers": [list(x) for x in layers]}


def test_layer_map_and_strip_of_a_known_path():
    found = StoredAlignment.model_validate(
        alignment([[0.9, 0.1], [0.0, 0.1], [-0.2, 0.8]], [[0, 0], [1, None], [2, 1]], [(0, 0, 0.9), (2, 1, 0.8)])
    )
    drawn = layer_map(found)
    assert len(drawn.outlines) == 2
    assert [label.text for label in drawn.rows if label.alone] == ["1"]
    assert not any(label.alone for label in drawn.columns)
    assert len(drawn.figures) == 6
    strip = layer_strip(found)
    assert [(c.a, c.b, c.value) for c in strip.columns] == [
        ("0", "0", 0.9),
        ("1", "\N{EN DASH}", None),
        ("2", "1", 0.8),
    ]
    assert strip.columns[0].height / strip.columns[2].height == pytest.approx(0.9 / 0.8)


def test_unrelated_layers_stay_pale():
    found = StoredAlignment.model_validate(alignment([[0.02, 0.01], [0.01, 0.03]], [[0, 0], [1, 1]]))
    assert max(s.depth for s in layer_map(found).shades) < 0.1


def test_deep_models_give_small_pictures_with_a_line():
    n = 120
    scores = [[0.9 if i == j else (i * 7 + j * 3) % 20 / 100 for j in range(n)] for i in range(n)]
    drawn = layer_map(StoredAlignment.model_validate(alignment(scores, [[i, i] for i in range(n)])))
    assert drawn.figures == ()
    assert drawn.path.count("L") == n - 1
    assert sum(len(s.d) for s in drawn.shades) < 600_000
    assert len([label for label in drawn.rows if label.text]) < 40


def test_links_of_dropped_and_repeated_layers():
    dropped = layer_links([(0, 0), (1, None), (2, 1)])
    assert dropped.sentence == "layers of A without a partner in B: 1"
    assert [b.alone for b in dropped.top] == [False, True, False]
    assert layer_links([(0, 0), (0, 1), (1, 2)]).sentence == "layers of A with several partners in B: 0"


def test_no_frame_is_said_with_its_reason(related, tmp_path):
    bare = dataclasses.replace(related, pair=PairResult({}, None, "no shared tokens, widths differ", None, ()))
    text = page(bare, tmp_path)
    assert "No common frame: no shared tokens, widths differ." in text


def test_hostile_words_of_every_new_field_are_escaped(related, tmp_path):
    data = as_json(related)
    for where in (data, data["direction"], data["facts"][0], data["alignment"], data["evidence"][1], data["exact"]):
        where["why"] = HOSTILE
    data |= {"relation": HOSTILE, "excluded": [HOSTILE], "does_not_show": [HOSTILE], "skipped": [HOSTILE]}
    data["facts"][1] |= {"relation": HOSTILE, "numbers": {HOSTILE: HOSTILE}}
    data["calibration"] |= {"id": HOSTILE, "condition": HOSTILE}
    data["direction"]["evidence"] = HOSTILE
    data["evidence"][1]["tests"] = [
        {"p_value": 0.5, "kind": "monte-carlo", "null": HOSTILE, "size": 99, "effect": None}
    ]
    place = data["evidence"][1]["place"]
    place["kinds"][HOSTILE], place["powered"] = {"n": 3, "found": 1, "p_value": 0.5}, [HOSTILE]
    saved = tmp_path / "hostile.json"
    saved.write_text(json.dumps(data))
    text = whorl.report([saved], tmp_path / "h.html").read_text("utf-8")
    assert text.count("<script") == 2
    assert "alert(1)</script>" not in text
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    stored = checked(data, "hostile.json")
    assert not re.search("[\x00-\x1f\u202e]", "".join(line.text for line in comparison_lines(stored, 80)))


def test_same_result_same_bytes_and_alt_texts_everywhere(related, tmp_path):
    found = calibration_of(related)
    one, two = (page(related, tmp_path, found) for _ in range(2))
    assert one == two
    saved = related.save(tmp_path / "c.json")
    assert whorl.report([saved], tmp_path / "s.html", calibrations=(found,)).read_text("utf-8") == one
    pictures = re.findall(r"<svg [^>]*>", one)
    assert len(pictures) >= 5
    assert all("aria-labelledby" in p or "aria-hidden" in p for p in pictures)
    ids = re.findall(r' id="([^"]+)"', one)
    assert len(ids) == len(set(ids))


def test_an_older_result_is_refused_by_name(related):
    with pytest.raises(UnsupportedFile, match=r"schema 1, made by an older whorl.*Compare again"):
        checked(as_json(related) | {"schema": 1}, "old.json")
    with pytest.raises(UnsupportedFile, match="schema 3; expected schema 2"):
        checked(as_json(related) | {"schema": 3}, "new.json")


def changed(data, where, value):
    found = json.loads(json.dumps(data))
    spot = found
    for key in where[:-1]:
        spot = spot[key]
    spot[where[-1]] = value
    return found


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (("alignment", "path"), [[0, 0], [0, 1]], "turns back"),
        (("alignment", "path"), [[0, 99]], "leaves the table"),
        (("alignment", "path"), None, "come together"),
        (("alignment", "scores", 0), [0.5], "not a table"),
        (("alignment", "layers", 0), [0, 5, 0.9], "off the path"),
        (("alignment", "rung"), 4, "rung"),
        (("direction", "parent"), "c", "parent"),
        (("evidence", 1, "place", "pairs_at_least_as_close"), 105, "more pairs"),
        (("evidence", 1, "place", "kinds", "pruned", "found"), 21, "more derivatives"),
        (("evidence", 1, "place", "powered"), ["nothing"], "no kind"),
        (("evidence", 1, "place", "p_value"), 0.0, "p_value"),
        (("evidence", 1, "p_kind"), None, "come together"),
        (("evidence", 1, "p_kind"), "guess", "p_kind"),
        (("exact", "relation"), "twins", "relation"),
        (("alpha",), 0.5, "alpha"),
        (("config", "seed"), "0", "seed"),
        (("layer_map", 0), [0], "layer_map"),
        (("surprise",), 1, "surprise"),
    ],
)
def test_a_tampered_comparison_is_refused(related, where, value, message):
    with pytest.raises(MalformedFile, match=message):
        checked(changed(as_json(related), where, value), "c.json")


@pytest.mark.parametrize("width", [80, 60, 200])
def test_text_begins_with_the_verdict_and_keeps_to_the_width(related, unrelated, undecided, identical, width):
    for result in (related, unrelated, undecided, identical):
        stored = stored_comparison(result)
        lines = comparison_lines(stored, width)
        assert lines[0].text == headline(stored)
        paths = {f"  {side}  {m.resolved}" for side, m in zip("AB", stored.models, strict=True)}
        assert all(len(line.text) <= max(width, 72) for line in lines if line.text not in paths)


def test_text_of_each_verdict(related, unrelated, undecided, identical):
    texts = {
        r.verdict: "\n".join(x.text for x in comparison_lines(stored_comparison(r), 80)) for r in (unrelated, related)
    }
    assert texts["related"].startswith("\N{ALMOST EQUAL TO} related (layers dropped), p = 0.0095\n")
    assert "\n* head-spectra " in texts["related"]
    assert re.search(r"^direction +B was made from A", texts["related"], re.MULTILINE)
    assert texts["unrelated"].startswith("\N{NOT EQUAL TO} unrelated, p = 0.5")
    assert re.search(r"^not excluded +other-vocabulary$", texts["unrelated"], re.MULTILINE)
    assert headline(stored_comparison(undecided)) == "? undecided, no p-value"
    assert headline(stored_comparison(identical)) == "\N{ALMOST EQUAL TO} related (identical), exact"


def test_methods_that_cannot_compare_come_last_with_their_reason(prints, tmp_path):
    short = whorl.fingerprint(llama_folder.folder(tmp_path / "short", 3, num_hidden_layers=3), cases.METHODS)
    lines = [x.text for x in comparison_lines(stored_comparison(cases.judged(prints[0], short)), 80)]
    at = lines.index("not comparable (neither near nor far):")
    assert lines[at + 1].startswith("  head-spectra: ")
    assert not any(x.startswith("  head-spectra ") for x in lines[:at])


def test_command_writes_page_and_result(tmp_path):
    models = [llama_folder.folder(tmp_path / str(i), i) for i in range(2)]
    code = "from whorl.cli.main import run; run()"
    done = subprocess.run(
        [sys.executable, "-c", code, "compare", *models, "--method", "std-vector", "--page", "p.html", "--out", "r.json"],
        capture_output=True, text=True, check=False, cwd=tmp_path, env=os.environ | {"NO_COLOR": "1"},
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    assert done.stdout.startswith("? undecided")
    assert "written: p.html" in done.stderr
    assert whorl.report([tmp_path / "r.json"], tmp_path / "q.html").read_bytes() == (tmp_path / "p.html").read_bytes()


def test_shares_are_never_rounded_to_certainty():
    assert [percent(x) for x in (0.0, 1.0, 0.9987, 0.75, 0.018, 0.0006)] == ["0", "100", "99.9", "75", "1.8", "0.1"]
    assert KindRow("k", 1, 1, 0.025, 1.0, 0.5, powered=False, excluded=False).interval == "2.5\N{EN DASH}100 %"


def test_headings_hold_the_last_part_of_paths():
    assert short_refs(["/a/one", "./b/two/"]) == ["one", "two"]
    assert short_refs(["/a/one", "/b/one"]) == ["/a/one", "/b/one"]
    assert short_refs(["org/one@v1"]) == ["org/one@v1"]
