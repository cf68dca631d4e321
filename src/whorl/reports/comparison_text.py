"""One comparison as plain text for terminals: the verdict first, then one line a method, then what else there is to say."""

import textwrap
from dataclasses import dataclass
from typing import Literal

from whorl.comparison import Comparison
from whorl.errors import safe_name
from whorl.reports import verdict_words as words
from whorl.reports.shown import number, p_text
from whorl.reports.stored import as_json
from whorl.reports.stored_comparison import StoredComparison, StoredEvidence

MIN_WIDTH, MAX_WIDTH = 40, 100
LABEL = 14

Style = Literal["related", "unrelated", "undecided", "strong", "soft", ""]


@dataclass(frozen=True)
class TextLine:
    """One line and how it may be set off where colours are allowed."""

    text: str
    style: Style = ""


def comparison_lines(result: StoredComparison, width: int) -> tuple[TextLine, ...]:
    """All lines of one comparison, at most `width` columns wide (names of methods and models may run over).

    Args:
        result: Checked.
        width: Columns of the terminal.
    """
    width = min(max(width, MIN_WIDTH), MAX_WIDTH)
    found = [TextLine(headline(result), result.verdict)]
    found += _wrapped(result.why + ".", width)
    found += _wrapped(" ".join(words.error_rate(result)), width)
    found.append(TextLine(""))
    found += _models(result)
    found.append(TextLine(""))
    found += _table(result)
    facts = (
        ("relation", words.relation_words(result).removeprefix("Relation: ")),
        ("direction", words.direction_words(result).removeprefix("Direction ")),
        ("excluded", f"{words.joined(result.excluded)} (would have been found)" if result.excluded else ""),
        ("not excluded", words.joined(result.not_excluded) if result.not_excluded else ""),
        ("class", words.class_words(result)),
    )
    rest = [line for label, text in facts if text for line in _labelled(label, text, width)]
    rest += [
        line for e in result.evidence for w in _cautions(e) for line in _labelled("caution", f"{e.short}: {w}", width)
    ]
    rest += [line for s in result.skipped for line in _labelled("left out", s, width)]
    rest += _refused(result, width)
    return (*found, *([TextLine("")] if rest else []), *rest)


def stored_comparison(result: Comparison) -> StoredComparison:
    """A comparison value in the form that is shown."""
    return StoredComparison.model_validate(as_json(result))


def headline(result: StoredComparison) -> str:
    """Verdict, relation and p in one line."""
    relation = "" if result.relation == result.verdict else f" ({safe_name(result.relation, 60)})"
    if result.exact.relation is not None:
        return f"{words.SYMBOLS[result.verdict]} {result.verdict}{relation}, exact"
    p = "no p-value" if result.p_value is None else f"p = {p_text(result.p_value)}"
    return f"{words.SYMBOLS[result.verdict]} {result.verdict}{relation}, {p}"


def _models(result: StoredComparison) -> list[TextLine]:
    found = []
    for side, model in zip("AB", result.models, strict=True):
        found.append(TextLine(f"  {side}  {safe_name(model.resolved, 300)}", "strong"))
        found += [
            TextLine(f"     declared {safe_name(key, 60)}: {safe_name(claim, 120)} (not evidence)", "soft")
            for key, claim in model.declared.items()
        ]
    return found


def _table(result: StoredComparison) -> list[TextLine]:
    """One line a comparable method, its columns as wide as their longest entry."""
    shown = [e for e in result.evidence if e.comparable]
    if not shown:
        return []
    where = "among unrelated pairs" if any(e.place for e in shown) else ""
    rows = [("method", "value", "p", "alone", where), *(_row(e, placed=bool(where)) for e in shown)]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = []
    for at, (name, value, p, alone, place) in enumerate(rows):
        mark = "*" if at and shown[at - 1].short in result.decided_by else " "
        text = f"{mark} {name:<{widths[0]}}  {value:>{widths[1]}}  {p:<{widths[2]}}  {alone:<{widths[3]}}  {place}"
        lines.append(TextLine(text.rstrip(), "soft" if at == 0 else "strong" if mark == "*" else ""))
    if result.decided_by:
        lines.append(TextLine("* decided; 'alone' is what a method would say by itself", "soft"))
    return lines


def _row(e: StoredEvidence, *, placed: bool) -> tuple[str, str, str, str, str]:
    arrow = "" if e.similarity is not None else " dist"
    p = "" if e.p_value is None else f"{p_text(e.p_value)} {e.p_kind}"
    uncalibrated = "uncalibrated" if placed else ""
    place = uncalibrated if e.place is None else f"{e.place.pairs_at_least_as_close} of {e.place.pairs} as close"
    return safe_name(e.short, 40), number(e.value) + arrow, p, f"{words.SYMBOLS[e.verdict]} {e.verdict}", place


def _cautions(e: StoredEvidence) -> list[str]:
    """Warnings of methods that may decide; those of the others are in the report."""
    return e.warnings if e.p_value is not None else []


def _refused(result: StoredComparison, width: int) -> list[TextLine]:
    found = [e for e in result.evidence if not e.comparable]
    if not found:
        return []
    lines = [TextLine("not comparable (neither near nor far):", "soft")]
    for e in found:
        lines += _wrapped(f"{e.short}: {e.why}", width, "  ", "    ")
    return lines


def _labelled(label: str, text: str, width: int) -> list[TextLine]:
    return _wrapped(text, width, f"{label:<{LABEL}}", " " * LABEL)


def _wrapped(text: str, width: int, first: str = "", rest: str = "") -> list[TextLine]:
    lines = textwrap.wrap(safe_ascii(text), width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)
    return [TextLine(line) for line in lines]


def safe_ascii(text: str) -> str:
    """A foreign sentence for a terminal: ASCII, controls spelled out."""
    return safe_name(text, 2000)
