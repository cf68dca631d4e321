"""`whorl compare --from transcripts`, `SET:MODEL`, and how results of both tests on outputs are shown."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

import whorl
from derivation_cases import DRAWN, WORDS, family, pairs, planted, prompts, records, source
from whorl.cli.main import app
from whorl.derivation.derivation import derivation_test
from whorl.errors import MalformedFile, UnsupportedFile, UsageError
from whorl.identity.identity import identity_test
from whorl.reports.stored import checked
from whorl.transcripts.choice import read_each, read_model, read_models
from whorl.transcripts.codec import to_line
from whorl.transcripts.record import ModelId, Template, Transcript
from whorl.transcripts.store import open_set

WHORL = [sys.executable, "-c", "from whorl.cli.main import run; run()"]
HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e"
CLAIM = '</script><img src=x onerror="alert(1)">{{ 7*7 }}'


def run_whorl(*arguments, cwd):
    env = os.environ | {"NO_COLOR": "1", "COLUMNS": "140"}
    command = [*WHORL, "compare", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False, cwd=cwd)


def write(path, found):
    path.write_text("".join(to_line(record) + "\n" for record in found), encoding="utf-8")
    return path


def drawn(model, seed, n_prompts=14, n_draws=8, stream="main"):
    """Draws of one model, as an endpoint gives them."""
    asked, rng = pairs(n_prompts, 11), np.random.default_rng(seed)
    p, who = model.distributions(asked), ModelId(model.name, "r1")
    return [
        Transcript(
            who,
            prompt,
            Template(),
            DRAWN,
            f"{WORDS[w]} it is",
            sample_index=k,
            stream=stream,
            sampler_seed=seed * 999 + 31 * j + k,
        )
        for j, (prompt, row) in enumerate(zip(prompts(asked, "short"), p, strict=True))
        for k, w in enumerate(rng.choice(len(WORDS), size=n_draws, p=row))
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    a, b, controls = family()
    write(root / "pair.jsonl", [*a, *b])
    write(root / "a.jsonl", a)
    write(root / "stranger.jsonl", records(source("some/one", 50)))
    write(root / "planted.jsonl", [r for found in planted(29).values() for r in found])
    with open_set(root / "others", [r.prompt for r in a]) as others:
        for found in controls.values():
            others.append(found)
    (root / "lineages.json").write_text(json.dumps({f"other/m{k}": {"group": f"g{k}"} for k in range(30)}))
    base, other = source("lab/base", 1, own=2.0), source("else/where", 2, own=2.0)
    write(root / "reference.jsonl", drawn(base, 1))
    write(root / "honest.jsonl", drawn(base, 2, stream="second"))
    write(root / "variant.jsonl", drawn(base, 3, stream="third"))
    write(root / "foreign.jsonl", drawn(other, 4))
    return root


DERIVATION = ("--from", "transcripts", "--question", "derivation", "--alpha", "0.05")


def test_a_derivative_is_related_and_ends_in_0(folder):
    done = run_whorl(
        "pair.jsonl:lab/base",
        "pair.jsonl:thief/child",
        *DERIVATION,
        "--control",
        "others",
        "--lineages",
        "lineages.json",
        cwd=folder,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "\N{ALMOST EQUAL TO} related (from outputs), p = 0.05"
    assert lines[1].startswith("B begins its answers like A more often than every control, those of 19 lineages")
    assert re.search(
        r"^models +passed: p = 0.05, rank among 19 lineages; needs p at most 0.05", done.stdout, re.MULTILINE
    )
    assert re.search(
        r"^alleles +not comparable: reference 'lab/base' has no answers drawn at random", done.stdout, re.MULTILINE
    )
    assert "does not show Outputs cannot tell A -> B from B -> A" in done.stdout
    assert "caution" not in done.stdout


def test_undecided_ends_in_4_and_says_what_is_missing(folder):
    done = run_whorl("a.jsonl", "stranger.jsonl", *DERIVATION, "--control", "others", cwd=folder)
    assert done.returncode == 4
    assert "missing       29 more planted derivatives of A" in done.stdout
    assert "caution       no lineages were given for the controls" in done.stdout


def test_check_ends_in_1_when_unrelated(folder):
    arguments = ("a.jsonl", "stranger.jsonl", *DERIVATION, "--control", "others", "--planted", "planted.jsonl")
    assert run_whorl(*arguments, "--quiet", cwd=folder).stdout == "unrelated\n"
    assert run_whorl(*arguments, "--check", "--quiet", cwd=folder).returncode == 1


def test_json_out_and_page_are_one_result(folder, tmp_path):
    saved, page = tmp_path / "result.json", tmp_path / "page.html"
    done = run_whorl(
        "pair.jsonl:lab/base", "pair.jsonl:thief/child", *DERIVATION, "--control", "others", "--json", "--out", saved, "--page", page,
        cwd=folder,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert (found["kind"], found["verdict"], found["config"]["score"]) == ("derivation", "related", "first-word")
    assert json.loads(saved.read_text()) == found
    again = tmp_path / "again.html"
    report = subprocess.run([*WHORL, "report", saved, "--out", again], capture_output=True, text=True, check=False)
    assert report.returncode == 0
    assert again.read_bytes() == page.read_bytes()


def test_identity_is_the_default_question(folder):
    done = run_whorl(
        "reference.jsonl", "foreign.jsonl", "--from", "transcripts", "--variant", "variant.jsonl", cwd=folder
    )
    assert done.returncode == 0
    assert done.stdout.startswith("\N{NOT EQUAL TO} no match, p = 0.0001\n")
    assert re.search(r"^variant +p = 0.0001; 14 prompts, 112 \+ 112 draws", done.stdout, re.MULTILINE)
    assert "claimed  lab/base" in done.stdout
    assert (
        run_whorl(
            "reference.jsonl", "foreign.jsonl", "--from", "transcripts", "--check", "--quiet", cwd=folder
        ).returncode
        == 1
    )


def test_identity_matches_where_the_swap_would_have_been_noticed(folder):
    arguments = ("reference.jsonl", "honest.jsonl", "--from", "transcripts")
    done = run_whorl(*arguments, "--swap", "foreign.jsonl", "--method", "first-word", cwd=folder)
    assert done.returncode == 0
    assert done.stdout.startswith("\N{ALMOST EQUAL TO} match, p = ")
    assert re.search(r"^power +foreign: found in 100 %", done.stdout, re.MULTILINE)
    undecided = run_whorl(*arguments, cwd=folder)
    assert undecided.returncode == 4
    assert re.search(r"^missing +plant the smallest difference", undecided.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.jsonl", "a.jsonl", "--from", "outputs"], "--from is weights or transcripts, not 'outputs'"),
        (["./a", "./b", "--control", "others"], "--control does not go with --from weights"),
        (["./a", "./b", "--mixed-decoding"], "--mixed-decoding does not go with --from weights"),
        (["a.jsonl", "a.jsonl", "--from", "transcripts", "--adapter-a", "x"], "--adapter-a does not go with --from transcripts"),
        (["a.jsonl", "a.jsonl", "--from", "transcripts", "--control", "others"], "--control goes with --question derivation"),
        (["a.jsonl", "a.jsonl", *DERIVATION, "--swap", "others"], "--swap goes with --question identity"),
        (["a.jsonl", "a.jsonl", "--from", "transcripts", "--question", "parent"], "--question is identity or derivation"),
        (["a.jsonl", "a.jsonl", *DERIVATION, "--method", "mmd"], "There is no score 'mmd'"),
        (["a.jsonl", "a.jsonl", *DERIVATION, "--method", "alleles", "--method", "first-4"], "give it once"),
        (["pair.jsonl", "a.jsonl", *DERIVATION], "choose one of them: 'pair.jsonl:lab/base', 'pair.jsonl:thief/child'"),
        (["pair.jsonl:lab/bass", "a.jsonl", *DERIVATION], "No model 'lab/bass' is in 'pair.jsonl'"),
        (["others:other/m91", "a.jsonl", *DERIVATION], "No model 'other/m91' is in the set 'others'"),
        (["nowhere.jsonl", "a.jsonl", *DERIVATION], "There are no transcripts 'nowhere.jsonl'"),
        (["a.jsonl", "stranger.jsonl", *DERIVATION, "--lineages", "none.json"], "There is no file of lineages 'none.json'"),
        (["a.jsonl", "a.jsonl", *DERIVATION, "--control", "others"], "as reference 'lab/base' and as suspect 'lab/base'"),
    ],
)  # fmt: skip
def test_wrong_usage_ends_in_2(folder, arguments, message, monkeypatch):
    monkeypatch.chdir(folder)
    done = CliRunner(env={"NO_COLOR": "1", "COLUMNS": "140"}).invoke(app, ["compare", *arguments])
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr


def test_a_damaged_set_ends_in_3(folder):
    (folder / "broken.jsonl").write_text('{"schema": "whorl.transcript/9"}\n')
    done = run_whorl("broken.jsonl", "a.jsonl", *DERIVATION, cwd=folder)
    assert done.returncode == 3
    assert "Refused transcript 'broken.jsonl" in done.stderr


def test_models_are_chosen_by_name_and_by_key(folder):
    pair = folder / "pair.jsonl"
    by_name = read_model(f"{pair}:thief/child")
    assert read_model(f"{pair}:{by_name[0].model.key}") == by_name
    assert sorted(read_models([str(folder / "others")])) == sorted(f"other/m{k}" for k in range(19))
    assert list(read_models([f"{folder / 'others'}:other/m3", str(folder / "a.jsonl")])) == ["other/m3", "lab/base"]
    assert list(read_each([str(folder / "honest.jsonl"), str(folder / "variant.jsonl")])) == ["honest", "variant"]
    with pytest.raises(UsageError, match=r"'some/one' .* is given twice"):
        read_models([str(folder / "stranger.jsonl")] * 2)
    with pytest.raises(UsageError, match="is given twice"):
        read_each([str(folder / "honest.jsonl")] * 2)


def test_colons_in_paths_and_names_do_no_harm(tmp_path):
    found = [dataclasses.replace(r, model=ModelId("http://host:80/v1/m")) for r in records(source("x", 1))]
    others = records(source("y", 2))
    path = write(tmp_path / "a:b.jsonl", [*found, *others])
    assert {r.model.ref for r in read_model(f"{path}:http://host:80/v1/m")} == {"http://host:80/v1/m"}
    assert len(read_models([str(path)])) == 2


def test_models_of_one_name_keep_their_keys(tmp_path):
    found = records(source("same", 1))
    path = write(
        tmp_path / "two.jsonl", [*found, *(dataclasses.replace(r, model=ModelId("same", "r2")) for r in found)]
    )
    assert all(re.fullmatch(r"same \([0-9a-f]{8}\)", label) for label in read_models([str(path)]))


# Reports


@pytest.fixture(scope="module")
def derivation():
    a, b, controls = family(n_genes=12)
    hostile = dict(controls) | {
        HOSTILE: [dataclasses.replace(r, model=ModelId(HOSTILE, CLAIM)) for r in controls.pop("other/m0")]
    }
    del hostile["other/m0"]
    lineages = {label: f"lineage {k}" for k, label in enumerate(hostile)} | {HOSTILE: CLAIM}
    return derivation_test(a, b, hostile, lineages=lineages, alpha=0.05, planted=planted(3, n_genes=12))


@pytest.fixture(scope="module")
def identity():
    base, other = source("lab/base", 1, own=2.0), source("else/where", 2, own=2.0)
    suspect = [dataclasses.replace(r, model=ModelId(HOSTILE, reported=CLAIM)) for r in drawn(base, 2, stream="second")]
    return identity_test(
        drawn(base, 1), suspect, variants={HOSTILE: drawn(base, 3, stream="third")}, smallest={CLAIM: drawn(other, 4)}, b=999
    )  # fmt: skip


@pytest.fixture(scope="module")
def page(derivation, identity, tmp_path_factory):
    return whorl.report([derivation, identity], tmp_path_factory.mktemp("page") / "r.html").read_text(encoding="utf-8")


def test_verdict_and_error_rate_come_first(page, derivation):
    article = page[page.index("<article>") :]
    first = article[: article.index("<h3>")]
    assert "<b>related</b>" in first
    assert "Rank among 19 control lineages: p = 0.05 (never below 0.05)" in first
    assert "'Related' needs p at most 0.05 over prompts and over models" in first.replace("&#39;", "'")
    assert "3 of 3 planted derivatives of A were found" in first
    assert f"B at {derivation.similarity:.4f}" in article


def test_pages_show_plots_power_limits_and_data(page, derivation, identity):
    assert page.count('role="img"') == 2
    assert "\\u2212" not in page  # signs of numbers are no foreign text
    assert page.count("What this does not show") == 2
    assert "Power: planted derivatives of A" in page
    assert "What would have been noticed" in page
    assert "Outputs cannot tell A -&gt; B from B -&gt; A" in page
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1]
    assert json.loads(data) == json.loads(json.dumps([derivation.to_dict(), identity.to_dict()]))


def test_hostile_names_stay_text(page):
    assert "<script>alert" not in page
    assert "<img" not in page
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\ufeff]", page)
    assert "\\x1b[31m\\u202e" in page
    assert "{{ 7*7 }}" in page


def test_hostile_names_cannot_write_to_the_terminal(derivation, identity):
    from whorl.reports.stored import as_json
    from whorl.reports.stored_transcripts import StoredDerivation, StoredIdentity
    from whorl.reports.transcripts_text import derivation_lines, identity_lines

    lines = [
        *derivation_lines(StoredDerivation.model_validate(as_json(derivation)), 80),
        *identity_lines(StoredIdentity.model_validate(as_json(identity)), 80),
    ]
    text = "\n".join(line.text for line in lines)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert "\\x1b[31m\\u202e" in text


def test_what_cannot_be_scored_has_a_page(tmp_path):
    a, b, _ = family(1)
    text = whorl.report([derivation_test(a, b, {})], tmp_path / "r.html").read_text()
    assert "<b>undecided</b>" in text
    assert "There is no control, so nothing says how near strangers are." in text
    assert "No p-value: nothing could be scored." in text


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
        (("verdict",), "guilty", "verdict"),
        (("verdict",), "unrelated", "without power"),
        (("p_value",), None, "levels come together"),
        (("p_value",), 0.0, "p_value"),
        (("alpha",), 0.5, "alpha"),
        (("extra",), 1, "extra"),
        (("members",), [], "members"),
        (("members", 0, "role"), "control", "come first"),
        (("members", 2, "role"), "suspect", "a second reference or suspect"),
        (("members", 3, "similarity"), None, "have no similarity"),
        (("members", 2, "found"), False, "power is not that"),
        (("members", 1, "key"), "<svg>", "key"),
        (("n_lineages",), 400, "not so many control lineages"),
        (("power", "found"), 9, "more derivatives found"),
        (("scores", 0, "p_model"), None, "come together"),
        (("scores", 0, "score"), "last-word", "score"),
        (("prompts_digest",), "x", "prompts_digest"),
        (("similarity",), "0.5", "similarity"),
    ],
)
def test_a_tampered_derivation_is_refused(derivation, where, value, message):
    with pytest.raises(MalformedFile, match=message):
        checked(changed(derivation.to_dict(), where, value), "d.json")


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (("verdict",), "related", "verdict"),
        (("verdict",), "no match", "without a small p-value"),
        (("power",), [], "'match' without power"),
        (("p_value",), 0.9999, "not the largest"),
        (("p_kind",), None, "come together"),
        (("nulls",), [], "nulls"),
        (("nulls", 0, "digest"), "x", "digest"),
        (("power", 0, "rate"), 1.5, "rate"),
        (("suspect", "secret"), "key", "secret"),
    ],
)
def test_a_tampered_identity_is_refused(identity, where, value, message):
    assert identity.verdict == "match"
    with pytest.raises(MalformedFile, match=message):
        checked(changed(identity.to_dict(), where, value), "i.json")


def test_another_schema_is_refused(derivation):
    with pytest.raises(UnsupportedFile, match="schema 2"):
        checked(changed(derivation.to_dict(), ("schema",), 2), "d.json")
