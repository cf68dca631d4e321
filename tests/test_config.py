from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whorl._readers.config import ConfigView, custom_code_fields, custom_code_notes, refuse_custom_code
from whorl.errors import InputRefused, MalformedFile, UnsafeFile

FIELDS = {
    "hidden_size": 64,
    "n_embd": 64,
    "vocab_size": -5,
    "num_hidden_layers": 10**12,
    "head_dim": None,
    "heads": 8.0,
    "flag": True,
    "zero": 0,
    "eps": 1e-5,
    "act": "silu",
    "architectures": ["X"],
    "rope": {"theta": 10000, "kind": 3},
    "other": 65,
}


@pytest.fixture
def view():
    return ConfigView(FIELDS)


def test_getters(view):
    assert view.integer("hidden_size", "n_embd") == 64
    assert view.integer("d_model", "n_embd") == 64
    assert view.integer("head_dim", default=None) is None
    assert view.integer("head_dim", default=8) == 8
    assert view.integer("zero", low=0) == 0
    assert view.number("eps") == 1e-5
    assert view.number("hidden_size") == 64.0
    assert view.number("missing", default=None) is None
    assert view.boolean("flag") is True
    assert view.boolean("missing", default=False) is False
    assert view.text("act") == "silu"
    assert view.texts("architectures") == ("X",)
    assert view.texts("missing") == ()
    assert view.section("rope").integer("theta") == 10000
    assert view.section("missing") is None
    assert "act" in view
    assert "head_dim" not in view


@pytest.mark.parametrize(
    ("call", "pattern"),
    [
        (lambda v: v.integer("missing"), "no field 'missing'"),
        (lambda v: v.integer("head_dim"), "no field 'head_dim'"),
        (lambda v: v.integer("vocab_size"), "field 'vocab_size' is -5; expected 1 to"),
        (lambda v: v.integer("zero"), "field 'zero' is 0"),
        (lambda v: v.integer("num_hidden_layers"), "field 'num_hidden_layers' is 1000000000000"),
        (lambda v: v.integer("num_hidden_layers", default=3), "field 'num_hidden_layers' is 1000000000000"),
        (lambda v: v.integer("heads"), "field 'heads' is a number; expected an integer"),
        (lambda v: v.integer("flag"), "field 'flag' is a boolean"),
        (lambda v: v.integer("act"), "field 'act' is a text"),
        (lambda v: v.number("flag"), "field 'flag' is a boolean"),
        (lambda v: v.number("eps", low=1), "field 'eps' is 1e-05"),
        (lambda v: v.boolean("zero"), "field 'zero' is an integer; expected true or false"),
        (lambda v: v.text("architectures"), "field 'architectures' is a list"),
        (lambda v: v.texts("act"), "a list of texts"),
        (lambda v: v.section("act"), "field 'act' is a text; expected an object"),
        (lambda v: v.section("rope").text("kind"), "field 'rope.kind' is an integer"),
        (lambda v: ConfigView({"a": "x" * 10_001}).text("a"), "length of a"),
    ],
)
def test_wrong_values_name_file_and_field(view, call, pattern):
    with pytest.raises(MalformedFile, match=f"Refused config 'config.json': .*{pattern}"):
        call(view)


def test_aliases_that_disagree_are_ambiguous(view):
    with pytest.raises(UnsafeFile, match="'hidden_size' and 'other' differ"):
        view.integer("hidden_size", "other")


@given(
    st.dictionaries(
        st.sampled_from(["a", "b"]),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text()
        | st.lists(st.integers()),
    )
)
def test_any_value_gives_a_number_in_range_or_our_error(fields):
    try:
        value = ConfigView(fields).integer("a", "b", high=100)
    except InputRefused:
        return
    assert type(value) is int
    assert 1 <= value <= 100


CODE = [
    ({"auto_map": {"AutoModel": "m.X"}}, "auto_map"),
    ({"auto_map": {"AutoModel": "other/repo--m.X"}}, "auto_map"),
    ({"custom_code": "x.py"}, "custom_code"),
    ({"custom_generate": "org/repo"}, "custom_generate"),
    ({"trust_remote_code": True}, "trust_remote_code"),
    ({"model_file": "m.py"}, "model_file"),
    ({"text_config": {"auto_map": {"A": "b"}}}, "text_config.auto_map"),
    ({"list": [{"trust_remote_code": True}]}, "list[0].trust_remote_code"),
    ({"attn_implementation": "kernels-community/flash-attn"}, "attn_implementation"),
    ({"_attn_implementation_internal": {"text": "org/kernels@main:f"}}, "_attn_implementation_internal"),
]


@pytest.mark.parametrize(("config", "field"), CODE)
def test_fields_that_name_code_are_noted_and_refused_before_running(config, field):
    assert custom_code_fields(config) == custom_code_fields(MappingProxyType(config)) == (field,)
    assert field in custom_code_notes(config)[0]
    with pytest.raises(UnsafeFile, match="Refused config of 'org/m': fields that name code to run") as caught:
        refuse_custom_code(config, "org/m")
    assert f"'{field}'" in str(caught.value)


def test_harmless_fields_are_not_code():
    config = {
        **FIELDS,
        "auto_map": None,
        "trust_remote_code": False,
        "attn_implementation": "sdpa",
        "custom_pipelines": {},
    }
    assert custom_code_fields(config) == ()
    refuse_custom_code(config, "org/m")
