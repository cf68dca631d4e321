"""MPT: fused Q-then-K-then-V without biases, ALiBi, LayerNorm without bias; `up_proj` is not gated."""

from whorl.canonical.draft import Draft
from whorl.canonical.layout import Layout, Split
from whorl.canonical.roles import ModelShape


def lay_out(draft: Draft, model_type: str) -> Layout:
    """The layout of an MPT model.

    Raises:
        UnsupportedFile: query/key LayerNorm, clipping of Q, K, V, or no ALiBi.
    """
    attention = draft.section("attn_config")
    if attention.boolean("qk_ln", default=False) or "clip_qkv" in attention:
        raise draft.unsupported("a LayerNorm or clipping on queries, keys and values", "plain ones")
    if not attention.boolean("alibi", default=True):
        raise draft.unsupported("learned positions", "ALiBi positions")
    draft.find_prefix(("transformer.", ""), "wte.weight")
    d, H = draft.size("d_model"), draft.size("n_heads")
    if d % H:
        raise draft.bad_field("n_heads", H, f"a divisor of d_model {d}")
    tied = draft.flag("tie_word_embeddings", default=True)
    shape = ModelShape(
        family=model_type,
        n_layers=draft.size("n_layers"),
        d_model=d,
        n_heads=H,
        n_kv_heads=H,
        d_head=d // H,
        d_mlp=draft.size("expansion_ratio", default=4) * d,
        n_vocab=draft.size("vocab_size"),
        gated=False,
        tied=tied,
        norm_kind="layer",
        norm_style="pre",
        position="alibi",
        activation="gelu",
        norm_eps=draft.number("layer_norm_epsilon", default=1e-5),
        has_unembed=tied or "lm_head.weight" in draft.tensors,
    )
    for layer in range(shape.n_layers):
        _layer(draft, shape, layer)
    draft.outer(
        [draft.tensor(("embed",), f"{draft.prefix}wte.weight", (shape.n_vocab, d))],
        draft.norm("norm_final", f"{draft.prefix}norm_f", d),
    )
    draft.head("lm_head.weight", shape, bias=False)
    return draft.layout(shape, "lm_head.weight")


def _layer(draft: Draft, shape: ModelShape, layer: int) -> None:
    base, d, f = f"{draft.prefix}blocks.{layer}", shape.d_model, shape.d_mlp
    qkv = Split(1, (shape.n_heads,) * 3, shape.d_head)
    draft.part(
        layer,
        "attention",
        draft.norm("norm_attn", f"{base}.norm_1", d),
        draft.linear(("q", "k", "v"), f"{base}.attn.Wqkv", 3 * d, d, split=qkv),
        draft.linear("o", f"{base}.attn.out_proj", d, d),
    )
    draft.part(
        layer,
        "mlp",
        draft.norm("norm_mlp", f"{base}.norm_2", d),
        draft.linear("up", f"{base}.ffn.up_proj", f, d),
        draft.linear("down", f"{base}.ffn.down_proj", d, f),
    )
