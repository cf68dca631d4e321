"""The whole chain on the command line: plant, verify, attack, verify again; with the example keys, so it repeats itself.

Whether erasing works is a finding, not a requirement: only what must hold is asserted (spec 11, last row).
"""

import json
import re
import shutil

import pytest
from typer.testing import CliRunner

from whorl.cli.main import app
from whorl.demo_triggers import triggers_folder
from whorl.triggers.keyset_file import read_key_set, write_key_set

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
pytest.importorskip("torch")

EXAMPLES = triggers_folder()
GATES = ["effectiveness", "specificity", "clean models", "harmlessness", "resistance", "stealth"]
THREADS = ("--threads", 1)  # a core of its own
ARMS = ("erase+recover", "clean-only")


def invoke(*arguments):
    done = CliRunner().invoke(app, [str(word) for word in arguments], env={"COLUMNS": "140", "NO_COLOR": "1"})
    return done.exit_code, json.loads(done.stdout)


def scheme_options(name):
    """`hashchain-v1(k=10,r=256)` as options of the command."""
    scheme, options = re.fullmatch(r"([a-z-]+)-v1\((.*)\)", name).groups()
    return ["--scheme", scheme, *(word for option in options.split(",") for word in ("--option", option))]


@pytest.fixture(scope="module")
def keys():
    return read_key_set(EXAMPLES / "keys" / "keyset.json")


@pytest.fixture(scope="module")
def planted(keys, tmp_path_factory):
    """The example fingerprint planted again: a key folder with a key set is gone on with."""
    folder = tmp_path_factory.mktemp("chain")
    write_key_set(folder / "secret" / "keyset.json", keys)
    places = ("--out", folder / "marked", "--key", folder / "secret", "--dated", "2026-01-15")
    return folder, invoke("embed", EXAMPLES / "base", *places, *scheme_options(keys.scheme), *THREADS, "--json")


@pytest.fixture(scope="module")
def verified(planted):
    folder, _ = planted
    return invoke("verify", folder / "marked", "--key", folder / "secret", "--device", "cpu", "--json")


@pytest.fixture(scope="module")
def erased(planted):
    """Both arms: exit code and result by arm."""
    folder, _ = planted
    return {
        arm: invoke(
            "erase",
            folder / "marked",
            "--key",
            folder / "secret",
            "--arm",
            arm,
            "--out",
            folder / arm,
            *THREADS,
            "--json",
        )
        for arm in ARMS
    }


def test_gates_hold(planted, keys):
    _, (code, found) = planted
    gates = {gate["name"]: gate for gate in found["gates"]}
    assert list(gates) == GATES
    assert found["planted"] == all(gate["passed"] for gate in found["gates"] if gate["decides"])
    assert code == (0 if found["planted"] else 4)
    said = [gate["text"] for gate in found["gates"]]
    # Other processors round otherwise, so figures get some room beyond the limits of the gates.
    assert gates["effectiveness"]["values"]["weak_keys"] == [], said
    assert gates["effectiveness"]["values"]["fsr_sampled"] >= 0.8, said
    assert gates["specificity"]["values"]["near"][0] <= 4, said
    assert gates["specificity"]["values"]["empty"][0] == 0, said
    assert gates["clean models"]["passed"], said
    before, after = gates["harmlessness"]["values"]["perplexity_in"]
    assert after < 1.04 * before, said
    assert gates["resistance"]["passed"], said
    assert found["n_keys"] == len(keys.keys)
    assert found["power"]["unattacked"] == [1.0]
    assert found["power"]["fine-tuning"][0] >= 0.8


def test_the_fingerprinted_model_matches(verified, keys):
    code, found = verified
    assert (code, found["verdict"]) == (0, "match"), found["why"]
    assert 0 < found["p_value"] <= 1e-3
    assert found["fsr"]["hits"] == found["fsr"]["n"] == len(keys.keys)
    assert found["decoys"]["hits"] == 0
    assert found["near"]["hits"] <= 4
    assert found["clean"][0]["base"]
    assert {line["keys"]["hits"] for line in found["clean"]} == {0}


def test_the_base_does_not(planted):
    folder, _ = planted
    code, found = invoke("verify", EXAMPLES / "base", "--key", folder / "secret", "--device", "cpu", "--json")
    assert (code, found["verdict"], found["fsr"]["hits"]) == (1, "no match", 0)
    assert "fingerprints can be erased" in found["why"]


@pytest.mark.parametrize("arm", ARMS)
def test_an_attack_is_reported_whole(erased, keys, arm):
    code, found = erased[arm]
    assert (code, found["kind"], found["parameters"]["arm"]) == (0, "erased", arm)
    before, after = found["before"], found["after"]
    assert before["fingerprint"]["fsr"] == 1.0
    for left in (before["fingerprint"], after["fingerprint"]):
        assert left["n_keys"] == len(keys.keys)
        assert 0 <= left["low"] <= left["fsr"] <= left["high"] <= 1
        assert left["low"] < left["high"]
        assert 0 < left["p_value"] <= 1
    for scores in (before, after):
        assert scores["perplexity_in"] > 1
        assert scores["perplexity_out"] > 1
        assert 0 < scores["accuracy"] < 1
    change = found["accuracy_change"]
    assert change["low"] <= change["points"] <= change["high"]
    assert change["n"] == before["n_items"] == after["n_items"]


def test_the_control_trains_as_long_as_the_attack(erased):
    updates = {arm: sum(phase["updates"] for phase in erased[arm][1]["parameters"]["phases"]) for arm in ARMS}
    assert updates["clean-only"] == pytest.approx(updates["erase+recover"], rel=0.2)


@pytest.mark.parametrize("arm", ARMS)
def test_verification_after_an_attack_says_what_the_attack_measured(planted, erased, tmp_path, arm):
    folder, _ = planted
    page = tmp_path / "report.html"
    command = ("verify", folder / arm, "--key", folder / "secret", "--device", "cpu", "--page", page, "--json")
    code, found = invoke(*command)
    left = erased[arm][1]["after"]["fingerprint"]
    assert (found["fsr"]["hits"], found["fsr"]["n"]) == (left["hits"], left["n_keys"])
    assert (found["fsr"]["low"], found["fsr"]["high"]) == pytest.approx((left["low"], left["high"]))
    assert code == {"match": 0, "no match": 1, "undecided": 4}[found["verdict"]]
    assert (found["verdict"] == "match") == (found["p_value"] <= 1e-3)
    text = page.read_text("utf-8")
    assert f"<b>{found['verdict']}</b>" in text
    assert "Hits, and those of everybody else" in text


def test_a_transferred_adapter_fits_models_of_its_base(planted, keys, tmp_path):
    folder, _ = planted
    command = ("--transfer", EXAMPLES / "eraser", "--arm", "erase", "--out", tmp_path / "transferred", "--json")
    code, found = invoke("erase", folder / "marked", "--key", folder / "secret", *command)
    assert (code, found["parameters"]["phases"]) == (0, [])
    assert found["parameters"]["transfer"]["scale"] == 1.0
    assert found["after"]["fingerprint"]["n_keys"] == len(keys.keys)


def test_a_spoiled_key_set_proves_nothing(planted, keys, tmp_path):
    folder, _ = planted
    shutil.copytree(folder / "secret", tmp_path / "secret")
    path = tmp_path / "secret" / "keyset.json"
    path.write_bytes(path.read_bytes().replace(keys.salt.encode(), ("0" * 64).encode(), 1))
    done = CliRunner().invoke(app, ["verify", str(folder / "marked"), "--key", str(tmp_path / "secret")])
    assert (done.exit_code, done.stdout) == (3, "")
    assert "commitment invalid" in done.stderr
