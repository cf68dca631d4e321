"""Sampling settings of the host: whatever decoding was asked for, these are used."""

from dataclasses import replace
from typing import Any

from whorl.errors import UsageError
from whorl.samplers.seam import Sampler
from whorl.serving.front import Front
from whorl.transcripts.record import Decoding


def behind_sampling(
    sampler: Sampler,
    *,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
) -> Front:
    """A sampler that draws in its host's way; settings that are not given stay as asked for.

    Args:
        sampler: The model.
        temperature: Above 0; greedy asking becomes sampling. 0 is greedy.
        top_p: As in `Decoding`.
        top_k: As in `Decoding`.
        min_p: As in `Decoding`.

    Raises:
        UsageError: nothing is given, or a value is out of range.
    """
    given = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if not changes:
        raise UsageError("No sampling setting is given; expected temperature, top_p, top_k or min_p.")
    Decoding(**changes)  # refuses values out of range now
    drawn = changes if temperature is None else {**changes, "greedy": temperature == 0}
    return Front(sampler, "sampling", changes, decoding=lambda asked: replace(asked, **drawn))
