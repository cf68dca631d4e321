"""Keys and values of past tokens in tables with room for the whole answer.

The growing cache of transformers copies every key and value at every token; with room from the start a step writes one
column. Rows can be chosen: one prompt serves all its draws, and rows whose answer has ended leave.
"""

from functools import cache
from typing import Any

from whorl.errors import NotComparable, safe_name


def new_cache(model: Any, room: int) -> Any:
    """An empty cache for a model; layers with a sliding window keep the growing one of transformers.

    Args:
        model: A causal language model of transformers.
        room: Tokens of prompt and answer.

    Raises:
        NotComparable: the model keeps another state than keys and values.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    found = DynamicCache(config=model.config)
    if not found.layers or not all(isinstance(layer, DynamicLayer) for layer in found.layers):
        kind = safe_name(model.config.model_type, 40)
        raise NotComparable(f"Models of type '{kind}' keep a state that whorl cannot batch; sample them over HTTP.")
    found.layers = [_roomy_layer()(room) if type(layer) is DynamicLayer else layer for layer in found.layers]
    return found


@cache
def _roomy_layer() -> Any:
    """The class, made on first use because its base needs torch."""
    import torch
    from transformers.cache_utils import DynamicLayer

    class RoomyLayer(DynamicLayer):  # type: ignore[misc]
        """One layer: tables of shape (batch, heads, room, d_head), of which the first tokens are used."""

        def __init__(self, room: int) -> None:
            super().__init__()
            self.room, self.n_used = room, 0

        def update(self, key_states: Any, value_states: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
            """Write new tokens, shape (batch, heads, n, d_head); all tokens so far come back, as views."""
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
                self.tables = [_table(states, len(states), self.room) for states in (key_states, value_states)]
            start, self.n_used = self.n_used, self.n_used + key_states.shape[-2]
            for table, new in zip(self.tables, (key_states, value_states), strict=True):
                table[:, :, start : self.n_used] = new
            self.keys, self.values = (table[:, :, : self.n_used] for table in self.tables)
            return self.keys, self.values

        def batch_select_indices(self, indices: Any) -> None:
            """The rows of `indices`, in this order; a row may occur several times."""
            if not self.is_initialized:  # layers that share the keys of another one
                return
            chosen = [_table(used, len(indices), self.room) for used in (self.keys, self.values)]
            for table, used in zip(chosen, (self.keys, self.values), strict=True):
                table[:, :, : self.n_used] = torch.index_select(used, 0, indices)
            self.tables = chosen
            self.keys, self.values = (table[:, :, : self.n_used] for table in chosen)

    return RoomyLayer


def _table(like: Any, n_rows: int, room: int) -> Any:
    return like.new_empty((n_rows, like.shape[1], room, like.shape[3]))
