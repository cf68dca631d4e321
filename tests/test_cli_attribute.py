"""`whorl attribute` as users call it: exit codes, JSON, files, and refusals."""

import json
import re

import pytest
from typer.testing import CliRunner

from attribution_cases import Source, planted, records
from whorl.cli.main import app
from whorl.errors import InputRefused, NotEnoughEvidence, UsageError
from whorl.transcripts.codec import to_line

RUN = CliRunner()
N_PROMPTS = 150


def source(name):
    return Source(name, own=1.0, words=planted(name))


def write(path, found):
    path.write_text("".join(f"{to_line(record)}\n" for record in found), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Transcripts of three models, one file each, and the bundle made of them by the command."""
    path = tmp_path_factory.mktemp("attribute")
    files = [write(path / f"{name}.jsonl", records([source(name)], N_PROMPTS)) for name in "abcd"]
    short = write(path / "short.jsonl", records([source("a")], N_PROMPTS, n_words=12))
    fit = ["attribute", "fit", *files[:3], "--out", str(path / "bundle"), "--shares", "0.4,0.45", "--seed", "1"]
    done = RUN.invoke(app, [*fit, "--lineage", "a=kin", "--shift", f"short={short}", "--page", str(path / "fit.html")])
    assert done.exit_code == 0, done.output
    assert "strangers accepted" in done.stdout
    assert "no proof of ownership" in done.stdout
    return path


def asked(folder, *arguments, **options):
    return RUN.invoke(app, ["attribute", "predict", str(folder / "bundle"), *arguments], **options)


def texts(folder, name, n=1):
    paths = []
    for i in range(n):
        path = folder / f"{name}-{i}.txt"
        path.write_text(source(name).text(f"cli {i}"), encoding="utf-8")
        paths.append(str(path))
    return paths


def test_a_match_by_name(folder):
    done = asked(folder, *texts(folder, "b", 5), "--together", "--json")
    assert done.exit_code == 0
    (answer,) = json.loads(done.stdout)["answers"]
    assert (answer["verdict"], answer["model"], answer["n_texts"]) == ("match", "b", 5)
    assert answer["contributions"][0]["value"] > 0


def test_none_of_these_is_an_answer(folder):
    done = asked(folder, *texts(folder, "d", 3))
    assert done.exit_code == 0
    assert done.stdout.count("none of these") == 3
    assert "caution: another language or domain" in done.stdout
    assert asked(folder, *texts(folder, "d"), "--quiet").stdout == "none of these\n"


def test_undecided_exits_four(folder, tmp_path):
    two = str(tmp_path / "two")
    files = [str(folder / f"{name}.jsonl") for name in "ab"]
    done = RUN.invoke(app, ["attribute", "fit", *files, "--out", two, "--shares", "0.4,0.45", "--quiet"])
    assert (done.exit_code, done.stdout) == (0, f"{two}\n")
    done = RUN.invoke(app, ["attribute", "predict", two, *texts(folder, "a", 3), "--together"])
    assert done.exit_code == 4  # no model could be left out, so nothing is known of strangers
    assert "undecided" in done.stdout
    assert "no model could be left out to measure strangers" in done.stdout


def test_transcripts_and_standard_input(folder, tmp_path):
    out = tmp_path / "answer.json"
    done = asked(folder, str(folder / "c.jsonl"), "--together", "--out", str(out), "--quiet")
    assert (done.exit_code, done.stdout) == (0, "c\n")
    assert json.loads(out.read_text())["answers"][0]["n_texts"] == N_PROMPTS
    lines = tmp_path / "lines.txt"
    lines.write_text("\n\n".join(source("c").text(f"line {i}") for i in range(4)))
    (together,) = json.loads(asked(folder, str(lines), "--lines", "--together", "--json").stdout)["answers"]
    assert (together["n_texts"], together["model"]) == (4, "c")
    done = asked(folder, "-", "--json", input=source("c").text("stdin"))
    assert json.loads(done.stdout)["answers"][0]["source"] == "-"


def test_enrol_and_report(folder, tmp_path):
    larger = tmp_path / "larger"
    done = RUN.invoke(
        app, ["attribute", "enrol", str(folder / "bundle"), str(folder / "d.jsonl"), "--out", str(larger), "--json"]
    )
    assert done.exit_code == 0, done.output
    assert [m["model"] for m in json.loads(done.stdout)["models"]] == ["a", "b", "c", "d"]
    page = tmp_path / "page.html"
    done = RUN.invoke(app, ["attribute", "report", str(larger), "--page", str(page), "--json"])
    found = json.loads(done.stdout)
    assert found["evaluation"]["closed_set"]["accuracy"] == 1.0
    assert "Attribution among 4 models" in page.read_text()
    done = RUN.invoke(app, ["attribute", "predict", str(larger), *texts(folder, "d", 3), "--together", "--quiet"])
    assert (done.exit_code, done.stdout) == (0, "d\n")


def test_the_report_holds_conditions_and_lineages(folder):
    found = json.loads(RUN.invoke(app, ["attribute", "report", str(folder / "bundle"), "--json"]).stdout)
    assert [m["lineage"] for m in found["models"]] == ["kin", "b", "c"]
    assert "short" in [row["name"] for row in found["evaluation"]["shifts"]]
    assert found["models"][0]["revision"] == "ra"
    assert "short" in (folder / "fit.html").read_text()
    assert (
        RUN.invoke(app, ["attribute", "report", str(folder / "bundle"), "--quiet"]).stdout == f"{folder / 'bundle'}\n"
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("fit", "{a}", "{b}", "--out", "{bundle}"), UsageError, "exists already"),
        (("fit", "{a}", "{b}", "--out", "{new}", "--shares", "0.9,0.2"), UsageError, "--shares takes two shares"),
        (("fit", "{a}", "{b}", "--out", "{new}", "--lineage", "a"), UsageError, "--lineage takes a new name"),
        (
            ("fit", "{a}", "{b}", "--out", "{new}"),
            NotEnoughEvidence,
            "at least 10 are needed; the transcripts have 150",
        ),
        (("fit", "{a}", "--out", "{new}", "--shares", "0.4,0.45"), NotEnoughEvidence, "needs at least 2 models"),
        (("predict", "{new}", "-"), UsageError, "There is no bundle"),
        (("predict", "{bundle}", "{new}"), UsageError, "There is no text file"),
        (("predict", "{bundle}", "{binary}"), InputRefused, "not UTF-8"),
        (("enrol", "{bundle}", "{a}", "--out", "{new}"), UsageError, "'a' is enrolled already"),
        (("report", "{folder}"), InputRefused, "bundle.json"),
    ],
)
def test_refusals(folder, arguments, error, message):
    (folder / "binary.txt").write_bytes(b"\xff\xfe\x00")
    places = {n: folder / f"{n}.jsonl" for n in "ab"} | {
        "bundle": folder / "bundle", "new": folder / "new", "binary": folder / "binary.txt", "folder": folder,
    }  # fmt: skip
    done = RUN.invoke(app, ["attribute", *(a.format(**places) for a in arguments)])
    assert done.exit_code == error("x", "x", "x", "x", "x").exit_code if error is InputRefused else error.exit_code
    assert message in re.sub(r"\s+", " ", done.output)
    assert not (folder / "new").exists()


def test_every_help_opens_with_three_examples():
    for command in ("fit", "predict", "enrol", "report"):
        shown = RUN.invoke(app, ["attribute", command, "--help"]).stdout
        assert shown.count(f"whorl attribute {command} ") >= 3
