"""BLOOM: fused rows run (head, q|k|v, coordinate); ALiBi positions; a LayerNorm on every embedding row; tied."""

from whorl.canonical.draft import Draft
from whorl.canonical.layout import Layout, Split
from whorl.canonical.roles import ModelShape


def lay_out(draft: Draft, model_type: str) -> Layout:
    """The layout of a BLOOM model."""
    draft.find_prefix(("transformer.", ""), "word_embeddings.weight")
    d, H = draft.size("hidden_size", "n_embed"), draft.size("n_head", "num_attention_heads")
    if d % H:
        raise draft.bad_field("n_head", H, f"a divisor of hidden_size {d}")
    if draft.flag("apply_residual_connection_post_layernorm", default=False):
        raise draft.unsupported("residuals taken after the norm", "residuals taken before the norm")
    tied = draft.flag("tie_word_embeddings", default=True)
    shape = ModelShape(
        family=model_type,
        n_layers=draft.size("n_layer", "num_hidden_layers"),
        d_model=d,
        n_heads=H,
        n_kv_heads=H,
        d_head=d // H,
        d_mlp=4 * d,
        n_vocab=draft.size("vocab_size"),
        gated=False,
        tied=tied,
        norm_kind="layer",
        norm_style="pre",
        position="alibi",
        activation="gelu_tanh",
        norm_eps=draft.number("layer_norm_epsilon", default=1e-5),
        has_unembed=tied or "lm_head.weight" in draft.tensors,
    )
    for layer in range(shape.n_layers):
        _layer(draft, shape, layer)
    p = draft.prefix
    draft.outer(
        [draft.tensor(("embed",), f"{p}word_embeddings.weight", (shape.n_vocab, d))],
        draft.norm("embed_norm", f"{p}word_embeddings_layernorm", d, bias=True),
        draft.norm("norm_final", f"{p}ln_f", d, bias=True),
    )
    draft.head("lm_head.weight", shape, bias=False)
    return draft.layout(shape, "lm_head.weight")


def _layer(draft: Draft, shape: ModelShape, layer: int) -> None:
    base, d, f = f"{draft.prefix}h.{layer}", shape.d_model, shape.d_mlp
    qkv = Split(shape.n_heads, (1, 1, 1), shape.d_head)
    name = f"{base}.self_attention"
    draft.part(
        layer,
        "attention",
        draft.norm("norm_attn", f"{base}.input_layernorm", d, bias=True),
        draft.linear(("q", "k", "v"), f"{name}.query_key_value", 3 * d, d, split=qkv, bias=True),
        draft.linear("o", f"{name}.dense", d, d, bias=True),
    )
    draft.part(
        layer,
        "mlp",
        draft.norm("norm_mlp", f"{base}.post_attention_layernorm", d, bias=True),
        draft.linear("up", f"{base}.mlp.dense_h_to_4h", f, d, bias=True),
        draft.linear("down", f"{base}.mlp.dense_4h_to_h", d, f, bias=True),
    )
