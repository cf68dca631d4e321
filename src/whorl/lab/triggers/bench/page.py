"""The results of the benchmark as a Markdown page, and the tables that the HTML report shows as well.

Every figure and every sentence follows from the rows; settings are those of the run's configuration.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path

from whorl.errors import safe_name
from whorl.lab.triggers.bench.cells import NONE
from whorl.lab.triggers.bench.outcome import IN_BUDGET, LETTERS, SURVIVES
from whorl.lab.triggers.bench.results import Best, Record, Results, Share, chains
from whorl.lab.triggers.bench.tables import EMPTY, Block, markdown, number, p_value, ratio, said, spread

COMMAND = "whorl bench triggers --config FILE --out FOLDER --page docs/results/robustness.md"
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
        *(markdown(block) for block in blocks(results) if block.rows),
        "## What this does not show\n\n" + "\n".join(f"- {text}" for text in LIMITS),
    )
    return "\n\n".join(sections) + "\n"


def method(results: Results) -> tuple[str, str]:
    """What was done, and what decides."""
    bench = results.bench
    done = (
        f"{len(bench.schemes)} schemes planted into '{_name(bench.base)}', {len(bench.weight_attacks)} attacks on weights and "
        f"{len(bench.serving_attacks)} while serving: {len(results.records)} cells, {len(results.not_run)} of them not run. "
        "Every attack also runs on the clean base, which is asked the same keys. Perplexity and accuracy (the right answer "
        f"among four) on up to {bench.test_rows} held-out questions; perplexity outside the domain on the text "
        f"'{_name(bench.outside)}'."
    )
    bound = (
        "" if bench.budget.agreement is None else f", or under {bench.budget.agreement:.0%} of served answers unchanged"
    )
    decides = (
        f"Outcomes: survives (S): FSR of at least {SURVIVES}, one greedy answer a key; weakened, provable (P): p <= "
        f"{bench.alpha:g}, the largest of the tests that apply; gone (G): neither; model ruined (R): perplexity above "
        f"{bench.budget.perplexity:+.0%} in or outside the domain, or accuracy more than {bench.budget.accuracy:g} points "
        f"below the fingerprinted model{bound}: that never counts as erased; not run ({LETTERS['not run']})."
    )
    return done, decides


def _name(path: str) -> str:
    """The last part of a path: no other part of it is anybody's business."""
    return safe_name(Path(path).name, 60)


def findings(results: Results) -> list[tuple[str, str]]:
    """For each scheme, what the attacks left at the attacker's best setting within the budget."""
    found = []
    for row in results.bench.schemes:
        cells = [one for one in results.grid if one.scheme == row.name and one.attack != NONE]
        by = {name: [one.attack for one in cells if one.outcome == name] for name in LETTERS}
        first = f"{row.name}: survives {len(by['survives'])} of {sum(len(by[o]) for o in IN_BUDGET)} attacks within the budget."
        parts = [
            f"{name}: {', '.join(by[name])}."
            for name in ("weakened, provable", "gone", "model ruined", "not run")
            if by[name]
        ]
        parts.append(_planted(results, row.name))
        found.append((first, " ".join(text[0].upper() + text[1:] for text in parts)))
    return found


def _planted(results: Results, scheme: str) -> str:
    """How many plantings count as planted."""
    plain = results.of(scheme, NONE)
    held = sum(r.asked is not None and r.asked.planted for r in plain)
    return f"{held} of {len(plain)} plantings passed the gates that decide."


def blocks(results: Results) -> list[Block]:
    """All tables but the one of every cell."""
    return [grid(results), plantings(results), *(settings(results, row.name) for row in results.bench.schemes),
            clean_base(results), without_keys(results), sequences(results), missing(results)]  # fmt: skip


def grid(results: Results) -> Block:
    """Scheme x attack at the attacker's best setting."""
    names = [row.name for row in results.bench.schemes]
    found = {(one.scheme, one.attack): one for one in results.grid}
    rows = [
        (attack, *(in_grid(found[name, attack]) for name in names))
        for attack in dict.fromkeys(one.attack for one in results.grid)
    ]
    before = (
        "The setting with the lowest mean FSR among those within the budget in at least half of the cells; the most common "
        "outcome there, with the mean FSR."
    )
    return Block("At the attacker's best setting", ("attack", *names), rows, before)


def in_grid(one: Best) -> str:
    """A cell of the grid: letter, mean FSR and setting."""
    if one.fsr is None:
        return LETTERS[one.outcome]
    return f"{LETTERS[one.outcome]} {one.fsr:.2f}" + (f" at {one.point}" if one.point else "")


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
        *(
            "attack",
            "setting",
            "cells",
            "FSR (range)",
            "all wrappers",
            "unseen wrappers",
            "near keys",
            "decoys",
            "clean FSR",
        ),
        *("p median (worst)", "perplexity in", "perplexity out", "accuracy change", "answers unchanged", "outcomes"),
    )
    rows = [
        _setting(found) for found in pooled([r for r in results.records if (r.scheme, r.kind) == (scheme, "planted")])
    ]
    before = "Means over plantings and attack seeds, with the range. Perplexity is the change against the fingerprinted model."
    return Block(f"All settings: {scheme}", columns, rows, before)


def pooled(records: Sequence[Record]) -> list[list[Record]]:
    """Cells of one attack at one setting together."""
    found: dict[tuple[str, str], list[Record]] = {}
    for r in records:
        found.setdefault((r.attack, r.point), []).append(r)
    return list(found.values())


def _setting(found: Sequence[Record]) -> tuple[str, ...]:
    asked = [r.asked for r in found if r.asked is not None]
    clean = [r.clean for r in found if r.clean is not None]
    names = dict.fromkeys(r.outcome for r in found if r.outcome is not None)
    return (
        found[0].attack,
        found[0].point or EMPTY,
        str(len(found)),
        spread([a.share.value for a in asked]),
        spread([a.all_wrappers.value for a in asked]),
        spread([a.unseen_wrappers.value for a in asked]),
        pooled_ratio([a.near for a in asked if a.near]),
        pooled_ratio([a.decoys for a in asked if a.decoys]),
        pooled_ratio(clean),
        p_spread([a.p[0] for a in asked]),
        spread([r.perplexity_in[1] / r.perplexity_in[0] - 1 for r in found if r.perplexity_in], "+.1%"),
        spread([r.perplexity_out[1] / r.perplexity_out[0] - 1 for r in found if r.perplexity_out], "+.1%"),
        spread([r.accuracy_change[0] for r in found if r.accuracy_change], "+.1f"),
        spread([r.agreement.value for r in found if r.agreement]),
        ", ".join(f"{name} {sum(r.outcome == name for r in found)}" for name in names),
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
    return f"{statistics.median(found):.2g} ({max(found):.2g})"


def clean_base(results: Results) -> Block:
    """The attacks on the clean base: what they cost, and how many keys fire by chance."""
    rows = []
    for found in pooled([r for r in results.records if r.kind == "clean base"]):
        asked = [a.share for r in found for a in results.on_base.get(r.key, {}).values()]
        rows.append(
            (
                found[0].attack,
                found[0].point or EMPTY,
                str(len(found)),
                pooled_ratio(asked),
                spread([r.perplexity_in[1] / r.perplexity_in[0] - 1 for r in found if r.perplexity_in], "+.1%"),
                spread([r.perplexity_out[1] / r.perplexity_out[0] - 1 for r in found if r.perplexity_out], "+.1%"),
                spread([r.accuracy_change[0] for r in found if r.accuracy_change], "+.1f"),
                "; ".join(dict.fromkeys(said(r) for r in found)),
            )
        )
    columns = (
        "attack",
        "setting",
        "cells",
        "keys that fire",
        "perplexity in",
        "perplexity out",
        "accuracy change",
        "state",
    )
    return Block(
        "The clean base under the same attacks",
        columns,
        rows,
        "Asked the keys of every planting; nothing is planted here.",
    )


def without_keys(results: Results) -> Block:
    """Models trained on look-alikes and ordinary questions alone."""
    found = [r for r in results.records if r.kind == "without keys"]
    rows = [
        (
            r.model,
            r.attack,
            r.point or EMPTY,
            ratio(None if r.asked is None else r.asked.share),
            EMPTY if r.asked is None else p_value(*r.asked.p),
        )
        for r in found
    ]
    before = "Planted without any key: hits here come from the look-alikes, not from a fingerprint."
    return Block("Models without keys", ("model", "attack", "setting", "keys that fire", "p (test)"), rows, before)


def sequences(results: Results) -> Block:
    """Survival after attacks in sequence."""
    rows = []
    for chain in chains(results):
        alone = [f"{word}: {_mean_fsr(found)}" for word, found in chain.alone.items()]
        names = dict.fromkeys(str(r.outcome) for r in chain.records)
        counted = ", ".join(f"{name} {sum(r.outcome == name for r in chain.records)}" for name in names)
        rows.append(
            (chain.scheme, chain.attack, chain.point or EMPTY, "; ".join(alone), _mean_fsr(chain.records), counted)
        )
    columns = ("scheme", "chain", "setting", "FSR after each step alone", "FSR after all", "outcomes")
    return Block("Attacks in sequence", columns, rows, "A step that is no column of its own has no figure.")


def _mean_fsr(records: Sequence[Record]) -> str:
    return spread([r.asked.share.value for r in records if r.asked is not None])


def missing(results: Results) -> Block:
    """Cells without a measurement, by reason."""
    found: dict[tuple[str, str], int] = {}
    for r in results.not_run:
        key = (r.attack, safe_name(r.reason or "", 200))
        found[key] = found.get(key, 0) + 1
    rows = [(attack, reason, str(n)) for (attack, reason), n in found.items()]
    return Block("Not run", ("attack", "reason", "cells"), rows)
