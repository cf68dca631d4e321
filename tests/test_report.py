"""The HTML report: hostile text, self-containedness, honesty, saved results."""

import base64
import dataclasses
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import llama_folder
import whorl
import whorl.reports
from whorl.comparison import judge
from whorl.errors import MalformedFile, UnsafeFile, UnsupportedFile, UsageError
from whorl.lineage.exact import same_bytes
from whorl.registry import resolve
from whorl.reports import embedded
from whorl.reports.lineages import Lineage, separation
from whorl.reports.rug import rug
from whorl.reports.shown import cut_name, number, short_number, ticks
from whorl.reports.stored import checked
from whorl.surveys import collect

METHODS = resolve(("std-vector", "head-spectra"))
HOSTILE = "<script>alert(1)</script>\x1b[31m\u202egnp.\u2066\x07\"'`&"
CLAIM = '</script><img src=x onerror="alert(1)"><style>*{display:none}</style>{{ 7*7 }}'


@pytest.fixture(scope="module")
def prints(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    made = {
        n: whorl.fingerprint(llama_folder.folder(root / n, i), METHODS) for i, n in enumerate(("one", "two", "three"))
    }
    short = llama_folder.folder(root / "short", 3, num_hidden_layers=3)
    made["short"] = whorl.fingerprint(short, METHODS)
    made["copy"] = dataclasses.replace(made["one"], typed="./copy")
    made["hostile"] = dataclasses.replace(
        made["two"], typed=HOSTILE, resolved=HOSTILE, declared={HOSTILE: CLAIM}, notes=(CLAIM, HOSTILE)
    )
    return made


def judged(a, b):
    return judge(a, b, METHODS, same_bytes(a, b), calibrations=())


@pytest.fixture(scope="module")
def comparison(prints):
    return judged(prints["one"], prints["hostile"])


@pytest.fixture(scope="module")
def survey(prints):
    names = {f"{HOSTILE}{n}" if n == "hostile" else n: f for n, f in prints.items()}
    found = list(names.values())
    pairs = tuple(judged(a, b) for i, a in enumerate(found) for b in found[i + 1 :])
    return collect(names, pairs, METHODS)


@pytest.fixture(scope="module")
def page(comparison, survey, tmp_path_factory):
    truth = {n: {"group": CLAIM if n in {"one", "copy"} else n[:3], "kind": HOSTILE} for n in survey.names}
    out = tmp_path_factory.mktemp("page") / "report.html"
    return whorl.report([comparison, survey], out, truth=truth).read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Tags with their attributes, and the text of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.raw, self._inside = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in {"script", "style"}:
            self._inside = (tag, dict(attrs))

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside is not None:
            self.raw.append((*self._inside, data))


def blocks(page, tag):
    return [(attrs, text) for found, attrs, text in Reader(page).raw if found == tag]


def test_hostile_text_makes_no_element_and_no_attribute(page):
    tags = Reader(page).tags
    kinds = {tag for tag, _ in tags}
    assert not kinds & {"img", "iframe", "object", "embed", "link", "base", "form", "foreignobject", "use", "image"}
    assert sum(tag == "script" for tag, _ in tags) == 2
    assert sum(tag == "style" for tag, _ in tags) == 1
    for tag, attributes in tags:
        assert not any(key.startswith("on") or key in {"src", "style"} for key in attributes), tag
        assert attributes.get("href", "#").startswith("#")


def test_invisible_characters_are_spelled_out(page):
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]", page)
    assert "\\x1b[31m\\u202egnp." in page


def test_templates_in_foreign_text_are_not_rendered(page):
    assert "{{ 7*7 }}" in page
    assert "</style>49" not in page


def test_the_page_fetches_nothing(page):
    outside_data = page.replace(blocks(page, "script")[0][1], "")
    assert "http://" not in outside_data.replace("http-equiv", "")
    assert "https://" not in outside_data
    assert "@import" not in page
    assert re.findall(r"url\((?!#)", page) == []


def test_policy_admits_only_our_style_and_script_by_digest(page):
    policy = next(
        a["content"] for tag, a in Reader(page).tags if tag == "meta" and "content" in a and "default" in a["content"]
    )
    (_, css), (_, script) = blocks(page, "style")[0], blocks(page, "script")[1]

    def digest(text):
        return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    assert policy == (
        f"default-src 'none'; style-src '{digest(css)}'; script-src '{digest(script)}'; base-uri 'none'; form-action 'none'"
    )


def test_the_json_inside_is_the_result(page, comparison, survey):
    attributes, text = blocks(page, "script")[0]
    assert attributes == {"type": "application/json", "id": "data"}
    assert json.loads(text) == json.loads(json.dumps([comparison.to_dict(), survey.to_dict()]))
    assert not set("<>&") & set(text)
    assert text.isascii()


def test_embedded_json_cannot_close_its_block():
    text = embedded({"x": "</script><!--<script>&amp;\u2028"})
    assert json.loads(text) == {"x": "</script><!--<script>&amp;\u2028"}
    assert not set("<>&\u2028") & set(text)


def test_same_result_same_bytes_from_memory_and_from_file(comparison, survey, tmp_path):
    results = [comparison, survey]
    saved = [comparison.save(tmp_path / "c.json"), survey.save(tmp_path / "s.json")]
    pages = [whorl.report(r, tmp_path / f"{i}.html").read_bytes() for i, r in enumerate((results, results, saved))]
    assert pages[0] == pages[1] == pages[2]


def test_a_light_page_holds_no_script(survey, tmp_path):
    light = whorl.report([survey], tmp_path / "light.html", light=True).read_text()
    assert [a.get("type") for tag, a in Reader(light).tags if tag == "script"] == ["application/json"]
    assert "script-src" not in light
    assert "<title>" in light.split("<svg", 1)[1]  # the browser's own hover texts stay


def test_not_comparable_is_shown_as_such_and_never_as_zero(prints, tmp_path):
    result = judged(prints["one"], prints["short"])
    text = whorl.report([result], tmp_path / "c.html").read_text()
    table, rest = text[text.index("<h3>Evidence</h3>") :].split("</table>", 1)
    assert ">head-spectra<" not in table
    entry = rest[rest.index(">head-spectra<") :].split("</li>", 1)[0]
    assert "Not comparable" in rest.split("<ul>", 1)[0]
    assert "0.0" not in entry
    names = {n: prints[n] for n in ("one", "two", "short")}
    found = list(names.values())
    many = collect(names, tuple(judged(a, b) for i, a in enumerate(found) for b in found[i + 1 :]), METHODS)
    text = whorl.report([many], tmp_path / "s.html").read_text()
    cells = re.findall(r'<g class="cell" data-pair="\d+-2"><title>[^<]*head-spectra: ([^<]*)</title>(.*?)</g>', text)
    assert len(cells) == 4  # two pairs, both halves
    assert all(why.startswith("not comparable: ") and ">n/c<" in cell and "gap" in cell for why, cell in cells)
    assert "Not in the tree" in text


def test_page_says_in_words_that_descriptors_overlap(page):
    assert "the published descriptors among these methods overlap" in page
    assert "it is not an error rate" in page


def test_survey_picture_has_every_pair_twice_and_alternative_text(survey, tmp_path):
    text = whorl.report([survey], tmp_path / "s.html").read_text()
    n, methods = len(survey.names), len(survey.tables)
    assert text.count('class="cell"') == methods * n * (n - 1)
    assert text.count("<svg") == text.count("<desc ") + 1  # the pattern of the gaps needs no words


def test_large_surveys_draw_without_figures_and_stay_small(tmp_path):
    n = 60
    rng = np.random.default_rng(0)
    names = [f"model-{i}" for i in range(n)]
    values = np.round(rng.random((n, n)), 4)
    rows = [[None if i == j else float(max(values[i, j], values[j, i])) for j in range(n)] for i in range(n)]
    pairs = [
        {"a": i, "b": j, "verdict": "undecided", "relation": "undecided", "why": "w", "p_value": None}
        | {"not_comparable": {}, "skipped": []}
        for i in range(n)
        for j in range(i + 1, n)
    ]
    model = {
        "typed": "t",
        "resolved": "r",
        "commit": None,
        "weights_digest": "0" * 64,
        "shape": {},
        "declared": {},
        "notes": [],
    }
    table = {"method": "std-vector@1()", "direction": "similarity", "paper": "p", "values": rows, "tree": None}
    data = {
        "schema": 1, "kind": "survey", "status": "done", "whorl_version": "0", "alpha": 0.01,
        "models": [{"name": name, **model} for name in names],
        "tables": [table | {"p_values": [[None] * n] * n}],
        "pairs": pairs, "warnings": [], "skipped": [], "does_not_show": [], "environment": {},
    }  # fmt: skip
    path = tmp_path / "big.json"
    path.write_text(json.dumps(data))
    text = whorl.report([path], tmp_path / "big.html").read_text()
    assert 'class="num pale"' not in text
    assert len(text) < 2_500_000


def changed(data, where, value):
    found = json.loads(json.dumps(data))
    spot = found
    for key in where[:-1]:
        spot = spot[key]
    spot[where[-1]] = value
    return found


@pytest.mark.parametrize(
    ("where", "value", "error", "message"),
    [
        (("kind",), "certificate", UnsupportedFile, "kind 'certificate'"),
        (("kind",), ["survey"], UnsupportedFile, "expected comparison, "),
        (("schema",), 2, UnsupportedFile, "schema 2"),
        (("extra",), 1, MalformedFile, "field 'extra'"),
        (("alpha",), "0.01", MalformedFile, "field 'alpha'"),
        (("alpha",), 2, MalformedFile, "field 'alpha'"),
        (("tables", 0, "values", 0, 1), 0.123, MalformedFile, "not symmetric"),
        (("tables", 0, "values", 0, 0), 1.0, MalformedFile, "with itself"),
        (("tables", 0, "values", 0), [], MalformedFile, "is not 6 by 6"),
        (("tables", 0, "direction"), "up", MalformedFile, "direction"),
        (("tables", 0, "tree", "merges", 0, 0), 99, MalformedFile, "join every leaf once"),
        (("tables", 0, "tree", "merges", 0, 2), -1.0, MalformedFile, "merges"),
        (("tables", 0, "tree", "leaves", 0), "nobody", MalformedFile, "the models of the survey"),
        (("pairs", 0, "b"), 5, MalformedFile, "not all pairs"),
        (("pairs",), [], MalformedFile, "not all pairs"),
        (("pairs", 0, "verdict"), "<b>related</b>", MalformedFile, "verdict"),
        (("models", 0, "name"), "two", MalformedFile, "one name"),
        (("models", 0, "weights_digest"), "<svg>", MalformedFile, "weights_digest"),
    ],
)
def test_a_tampered_survey_is_refused(survey, where, value, error, message):
    with pytest.raises(error, match=re.escape(message)):
        checked(changed(survey.to_dict(), where, value), "s.json")


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (("models",), [], "models"),
        (("evidence", 0, "similarity"), None, "one value"),
        (("evidence", 0, "comparable"), False, "one value"),
        (("evidence", 0, "distance"), 0.5, "one value"),
        (("evidence", 0, "p_value"), 1.5, "p_value"),
        (("verdict",), "guilty", "verdict"),
    ],
)
def test_a_tampered_comparison_is_refused(comparison, where, value, message):
    with pytest.raises(MalformedFile, match=message):
        checked(changed(comparison.to_dict(), where, value), "c.json")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", MalformedFile),
        ("[]", MalformedFile),
        ('{"kind": NaN}', MalformedFile),
        ('{"kind": "survey", "kind": "survey"}', UnsafeFile),
    ],
)
def test_broken_result_files_are_refused(tmp_path, text, error):
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(error, match=r"result\.json"):
        whorl.report([path], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_wrong_calls_are_usage_errors(survey, tmp_path):
    with pytest.raises(UsageError, match="at least one result"):
        whorl.report([])
    with pytest.raises(UsageError, match="no result file"):
        whorl.report([tmp_path / "nothing.json"])
    with pytest.raises(UsageError, match="none of the models"):
        whorl.report([survey], tmp_path / "r.html", truth={"nobody": "x"})
    with pytest.raises(UsageError, match="is a group, or a mapping"):
        whorl.report([survey], tmp_path / "r.html", truth={"one": 3})


def test_command_line_report(comparison, tmp_path):
    saved, out = comparison.save(tmp_path / "c.json"), tmp_path / "page.html"
    code = [sys.executable, "-c", "from whorl.cli.main import run; run()", "report"]

    def run(*arguments):
        return subprocess.run([*code, *map(str, arguments)], capture_output=True, text=True, check=False)

    done = run(saved, "--out", out, "--quiet")
    assert (done.returncode, done.stdout) == (0, f"{out}\n")
    assert out.read_text().startswith("<!doctype html>")
    assert run(tmp_path / "nothing.json").returncode == 2
    saved.write_text("{}")
    refused = run(saved, "--out", tmp_path / "no.html")
    assert refused.returncode == 3
    assert "Refused result 'c.json'" in refused.stderr
    assert not (tmp_path / "no.html").exists()


def test_report_stays_callable_after_its_package_was_imported():
    code = "import whorl, whorl.reports, whorl.surveys\nassert callable(whorl.report)\nwhorl.report([])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "UsageError: A report needs at least one result." in done.stderr


VALUES = ((None, 0.9, 0.5, 0.7), (0.9, None, 0.6, 0.4), (0.5, 0.6, None, 0.7), (0.7, 0.4, 0.7, None))
NAMES = ("a", "b", "c", "d")
LINEAGES = {"a": Lineage("x"), "b": Lineage("x"), "c": Lineage("y"), "d": Lineage("y")}


def test_separation_of_a_known_table():
    found = separation(VALUES, NAMES, LINEAGES, larger_is_closer=True)
    assert sorted(found.kin.all) == [0.7, 0.9]
    assert sorted(found.strangers.all) == [0.4, 0.5, 0.6, 0.7]
    assert found.auc == pytest.approx((4 + 3.5) / 8)  # 0.9 beats four, 0.7 beats three and ties one
    assert (found.strangers_inside, found.kin_inside, found.overlap) == (1, 1, True)
    assert (found.farthest_kin.a, found.farthest_kin.b) == (2, 3)
    assert (found.closest_strangers.a, found.closest_strangers.b) == (0, 3)


def test_separation_turns_round_for_distances():
    distances = tuple(tuple(None if v is None else 1 - v for v in row) for row in VALUES)
    found = separation(distances, NAMES, LINEAGES, larger_is_closer=False)
    assert found.auc == pytest.approx((4 + 3.5) / 8)
    assert found.kin.low == pytest.approx(0.1)
    assert (found.farthest_kin.a, found.farthest_kin.b) == (2, 3)


def test_separation_needs_both_sorts_of_pairs():
    assert separation(VALUES, NAMES, {"a": Lineage("x"), "b": Lineage("x")}, larger_is_closer=True) is None
    assert separation(VALUES, NAMES, {"a": Lineage("x"), "c": Lineage("y")}, larger_is_closer=True) is None


def test_numbers_are_never_rounded_up_to_equality():
    assert number(0.99999) == "0.9999"
    assert number(1 - 1e-12) == "1.0000"  # nine digits are kept: below that it is rounding
    assert number(None) == "n/c"
    assert number(-0.00001) == "0.0000"
    assert number(-0.25, 2) == "\N{MINUS SIGN}0.25"
    assert short_number(0.998, 3) == ".998"
    assert short_number(1.0, 3) == "1"


def test_long_names_keep_their_end():
    assert cut_name("org/" + "x" * 50 + "-v1", 20).endswith("x-v1")
    assert len(cut_name("y" * 300, 24)) == 24


def test_ticks_are_round_and_inside():
    assert ticks(0.0, 0.033, 3) == [0.0, 0.02]
    assert ticks(0.5, 0.5) == [0.5]
    assert all(-0.3 <= t <= 1.1 for t in ticks(-0.3, 1.1))


def test_rug_merges_marks_of_one_pixel():
    plot = rug((("all", [0.5] * 100 + [0.9]),), "alt", pointer=0.7)
    assert len(plot.lines[0].marks) == 2
    assert plot.lines[0].marks[0].title.startswith("100 pairs")
    assert plot.lines[0].marks[0].x < plot.pointer.x < plot.lines[0].marks[1].x


def test_package_data_is_there():
    templates = Path(whorl.reports.__file__).parent / "templates"
    assert {"page.html", "plots.html", "survey.html", "comparison.html", "style.css", "script.js"} <= {
        p.name for p in templates.iterdir()
    }
