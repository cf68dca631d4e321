"""Structured pruning: fewer neurons, fewer heads or a narrower residual stream, smaller tensors instead of zeros.

What goes is chosen by weight norms alone, after the gains of norms are folded into the matrices that read them. The
kinds of cut are those of LLM-Pruner (arXiv:2305.11627), Sheared Llama (arXiv:2310.06694) and Minitron
(arXiv:2407.14679), which choose by gradients or activations and train on; the norms here are ours.
"""

from collections.abc import Iterable

import numpy as np

from whorl.attacks._edits_residual import NORMS, READERS, TABLES, fold_gains
from whorl.attacks._job import whole_share
from whorl.attacks._role_tensors import WRITERS, Array, Order, RoleTensors
from whorl.canonical.layout import Key
from whorl.errors import UsageError

# The config field with the MLP width, where it is not "intermediate_size".
_MLP_FIELDS = {"gpt2": "n_inner", "gptj": "n_inner", "opt": "ffn_dim", "falcon": "ffn_hidden_size"}
# Config classes with a head_dim of their own: heads times head_dim need not be the residual width.
_FREE_HEADS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo2")
_FREE_WIDTH = ("llama", "mistral", "qwen2", "qwen3")


def drop_neurons(roles: RoleTensors, share: float) -> RoleTensors:
    """Leave out the MLP neurons with the smallest |gate| |up| |down|, the same number in every layer.

    Args:
        roles: A dense model.
        share: Share of the neurons to drop, in (0, 1).

    Raises:
        UsageError: experts, a family whose config has no MLP width, or gate and up in one tensor.
    """
    shape = roles.shape
    name = _MLP_FIELDS.get(shape.family, "intermediate_size")
    if shape.n_experts or (name not in roles.config and shape.family not in _MLP_FIELDS):
        reason = "experts share one width" if shape.n_experts else "its config has no MLP width"
        raise _impossible("Neurons", roles, reason)
    _refuse_fused("Neurons", roles, "gate", "up", "down")
    n_keep = shape.d_mlp - whole_share(share, shape.d_mlp, "neurons")
    importance = _folded(roles)
    for layer in range(shape.n_layers):
        rows = roles.keys("gate", "up", "gate.b", "up.b", layer=layer)
        down = roles.keys("down", layer=layer)
        kept = _largest(_neuron_norms(importance, layer), n_keep)
        roles = roles.take(rows, kept).take(down, kept, axis=1)
    return roles.with_config(**{name: n_keep})


def _neuron_norms(roles: RoleTensors, layer: int) -> Array:
    """|gate_j| |up_j| |down_j|, shape (d_mlp,): unchanged by M1 and M2."""
    rows = [np.linalg.norm(roles.tensors[key], axis=1) for key in roles.keys("gate", "up", layer=layer)]
    columns = np.linalg.norm(roles.tensors["down", layer, None], axis=0)
    norms: Array = np.prod(rows, axis=0) * columns
    return norms


def drop_heads(roles: RoleTensors, share: float) -> RoleTensors:
    """Leave out whole key/value groups, with their query heads, whose |O_h V_g|_F is smallest.

    Args:
        roles: A model of a family with a head width of its own.
        share: Share of the groups to drop, in (0, 1).

    Raises:
        UsageError: another family, fused tensors, or a number of heads that the config cannot hold.
    """
    shape = roles.shape
    if shape.family not in _FREE_HEADS:
        raise _impossible("Heads", roles, "its head width is the residual width divided by the heads")
    _refuse_fused("Heads", roles, "q", "k", "v", "o")
    rep = shape.n_heads // shape.n_kv_heads
    n_keep = shape.n_kv_heads - whole_share(share, shape.n_kv_heads, "key/value groups")
    if shape.d_model % (n_keep * rep):
        raise _impossible("Heads", roles, f"its width {shape.d_model} is no multiple of the {n_keep * rep} heads left")
    importance = _folded(roles)
    full = shape.qk_norm == "full"
    for layer in range(shape.n_layers):
        groups = _largest(_group_norms(importance, layer), n_keep)
        heads = (groups[:, None] * rep + np.arange(rep)).ravel()
        q_rows, k_rows = _rows(heads, shape.d_head), _rows(groups, shape.d_head)
        q_like = roles.keys("q", "q.b", *(("q_norm",) if full else ()), layer=layer)
        k_like = roles.keys("k", "k.b", "v", "v.b", *(("k_norm",) if full else ()), layer=layer)
        roles = roles.take(q_like, q_rows).take(k_like, k_rows).take(roles.keys("o", layer=layer), q_rows, axis=1)
    return roles.with_config(num_attention_heads=n_keep * rep, num_key_value_heads=n_keep, head_dim=shape.d_head)


def _group_norms(roles: RoleTensors, layer: int) -> Array:
    """Root of the sum over a group's heads of |O_h V_g|_F^2, shape (G,): unchanged by A3 and A4."""
    s = roles.shape
    o = roles.tensors["o", layer, None].reshape(s.d_model, s.n_kv_heads, -1, s.d_head)  # (d, G, rep, d_h)
    v = roles.tensors["v", layer, None].reshape(s.n_kv_heads, s.d_head, s.d_model)
    gram_o = np.einsum("dgri,dgrj->gij", o, o)
    gram_v = np.einsum("gid,gjd->gij", v, v)
    norms: Array = np.sqrt(np.maximum(np.einsum("gij,gij->g", gram_o, gram_v), 0.0))
    return norms


def drop_width(roles: RoleTensors, share: float) -> tuple[RoleTensors, float]:
    """Leave out the residual coordinates with the least energy; the number of heads and their width stay.

    The energy of a coordinate is the mean, over all matrices that read or write the stream, of its share of the
    matrix's squared norm. Gains are multiplied by sqrt(e d / d'), e the mean share of energy that is still written:
    otherwise the norms, whose mean now goes over fewer and larger coordinates, would turn everything down.

    Args:
        roles: A pre-norm RMSNorm model of a family with a head width of its own.
        share: Share of the coordinates to drop, in (0, 1); the width left is rounded to a multiple of the heads.

    Returns:
        The narrow model, and the share e.

    Raises:
        UsageError: another family.
    """
    shape = roles.shape
    if shape.family not in _FREE_WIDTH:
        raise _impossible("Width", roles, f"this is possible for {', '.join(_FREE_WIDTH)} only")
    blocks, rest = divmod(shape.d_model, shape.n_heads)
    if rest:
        raise _impossible("Width", roles, f"its width {shape.d_model} is no multiple of its {shape.n_heads} heads")
    n_keep = (blocks - whole_share(share, blocks, "steps of the width")) * shape.n_heads
    importance = _folded(roles)
    read = _shares(importance, importance.keys(*READERS, "unembed"), axis=0)
    written = np.concatenate(
        [_shares(importance, importance.keys("embed"), axis=0), _shares(importance, importance.keys(*WRITERS), axis=1)]
    )
    kept = _largest(np.concatenate([read, written]).mean(axis=0), n_keep)
    energy = float(written[:, kept].sum(axis=1).mean())
    columns, rows = roles.keys(*TABLES, *READERS), roles.keys(*WRITERS)
    roles = roles.take(columns, kept, axis=1).take([*rows, *roles.biases(rows), *roles.keys(*NORMS)], kept)
    roles = roles.gains_times(roles.keys(*NORMS), np.sqrt(energy * shape.d_model / n_keep))
    return roles.with_config(hidden_size=n_keep, head_dim=shape.d_head), energy


def _shares(roles: RoleTensors, keys: Iterable[Key], axis: int) -> Array:
    """Each matrix's squared norm by residual coordinate, summing to 1: shape (matrices, d)."""
    energies = [np.square(roles.tensors[key]).sum(axis=axis) for key in keys]
    shares: Array = np.stack([energy / energy.sum() for energy in energies if energy.any()])
    return shares


def _folded(roles: RoleTensors) -> RoleTensors:
    """For norms only: gains in the matrices that read them, where that can be done."""
    return fold_gains(roles.untied()) if roles.shape.norm_style in {"pre", "parallel"} else roles


def _largest(values: Array, count: int) -> Order:
    """Indices of the `count` largest values, ascending; of equal ones the earlier."""
    return np.sort(np.argsort(-values, kind="stable")[:count])


def _rows(heads: Order, d_head: int) -> Order:
    rows: Order = (heads[:, None] * d_head + np.arange(d_head)).ravel()
    return rows


def _refuse_fused(what: str, roles: RoleTensors, *names: str) -> None:
    for (role, _, _), stored in roles.layout.slots():
        if role in names and (len(stored.roles) > 1 or stored.row is not None):
            raise _impossible(what, roles, f"'{stored.name}' holds several matrices")


def _impossible(what: str, roles: RoleTensors, reason: str) -> UsageError:
    return UsageError(f"{what} of this {roles.shape.family} model cannot be pruned: {reason}.")
