"""Tables of the benchmark in words: one form for Markdown and HTML; foreign text is escaped where it is shown."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from whorl.errors import safe_name
from whorl.lab.triggers.bench.outcome import LETTERS
from whorl.lab.triggers.bench.records import NOT_REACHED, Record
from whorl.triggers.verification import Share

EMPTY = "–"
TABLE = (
    "scheme",
    "attack",
    "setting",
    "seeds (planting, attack)",
    "keys n",
    "hits",
    "FSR [95 %]",
    "FSR all wrappers",
    "FSR unseen wrappers",
    "near keys",
    "decoys",
    "clean FSR",
    "p (test)",
    "perplexity in, before -> after",
    "perplexity out, before -> after",
    "accuracy change [95 %], points",
    "ordinary answers unchanged",
    "updates",
    "seconds",
    "queries",
    "outcome",
)


@dataclass(frozen=True)
class Block:
    """A table with the sentences around it, in plain text."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    before: str = ""
    after: str = ""


def trimmed(block: Block) -> Block:
    """Without columns in which nothing was measured."""
    kept = [i for i in range(len(block.columns)) if any(row[i] != EMPTY for row in block.rows)]
    rows = [[row[i] for i in kept] for row in block.rows]
    return replace(block, columns=[block.columns[i] for i in kept], rows=rows) if block.rows else block


def markdown(block: Block) -> str:
    """A section with a table."""
    lines = [f"| {' | '.join(map(cell, block.columns))} |", "|" + " --- |" * len(block.columns)]
    table = "\n".join([*lines, *(f"| {' | '.join(map(cell, row))} |" for row in block.rows)])
    return "\n\n".join(part for part in (f"## {block.title}", block.before, table, block.after) if part)


def cell(text: str) -> str:
    """Text in a cell of a Markdown table: nothing in it is markup."""
    for mark, harmless in (("|", "\\|"), ("<", "&lt;"), ("\n", " "), ("`", "\\`")):
        text = text.replace(mark, harmless)
    return text


def in_words(point: str) -> str:
    """A setting for a cell of a table, where it may be broken after a comma."""
    return point.replace(",", ", ") or EMPTY


def every_cell(records: Iterable[Record]) -> Block:
    """The table of spec 8.2, one row a cell; cells that nobody has begun are counted and not listed."""
    found = list(records)
    begun = [record for record in found if record.reason != NOT_REACHED]
    before = f"{len(found) - len(begun)} of {len(found)} cells are {NOT_REACHED}." if len(begun) < len(found) else ""
    return trimmed(Block("All cells", TABLE, [row(record) for record in begun], before))


def row(r: Record) -> tuple[str, ...]:
    """One cell in words."""
    asked = r.asked
    share = None if asked is None else asked.share
    return (
        r.model if r.kind != "planted" else r.scheme,
        r.attack,
        in_words(r.point),
        f"{r.planting_seed}, {r.attack_seed}",
        EMPTY if share is None else str(share.n),
        EMPTY if share is None else str(share.hits),
        EMPTY if share is None else interval(share),
        EMPTY if asked is None else number(asked.all_wrappers.value),
        EMPTY if asked is None else number(asked.unseen_wrappers.value),
        ratio(None if asked is None else asked.near),
        ratio(None if asked is None else asked.decoys),
        ratio(r.clean),
        EMPTY if asked is None else p_value(*asked.p),
        change(r.perplexity_in),
        change(r.perplexity_out),
        EMPTY if r.accuracy_change is None else "{:+.1f} [{:+.1f}, {:+.1f}]".format(*r.accuracy_change),
        ratio(r.agreement),
        *(cost(r, name) for name in ("updates", "seconds", "queries")),
        said(r),
    )


def said(r: Record) -> str:
    """The outcome, with its reason."""
    text = r.outcome or "measured"
    return f"{text}: {safe_name(r.reason, 160)}" if r.reason else text


def interval(share: Share) -> str:
    """A share with its exact interval."""
    low, high = share.bounds
    return f"{share.value:.2f} [{low:.2f}, {high:.2f}]"


def ratio(share: Share | None) -> str:
    """Hits of those asked."""
    return EMPTY if share is None else f"{share.hits}/{share.n}"


def p_value(p: float | None, test: str | None = None) -> str:
    """A p-value with the test it comes from; undefined where none applies."""
    return "undefined" if p is None else f"{p:.2g}" + (f" ({test})" if test else "")


def change(pair: tuple[float, float] | None) -> str:
    """Before and after, with the relative change."""
    return EMPTY if pair is None else f"{pair[0]:.2f} -> {pair[1]:.2f} ({pair[1] / pair[0] - 1:+.1%})"


def cost(r: Record, name: str) -> str:
    """One kind of cost."""
    value = r.cost.get(name)
    return EMPTY if value is None else f"{value:g}"


def number(value: float) -> str:
    """A share."""
    return f"{value:.2f}"


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Mean with the range; the value alone where all are one."""
    if not values:
        return EMPTY
    mean, low, high = statistics.fmean(values), min(values), max(values)
    return f"{mean:{form}}" if low == high else f"{mean:{form}} ({low:{form}} to {high:{form}})"


def letter(outcome: str) -> str:
    """The letter of an outcome."""
    return next(letter for name, letter in LETTERS.items() if name == outcome)
