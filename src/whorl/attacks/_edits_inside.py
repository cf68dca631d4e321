"""Edits inside attention, MLP, biases and vocabulary that leave a model's function as it is."""

from collections.abc import Mapping

import numpy as np

from whorl.attacks._edits_residual import random_rotation
from whorl.attacks._role_tensors import Array, Order, RoleTensors, all_norms, bias_of
from whorl.canonical.layout import Key

RELU = {"relu"}


def rescale_queries(roles: RoleTensors, rng: np.random.Generator) -> RoleTensors:
    """A1: K_g -> M K_g and Q_h -> M^-T Q_h for every query head h of group g.

    M commutes with the rotary rotation: a 2 x 2 rotation-scaling per frequency pair, any matrix on coordinates that are
    not rotated. Without rotary positions M is a scalar. Queries and keys with norms of their own are rescaled apart.
    """
    if roles.shape.qk_norm:
        return _rescale_normed_queries(roles, rng)
    G, d_h = roles.shape.n_kv_heads, roles.shape.d_head
    for layer in range(roles.shape.n_layers):
        if roles.shape.position == "rotary":
            maps = np.stack([_rotary_map(roles, rng) for _ in range(G)])
        else:
            maps = np.exp(rng.uniform(-0.7, 0.7, (G, 1, 1))) * rng.choice([-1.0, 1.0], (G, 1, 1)) * np.eye(d_h)
        roles = _map_heads(roles, layer, ("k",), maps)
        roles = _map_heads(roles, layer, ("q",), np.linalg.inv(maps).transpose(0, 2, 1))
    return roles


def general_map_obstacle(roles: RoleTensors) -> str | None:
    """Why A2 would change the function."""
    if roles.shape.position == "rotary":
        return "rotary positions allow only the maps of A1"
    return None


def map_queries(roles: RoleTensors, rng: np.random.Generator) -> RoleTensors:
    """A2: K_g -> M K_g, Q_h -> M^-T Q_h with a general invertible M per group."""
    for layer in range(roles.shape.n_layers):
        maps = _general_maps(roles, rng)
        roles = _map_heads(roles, layer, ("k",), maps)
        roles = _map_heads(roles, layer, ("q",), np.linalg.inv(maps).transpose(0, 2, 1))
    return roles


def map_values(roles: RoleTensors, rng: np.random.Generator) -> RoleTensors:
    """A3: V_g -> M V_g, O_h -> O_h M^-1 with a general invertible M per group."""
    rep = roles.shape.n_heads // roles.shape.n_kv_heads
    for layer in range(roles.shape.n_layers):
        maps = _general_maps(roles, rng)
        roles = _map_heads(roles, layer, ("v",), maps)
        o = ("o", layer, None)
        inverse = np.repeat(np.linalg.inv(maps), rep, axis=0)  # (H, d_h, d_h)
        roles = roles.with_tensors({o: _right_heads(roles.tensors[o], inverse)})
    return roles


def head_order_obstacle(roles: RoleTensors) -> str | None:
    """Why A4 would change the function."""
    return "ALiBi gives every head a slope of its own" if roles.shape.position == "alibi" else None


def permute_heads(roles: RoleTensors, rng: np.random.Generator) -> RoleTensors:
    """A4: groups permuted as a whole, query heads permuted inside their group."""
    G, rep = roles.shape.n_kv_heads, roles.shape.n_heads // roles.shape.n_kv_heads
    full = ("q_norm", "k_norm") if roles.shape.qk_norm == "full" else ()
    for layer in range(roles.shape.n_layers):
        groups = rng.permutation(G)
        heads = np.concatenate([g * rep + rng.permutation(rep) for g in groups])
        q_like = roles.keys("q", "q.b", *full[:1], layer=layer)
        k_like = roles.keys("k", "k.b", "v", "v.b", *full[1:], layer=layer)
        rows_q, rows_k = _rows(heads, roles.shape.d_head), _rows(groups, roles.shape.d_head)
        roles = roles.take(q_like, rows_q).take(k_like, rows_k).take(roles.keys("o", layer=layer), rows_q, axis=1)
    return roles


def expert_obstacle(roles: RoleTensors) -> str | None:
    """Why X1 finds nothing to work on."""
    return None if roles.shape.n_experts else "the model has no experts"


def permute_experts(roles: RoleTensors, rng: np.random.Generator) -> RoleTensors:
    """X1: experts permuted with the rows of their router."""
    for _, layer, _ in roles.keys("router"):
        order = rng.permutation(roles.shape.n_experts)
        experts = [key for key in roles.tensors if key[1] == layer and key[2] is not None]
        moved: dict[Key, Array] = {
            (role, at, i): roles.tensors[role, at, int(order[i])] for role, at, i in experts if i is not None
        }
        roles = roles.with_tensors(moved).take(roles.keys("router", "router.b", layer=layer), order)
    return roles


def permute_neurons(roles: RoleTensors, rng: np.random.Generator) -> RoleTensors:
    """M1: rows of gate and up with their biases, columns of down."""
    for _, layer, expert in roles.keys("down"):
        order = rng.permutation(roles.tensors["down", layer, expert].shape[1])
        rows = [(r, layer, expert) for r in ("gate", "up", "gate.b", "up.b") if (r, layer, expert) in roles.tensors]
        roles = roles.take(rows, order).take([("down", layer, expert)], order, axis=1)
    return roles


def neuron_scale_obstacle(roles: RoleTensors) -> str | None:
    """Why M2 would change the function."""
    if roles.shape.gated or roles.shape.activation in RELU:
        return None
    return f"{roles.shape.activation} without a gate does not commute with a scale"


def scale_neurons(roles: RoleTensors, rng: np.random.Generator) -> RoleTensors:
    """M2: up_j -> c_j up_j, down_j -> down_j / c_j; of either sign behind a gate, positive for ReLU."""
    for _, layer, expert in roles.keys("down"):
        f = roles.tensors["down", layer, expert].shape[1]
        c = np.exp(rng.uniform(-1.0, 1.0, f)) * (rng.choice([-1.0, 1.0], f) if roles.shape.gated else 1.0)
        up, down = ("up", layer, expert), ("down", layer, expert)
        roles = roles.times([up], c[:, None]).times(roles.biases([up]), c).times([down], 1.0 / c)
    return roles


def bias_obstacle(roles: RoleTensors) -> str | None:
    """Why B1 finds nothing to work on."""
    key_bias = roles.has("k.b") and roles.shape.position != "rotary"
    value_bias = roles.has("v.b") and roles.has("o.b")
    return None if key_bias or value_bias else "no bias can be moved between the tensors this family has"


def move_biases(roles: RoleTensors, rng: np.random.Generator) -> RoleTensors:
    """B1: b_v into b_o; any b_k without rotary positions; LayerNorm biases into the biases of all their readers."""
    rep = roles.shape.n_heads // roles.shape.n_kv_heads
    for layer in range(roles.shape.n_layers):
        v, o = ("v.b", layer, None), ("o.b", layer, None)
        if v in roles.tensors and o in roles.tensors:
            t = rng.standard_normal(roles.tensors[v].size)
            per_head = np.repeat(t.reshape(-1, roles.shape.d_head), rep, axis=0).ravel()
            moved = roles.tensors[o] - roles.tensors["o", layer, None] @ per_head
            roles = roles.with_tensors({v: roles.tensors[v] + t, o: moved})
        if roles.shape.position != "rotary":
            roles = roles.mapped(roles.keys("k.b", layer=layer), lambda b: b + rng.standard_normal(b.size))
    return roles if roles.shape.norm_style == "post" else _move_norm_biases(roles, rng)


def permute_vocabulary(roles: RoleTensors, old_ids: Order) -> RoleTensors:
    """V1: row i of embedding and unembedding becomes old row `old_ids[i]`; special ids of the config follow."""
    roles = roles.mapped(roles.keys("embed", "unembed", "unembed.b"), lambda m: m[old_ids])
    return roles.with_config(**moved_special_ids(roles.config, np.argsort(old_ids)))


def moved_special_ids(config: Mapping[str, object], new_ids: Order) -> dict[str, object]:
    """The `..._token_id` fields of a config with old ids replaced by new ones; a number or a list of numbers each."""
    fields = {name: value for name, value in config.items() if name.endswith("_token_id")}
    return {name: _moved(value, new_ids) for name, value in fields.items()}


def _moved(value: object, new_ids: Order) -> object:
    if isinstance(value, list):
        return [_moved(one, new_ids) for one in value]
    return int(new_ids[value]) if isinstance(value, int) and 0 <= value < len(new_ids) else value


def _move_norm_biases(roles: RoleTensors, rng: np.random.Generator) -> RoleTensors:
    for norm, readers in all_norms(roles):
        movable = all(bias_of(key) in roles.tensors for key in (*norm, *readers))
        if not movable:
            continue
        u = rng.standard_normal(roles.shape.d_model)
        lowered = {bias_of(key): roles.tensors[bias_of(key)] - roles.tensors[key] @ u for key in readers}
        raised = {bias_of(key): roles.tensors[bias_of(key)] + u for key in norm}
        roles = roles.with_tensors({**lowered, **raised})
    return roles


def _rescale_normed_queries(roles: RoleTensors, rng: np.random.Generator) -> RoleTensors:
    """Scales that the q/k norm removes again, and a factor per frequency pair moved between the two gains."""
    s = roles.shape
    for layer in range(s.n_layers):
        one_norm_for_all = s.qk_norm == "full"
        for role, n_heads in (("q", s.n_heads), ("k", s.n_kv_heads)):
            scale = np.exp(rng.uniform(-0.7, 0.7, 1 if one_norm_for_all else n_heads))
            rows = np.broadcast_to(scale[:, None], (n_heads, s.d_head)).ravel()
            keys = roles.keys(role, layer=layer)
            roles = roles.times(keys, rows[:, None]).times(roles.biases(keys), rows)
        t = np.stack([_pair_factor(roles, rng) for _ in range(s.n_kv_heads if one_norm_for_all else 1)])
        t_q = np.repeat(t, s.n_heads // s.n_kv_heads, axis=0).ravel() if one_norm_for_all else t.ravel()
        roles = roles.gains_times([("q_norm", layer, None)], t_q)
        roles = roles.gains_times([("k_norm", layer, None)], 1.0 / t.ravel())
    return roles


def _pair_factor(roles: RoleTensors, rng: np.random.Generator) -> Array:
    """One factor per coordinate of a head, equal within each frequency pair; either sign."""
    factor = np.exp(rng.uniform(-0.5, 0.5, roles.shape.d_head)) * rng.choice([-1.0, 1.0], roles.shape.d_head)
    first, second = rotary_pairs(roles)
    factor[second] = factor[first]
    return factor


def rotary_pairs(roles: RoleTensors) -> tuple[Order, Order]:
    """Coordinates of a head that are rotated together: two index arrays of length rotary_dim / 2."""
    r = roles.shape.rotary_dim
    if roles.shape.rotary_layout == "half":
        return np.arange(r // 2), np.arange(r // 2, r)
    return np.arange(0, r, 2), np.arange(1, r, 2)


def _rotary_map(roles: RoleTensors, rng: np.random.Generator) -> Array:
    s = roles.shape
    first, second = rotary_pairs(roles)
    a, angle = np.exp(rng.uniform(-0.7, 0.7, first.size)), rng.uniform(0, 2 * np.pi, first.size)
    matrix = np.zeros((s.d_head, s.d_head))
    matrix[first, first] = matrix[second, second] = a * np.cos(angle)
    matrix[second, first], matrix[first, second] = a * np.sin(angle), -a * np.sin(angle)
    matrix[s.rotary_dim :, s.rotary_dim :] = _general_map(s.d_head - s.rotary_dim, rng)
    return matrix


def _general_maps(roles: RoleTensors, rng: np.random.Generator) -> Array:
    return np.stack([_general_map(roles.shape.d_head, rng) for _ in range(roles.shape.n_kv_heads)])


def _general_map(n: int, rng: np.random.Generator) -> Array:
    """An invertible matrix with singular values in [0.5, 2]: far from orthogonal, but no loss of digits."""
    if n == 0:
        return np.zeros((0, 0))
    stretch = np.exp(rng.uniform(-0.7, 0.7, n))
    return random_rotation(n, rng) * stretch @ random_rotation(n, rng)


def _map_heads(roles: RoleTensors, layer: int, names: tuple[str, ...], maps: Array) -> RoleTensors:
    """Rows of each head times its group's matrix, the bias included."""
    keys = roles.keys(*names, *(f"{name}.b" for name in names), layer=layer)
    return roles.mapped(keys, lambda m: _left_heads(m, maps))


def _left_heads(matrix: Array, maps: Array) -> Array:
    """(heads * d_h, ...) -> every head times the matrix of its group."""
    d_h = maps.shape[1]
    heads = matrix.reshape(-1, d_h, matrix.size // matrix.shape[0])
    per_head = np.repeat(maps, heads.shape[0] // maps.shape[0], axis=0)
    return (per_head @ heads).reshape(matrix.shape)


def _right_heads(matrix: Array, maps: Array) -> Array:
    """(d, H * d_h) -> the columns of every head times its matrix."""
    H, d_h = maps.shape[:2]
    product: Array = np.einsum("ohi,hij->ohj", matrix.reshape(-1, H, d_h), maps).reshape(matrix.shape)
    return product


def _rows(heads: Order, d_head: int) -> Order:
    rows: Order = (heads[:, None] * d_head + np.arange(d_head)).ravel()
    return rows
