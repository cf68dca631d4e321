"""One line of JSON and back: lossless, canonical, and strict about everything that is not such a line."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from transcript_cases import FULL, plain, transcripts
from whorl.errors import MalformedFile, UsageError
from whorl.transcripts.codec import FIELDS, from_line, to_line
from whorl.transcripts.record import UNKNOWN_DECODING, Prompt

LINE = json.loads(to_line(FULL))


def written(**changed):
    return json.dumps(LINE | changed)


def without(name):
    return json.dumps({key: value for key, value in LINE.items() if key != name})


def test_a_full_record_is_the_line_of_the_design():
    text = to_line(FULL)
    assert from_line(text, "x", 1) == FULL
    assert list(LINE) == sorted(LINE) == list(FIELDS)
    assert text == json.dumps(LINE, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert LINE["model"] == {
        "ref": "org/modell-ü",
        "revision": "c" * 40,
        "precision": "BF16",
        "reported": "served-name fp_1",
    }
    assert LINE["template"] == {"kind": "chat", "digest": "d" * 64, "system": "Be short."}
    assert LINE["prompt"][1] == {"role": "user", "content": "Wie geht's?\n"}
    assert (LINE["schema"], LINE["id"], LINE["prompt_id"]) == ("whorl.transcript/1", FULL.id, FULL.prompt.id)
    assert (LINE["status"], LINE["error"], LINE["prompt_group"]) == ("ok", None, "document 7")
    assert LINE["decoding"]["top_p"] == "provider-default"


@given(transcripts())
@example(FULL)
def test_round_trip(record):
    text = to_line(record)
    back = from_line(text, "x", 1)
    assert back == record
    assert to_line(back) == text
    assert back.id == record.id
    assert "\n" not in text


def test_numbers_of_numpy_are_written_as_numbers():
    import numpy as np

    ids = tuple(np.array([1, 2]))
    text = to_line(replace(FULL, response_token_ids=ids, logprobs=(np.float32(-0.5), None), latency_s=2))
    assert json.loads(text)["response_token_ids"] == [1, 2]
    assert '"latency_s":2.0' in text


HOSTILE = {
    "nothing": ("", "not JSON"),
    "no JSON": ("{nope", "not JSON"),
    "truncated": (to_line(FULL)[:-40], "not JSON"),
    "two values": (to_line(FULL) * 2, "not JSON"),
    "list": ("[]", "a list"),
    "number": ("3", "an integer"),
    "deep": ("[" * 500_000, "not JSON"),
    "huge number": (to_line(FULL).replace("1.25", "9" * 5_000), "not JSON"),
    "over 1 MB": (written(response="x" * 1_000_000), "at most 1000.0 kB"),
    "next schema": (written(schema="whorl.transcript/2"), "schema whorl.transcript/2"),
    "no schema": (without("schema"), "field 'schema'"),
    "key twice": (to_line(FULL)[:-1] + ',"id":"x"}', "the key 'id' twice"),
    "inner key twice": (to_line(FULL).replace('"kind":"chat",', '"kind":"chat","kind":"raw",'), "the key 'kind' twice"),
    "lone surrogate": (to_line(FULL).replace("Gut", "\\ud800"), "not JSON"),
    "unknown field": (written(note="x"), "field 'note'"),
    "unknown inner field": (written(model=LINE["model"] | {"key": "x"}), "field 'model.key'"),
    "text for a count": (written(sample_index="3"), "field 'sample_index'"),
    "boolean for a count": (written(sample_index=True), "field 'sample_index'"),
    "real for a count": (written(sample_index=3.0), "field 'sample_index'"),
    "negative index": (written(sample_index=-1), "field 'sample_index'"),
    "negative token": (written(prompt_token_ids=[-1]), "field 'prompt_token_ids.0'"),
    "negative seed": (written(sampler_seed=-1), "field 'sampler_seed'"),
    "large seed": (written(sampler_seed=2**63), "field 'sampler_seed'"),
    "NaN": (written(latency_s=math.nan), "field 'latency_s'"),
    "infinite": (to_line(FULL).replace("1.25", "1e999"), "field 'latency_s'"),
    "infinite log": (written(logprobs=[-math.inf, 0.0]), "field 'logprobs.0'"),
    "infinite in backend": (written(backend={"x": math.inf}), "field 'backend'"),
    "negative latency": (written(latency_s=-1.0), "field 'latency_s'"),
    "no UTC": (written(time="2026-01-02T03:04:05+02:00"), "field 'time'"),
    "null response": (written(response=None), "field 'response'"),
    "unknown finish": (written(finish="maybe"), "field 'finish'"),
    "empty reference": (written(model=LINE["model"] | {"ref": ""}), "field 'model.ref'"),
    "turn without role": (written(prompt=[{"content": "x"}]), "field 'prompt"),
    "log-probs short": (written(logprobs=[-1.0]), "lengths differ (2 response_token_ids, 1 logprobs, 2 top_logprobs)"),
    "top log-probs long": (written(top_logprobs=[{}] * 3), "lengths differ"),
    "failed but ok": (written(error="Timeout"), "field 'status' is ok and 'error' is not null"),
    "failed without error": (written(status="error"), "field 'status' is error and 'error' is null"),
    "id of another": (written(id="0" * 64), "field 'id' is not that of the content"),
    "index changed": (written(sample_index=4), "field 'id' is not that of the content"),
    "decoding changed": (written(decoding=LINE["decoding"] | {"temperature": 1.0}), "field 'id' is not that"),
    "prompt changed": (written(prompt="other"), "field 'prompt_id' is not that of the prompt"),
    "decoding without a field": (written(decoding={"temperature": 1.0}), "field 'decoding': 'greedy, "),
    "decoding out of range": (written(decoding=LINE["decoding"] | {"top_p": 2.0}), "field 'decoding': top_p is 2.0"),
    "decoding of another type": (written(decoding=LINE["decoding"] | {"top_k": {}}), "field 'decoding': top_k is"),
    "stop of another type": (written(decoding=LINE["decoding"] | {"stop": "x"}), "field 'decoding': stop is not a list"),
    "key in backend": (written(backend={"request": {"Authorization": "Bearer x"}}), "field 'backend' holds a credential"),
    "password in address": (written(backend={"url": "https://u:p@host/v1"}), "field 'backend' holds a credential"),
    "password in model": (written(model=LINE["model"] | {"ref": "https://u:p@host"}), "field 'model' holds a password"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_lines_are_refused_with_line_and_field(case):
    text, found = HOSTILE[case]
    with pytest.raises(MalformedFile) as error:
        from_line(text, "part-00000.jsonl", 12)
    assert str(error.value).startswith("Refused transcript 'part-00000.jsonl: line 12': ")
    assert found in str(error.value)
    assert len(str(error.value)) < 700


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_must_be_there(name):
    with pytest.raises(MalformedFile, match=f"field '{name}': Field required"):
        from_line(without(name), "x", 1)


@given(st.text() | st.binary().map(lambda data: data.decode("latin-1")))
def test_any_text_is_refused_by_us(text):
    with pytest.raises(MalformedFile):
        from_line(text, "x", 1)


@given(
    st.sampled_from(FIELDS),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda x: st.lists(x, max_size=2) | st.dictionaries(st.text(max_size=4), x, max_size=2),
    ),
)
def test_any_value_in_any_field_is_a_record_or_refused_by_us(name, value):
    try:
        record = from_line(written(**{name: value}), "x", 1)
    except MalformedFile:
        return
    assert from_line(to_line(record), "x", 1) == record


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"latency_s": math.nan}, "field 'latency_s'"),
        ({"sample_index": -1}, "field 'sample_index'"),
        ({"response": "x" * 1_000_000}, "leave out top_logprobs"),
        ({"backend": {"x": math.inf}}, "field 'backend'"),
        ({"backend": {"x": object()}}, "field 'backend'"),
        ({"backend": {"api_key": "sk-1"}}, "field 'backend' holds a credential"),
        ({"logprobs": (-1.0,)}, "lengths differ"),
        ({"stream": "\ud800"}, "surrogates not allowed"),
    ],
)
def test_what_cannot_be_read_is_not_written(change, found):
    with pytest.raises(UsageError, match=f"An answer of 'org/modell-.xfc' cannot be stored: .*{found}"):
        to_line(replace(FULL, **change))


def test_credentials_do_not_reach_messages():
    with pytest.raises(UsageError) as error:
        to_line(replace(FULL, backend={"headers": {"Authorization": "Bearer sk-very-secret"}}))
    assert "sk-very-secret" not in str(error.value)


def test_model_text_is_never_refused():
    for response in ("", " ", "\x1b[2J\x00\u202e", "<script>", '{"id":1}', "\ufffe", "api_key: x"):
        assert from_line(to_line(replace(FULL, response=response)), "x", 1).response == response


def test_unknown_decoding_and_conditionless_prompts_come_back():
    record = plain(n_prompts=1, decoding=UNKNOWN_DECODING)[0]
    record = replace(record, prompt=Prompt("", "uncond"))
    assert from_line(to_line(record), "x", 1) == record
