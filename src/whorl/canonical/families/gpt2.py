"""GPT-2: Conv1D weights are stored (in, out); Q, K and V are fused in this order; positions are learned; tied."""

from whorl.canonical.draft import Draft
from whorl.canonical.layout import Layout, Split
from whorl.canonical.roles import ModelShape

IGNORED = (r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",)
CONV = Split(transposed=True)


def lay_out(draft: Draft, model_type: str) -> Layout:
    """The layout of a GPT-2 model; hub files come with and without the `transformer.` prefix."""
    draft.find_prefix(("transformer.", ""), "wte.weight")
    d, H = draft.size("n_embd", "hidden_size"), draft.size("n_head", "num_attention_heads")
    if d % H:
        raise draft.bad_field("n_head", H, f"a divisor of n_embd {d}")
    if draft.flag("add_cross_attention", default=False):
        raise draft.unsupported("cross-attention layers", "a decoder without an encoder")
    tied = draft.flag("tie_word_embeddings", default=True)
    shape = ModelShape(
        family=model_type,
        n_layers=draft.size("n_layer", "num_hidden_layers"),
        d_model=d,
        n_heads=H,
        n_kv_heads=H,
        d_head=d // H,
        d_mlp=draft.size("n_inner", default=4 * d),
        n_vocab=draft.size("vocab_size"),
        gated=False,
        tied=tied,
        norm_kind="layer",
        norm_style="pre",
        position="learned",
        activation=draft.text("activation_function", default="gelu_new"),
        norm_eps=draft.number("layer_norm_epsilon", default=1e-5),
        has_unembed=tied or "lm_head.weight" in draft.tensors,
    )
    for layer in range(shape.n_layers):
        _layer(draft, shape, layer)
    p = draft.prefix
    n_positions = draft.size("n_positions", "max_position_embeddings", default=1024)
    draft.outer(
        [draft.tensor(("embed",), f"{p}wte.weight", (shape.n_vocab, d))],
        [draft.tensor(("pos_embed",), f"{p}wpe.weight", (n_positions, d))],
        draft.norm("norm_final", f"{p}ln_f", d, bias=True),
    )
    draft.head("lm_head.weight", shape, bias=False)
    return draft.layout(shape, "lm_head.weight", IGNORED)


def _layer(draft: Draft, shape: ModelShape, layer: int) -> None:
    base, d, f = f"{draft.prefix}h.{layer}", shape.d_model, shape.d_mlp
    qkv = Split(1, (shape.n_heads,) * 3, shape.d_head, transposed=True)
    draft.part(
        layer,
        "attention",
        draft.norm("norm_attn", f"{base}.ln_1", d, bias=True),
        draft.linear(("q", "k", "v"), f"{base}.attn.c_attn", 3 * d, d, split=qkv, bias=True),
        draft.linear("o", f"{base}.attn.c_proj", d, d, split=CONV, bias=True),
    )
    draft.part(
        layer,
        "mlp",
        draft.norm("norm_mlp", f"{base}.ln_2", d, bias=True),
        draft.linear("up", f"{base}.mlp.c_fc", f, d, split=CONV, bias=True),
        draft.linear("down", f"{base}.mlp.c_proj", d, f, split=CONV, bias=True),
    )
