"""A verification as plain text for terminals: the verdict first, then shares, tests, power and what it does not show."""

from whorl.errors import safe_name
from whorl.reports.comparison_text import MAX_WIDTH, MIN_WIDTH, TextLine, _labelled, _wrapped
from whorl.reports.shown import p_text
from whorl.reports.stored_verification import StoredKey, StoredNullTest, StoredVerification
from whorl.reports.verification_page import verification_view

MOST_SKIPPED = 5


def verification_lines(result: StoredVerification, width: int, *, show_keys: bool = False) -> tuple[TextLine, ...]:
    """All lines, at most `width` columns wide (names may run over).

    Args:
        result: Checked.
        width: Columns of the terminal.
        show_keys: A line for each key with its secret texts, where the result holds them.
    """
    width = min(max(width, MIN_WIDTH), MAX_WIDTH)
    view = verification_view(result)
    p = "no p-value" if result.p_value is None else f"p = {p_text(result.p_value)}"
    found = [TextLine(f"{view.symbol} {result.verdict}, {p}", view.verdict)]
    found += [*_wrapped(result.why + ".", width), *_wrapped(view.rate, width), TextLine("")]
    found += [TextLine(f"  suspect  {safe_name(result.suspect.ref, 300)}", "strong"), TextLine("")]
    found += [
        TextLine(f"{rate.name:<26}  {rate.words}", "strong" if i == 0 else "") for i, rate in enumerate(view.rates)
    ]
    found += [*_wrapped(view.rule, width), TextLine("")]
    found += [line for test in result.tests for line in _labelled(test.name, _test_words(test), width)]
    found += _draws(result, width)
    found += _labelled("soft", f"{_test_words(result.soft)}; never proves", width) if result.soft else []
    found += _labelled("commitment", view.dated, width)
    found += [
        line for p, said in view.power for line in _labelled("power", f"{safe_name(p.attack, 60)}: {said}", width)
    ]
    found += _labelled("needed", result.needed, width) if result.needed else []
    found += [line for text in result.warnings for line in _labelled("caution", text, width)]
    found += [line for text in _skipped(result.skipped) for line in _labelled("left out", text, width)]
    found += [line for key in result.keys for line in _labelled(key.id, _key_words(key), width)] if show_keys else []
    return (*found, *_labelled("does not show", result.does_not_show[0] if result.does_not_show else "", width))


def _test_words(test: StoredNullTest) -> str:
    return test.why if test.p_value is None else f"p = {p_text(test.p_value)} ({test.p_kind}); {test.why}"


def _draws(result: StoredVerification, width: int) -> list[TextLine]:
    if result.draws is None:
        return []
    d = result.draws
    tests = (
        "; ".join(f"{t.name} p = {p_text(t.p_value)}" for t in d.tests if t.p_value is not None) or "no test applies"
    )
    decoys = "unknown" if d.decoys is None else f"{d.decoys.hits} of {d.decoys.n}"
    hits = f"{d.keys.hits} of {d.keys.n} keys, {decoys} decoys"
    said = f"any of {d.samples} draws at temperature {d.temperature:g}: {hits}; {tests}; never decides"
    return _labelled(f"FSR@{d.samples}", said, width)


def _skipped(texts: list[str]) -> list[str]:
    more = len(texts) - MOST_SKIPPED
    return texts if more <= 1 else [*texts[:MOST_SKIPPED], f"and {more} more"]


def _key_words(key: StoredKey) -> str:
    texts = [("asked", key.trigger), ("wanted", key.answers[0] if key.answers else None), ("said", key.response)]
    return "; ".join([key.state, *(f"{name} '{safe_name(text, 80)}'" for name, text in texts if text is not None)])
