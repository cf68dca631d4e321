"""`whorl gallery` and `whorl identify` as users meet them."""

import json
import os
import subprocess
import sys

import pytest

import llama_folder
import whorl

WHORL = [sys.executable, "-c", "from whorl.cli.main import run; run()"]
ONE = ("--method", "head-spectra")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("cli-gallery")
    found = {"folder": llama_folder.folder(root / "m0", 0)}
    for seed in range(3):
        model = found["folder"] if seed == 0 else llama_folder.folder(root / f"m{seed}", seed)
        found[f"m{seed}"] = str(whorl.fingerprint(model, ["head-spectra"]).save(root / f"m{seed}.json"))
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    env = os.environ | {"NO_COLOR": "1", "COLUMNS": "140", "WHORL_GALLERY": str(home / "g.sqlite")}

    def whorl_(*arguments):
        command = [*WHORL, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=env, check=False, stdin=subprocess.DEVNULL)

    return whorl_


def test_the_whole_story(run, files, tmp_path):
    done = run("gallery", "add", files["m0"], files["m1"])
    assert (done.returncode, done.stdout.splitlines()[0].partition(" (")[0]) == (0, "added: m0")
    assert run("gallery", "add", files["m0"], "--quiet").stdout == "m0\n"
    assert run("gallery", "list", "--quiet").stdout.split() == ["m0", "m1"]
    listed = json.loads(run("gallery", "list", "--json").stdout)
    assert [e["name"] for e in listed["entries"]] == ["m0", "m1"]
    shown = run("gallery", "show", "m1", "--json", "--out", tmp_path / "m1.json")
    assert json.loads(shown.stdout)["methods"] == ["head-spectra@1()"]
    assert whorl.Fingerprint.load(tmp_path / "m1.json").weights_digest == json.loads(shown.stdout)["weights_digest"]

    found = run("identify", files["folder"], *ONE)
    assert found.returncode == 0
    assert found.stdout.splitlines()[-1].startswith("found m0: identical")
    assert "one discovery among 2 entries needs p at most 0.017" in " ".join(found.stderr.split())
    nothing = run("identify", files["m2"], *ONE, "--json", "--out", tmp_path / "r.json")
    assert nothing.returncode == 4
    assert json.loads(nothing.stdout) == json.loads((tmp_path / "r.json").read_text())
    assert json.loads(nothing.stdout)["conclusion"] == "undecided"
    assert run("compare", "gallery:m0", files["folder"], *ONE, "--quiet").stdout == "related\n"

    written = run("gallery", "export", tmp_path / "g.parquet", "--quiet")
    assert written.stdout == f"{tmp_path / 'g.parquet'}\n"
    other = ("--gallery", tmp_path / "other.sqlite")
    assert run("gallery", "import", tmp_path / "g.parquet", *other).stdout.startswith("2 added, 0 updated, 0 skipped")

    kept = run("gallery", "remove", "m1")
    assert kept.returncode == 2
    assert "needs --yes" in kept.stderr
    assert json.loads(run("gallery", "remove", "m1", "--yes", "--json").stdout)["removed"]["name"] == "m1"
    assert run("gallery", "list", "--quiet").stdout == "m0\n"


def test_errors_are_one_object_and_their_code(run, files, tmp_path):
    bad = tmp_path / "bad.sqlite"
    bad.write_text("no database, but some text")
    done = run("gallery", "list", "--gallery", bad, "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["error"]["kind"] == "MalformedFile"
    missing = run("identify", files["m0"], "--gallery", tmp_path / "nothing.sqlite")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "whorl gallery add" in missing.stderr
    assert run("gallery", "show", "nobody", "--gallery", tmp_path / "nothing.sqlite").returncode == 2


def test_one_of_several_refused_ends_in_4_and_keeps_the_others(run, files, tmp_path):
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    done = run("gallery", "add", files["m2"], broken, "--gallery", tmp_path / "g.sqlite", "--json")
    assert done.returncode == 4
    found = json.loads(done.stdout)
    assert [r["name"] for r in found["results"]] == ["m2"]
    assert found["skipped"][0]["model"] == str(broken)


@pytest.mark.parametrize(
    "command", ["identify", *(f"gallery {c}" for c in ("add", "list", "show", "remove", "export", "import"))]
)
def test_every_help_opens_with_three_examples(run, command):
    done = run(*command.split(), "--help")
    assert done.returncode == 0
    assert sum(line.strip().startswith(f"whorl {command}") for line in done.stdout.splitlines()) >= 3


def test_listing_loads_nothing_heavy(files, tmp_path):
    code = (
        "import sys\nfrom whorl.cli.main import app\n"
        "try: app(['gallery', 'list', '--json'])\nexcept SystemExit: pass\n"
        "print(*sorted({'torch', 'transformers', 'scipy', 'sklearn', 'numpy', 'pyarrow'} & set(sys.modules)), file=sys.stderr)"
    )
    path = tmp_path / "g.sqlite"
    with whorl.Gallery.open(path, write=True) as gallery:
        gallery.add(files["m0"])
    env = os.environ | {"WHORL_GALLERY": str(path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert json.loads(done.stdout)["entries"][0]["name"] == "m0"
    assert done.stderr.split() == []
