"""How numbers and foreign names are written in a report."""

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from whorl.errors import safe_name

ROUNDING = 1e-9  # fingerprints keep nine digits
MINUS = "\N{MINUS SIGN}"
_INVISIBLE = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})


def cut_name(text: object, limit: int) -> str:
    """A foreign name as ASCII (`safe_name`), with its middle left out when it is longer than `limit`.

    Ends of paths and names differ more often than beginnings, so the end is what stays.
    """
    shown = safe_name(text, 10_000)
    if len(shown) <= limit:
        return shown
    head = (limit - 3) // 3
    return f"{shown[:head]}...{shown[len(shown) - (limit - 3 - head) :]}"


def short_refs(refs: Sequence[str], limit: int = 60) -> list[str]:
    """References for a heading: of local paths the last part, where that still tells them apart."""
    last = [ref.rstrip("/").rsplit("/", 1)[-1] if ref[:1] in {"/", ".", "~"} else ref for ref in refs]
    return [cut_name(text, limit) for text in (last if len(set(last)) == len(refs) else refs)]


def cut_text(text: object, limit: int = 1000) -> str:
    """A foreign sentence: invisible characters (controls, bidirectional marks) are spelled out, the rest stays."""
    shown = "".join(safe_name(c) if unicodedata.category(c) in _INVISIBLE else c for c in str(text)[: limit + 1])
    return shown if len(shown) <= limit else f"{shown[: limit - 3]}..."


def decimals(values: Iterable[float]) -> int:
    """Decimals (2 to 4) that tell the middle half of the values apart."""
    found = np.array(list(values), dtype=np.float64)
    if found.size < 2:
        return 4
    low, high = np.quantile(found, (0.25, 0.75))
    spread = float(high - low) / 10
    return 4 if spread <= 0 else int(min(4, max(2, math.ceil(-math.log10(spread)))))


def number(value: float | None, digits: int = 4) -> str:
    """A number with `digits` decimals; "n/c" for None. What is below 1 by more than rounding is never written as 1."""
    if value is None:
        return "n/c"
    text = f"{abs(value):.{digits}f}"
    if 0 < value < 1 - ROUNDING and float(text) == 1:
        text = f"{math.floor(value * 10**digits) / 10**digits:.{digits}f}"
    return f"{MINUS}{text}" if value < 0 and float(text) != 0 else text


def short_number(value: float, digits: int) -> str:
    """A number for a small cell, without the zero before the point: ".998", "1", "-.32"."""
    if abs(value - 1) <= ROUNDING:
        return "1"
    return number(value, digits).replace("0.", ".", 1)


def plain(value: float | str) -> str:
    """A figure of any kind, or a foreign word."""
    if isinstance(value, str):
        return cut_text(value, 200)
    return str(value) if isinstance(value, int) else f"{value:.4g}".replace("-", MINUS, 1)


def p_text(p: float) -> str:
    """A p-value as people write it."""
    return f"{p:.2g}" if p >= 1e-4 else f"{p:.0e}"


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers inside [low, high], about as many as wished, at least one."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    found = [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]
    return found or [low]


def tick_texts(values: Sequence[float]) -> list[str]:
    """Ticks with the decimals that their step needs."""
    step = min((b - a for a, b in pairwise(values)), default=abs(values[0]) or 1.0)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return ["0" if v == 0 else number(v, digits) for v in values]


def sentence(text: str) -> str:
    """A message as a sentence: capital first letter, full stop."""
    text = text.strip()
    return text if not text else text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else ".")


def pixels(value: float) -> str:
    """A coordinate with one decimal at most."""
    return f"{value:.1f}".removesuffix(".0")


def shape_words(shape: Mapping[str, object]) -> str:
    """The sizes of a model in one line."""
    sizes = {
        "d_model": "width",
        "n_heads": "heads",
        "n_kv_heads": "KV heads",
        "d_mlp": "MLP",
        "n_vocab": "vocabulary",
    }
    parts = [cut_name(shape.get("family", "?"), 40), f"{cut_name(shape.get('n_layers', '?'), 20)} layers"]
    parts += [f"{word} {cut_name(shape[key], 20)}" for key, word in sizes.items() if key in shape]
    return ", ".join(parts)
