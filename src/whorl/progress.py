"""How long steps say where they are: a callback, so that library code prints nothing."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, units done, units in all); units are sublayers, models or pairs."""


def silent(what: str, done: int, total: int) -> None:
    """The default: say nothing."""
