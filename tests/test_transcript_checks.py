"""Cues that give a model away are counted, warned about, and taken out by the normalisation."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transcript_cases import plain, transcripts
from whorl.errors import UsageError
from whorl.transcripts._names import AS_AN_AI, NAMES, SELF
from whorl.transcripts.checks import check, warnings
from whorl.transcripts.normal import mask, normalise
from whorl.transcripts.record import Decoding, ModelId, Prompt, Template, Transcript


def said(**texts):
    """Answers by model."""
    return [
        Transcript(ModelId(ref), Prompt(str(i)), Template(), Decoding(), text)
        for ref, answers in texts.items()
        for i, text in enumerate(answers)
    ]


def only(*answers):
    return check(said(a=answers))["a"]


def test_plain_answers_have_no_cues():
    reports = check(plain(n_prompts=50))
    assert list(reports) == ["a", "b"]
    report = reports["a"]
    assert (report.n_answers, report.n_errors, report.finish) == (50, 0, {"stop": 50})
    assert (report.empty, report.refusal, report.template, report.repeated, report.shared) == (0.0,) * 5
    assert report.scripts == {"latin": 1.0}
    assert warnings(reports) == []


def test_lengths_are_quantiles():
    assert only(*["x" * n for n in range(101)]).characters == (0, 5, 25, 50, 75, 95, 100)


def test_cues_are_shares_of_answers():
    report = only("", " x", "x", "a\ufffdb")
    assert (report.empty, report.leading_space, report.replacement) == (0.25, 0.25, 0.25)


def test_failures_are_only_counted():
    records = [replace(record, error="Timeout", response="") for record in plain(["a"])]
    report = check(records)["a"]
    assert (report.n_answers, report.n_errors, report.empty, report.characters) == (0, 20, None, None)
    assert warnings(check([*records, *plain(["b"])])) == []


@pytest.mark.parametrize(
    ("text", "marker"),
    [
        ("Hello<|im_end|>", "<|im_end|>"),
        ("[INST] x [/INST]", "[INST]"),
        ("x</s>", "</s>"),
        ("<start_of_turn>model", "<start_of_turn>"),
        ("x<\uff5cend\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
        ("x\n### Response:\ny", "### Response:"),
        ("fine\nUSER: and now", "USER:"),
    ],
)
def test_leftovers_of_templates(text, marker):
    report = only(text, "clean <b>text</b>, a|b, x < y")
    assert report.template == 0.5
    assert report.markers[marker] == 1


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("I am ChatGPT, a helpful model.", "chatgpt"),
        ("Hello! I'm Qwen, created by Alibaba Cloud.", "qwen"),
        ("I\u2019m an AI assistant developed by Google.", "google"),
        ("As an AI language model made by OpenAI, I", "openai"),
        ("My name is Claude.", "claude"),
        ("我是通义千问。", "通义千问"),
    ],
)
def test_models_that_name_themselves(text, name):
    report = only(text, "Nothing of this kind.")
    assert report.self_naming == 0.5
    assert report.names[name] == 1


@given(
    st.sampled_from(
        ["GPT 4", "open ai", "Claude-3", "chat GPT", "DEEP SEEK r1", "glm-4", "Command R+", "豆包", "phi-3", "xAI"]
    ),
    st.text(max_size=20),
)
def test_what_makes_the_search_fast_hides_no_name(name, text):
    for phrases, found in (
        (NAMES, f"{text} {name}"),
        (SELF, f"{text} I was made by {name}"),
        (AS_AN_AI, f"{text} As an AI"),
    ):
        assert (
            [match[0] for match in phrases.find(found)] == [match[0] for match in phrases.pattern.finditer(found)] != []
        )


@pytest.mark.parametrize("text", ["Android was developed by Google.", "Use the OpenAI library.", "I am metaphorical."])
def test_a_name_alone_is_no_self_naming(text):
    assert only(text).self_naming == 0.0


def test_refusals_and_ai_phrases():
    report = only(
        "I'm sorry, but I can't help with that.", "As an AI, I cannot feel.", "I can do that.", "抱歉，我不能。"
    )
    assert report.refusal == 0.5
    assert report.as_an_ai == 0.25


def test_scripts_are_shares_of_letters():
    assert only("abc 123", "где", "日本語").scripts == pytest.approx({"latin": 1 / 3, "cyrillic": 1 / 3, "cjk": 1 / 3})
    assert only("12 !").scripts == {}


def test_duplicates_inside_and_across_models():
    reports = check(said(a=["x", "x", "y", "", ""], b=["y", "z", "u", "v", "w"]))
    assert (reports["a"].repeated, reports["a"].shared) == (0.4, 0.2)
    assert (reports["b"].repeated, reports["b"].shared) == (0.0, 0.2)


def test_warnings_name_models_and_figures():
    noisy = ["I am ChatGPT. " + "long " * 40 + str(i) for i in range(100)]
    quiet = ["", *(f" коротко {i}" for i in range(99))]
    records = [replace(r, finish="length") if r.model.ref == "n" else r for r in said(n=noisy, q=quiet)]
    found = "\n".join(warnings(check(records)))
    assert "the median answer of 'n' has 216 characters, that of 'q' 11." in found
    assert "'n' names itself or its maker in 100.0%, 'q' in 0.0%." in found
    assert "'q' begins with white space in 99.0%, 'n' in 0.0%." in found
    assert "'n' ends by 'length' in 100.0%, 'q' in 0.0%." in found
    assert "'q' writes letters that are cyrillic in 100.0%, 'n' in 0.0%." in found
    assert "answers nothing" not in found  # 1 of 100 is no difference


def test_small_samples_do_not_warn():
    assert warnings(check(said(a=["x1"], b=[" y1"]))) == []


def test_verbatim_copies_are_warned_about():
    found = warnings(check(said(a=["same"] * 10, b=["same", *map(str, range(9))])))
    assert "'a' repeats its own answers verbatim in 100.0%: count such answers once." in found
    assert "'b' gives verbatim answers of other models in 10.0%: count such answers once." in found


def test_hostile_labels_are_escaped():
    records = [replace(record, model=ModelId("\x1b[2J")) for record in said(a=[" x"] * 50)]
    assert all("\x1b" not in line for line in warnings(check([*records, *said(b=["y"] * 50)])))


@settings(max_examples=25)
@given(st.lists(transcripts(), max_size=6))
def test_any_records_give_reports_in_json(records):
    reports = check(records)
    text = json.dumps({label: report.to_dict() for label, report in reports.items()}, allow_nan=False)
    assert json.loads(text).keys() == {record.model.ref for record in records}
    assert all(isinstance(line, str) for line in warnings(reports))


def test_a_megabyte_of_hostile_text_is_checked_quickly():
    nasty = [
        "i am" + " " * 100_000,
        "<|" * 50_000,
        "<|" + "a" * 100_000,
        "i am ai " * 12_000,
        "gpt-4" + "." * 100_000,
        "<|a " * 25_000,
    ]
    report = only(*nasty)
    assert report.n_answers == len(nasty)
    assert len(normalise(nasty)) == len(nasty)


def test_names_are_masked():
    assert mask("I am Falcon and I like falcons. GPT-4o, Claude 3.5 and Llama-3.1-8B!") == (
        "I am NAME and I like falcons. NAME, NAME and NAME!"
    )
    assert mask("Nothing to hide, metadata and all.") == "Nothing to hide, metadata and all."


def test_texts_are_cut_to_one_length():
    assert normalise(["abcdef", "ab", ""], 3) == ["abc", "ab", ""]
    assert {len(text) for text in normalise(["x" * n for n in range(100, 200)])} == {
        109,
        100,
        101,
        102,
        103,
        104,
        105,
        106,
        107,
        108,
    }
    assert normalise(["I am Qwen."], 9, mask_names=False) == ["I am Qwen"]
    assert normalise([]) == []
    with pytest.raises(UsageError, match="0 characters"):
        normalise(["x"], 0)


@given(st.lists(st.text(max_size=30), max_size=12))
def test_normalisation_is_deterministic_and_bounded(texts):
    once = normalise(texts)
    assert once == normalise(texts)
    assert len(once) == len(texts)
    kept = normalise(texts, mask_names=False)
    assert all(text.startswith(part) for text, part in zip(texts, kept, strict=True))
