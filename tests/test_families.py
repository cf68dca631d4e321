"""Every family, proved against the library: the canonical parts must add to the residual what its modules add.

The models are float64, but the library computes norms, rotary angles and softmax in float32, hence 1e-5.
"""

from functools import cache

import numpy as np
import pytest

from family_models import CASES, build, read_folder, save
from reference_decoder import ACTIVATIONS, attention, mlp, normalised, route, unit_rms
from whorl.canonical import CanonicalModel, canonical
from whorl.canonical.embedding import canonical_embedding, canonical_unembedding
from whorl.canonical.families import FAMILIES, layout_of
from whorl.canonical.form import canonical_router, centred, gain
from whorl.canonical.layout import Split
from whorl.errors import MalformedFile, UnsupportedFile
from whorl.testing import MemorySource

TOKENS = [5, 9, 3, 3, 17, 29, 11, 38, 6]
TOLERANCE = 1e-5


@cache
def saved_arrays(name):
    """The files of a family as arrays, and what its modules did on TOKENS."""
    import tempfile
    from pathlib import Path

    model = build(name)
    with tempfile.TemporaryDirectory() as folder:
        source = read_folder(save(model, Path(folder)))
    return source, arrays_of(source), trace(name, model)


def arrays_of(source):
    return {name: source.rows(name) for name in source.tensors}


def trace(name, model):
    """Residual in front of each layer, what each sublayer added, the final residual and the logits."""
    import torch

    case, seen = CASES[name], {}

    def keep(key, *, inputs=False):
        def hook(_module, args, kwargs, output=None):
            value = (args[0] if args else kwargs["hidden_states"]) if inputs else output
            value = value[0] if isinstance(value, tuple) else value
            # a copy: Falcon adds to this tensor in place later
            seen[key] = value.detach().clone().numpy().reshape(len(TOKENS), -1)

        return hook

    for i, layer in enumerate(model.get_submodule(case.layers)):
        layer.register_forward_pre_hook(keep(("in", i), inputs=True), with_kwargs=True)
        layer.get_submodule(case.attn_out).register_forward_hook(keep(("attn", i)), with_kwargs=True)
        layer.get_submodule(case.mlp_out).register_forward_hook(keep(("mlp", i)), with_kwargs=True)
        if name == "opt-post":
            layer.fc1.register_forward_pre_hook(keep(("mid", i), inputs=True), with_kwargs=True)
    if case.final:
        model.get_submodule(case.final).register_forward_pre_hook(keep("final", inputs=True), with_kwargs=True)
    with torch.no_grad():
        seen["logits"] = model(torch.tensor([TOKENS])).logits[0].numpy()
    return seen


def assert_close(found, expected):
    """Equal to TOLERANCE of the largest entry."""
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


def in_frame(array, shape):
    """A library value in our frame: LayerNorm models live in the subspace of zero mean."""
    return centred(array, axis=-1) if shape.norm_kind == "layer" and shape.norm_style != "post" else array


def read_by(shape, residual):
    """What the readers of a sublayer see."""
    return normalised(residual, shape) if shape.input_norm and shape.norm_style != "post" else residual


def attention_options(shape, config, raw, layer):
    """What the reference needs beyond the canonical part."""
    options = {}
    if config.get("query_pre_attn_scalar"):
        options["scale"] = config["query_pre_attn_scalar"] ** -0.5
    if config.get("attn_logit_softcapping"):
        options["softcap"] = config["attn_logit_softcapping"]
    rope = config.get("rope_parameters", {})
    rope = rope.get(config["layer_types"][layer], rope) if config.get("layer_types") else rope
    options["theta"] = rope.get("rope_theta", 10000.0)
    if shape.qk_norm:
        options |= {"q_gain": gain(raw, "q_norm", shape), "k_gain": gain(raw, "k_norm", shape)}
    if shape.family == "falcon":
        options["alibi_scale"] = shape.d_head**-0.5  # Falcon divides the sum of score and slope
    return options


def after_post_norm(out, raw, role, shape):
    return unit_rms(out, gain(raw, role, shape), shape.norm_eps) if role in raw else out


def shared_expert(part, shape, x):
    """A shared expert weighs itself by a sigmoid."""
    logit = x @ (part.raw["shared_gate"] * part.raw["norm_mlp"]).T
    return mlp(canonical(part), shape, x) / (1 + np.exp(-logit))


def mlp_of_layer(parts, shape, config, x):
    """Dense, shared and routed experts of one layer together."""
    if parts[-1].expert is None:
        return mlp(canonical(parts[0]), shape, x)
    routed = [p for p in parts if p.expert is not None]
    renormalise = config.get("norm_topk_prob", shape.family == "mixtral")
    weights = route(canonical_router(routed[0]), x, config["num_experts_per_tok"], renormalise=renormalise)
    total = sum(shared_expert(p, shape, x) for p in parts if p.expert is None)
    return total + sum(weights[:, [p.expert]] * mlp(canonical(p), shape, x) for p in routed)


@pytest.mark.parametrize("name", CASES)
def test_canonical_parts_do_what_the_library_does(name):
    source, _, seen = saved_arrays(name)
    model = CanonicalModel(source)
    shape, config = model.shape, source.config
    assert model.inventory.unknown == ()
    for layer in range(shape.n_layers):
        first, *rest = model.layer_parts(layer)
        residual = seen["in", layer]
        out = attention(
            canonical(first),
            shape,
            read_by(shape, residual),
            **attention_options(shape, config, first.raw, layer),
        )
        added = seen["attn", layer]
        assert_close(after_post_norm(out, first.raw, "post_attn_norm", shape), in_frame(added, shape))
        residual = seen.get(("mid", layer), residual if shape.norm_style == "parallel" else residual + added)
        out = mlp_of_layer(rest, shape, config, read_by(shape, residual))
        assert_close(after_post_norm(out, rest[0].raw, "post_mlp_norm", shape), in_frame(seen["mlp", layer], shape))


@pytest.mark.parametrize("name", CASES)
def test_canonical_embedding_and_unembedding_do_what_the_library_does(name):
    source, _, seen = saved_arrays(name)
    model = CanonicalModel(source)
    shape = model.shape
    rows = np.concatenate(list(canonical_embedding(model, n_rows=7)))[TOKENS]
    positions = model.position_embedding()
    if positions is not None:
        start = 2 if shape.family == "opt" else 0
        rows = rows + in_frame(positions[start : start + len(TOKENS)], shape)
    assert_close(rows, in_frame(seen["in", 0], shape))
    if shape.norm_style == "post":
        return
    unembed = np.concatenate(list(canonical_unembedding(model, n_rows=7)))
    logits = normalised(seen["final"], shape) @ unembed.T
    final_bias = model.final_norm().get("norm_final.b")
    if final_bias is not None:
        logits = logits + np.concatenate(list(model.unembedding_blocks())) @ final_bias
    if model.unembed_bias() is not None:
        logits = logits + model.unembed_bias()
    softcap = source.config.get("final_logit_softcapping")
    assert_close(softcap * np.tanh(logits / softcap) if softcap else logits, seen["logits"])


@pytest.mark.parametrize("name", CASES)
def test_pack_is_the_inverse_of_reading(name):
    source, files, _ = saved_arrays(name)
    layout = layout_of(source)
    tensors = {}
    for (role, layer, expert), one in layout.slots():
        array = files[one.name]
        array = array if one.row is None else array[one.row : one.row + 1]
        tensors[role, layer, expert] = one.unpack(array)[role]
    packed = layout.pack(tensors)
    assert set(packed) == set(layout.inventory.used)
    for key, array in packed.items():
        np.testing.assert_array_equal(array, files[key])


def test_the_proof_can_fail_on_swapped_roles():
    """A square matrix read the wrong way round gives no shape error; the numbers must give it away."""
    source, files, seen = saved_arrays("gpt2")
    key = "transformer.h.0.attn.c_proj.weight"
    model = CanonicalModel(MemorySource({**files, key: files[key].T}, source.config))
    part = next(iter(model.layer_parts(0)))
    out = attention(canonical(part), model.shape, normalised(seen["in", 0], model.shape))
    expected = in_frame(seen["attn", 0], model.shape)
    assert np.abs(out - expected).max() > 0.1 * np.abs(expected).max()


def test_every_registered_family_is_proved():
    proved = {saved.config["model_type"] for saved in (saved_arrays(name)[0] for name in CASES)}
    assert set(FAMILIES) - proved == {"gemma3", "internlm2"}, "these two have tests of their own below"


def test_multimodal_gemma3_is_its_text_model():
    source, files, _ = saved_arrays("gemma3")
    prefix = "language_model.model."
    arrays = {name.replace("model.", prefix, 1): a for name, a in files.items()}
    arrays["vision_tower.x.weight"] = np.ones(3)
    config = {"model_type": "gemma3", "text_config": dict(source.config)}
    whole, text = CanonicalModel(MemorySource(arrays, config)), CanonicalModel(source)
    assert whole.inventory.ignored == ("vision_tower.x.weight",)
    for a, b in zip(whole.parts(), text.parts(), strict=True):
        for role, array in b.raw.items():
            np.testing.assert_array_equal(a.raw[role], array)


def test_internlm2_rows_run_group_member_coordinate():
    """InternLM2 is not in the library; the published order is written out as loops here."""
    source, files, _ = saved_arrays("llama")
    shape = layout_of(source).shape
    names = {
        "self_attn.o_proj": "attention.wo",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.up_proj": "feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2",
        "post_attention_layernorm": "ffn_norm",
        "input_layernorm": "attention_norm",
        "embed_tokens": "tok_embeddings",
        "lm_head": "output",
    }
    arrays = {}
    for name, array in files.items():
        if any(f"{m}_proj" in name for m in "qkv"):
            continue
        new = name
        for old, replacement in names.items():
            new = new.replace(old, replacement)
        arrays[new] = array
    per_group = shape.n_heads // shape.n_kv_heads
    for layer in range(shape.n_layers):
        q, k, v = (files[f"model.layers.{layer}.self_attn.{m}_proj.weight"] for m in "qkv")
        rows = []
        for group in range(shape.n_kv_heads):
            for member in range(per_group + 2):
                matrix, head = {per_group: (k, group), per_group + 1: (v, group)}.get(
                    member, (q, group * per_group + member)
                )
                rows += [matrix[head * shape.d_head + i] for i in range(shape.d_head)]
        arrays[f"model.layers.{layer}.attention.wqkv.weight"] = np.stack(rows)
    config = {**source.config, "model_type": "internlm2", "bias": False}
    fused = CanonicalModel(MemorySource(arrays, config))
    assert fused.inventory.unknown == ()
    for a, b in zip(fused.parts(), CanonicalModel(source).parts(), strict=True):
        assert set(a.raw) == set(b.raw)
        for role, array in b.raw.items():
            np.testing.assert_array_equal(a.raw[role], array)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe"])
def test_fused_experts_read_as_separate_ones(name, transposed):
    source, files, _ = saved_arrays(name)
    arrays = fuse_experts(files, layout_of(source).shape.n_experts, transposed=transposed)
    fused = CanonicalModel(MemorySource(arrays, source.config))
    assert fused.inventory.unknown == ()
    for a, b in zip(fused.parts(), CanonicalModel(source).parts(), strict=True):
        assert (a.layer, a.expert, set(a.raw)) == (b.layer, b.expert, set(b.raw))
        for role, array in b.raw.items():
            np.testing.assert_array_equal(a.raw[role], array)


def fuse_experts(files, n_experts, *, transposed):
    """(E, out, in) or (E, in, out) tensors in place of one per expert."""
    arrays = {n: a for n, a in files.items() if ".experts." not in n}
    blocks = {n.split(".experts.")[0] for n in files if ".experts." in n}
    for block in blocks:
        first, second, third = ("w1", "w3", "w2") if "sparse" in block else ("gate_proj", "up_proj", "down_proj")
        gate_up = np.stack(
            [
                np.concatenate([files[f"{block}.experts.{e}.{m}.weight"] for m in (first, second)])
                for e in range(n_experts)
            ]
        )
        down = np.stack([files[f"{block}.experts.{e}.{third}.weight"] for e in range(n_experts)])
        axes = (0, 2, 1) if transposed else (0, 1, 2)
        arrays[f"{block}.experts.gate_up_proj"] = np.ascontiguousarray(gate_up.transpose(axes))
        arrays[f"{block}.experts.down_proj"] = np.ascontiguousarray(down.transpose(axes))
    return arrays


@pytest.mark.parametrize(
    ("name", "prefix"), [("llama", "model."), ("gpt2", "transformer."), ("bloom", "transformer."), ("opt", "model.")]
)
def test_base_models_without_prefix_read_the_same(name, prefix):
    source, files, _ = saved_arrays(name)
    arrays = {n.removeprefix(prefix): a for n, a in files.items() if n.startswith(prefix)}
    trunk = CanonicalModel(MemorySource(arrays, source.config))
    for a, b in zip(trunk.parts(), CanonicalModel(source).parts(), strict=True):
        for role, array in b.raw.items():
            np.testing.assert_array_equal(a.raw[role], array)


def test_buffers_are_ignored_and_strangers_counted():
    source, files, _ = saved_arrays("gpt2")
    extra = {
        "transformer.h.0.attn.bias": np.ones((1, 1, 32, 32)),
        "transformer.h.1.attn.masked_bias": np.ones(()),
        "lm_head.weight": files["transformer.wte.weight"],
        "transformer.h.1.ln_9.weight": np.ones(16),
    }
    inventory = CanonicalModel(MemorySource({**files, **extra}, source.config)).inventory
    assert inventory.unknown == ("transformer.h.1.ln_9.weight",)
    assert len(inventory.ignored) == 3
    assert len(inventory.used) == len(files)
    assert inventory.to_dict()["n_unknown"] == 1


@pytest.mark.parametrize("model_type", ["bert", "roberta", "albert", "t5", "rwkv", "mamba", "../x", None, 7])
def test_other_architectures_are_refused(model_type):
    with pytest.raises(UnsupportedFile, match="unsupported architecture"):
        layout_of(MemorySource({}, {"model_type": model_type}, "m"))


@pytest.mark.parametrize(
    ("name", "field"), [("llama", "num_hidden_layers"), ("gpt2", "n_layer"), ("mixtral", "num_hidden_layers")]
)
def test_layers_and_experts_beyond_the_config_are_refused(name, field):
    source, arrays, _ = saved_arrays(name)
    short = MemorySource(arrays, {**source.config, field: source.config[field] - 1})
    with pytest.raises(MalformedFile, match="beyond the layers or experts of its config"):
        layout_of(short)


@pytest.mark.parametrize(
    "beside",
    [
        "self_attn.q_proj.qweight",  # GPTQ, AWQ
        "self_attn.q_proj.SCB",  # bitsandbytes, 8 bits
        "self_attn.q_proj.weight.absmax",  # bitsandbytes, 4 bits
        "self_attn.q_proj.weight_scale_inv",  # float8 in blocks
        "self_attn.q_proj.weight_packed",  # compressed-tensors
        "mlp.experts.gate_up_proj_blocks",  # MXFP4
    ],
)
def test_quantised_weights_are_refused_by_what_lies_beside_them(beside):
    source, arrays, _ = saved_arrays("llama")
    config = {**source.config, "quantization_config": {"quant_method": "some\x1bscheme"}}
    assert layout_of(MemorySource(arrays, config)).inventory.unknown == ()  # a leftover field alone means nothing
    arrays = {**arrays, f"model.layers.0.{beside}": np.ones(2)}
    with pytest.raises(UnsupportedFile, match=rf"quantised weights by 'some\\x1bscheme' \(tensor .*{beside}"):
        layout_of(MemorySource(arrays, config))


def test_missing_and_misshapen_tensors_are_named():
    source, files, _ = saved_arrays("llama")
    name = "model.layers.1.self_attn.k_proj.weight"
    without = {n: a for n, a in files.items() if n != name}
    with pytest.raises(MalformedFile, match=r"no tensor 'model\.layers\.1\.self_attn\.k_proj\.weight'"):
        layout_of(MemorySource(without, source.config))
    with pytest.raises(MalformedFile, match=r"k_proj\.weight': shape \(16, 12\); expected \(12, 16\)"):
        layout_of(MemorySource({**files, name: files[name].T}, source.config))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_hidden_layers", 10**8, "no tensor 'model.layers.2"),
        ("num_attention_heads", 0, "'num_attention_heads' is 0; expected 1 to"),
        ("num_attention_heads", True, "'num_attention_heads' is a boolean"),
        ("num_key_value_heads", 3, "expected a divisor of num_attention_heads 4"),
        ("hidden_size", "16", "'hidden_size' is"),
        ("rms_norm_eps", float("nan"), "'rms_norm_eps' is nan"),
        ("tie_word_embeddings", 1, "expected true or false"),
        ("vocab_size", None, "no field 'vocab_size'"),
    ],
)
def test_absurd_configs_are_refused_by_field(field, value, message):
    source, files, _ = saved_arrays("llama")
    with pytest.raises(MalformedFile, match=message):
        layout_of(MemorySource(files, {**source.config, field: value}, "m"))


def test_opt_350m_projection_is_refused():
    source, files, _ = saved_arrays("opt-post")
    with pytest.raises(UnsupportedFile, match="projected"):
        layout_of(MemorySource(files, {**source.config, "word_embed_proj_dim": 8}))


def test_split_takes_rows_in_group_member_order():
    rows = np.arange(2 * 4 * 3)
    q, k, v = Split(2, (2, 1, 1), 3).unpack(rows)
    np.testing.assert_array_equal(q, [0, 1, 2, 3, 4, 5, 12, 13, 14, 15, 16, 17])
    np.testing.assert_array_equal(k, [6, 7, 8, 18, 19, 20])
    np.testing.assert_array_equal(v, [9, 10, 11, 21, 22, 23])


def test_reference_activations_cover_the_families():
    assert {CanonicalModel(saved_arrays(n)[0]).shape.activation for n in CASES} <= set(ACTIVATIONS)
