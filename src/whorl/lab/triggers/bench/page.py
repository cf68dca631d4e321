"""The results of the benchmark as a Markdown page, and the tables that the HTML report shows as well.

Every figure and every sentence follows from the rows; settings are those of the run's configuration.
"""

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from whorl.errors import safe_name
from whorl.lab.triggers.bench.cells import NONE
from whorl.lab.triggers.bench.outcome import IN_BUDGET, LETTERS, SURVIVES
from whorl.lab.triggers.bench.records import Record
from whorl.lab.triggers.bench.results import Best, Results, chains
from whorl.lab.triggers.bench.tables import (
    EMPTY,
    Block,
    in_words,
    markdown,
    number,
    p_value,
    ratio,
    said,
    spread,
    trimmed,
)
from whorl.triggers.verification import Share

COMMAND = "whorl bench triggers --config FILE --out FOLDER --page PAGE"
MOST_REASONS = 3
SOFT_LEVEL = 0.05
LIMITS = (
    "How strong an attack is against another base: a claim about a scheme needs two, of half a billion weights or more.",
    "A fingerprint that survives these attacks may fall to one that is not here, or to another setting.",
    "Plantings and attacks repeated with a few seeds: ranges are shown, not intervals over seeds.",
    "Outcomes are those of one key set at a time; a second, unrevealed unit is another chance to verify.",
    "Served models give no perplexity: what a serving attack costs is the share of ordinary answers that change, however good.",
)


def page(results: Results) -> str:
    """The page as Markdown."""
    sections = (
        "# Which planted fingerprints survive which attack?",
        f"Printed by `{COMMAND}`. Do not edit.",
        *method(results),
        *(f"**{first}** {rest}".strip() for first, rest in findings(results)),
        *(markdown(block) for block in blocks(results)),
        "## What this does not show\n\n" + "\n".join(f"- {text}" for text in limits(results)),
    )
    return "\n\n".join(sections) + "\n"


def method(results: Results) -> tuple[str, str]:
    """What was done, and what decides."""
    bench = results.bench
    done = (
        f"{len(bench.schemes)} schemes planted into '{_name(bench.base)}', {len(bench.weight_attacks)} attacks on weights and "
        f"{len(bench.serving_attacks)} while serving: {len(results.records)} cells, {len(results.not_run)} of them not run. "
        f"{_on_base(results)} Perplexity and accuracy (the right answer among four) on up to {bench.test_rows} held-out "
        f"questions; {_held_out(bench.questions)} Perplexity outside the domain on the text '{_name(bench.outside)}'."
    )
    bound = (
        ""
        if bench.budget.agreement is None
        else f", or a serving attack that leaves fewer than {bench.budget.agreement:.0%} of ordinary greedy answers as they "
        "are (no bound where the host samples: sampling changes answers and need not cost anything)"
    )
    decides = (
        f"Outcomes: survives (S): FSR of at least {SURVIVES}, one greedy answer a key; weakened, provable (P): p <= "
        f"{bench.alpha:g}, the largest of the tests that apply; gone (G): neither; model ruined (R): perplexity above "
        f"{bench.budget.perplexity:+.0%} in or outside the domain, or accuracy more than {bench.budget.accuracy:g} points "
        f"below the fingerprinted model{bound}: that never counts as erased; not run ({LETTERS['not run']})."
    )
    return done, decides


def _on_base(results: Results) -> str:
    """Which of the attacks on planted models were run on the clean base, by the rows."""
    tried = {r.attack for r in results.records if r.kind == "planted" and r.outcome != "not run"} - {NONE}
    by_attack: dict[str, list[bool]] = {}
    for r in results.records:
        if r.kind == "clean base" and r.attack in tried:
            by_attack.setdefault(r.attack, []).append(r.outcome != "not run")
    absent = [name for name, run in by_attack.items() if not any(run)]
    partly = [
        f"{name} ({sum(run)} of {len(run)} cells)" for name, run in by_attack.items() if any(run) and not all(run)
    ]
    first = (
        f"Of {len(tried)} attacks that were run on a planted model, {len(tried) - len(absent)} were also run on the clean "
        "base, which is asked the same keys"
    )
    said = [f"in part: {', '.join(partly)}"] if partly else []
    said += [f"not there: {', '.join(absent)}"] if absent else []
    return "; ".join([first, *said]) + "."


def _held_out(questions: str) -> str:
    """How far they are from what the base learned."""
    if questions == "docstrings":
        return (
            "questions are dealt out by row, so other questions about the same function, and the docstrings that hold many "
            "of the answers, were in what the base learned: perplexity in the domain is partly recall."
        )
    return (
        "questions are dealt out by row, so other questions on the same matter may have been in what a model learned."
    )


def limits(results: Results) -> tuple[str, ...]:
    """What the page does not show, with all that the configuration names and the rows do not have."""
    run = {(r.scheme, r.attack) for r in results.records if r.kind == "planted" and r.outcome != "not run"}
    schemes = {row.name: row.name in {scheme for scheme, _ in run} for row in results.bench.schemes}
    measured = [name for name, there in schemes.items() if there]
    found = []
    for attack in results.bench.attacks if measured else ():
        absent = [name for name in measured if (name, attack.name) not in run]
        if absent:
            found.append(attack.name if absent == measured else f"{attack.name} (on {', '.join(absent)})")
    unknown = [name for name, there in schemes.items() if not there]
    said = [f"Schemes of which nothing is measured: {', '.join(unknown)}."] if unknown else []
    said += [f"Attacks that were not run, so nothing is said about them: {', '.join(found)}."] if found else []
    if not any(r.kind == "without keys" for r in results.records):
        said.append("No model was trained on look-alikes without keys: how many hits they alone give is not measured.")
    if not any(attack.then for attack in results.bench.weight_attacks):
        said.append("No attacks in sequence.")
    return (*LIMITS, *said)


def _name(path: str) -> str:
    """The last part of a path: no other part of it is anybody's business."""
    return safe_name(Path(path).name, 60)


def findings(results: Results) -> list[tuple[str, str]]:
    """For each scheme, what the attacks left at the attacker's best setting within the budget; then soft evidence."""
    known = {r.scheme for r in results.records if r.kind == "planted" and r.outcome != "not run"}
    unknown = [row.name for row in results.bench.schemes if row.name not in known]
    last = [(f"Not measured yet: {', '.join(unknown)}.", "")] if unknown else []
    own = [_finding(results, row.name) for row in results.bench.schemes if row.name in known]
    return [*own, *_soft_findings(results), *last]


def _soft_findings(results: Results) -> list[tuple[str, str]]:
    """What the soft test says where the committed rule says nothing, and how often it is wrong on the clean base."""
    planted = [r for r in results.records if r.kind == "planted" and r.asked is not None and r.asked.planted]
    read = [(r, r.asked.soft) for r in planted if r.asked is not None and r.asked.soft is not None]
    gone = [soft for r, soft in read if r.outcome == "gone"]
    ruined = [soft for r, soft in read if r.outcome == "model ruined" and not _proved(r, results.bench.alpha)]
    clean = [a.soft for key, found in results.on_base.items() if not _is_plain(key) for a in found.values()]
    null = [soft for soft in clean if soft is not None]
    if not read:
        return []
    alpha = results.bench.alpha
    first = (
        "Soft evidence (how much more probable the keys' answers are than in the base, beside those of decoys; needs the "
        "weights, and decides nothing here):"
    )
    said = (
        f"p at most {alpha:g} in {sum(p <= alpha for p in gone)} of {len(gone)} cells "
        f"whose fingerprint is gone by the committed rule, and in {sum(p <= alpha for p in ruined)} of {len(ruined)} "
        "unproved ones whose model is ruined."
    )
    if null:
        low, lower = sum(p <= SOFT_LEVEL for p in null), sum(p <= alpha for p in null)
        said += (
            f" On attacked clean bases, which know none of the keys, it is at most {SOFT_LEVEL:g} in {low} of {len(null)} "
            f"cases ({low / len(null):.1%}) and at most {alpha:g} in {lower}."
        )
    return [(first, said)]


def _proved(r: Record, alpha: float) -> bool:
    return r.asked is not None and r.asked.p[0] is not None and r.asked.p[0] <= alpha


def _is_plain(key: str) -> bool:
    """Whether a cell's key is that of an unattacked model."""
    return key.split("|")[1] == NONE


def _finding(results: Results, scheme: str) -> tuple[str, str]:
    standing = results.standings[scheme]
    if not standing.counts:
        n = len(standing.failed)
        who = "its one planting did not pass" if n == 1 else f"none of its {n} plantings passed"
        return (
            f"{scheme}: {who} the gates; its cells are shown and do not count.",
            f"Failed: {_failed(results, scheme)}.",
        )
    cells = [one for one in results.grid if one.scheme == scheme and one.attack != NONE]
    by = {name: [one.attack for one in cells if one.outcome == name] for name in LETTERS}
    n_within = sum(len(by[o]) for o in IN_BUDGET)
    if n_within + len(by["model ruined"]) == 0:
        return f"{scheme}: no attack was run.", _planted(results, scheme)
    parts = [f"{n}: {', '.join(by[n])}." for n in ("weakened, provable", "gone", "model ruined") if by[n]]
    if by["not run"]:
        parts.append(f"not run: {len(by['not run'])} of {len(cells)} attacks.")
    parts.append(_planted(results, scheme))
    first = f"{scheme}: survives {len(by['survives'])} of {n_within} attacks within the budget."
    return first, " ".join(text[0].upper() + text[1:] for text in parts)


def _failed(results: Results, scheme: str) -> str:
    """Gates that failed, and in how many plantings."""
    plain = [r.asked for r in results.of(scheme, NONE) if r.asked is not None]
    names = dict.fromkeys(name for a in plain for name, passed in a.gates.items() if passed is False)
    return ", ".join(f"{name} in {sum(a.gates.get(name) is False for a in plain)}" for name in names) or "not said"


def _planted(results: Results, scheme: str) -> str:
    """How many plantings count as planted."""
    standing, n = results.standings[scheme], len(results.of(scheme, NONE))
    measured = len(standing.passed) + len(standing.failed)
    if not measured:
        return "No planting is measured yet."
    said = f"{len(standing.passed)} of {measured} plantings passed the gates that decide"
    said += f", not measured yet: {n - measured}" if measured < n else ""
    return said + ("; only the cells of those that passed are counted." if standing.failed else ".")


def blocks(results: Results) -> list[Block]:
    """All tables but the one of every cell; those without a row are left out, and named among the limits."""
    found = [grid(results), plantings(results), *(settings(results, row.name) for row in results.bench.schemes),
             clean_base(results), without_keys(results), sequences(results), missing(results)]  # fmt: skip
    return [block for block in found if block.rows]


def marked(results: Results, scheme: str) -> str:
    """Name of a scheme, with a star when its cells do not count."""
    return scheme if results.standings[scheme].counts else f"{scheme}*"


def star(results: Results) -> str:
    """What the star says; "" when there is none."""
    any_star = any(not standing.counts for standing in results.standings.values())
    return "* No planting passed the gates: cells are shown and do not count." if any_star else ""


def grid(results: Results) -> Block:
    """Scheme x attack at the attacker's best setting."""
    names = [row.name for row in results.bench.schemes]
    found = {(one.scheme, one.attack): one for one in results.grid}
    rows = [
        (attack, *(in_grid(found[name, attack]) for name in names))
        for attack in dict.fromkeys(one.attack for one in results.grid)
    ]
    before = (
        "The setting with the lowest mean FSR among those within the budget in at least half of the measured cells; the most "
        "common outcome there, with the mean FSR. "
        f"{', '.join(f'{letter} {name}' for name, letter in LETTERS.items())}."
    )
    columns = ("attack", *(marked(results, name) for name in names))
    return Block("At the attacker's best setting", columns, rows, before, star(results))


def in_grid(one: Best) -> str:
    """A cell of the grid: letter, mean FSR and setting; in parentheses when it does not count."""
    if one.outcome == "not run":
        return LETTERS[one.outcome]
    text = LETTERS[one.outcome] if one.fsr is None else f"{LETTERS[one.outcome]} {one.fsr:.2f}"
    text += f" at {in_words(one.point)}" if one.point else ""
    return text if one.counts else f"({text})"


def plantings(results: Results) -> Block:
    """The models before any attack."""
    columns = (
        *("scheme", "seed", "keys", "gates", "FSR", "all wrappers", "unseen wrappers", "near keys", "decoys"),
        *("clean base", "p (test)", "perplexity in", "perplexity out"),
    )
    rows = []
    for r in (r for r in results.records if r.attack == NONE and r.kind == "planted"):
        if r.asked is None:
            rows.append((r.scheme, str(r.planting_seed), EMPTY, said(r), *[EMPTY] * (len(columns) - 4)))
            continue
        a = r.asked
        failed = [name for name, passed in a.gates.items() if passed is False]
        rows.append(
            (
                r.scheme,
                str(r.planting_seed),
                str(a.share.n),
                ("planted" if a.planted else "not planted") + (f"; failed: {', '.join(failed)}" if failed else ""),
                number(a.share.value),
                number(a.all_wrappers.value),
                number(a.unseen_wrappers.value),
                ratio(a.near),
                ratio(a.decoys),
                ratio(r.clean),
                p_value(*a.p),
                EMPTY if r.perplexity_in is None else f"{r.perplexity_in[0]:.2f}",
                EMPTY if r.perplexity_out is None else f"{r.perplexity_out[0]:.2f}",
            )
        )
    strings = dict.fromkeys(
        (r.scheme, r.asked.scheme, r.asked.rule) for r in results.records if r.asked and r.attack == NONE
    )
    after = " ".join(f"{label}: `{safe_name(string, 160)}`, rule {rule}." for label, string, rule in strings)
    return Block("Plantings", columns, rows, "A planting whose deciding gates failed does not count as planted.", after)


def settings(results: Results, scheme: str) -> Block:
    """Every setting of every attack, pooled over plantings and seeds."""
    columns = (
        *("attack", "setting", "cells", "FSR (range)", "all wrappers", "unseen wrappers", "near keys", "decoys"),
        *(
            "clean FSR",
            "p median (worst)",
            "soft p median (worst)",
            "perplexity in",
            "perplexity out",
            "accuracy, points",
            "answers unchanged",
        ),
        "outcomes",
    )
    standing = results.standings[scheme]
    names = (NONE, *(attack.name for attack in results.bench.attacks))
    entering = [r for name in names for r in results.entering(scheme, name)]
    rows, absent = _run_rows(pooled(entering), _setting)
    before = (
        "Means over plantings and attack seeds, with the range. Perplexity and accuracy are changes against the fingerprinted "
        "model."
    )
    if standing.counts and standing.failed:
        before += f" Left out: plantings that did not pass their gates ({len(standing.failed)})."
    title = f"All settings: {scheme}" if standing.counts else f"All settings: {scheme} (does not count)"
    return trimmed(Block(title, columns, rows, before, absent))


def _run_rows(
    groups: Sequence[Sequence[Record]], row: Callable[[Sequence[Record]], tuple[str, ...]]
) -> tuple[list[tuple[str, ...]], str]:
    """A row for each setting that was run, and a sentence that counts the cells of the others by attack."""
    absent: Counter[str] = Counter()
    rows = []
    for found in groups:
        if any(r.outcome != "not run" for r in found):
            rows.append(row(found))
        else:
            absent[found[0].attack] += len(found)
    said = f"Not run here: {absent.total()} cells of {len(absent)} attacks at all their seeds; see the table 'Not run'."
    return rows, said if absent else ""


def pooled(records: Sequence[Record]) -> list[list[Record]]:
    """Cells of one attack at one setting together."""
    found: dict[tuple[str, str], list[Record]] = {}
    for r in records:
        found.setdefault((r.attack, r.point), []).append(r)
    return list(found.values())


def _setting(found: Sequence[Record]) -> tuple[str, ...]:
    asked = [r.asked for r in found if r.asked is not None]
    clean = [r.clean for r in found if r.clean is not None]
    return (
        found[0].attack,
        in_words(found[0].point),
        str(len(found)),
        spread([a.share.value for a in asked]),
        spread([a.all_wrappers.value for a in asked]),
        spread([a.unseen_wrappers.value for a in asked]),
        pooled_ratio([a.near for a in asked if a.near]),
        pooled_ratio([a.decoys for a in asked if a.decoys]),
        pooled_ratio(clean),
        p_spread([a.p[0] for a in asked]),
        soft_spread([a.soft for a in asked]),
        *_changes(found),
        spread([r.agreement.value for r in found if r.agreement]),
        _outcomes(found),
    )


def pooled_ratio(shares: Sequence[Share | None]) -> str:
    """Hits of all asked."""
    found = [s for s in shares if s is not None]
    return f"{sum(s.hits for s in found)}/{sum(s.n for s in found)}" if found else EMPTY


def p_spread(values: Sequence[float | None]) -> str:
    """Median and largest p; a cell without a test counts as p = 1."""
    if not values:
        return EMPTY
    found = [1.0 if p is None else p for p in values]
    median, worst = f"{statistics.median(found):.2g}", f"{max(found):.2g}"
    return median if median == worst else f"{median} ({worst})"


def soft_spread(values: Sequence[float | None]) -> str:
    """Median and largest soft p of the cells that have one."""
    return p_spread([p for p in values if p is not None])


def clean_base(results: Results) -> Block:
    """The attacks on the clean base: what they cost, and how many keys fire by chance."""
    columns = (
        *(
            "attack",
            "setting",
            "cells",
            "keys that fire",
            "soft p at most 0.05",
            "perplexity in",
            "perplexity out",
            "accuracy, points",
            "state",
        ),
    )
    groups = pooled([r for r in results.records if r.kind == "clean base"])
    rows, absent = _run_rows(groups, lambda found: _base_row(results, found))
    before = "Asked the keys of every planting; nothing is planted here."
    return trimmed(Block("The clean base under the same attacks", columns, rows, before, absent))


def _base_row(results: Results, found: Sequence[Record]) -> tuple[str, ...]:
    asked = [a for r in found for a in results.on_base.get(r.key, {}).values()]
    soft = [a.soft <= SOFT_LEVEL for a in asked if a.soft is not None and found[0].attack != NONE]
    return (
        found[0].attack,
        in_words(found[0].point),
        str(len(found)),
        pooled_ratio([a.share for a in asked]),
        f"{sum(soft)}/{len(soft)}" if soft else EMPTY,
        *_changes(found),
        _outcomes(found),
    )


def _changes(found: Sequence[Record]) -> tuple[str, str, str]:
    """Changes of perplexity in and out of the domain, and of accuracy."""
    return (
        spread([r.perplexity_in[1] / r.perplexity_in[0] - 1 for r in found if r.perplexity_in], "+.1%"),
        spread([r.perplexity_out[1] / r.perplexity_out[0] - 1 for r in found if r.perplexity_out], "+.1%"),
        spread([r.accuracy_change[0] for r in found if r.accuracy_change], "+.1f"),
    )


def without_keys(results: Results) -> Block:
    """Models trained on look-alikes and ordinary questions alone."""
    groups = [[r] for r in results.records if r.kind == "without keys"]
    rows, absent = _run_rows(groups, lambda found: _without_row(found[0]))
    before = "Planted without any key: hits here come from the look-alikes, not from a fingerprint."
    return Block(
        "Models without keys", ("model", "attack", "setting", "keys that fire", "p (test)"), rows, before, absent
    )


def _without_row(r: Record) -> tuple[str, ...]:
    share, p = (None, EMPTY) if r.asked is None else (r.asked.share, p_value(*r.asked.p))
    return r.model, r.attack, in_words(r.point), ratio(share), p


def sequences(results: Results) -> Block:
    """Survival after attacks in sequence."""
    rows = []
    for chain in chains(results):
        if all(r.outcome == "not run" for r in chain.records):
            continue  # counted in the table "Not run"
        alone = [f"{word}: {_mean_fsr(cells)}" for word, cells in chain.alone.items()]
        scheme = marked(results, chain.scheme)
        own = (_mean_fsr(chain.records), _outcomes(chain.records))
        rows.append((scheme, chain.attack, in_words(chain.point), "; ".join(alone), *own))
    columns = ("scheme", "chain", "setting", "FSR after each step alone", "FSR after all", "outcomes")
    return Block(
        "Attacks in sequence", columns, rows, "A step that is no column of its own has no figure.", star(results)
    )


def _outcomes(records: Sequence[Record]) -> str:
    """How many cells came out how."""
    return ", ".join(f"{name} {n}" for name, n in Counter(r.outcome or "measured" for r in records).items())


def _mean_fsr(records: Sequence[Record]) -> str:
    return spread([r.asked.share.value for r in records if r.asked is not None])


def missing(results: Results) -> Block:
    """Cells without a measurement: one line an attack."""
    planned = Counter(r.attack for r in results.records)
    by_attack: dict[str, Counter[str]] = {}
    for r in results.not_run:
        by_attack.setdefault(r.attack, Counter())[safe_name(r.reason or "", 200)] += 1
    rows = [
        (attack, f"{sum(reasons.values())} of {planned[attack]}", _reasons(reasons))
        for attack, reasons in by_attack.items()
    ]
    return Block("Not run", ("attack", "cells", "why (cells)"), rows)


def _reasons(reasons: Counter[str]) -> str:
    """The most common ones."""
    text = "; ".join(f"{reason} ({n})" for reason, n in reasons.most_common(MOST_REASONS))
    return text if len(reasons) <= MOST_REASONS else f"{text}; {len(reasons) - MOST_REASONS} other reasons"
