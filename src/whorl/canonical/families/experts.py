"""Mixture-of-experts relatives of Llama: Mixtral, Qwen2-MoE, Qwen3-MoE.

Notable: `gate` alone is the router; Mixtral names gate, down, up w1, w2, w3; Qwen2-MoE adds a shared expert with a
scalar gate of its own; some files fuse all experts of a layer into `experts.gate_up_proj` and `experts.down_proj`.
"""

from dataclasses import replace

from whorl.canonical.draft import Draft
from whorl.canonical.families.llama import attention, dense_mlp, finish, mlp_norms, read_shape
from whorl.canonical.layout import Layout, Split, Stored
from whorl.canonical.roles import ModelShape


def lay_out(draft: Draft, model_type: str) -> Layout:
    """The layout of a mixture-of-experts relative of Llama."""
    dense = read_shape(draft, model_type)
    shape = _with_experts(draft, dense, model_type)
    for layer in range(shape.n_layers):
        attention(draft, shape, model_type, layer)
        base = f"{draft.prefix}layers.{layer}"
        norms = mlp_norms(draft, shape, base)
        if _is_dense(draft, layer):
            dense_mlp(draft, dense, layer, f"{base}.mlp", dense.d_mlp, norms)
        else:
            _sparse_mlp(draft, shape, layer, _block(draft, base), norms)
    return finish(draft, shape)


def _with_experts(draft: Draft, dense: ModelShape, model_type: str) -> ModelShape:
    n_experts = draft.size(
        "num_local_experts", "num_experts", default={"mixtral": 8, "qwen2_moe": 60}.get(model_type, 128)
    )
    if model_type == "mixtral":
        return replace(dense, n_experts=n_experts)
    shared = draft.size("shared_expert_intermediate_size", default=5632) if model_type == "qwen2_moe" else 0
    return replace(dense, n_experts=n_experts, d_mlp=draft.size("moe_intermediate_size"), d_shared=shared)


def _is_dense(draft: Draft, layer: int) -> bool:
    """Qwen-MoE keeps listed layers, and all but every n-th, dense."""
    step = draft.size("decoder_sparse_step", default=1)
    return layer in draft.layer_indices("mlp_only_layers") or (layer + 1) % step != 0


def _block(draft: Draft, base: str) -> str:
    """Mixtral's block is `block_sparse_moe` on the Hub and `mlp` in files saved by some library versions."""
    classic = f"{base}.block_sparse_moe"
    return classic if f"{classic}.gate.weight" in draft.tensors else f"{base}.mlp"


def _sparse_mlp(draft: Draft, shape: ModelShape, layer: int, name: str, norms: list[Stored]) -> None:
    d = shape.d_model
    if shape.d_shared:
        scalar = draft.linear("shared_gate", f"{name}.shared_expert_gate", 1, d, bias=False)
        dense_mlp(draft, shape, layer, f"{name}.shared_expert", shape.d_shared, [*norms, *scalar])
    router = draft.linear("router", f"{name}.gate", shape.n_experts, d, bias=False)
    for expert in range(shape.n_experts):
        extra = [*norms, *router] if expert == 0 else norms
        draft.part(layer, "mlp", extra, _expert(draft, shape, f"{name}.experts", expert), expert=expert)


def _expert(draft: Draft, shape: ModelShape, name: str, expert: int) -> list[Stored]:
    d, f = shape.d_model, shape.d_mlp
    if f"{name}.gate_up_proj" in draft.tensors:
        return _fused_expert(draft, shape, name, expert)
    classic = f"{name}.{expert}.w1.weight" in draft.tensors
    gate, up, down = ("w1", "w3", "w2") if classic else ("gate_proj", "up_proj", "down_proj")
    return [
        *draft.linear("gate", f"{name}.{expert}.{gate}", f, d, bias=False),
        *draft.linear("up", f"{name}.{expert}.{up}", f, d, bias=False),
        *draft.linear("down", f"{name}.{expert}.{down}", d, f, bias=False),
    ]


def _fused_expert(draft: Draft, shape: ModelShape, name: str, expert: int) -> list[Stored]:
    """Fused experts are (E, out, in) or, in some files, (E, in, out): the config decides which shape is which.

    A square case (2 f = d for gate_up, f = d for down) cannot be told by its shape; it takes the orientation of
    the other tensor, and both ambiguous at once is impossible.
    """
    d, f, E = shape.d_model, shape.d_mlp, shape.n_experts
    gate_up, down = f"{name}.gate_up_proj", f"{name}.down_proj"
    found = {key: tuple(draft.tensors[key].shape) if key in draft.tensors else () for key in (gate_up, down)}
    in_first = found[gate_up] == (E, d, 2 * f) if 2 * f != d else found[down] == (E, f, d)
    shapes = ((E, d, 2 * f), (E, f, d)) if in_first else ((E, 2 * f, d), (E, d, f))
    return [
        draft.expert_row(("gate", "up"), gate_up, shapes[0], expert, Split(1, (1, 1), f, transposed=in_first)),
        draft.expert_row(("down",), down, shapes[1], expert, Split(transposed=in_first)),
    ]
