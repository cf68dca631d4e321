"""OPT: separate q, k, v; ReLU MLP; learned positions whose first two rows are an offset; the per-layer
`final_layer_norm` feeds the MLP. The 350m model puts its norms after the residual sums and projects its embedding.
"""

from whorl.canonical.draft import Draft
from whorl.canonical.layout import Layout
from whorl.canonical.roles import ModelShape

PREFIXES = ("model.decoder.", "decoder.", "")
N_OFFSET_ROWS = 2


def lay_out(draft: Draft, model_type: str) -> Layout:
    """The layout of an OPT model."""
    draft.find_prefix(PREFIXES, "embed_tokens.weight")
    d, H = draft.size("hidden_size"), draft.size("num_attention_heads")
    if d % H:
        raise draft.bad_field("num_attention_heads", H, f"a divisor of hidden_size {d}")
    width = draft.size("word_embed_proj_dim", default=d)
    if width != d:
        raise draft.unsupported(
            f"an embedding of width {width} projected to {d}", "an embedding as wide as the residual stream"
        )
    shape = _shape(draft, model_type, d, H)
    for layer in range(shape.n_layers):
        _layer(draft, shape, layer)
    p = draft.prefix
    n_positions = draft.size("max_position_embeddings") + N_OFFSET_ROWS
    draft.outer(
        [draft.tensor(("embed",), f"{p}embed_tokens.weight", (shape.n_vocab, d))],
        [draft.tensor(("pos_embed",), f"{p}embed_positions.weight", (n_positions, d))],
        draft.norm("norm_final", f"{p}final_layer_norm", d) if _has_final_norm(draft, shape) else [],
    )
    draft.head("lm_head.weight", shape, bias=False)
    return draft.layout(shape, "lm_head.weight")


def _shape(draft: Draft, model_type: str, d: int, H: int) -> ModelShape:
    tied = draft.flag("tie_word_embeddings", default=True)
    return ModelShape(
        family=model_type,
        n_layers=draft.size("num_hidden_layers"),
        d_model=d,
        n_heads=H,
        n_kv_heads=H,
        d_head=d // H,
        d_mlp=draft.size("ffn_dim"),
        n_vocab=draft.size("vocab_size"),
        gated=False,
        tied=tied,
        norm_kind="layer",
        norm_style="pre" if draft.flag("do_layer_norm_before", default=True) else "post",
        position="learned",
        activation=draft.text("activation_function", default="relu"),
        norm_eps=1e-5,  # fixed in the architecture, not in the config
        has_unembed=tied or "lm_head.weight" in draft.tensors,
    )


def _has_final_norm(draft: Draft, shape: ModelShape) -> bool:
    return shape.norm_style == "pre" and not draft.flag("_remove_final_layer_norm", default=False)


def _layer(draft: Draft, shape: ModelShape, layer: int) -> None:
    base, d, f = f"{draft.prefix}layers.{layer}", shape.d_model, shape.d_mlp
    affine = draft.flag("layer_norm_elementwise_affine", default=True)
    bias = draft.flag("enable_bias", default=True)
    name = f"{base}.self_attn"
    draft.part(
        layer,
        "attention",
        draft.norm("norm_attn", f"{base}.self_attn_layer_norm", d, bias=True) if affine else [],
        draft.linear("q", f"{name}.q_proj", d, d, bias=bias),
        draft.linear("k", f"{name}.k_proj", d, d, bias=bias),
        draft.linear("v", f"{name}.v_proj", d, d, bias=bias),
        draft.linear("o", f"{name}.out_proj", d, d, bias=bias),
    )
    draft.part(
        layer,
        "mlp",
        draft.norm("norm_mlp", f"{base}.final_layer_norm", d, bias=True) if affine else [],
        draft.linear("up", f"{base}.fc1", f, d, bias=bias),
        draft.linear("down", f"{base}.fc2", d, f, bias=bias),
    )
