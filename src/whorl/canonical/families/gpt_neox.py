"""GPT-NeoX and Pythia: fused rows run (head, q|k|v, coordinate); partial rotary; parallel residual with two norms."""

from whorl.canonical.draft import Draft
from whorl.canonical.layout import Layout, Split
from whorl.canonical.roles import ModelShape

IGNORED = (
    r"(gpt_neox\.)?layers\.\d+\.attention\.(bias|masked_bias)",
    r".*rotary_emb\.inv_freq",
)


def lay_out(draft: Draft, model_type: str) -> Layout:
    """The layout of a GPT-NeoX model."""
    draft.find_prefix(("gpt_neox.", ""), "embed_in.weight")
    d, H = draft.size("hidden_size"), draft.size("num_attention_heads")
    if d % H:
        raise draft.bad_field("num_attention_heads", H, f"a divisor of hidden_size {d}")
    tied = draft.flag("tie_word_embeddings", default=False)
    head = "lm_head.weight" if "lm_head.weight" in draft.tensors else "embed_out.weight"
    shape = ModelShape(
        family=model_type,
        n_layers=draft.size("num_hidden_layers"),
        d_model=d,
        n_heads=H,
        n_kv_heads=H,
        d_head=d // H,
        d_mlp=draft.size("intermediate_size"),
        n_vocab=draft.size("vocab_size"),
        gated=False,
        tied=tied,
        norm_kind="layer",
        norm_style="parallel" if draft.flag("use_parallel_residual", default=True) else "pre",
        position="rotary",
        activation=draft.text("hidden_act", default="gelu"),
        norm_eps=draft.number("layer_norm_eps", default=1e-5),
        rotary_dim=draft.rotary(d // H, default_fraction=0.25),
        has_unembed=tied or head in draft.tensors or draft.prefix != "",
    )
    for layer in range(shape.n_layers):
        _layer(draft, shape, layer)
    draft.outer(
        [draft.tensor(("embed",), f"{draft.prefix}embed_in.weight", (shape.n_vocab, d))],
        draft.norm("norm_final", f"{draft.prefix}final_layer_norm", d, bias=True),
    )
    draft.head(head, shape, bias=False)
    return draft.layout(shape, head, IGNORED)


def _layer(draft: Draft, shape: ModelShape, layer: int) -> None:
    base, d, f = f"{draft.prefix}layers.{layer}", shape.d_model, shape.d_mlp
    qkv = Split(shape.n_heads, (1, 1, 1), shape.d_head)
    bias = draft.flag("attention_bias", default=True)
    draft.part(
        layer,
        "attention",
        draft.norm("norm_attn", f"{base}.input_layernorm", d, bias=True),
        draft.linear(("q", "k", "v"), f"{base}.attention.query_key_value", 3 * d, d, split=qkv, bias=bias),
        draft.linear("o", f"{base}.attention.dense", d, d, bias=bias),
    )
    draft.part(
        layer,
        "mlp",
        draft.norm("norm_mlp", f"{base}.post_attention_layernorm", d, bias=True),
        draft.linear("up", f"{base}.mlp.dense_h_to_4h", f, d, bias=True),
        draft.linear("down", f"{base}.mlp.dense_4h_to_h", d, f, bias=True),
    )
