"""Surveys as plain text: one narrow table a method, for terminals and logs."""

from collections.abc import Mapping, Sequence

from whorl.reports.lineages import Lineage, letters
from whorl.reports.shown import cut_name

MAX_MODELS = 40


def matrix_lines(
    values: Sequence[Sequence[float | None]], names: Sequence[str], lineages: Mapping[str, Lineage], width: int
) -> list[str]:
    """The lower half of a table, models of one lineage next to each other.

    Values are written in thousandths ("998" is 0.998), or in hundredths when some are negative; "=" is 1 and "n/c" is
    not comparable, never 0.

    Args:
        values: Symmetric, None where not comparable.
        names: Model names by position.
        lineages: What is known of them; empty when nothing is.
        width: Columns to use.

    Returns:
        Lines without colour, the first of them the column numbers.
    """
    order = sorted(range(len(names)), key=lambda i: _place(names[i], lineages))
    letter = letters(lineages)
    scale = hundredths_or_thousandths(values)
    room = max(10, min(26, width - 4 * len(names) - 6))
    lines = [" " * (room + 6) + "".join(f"{column:>4}" for column in range(1, len(names)))]
    for row, i in enumerate(order):
        mark = letter[lineages[names[i]].group] if names[i] in lineages else " "
        cells = "".join(f"{_cell(values[i][j], scale):>4}" for j in order[:row])
        lines.append(f"{row + 1:>2} {mark:<2} {cut_name(names[i], room):<{room}}{cells}".rstrip())
    return lines


def hundredths_or_thousandths(values: Sequence[Sequence[float | None]]) -> int:
    """1000, or 100 when a value is negative or 10 and more: then three columns hold sign and figures."""
    found = [v for row in values for v in row if v is not None]
    return 100 if found and (min(found) < 0 or max(found) >= 1.0005) else 1000


def _cell(value: float | None, scale: int) -> str:
    if value is None:
        return "n/c"
    if abs(value - 1) <= 1e-9:
        return "="
    cut = int(value * scale) if 0 < value < 1 else round(value * scale)
    return str(cut).zfill(3) if scale == 1000 else str(cut)


def _place(name: str, lineages: Mapping[str, Lineage]) -> tuple[int, int]:
    groups = list(dict.fromkeys(lineage.group for lineage in lineages.values()))
    if name not in lineages:
        return len(groups), 0
    return groups.index(lineages[name].group), list(lineages).index(name)
