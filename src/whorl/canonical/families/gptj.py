"""GPT-J: parallel block with one LayerNorm, interleaved partial rotary, no attention biases, a bias on the logits."""

from whorl.canonical.draft import Draft
from whorl.canonical.layout import Layout
from whorl.canonical.roles import ModelShape

IGNORED = (r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias|embed_positions)",)


def lay_out(draft: Draft, model_type: str) -> Layout:
    """The layout of a GPT-J model."""
    draft.find_prefix(("transformer.", ""), "wte.weight")
    d, H = draft.size("n_embd"), draft.size("n_head")
    if d % H:
        raise draft.bad_field("n_head", H, f"a divisor of n_embd {d}")
    tied = draft.flag("tie_word_embeddings", default=False)
    shape = ModelShape(
        family=model_type,
        n_layers=draft.size("n_layer"),
        d_model=d,
        n_heads=H,
        n_kv_heads=H,
        d_head=d // H,
        d_mlp=draft.size("n_inner", default=4 * d),
        n_vocab=draft.size("vocab_size"),
        gated=False,
        tied=tied,
        norm_kind="layer",
        norm_style="parallel",
        position="rotary",
        activation=draft.text("activation_function", default="gelu_new"),
        norm_eps=draft.number("layer_norm_epsilon", default=1e-5),
        rotary_dim=draft.size("rotary_dim", default=d // H),
        rotary_layout="interleaved",
        single_norm=True,
        has_unembed=tied or "lm_head.weight" in draft.tensors or draft.prefix != "",
    )
    for layer in range(shape.n_layers):
        _layer(draft, shape, layer)
    draft.outer(
        [draft.tensor(("embed",), f"{draft.prefix}wte.weight", (shape.n_vocab, d))],
        draft.norm("norm_final", f"{draft.prefix}ln_f", d, bias=True),
    )
    draft.head("lm_head.weight", shape)
    return draft.layout(shape, "lm_head.weight", IGNORED)


def _layer(draft: Draft, shape: ModelShape, layer: int) -> None:
    base, d, f = f"{draft.prefix}h.{layer}", shape.d_model, shape.d_mlp
    draft.part(
        layer,
        "attention",
        draft.norm("norm_attn", f"{base}.ln_1", d, bias=True),
        draft.linear("q", f"{base}.attn.q_proj", d, d, bias=False),
        draft.linear("k", f"{base}.attn.k_proj", d, d, bias=False),
        draft.linear("v", f"{base}.attn.v_proj", d, d, bias=False),
        draft.linear("o", f"{base}.attn.out_proj", d, d, bias=False),
    )
    draft.part(
        layer,
        "mlp",
        draft.norm("norm_mlp", f"{base}.ln_1", d, bias=True),
        draft.linear("up", f"{base}.mlp.fc_in", f, d, bias=True),
        draft.linear("down", f"{base}.mlp.fc_out", d, f, bias=True),
    )
