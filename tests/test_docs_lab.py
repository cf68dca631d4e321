"""The page about the natural-fingerprint lab says what the code does."""

import inspect
import json
import os
import re
from pathlib import Path

import pytest

from whorl.lab.natural.config import FACTORS, Experiment, cells

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "lab.md"
BEGIN, END = "<!-- settings -->\n", "<!-- end of settings -->\n"


def meanings():
    """The `Args:` of the settings: name -> text."""
    text = inspect.cleandoc(Experiment.__doc__).partition("Args:\n")[2]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8,}.*)*)", text, re.MULTILINE)
    return {name: re.sub(r"\s+", " ", meaning) for name, meaning in entries}


def allowed(schema):
    """What a value may be, in words, from its JSON schema."""
    if "enum" in schema:
        return "one of " + ", ".join(f'"{value}"' for value in schema["enum"])
    if schema["type"] == "array":
        return f"list: {allowed(schema['items'])}"
    words = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}
    limits = {"minimum": "at least", "exclusiveMinimum": "above", "exclusiveMaximum": "below", "maximum": "at most"}
    found = [f"{word} {schema[key]:g}" for key, word in limits.items() if key in schema]
    return ", ".join([words[schema["type"]], *found])


def settings_table():
    fields = Experiment.model_json_schema()["properties"]
    lines = ["| name | default | may be | meaning |", "|---|---|---|---|"]
    for name, meaning in meanings().items():
        whole = tuple(fields[name]["default"]) == FACTORS if name == "factors" else False
        default = "all of them" if whole else f"`{json.dumps(fields[name]['default'])}`"
        lines.append(f"| `{name}` | {default} | {allowed(fields[name])} | {meaning} |")
    return "\n".join(lines) + "\n"


def test_the_table_of_settings_is_fresh():
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    fresh = before + BEGIN + settings_table() + END + after
    if os.environ.get("WHORL_UPDATE"):
        PAGE.write_text(fresh, encoding="utf-8")
        text = fresh
    assert text == fresh
    assert list(meanings()) == list(Experiment.model_fields)


def test_factors_controls_and_counts_of_the_page_are_those_of_the_code():
    text = PAGE.read_text(encoding="utf-8")
    assert all(f"`{factor}`" in text for factor in FACTORS)
    assert all(f"| {control}" in text for control in ("C1", "C2", "C3"))
    assert f"The default makes {len(cells(Experiment()))} models" in text


@pytest.mark.parametrize("block", re.findall(r"```json\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))
def test_the_settings_shown_are_valid(block):
    assert Experiment.model_validate_json(block, strict=True) != Experiment()


def test_links_lead_somewhere():
    targets = [t.partition("#")[0] for t in re.findall(r"\]\(([^)]+)\)", PAGE.read_text(encoding="utf-8"))]
    later = {"results/natural-fingerprints.md"}  # printed by the command itself
    assert [t for t in targets if t and t not in later and not (PAGE.parent / t).exists()] == []


def test_limits_are_said_in_words():
    assert allowed({"type": "integer", "minimum": 3}) == "whole number, at least 3"
    assert allowed({"type": "array", "items": {"enum": ["a", "b"]}}) == 'list: one of "a", "b"'
