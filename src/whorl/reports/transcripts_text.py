"""Both tests on outputs as plain text for terminals: the verdict first, then a line a level or honest model, then the rest."""

from whorl.errors import safe_name
from whorl.reports import derivation_page, identity_page
from whorl.reports.comparison_text import MAX_WIDTH, MIN_WIDTH, TextLine, _labelled, _wrapped
from whorl.reports.shown import MINUS, number, p_text
from whorl.reports.stored_transcripts import StoredDerivation, StoredIdentity, StoredNull, StoredScore
from whorl.reports.verdict_words import SYMBOLS


def derivation_lines(result: StoredDerivation, width: int) -> tuple[TextLine, ...]:
    """All lines of one test of derivation, at most `width` columns wide (names may run over)."""
    width = min(max(width, MIN_WIDTH), MAX_WIDTH)
    p = "no p-value" if result.p_value is None else f"p = {p_text(result.p_value)}"
    found = [TextLine(f"{SYMBOLS[result.verdict]} {result.verdict} (from outputs), {p}", result.verdict)]
    found += _wrapped(result.why + ".", width)
    found += _wrapped(" ".join(derivation_page.error_rate(result)), width)
    found += [TextLine("")]
    found += [TextLine(f"  {side}  {safe_name(result.members[at].ref, 300)}", "strong") for at, side in enumerate("AB")]
    found += [TextLine("")]
    for row in derivation_page.level_rows(result):
        found += _said(row.level, f"{'passed' if row.passed else 'not passed'}: {row.found}; needs {row.needs}", width)
    found += [line for s in result.scores for line in _said(s.score, _score_words(s), width)]
    found += _said("power", derivation_page.power_words(result), width)
    found += [line for text in result.missing for line in _said("missing", text, width)]
    found += [line for text in result.warnings for line in _said("caution", text, width)]
    return (*found, *_said("does not show", result.does_not_show[0] if result.does_not_show else "", width))


def _score_words(s: StoredScore) -> str:
    decides = "decides" if s.decides else "describes"
    if s.similarity is None or s.p_model is None:
        return f"not comparable: {s.why}"
    return f"{number(s.similarity)}, closest control {number(s.closest)}, rank p {p_text(s.p_model)} ({decides})"


def identity_lines(result: StoredIdentity, width: int) -> tuple[TextLine, ...]:
    """All lines of one test of identity, at most `width` columns wide (names may run over)."""
    width = min(max(width, MIN_WIDTH), MAX_WIDTH)
    view = identity_page.identity_view(result)
    p = "no p-value" if result.p_value is None else f"p = {p_text(result.p_value)}"
    found = [TextLine(f"{view.symbol} {result.verdict}, {p}", view.verdict)]
    found += _wrapped(result.why + ".", width)
    found += _wrapped(view.rate, width)
    found += [TextLine("")]
    found += [TextLine(f"  claimed  {safe_name(result.nulls[0].model.ref, 300)}", "strong")]
    found += [TextLine(f"  suspect  {safe_name(result.suspect.ref, 300)}", "strong")]
    found += [TextLine("")]
    for null in result.nulls:
        found += _said(safe_name(null.name, 12), _null_words(null), width)
    found += [line for d, said in view.power for line in _said("power", f"{safe_name(d.name, 60)}: {said}", width)]
    found += _said("missing", result.needed, width) if result.needed else []
    found += [line for text in result.warnings for line in _said("caution", text, width)]
    return (*found, *_said("does not show", result.does_not_show[0] if result.does_not_show else "", width))


def _null_words(null: StoredNull) -> str:
    size = f"{null.n_prompts} prompts, {null.n_draws[0]} + {null.n_draws[1]} draws"
    if null.p_value is None:
        return f"no p-value ({null.why}); {size}"
    said = ", ".join(
        f"{safe_name(s.name, 30)} {number(s.value)} (p {p_text(s.p_value)})"
        for s in null.statistics
        if s.p_value is not None
    )
    return f"p = {p_text(null.p_value)}; {size}; {said}"


def _said(label: str, text: str, width: int) -> list[TextLine]:
    """A labelled sentence; the sign of a number stays one that every terminal has."""
    return _labelled(label, text.replace(MINUS, "-"), width)
