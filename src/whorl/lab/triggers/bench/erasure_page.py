"""The erasure experiment as a Markdown page: arms, clean base, control, transfer, and the published figures beside them."""

from collections import Counter
from collections.abc import Sequence

from whorl.errors import safe_name
from whorl.lab.triggers.bench.cells import NONE
from whorl.lab.triggers.bench.erasure import (
    ALL,
    EQUAL_UPDATES,
    LEVEL,
    Arm,
    Contest,
    Signs,
    arms,
    contests,
    controls_that_erase,
    erased,
    mean_fsr,
)
from whorl.lab.triggers.bench.outcome import SURVIVES
from whorl.lab.triggers.bench.page import p_spread, pooled_ratio, soft_spread
from whorl.lab.triggers.bench.records import Record
from whorl.lab.triggers.bench.results import Results
from whorl.lab.triggers.bench.tables import EMPTY, Block, in_words, markdown, spread, trimmed

COMMAND = "whorl bench triggers --config FILE --out FOLDER --erasure-page PAGE"
PUBLISHED = (  # arXiv 2506.12551, second-hand: FSR in per cent / perplexity, fingerprinted -> erased -> recovered
    (
        "IF-SFT",
        "100 / 4.80 -> 0 / 17.33 -> 0 / 7.31",
        "100 / 4.09 -> 0 / 15.85 -> 0 / 6.87",
        "100 / 4.26 -> 0 / 25.2 -> 0 / 9.10",
    ),
    (
        "UTF",
        "100 / 9.31 -> 0 / 5.35 -> 0 / 4.48",
        "100 / 5.01 -> 0 / 8.01 -> 0 / 4.12",
        "100 / 7.62 -> 0 / 8.08 -> 0 / 5.01",
    ),
    (
        "HashChain",
        "100 / 6.71 -> 0 / 5.53 -> 0 / 4.65",
        "100 / 5.11 -> 0 / 5.87 -> 0 / 4.00",
        "100 / 9.10 -> 0 / 6.07 -> 0 / 4.91",
    ),
)
PUBLISHED_OTHERS = (  # the same paper, second-hand: FSR left in per cent on Llama-2-7B
    ("IF-SFT", "100", "100", "87.5", "100", "50", "100", "0", "0", "0", "0"),
    ("UTF", "75", "3.125", "3.125", "81.25", "0", "3.125", "0", "0", "0", "0"),
    ("HashChain", "0", "0", "30", "40", "30", "70", "50-90", "0", "90", "0"),
)
_OTHERS = (
    *("Llama-2-7B", "tuned on Guanaco", "tuned on ShareGPT 6k", "L1 prune 5 %", "L2 prune 5 %", "random prune 20 %"),
    *("Taylor prune 20 %", "merged (task)", "CleanGen", "token forcing", "MEraser"),
)
ARM_COLUMNS = (
    *(
        "arm",
        "setting",
        "cells",
        "updates",
        "FSR",
        "keys left",
        "clean base",
        "p median (worst)",
        "soft p",
        "perplexity in",
    ),
    *("perplexity out", "accuracy", "on the clean base: in / out / accuracy", "count"),
)


def erasure_page(results: Results) -> str:
    """The page as Markdown."""
    found = arms(results)
    sections = (
        "# Does MEraser erase planted fingerprints?",
        f"Printed by `{COMMAND}`. Do not edit.",
        _method(results),
        *(f"**{first}** {rest}".strip() for first, rest in verdicts(results)),
        *controls(results),
        _without_rows(results),
        "" if found else "No attack of kind `erase` is in the configuration.",
        *(markdown(block) for block in blocks(results)),
    )
    return "\n\n".join(section for section in sections if section) + "\n"


def verdicts(results: Results) -> list[tuple[str, str]]:
    """First sentence and the rest: all schemes together, then each of which anything is measured."""
    found = contests(results)
    said = [verdict(one).partition(". ") for one in (*found[-1:], *found[:-1]) if one.is_measured]
    return [(first + dot.strip(), rest) for first, dot, rest in said]


def verdict(one: Contest) -> str:
    """What MEraser left beside its control, in a sentence or two."""
    described = ""
    if one.left_out:
        reasons = "; ".join(f"{reason}: {n}" for reason, n in one.left_out.items())
        came_out = f"; as a description only, {_counted(one.uncounted, 'of them')}" if one.uncounted.n else ""
        described = f" {sum(one.left_out.values())} pairs do not count ({reasons}){came_out}."
    described += _at_any_cost(one)
    if one.pairs == 0:
        return f"{one.scheme}: nothing can be said, no pair of MEraser and its control counts.{described}"
    plantings = f"{_counted(one.plantings, 'plantings')} ({one.pairs} pairs count)"
    if one.scheme != ALL:
        return f"{one.scheme}: MEraser left {plantings}.{described}"
    p = "every planting is a tie, no p" if one.p_value is None else f"one-sided exact sign test p = {one.p_value:.2g}"
    said = "MEraser beat its control" if one.beat else "it is not shown that MEraser beats its control"
    return f"{one.scheme}: {said}: it left {plantings}; {p}.{described}"


def _at_any_cost(one: Contest) -> str:
    """The same question without the budget, where the budget changes the answer."""
    if one.at_any_cost == one.plantings or not one.at_any_cost.n:
        return ""
    said = f" Whatever it costs the model, it left {_counted(one.at_any_cost, 'plantings')}"
    if one.scheme != ALL:
        return f"{said}."
    p = "no p" if one.p_at_any_cost is None else f"the same test gives p = {one.p_at_any_cost:.2g}"
    return f"{said}; {p}. The budget was fixed before, this question was not."


def _counted(signs: Signs, what: str) -> str:
    return f"fewer keys in {signs.fewer} of {signs.n} {what}, more in {signs.more}, as many in {signs.equal}"


def _without_rows(results: Results) -> str:
    """Schemes of which no arm was run."""
    run = {arm.scheme for arm in arms(results) if any(r.outcome != "not run" for r in arm.records)}
    absent = [name for name in dict.fromkeys(arm.scheme for arm in arms(results)) if name not in run]
    return f"Not run at all on: {', '.join(absent)}." if absent else ""


def controls(results: Results) -> list[str]:
    """Where ordinary fine-tuning alone removes keys: nothing there is MEraser's doing."""
    return [
        f"{scheme}: at {in_words(setting) if setting else 'the usual rate'} the control erases too, in "
        f"{sum(map(erased, cells))} of {len(cells)} cells of ordinary fine-tuning (FSR below {SURVIVES:g}; mean "
        f"{mean_fsr(cells):.2f})."
        for scheme, setting, cells in controls_that_erase(results)
    ]


def blocks(results: Results) -> list[Block]:
    """All tables; those of other papers last."""
    found = arms(results)
    names = dict.fromkeys(a.scheme for a in found)
    own = [block for name in names if (block := _arms_of(name, [a for a in found if a.scheme == name])).rows]
    note = "Known second-hand; models, plantings and data are not ours: reference points, no target."
    published = Block(
        "Published: FSR % / perplexity, fingerprinted -> erased -> recovered",
        ("arXiv 2506.12551", "Llama-2-7B", "Mistral-7B", "AmberChat-7B"),
        PUBLISHED,
        note,
        "Clean-model perplexities are not given there. After recovery IF-SFT stays 52 / 68 / 114 % above its fingerprinted "
        "perplexity, which the budget here calls a ruined model.",
    )
    others = Block("Published: FSR % left after other attacks", _OTHERS, PUBLISHED_OTHERS, note)
    return [*own, _counting(found), published, others] if found else [published, others]


def _method(results: Results) -> str:
    budget = results.bench.budget
    return (
        "Arms: `erase` (mismatched pairs), `recover` (correct pairs), both, and `clean-only`, the control: correct pairs "
        "alone with the erase phase's adapter and rate, and the updates of both phases (within "
        f"{EQUAL_UPDATES:.0%}: epochs are whole). A result counts only if the planting passed its gates and resists ordinary "
        "fine-tuning (its gate, and the control of the same planting, seed and setting leaves an FSR of at least "
        f"{SURVIVES:g}; a transferred adapter is compared with the control of its rate, and where there is none the gate alone "
        "decides), the same attack was run on the clean base, perplexity rose at most "
        f"{budget.perplexity:.0%} and accuracy fell at most {budget.accuracy:g} points. Only pairs of MEraser and control "
        "that count are compared. Plantings are the unit: attack seeds and settings share a planting, so each planting has "
        "one sign, that of the shares of keys left summed over its pairs. MEraser beats its control if it leaves fewer keys "
        f"by a one-sided exact sign test over the plantings of all schemes, p <= {LEVEL:g}. A single scheme has too few "
        "plantings for a test, and has counts alone."
    )


def _arms_of(scheme: str, found: Sequence[Arm]) -> Block:
    there = [arm for arm in found if any(r.outcome != "not run" for r in arm.records)]
    absent: dict[str, list[str]] = {}
    for arm in found:
        if arm not in there:
            absent.setdefault(in_words(arm.setting), []).append(arm.arm)
    before = (
        "Means over plantings and attack seeds, with the range; perplexity and accuracy as they are, not as changes."
    )
    after = "Not run" + "".join(f"; at {setting}: {', '.join(names)}" for setting, names in absent.items()) + "."
    after = after.replace("Not run; ", "Not run ") if absent else ""
    return trimmed(Block(f"Arms: {scheme}", ARM_COLUMNS, [_row(arm) for arm in there], before, after))


def _row(a: Arm) -> tuple[str, ...]:
    asked = [r.asked for r in a.records if r.asked is not None]
    n_run = sum(r.outcome != "not run" for r in a.records)
    return (
        a.arm,
        in_words(a.setting),
        str(n_run) if n_run == len(a.records) else f"{n_run} of {len(a.records)}",
        spread([n for r in a.records if (n := r.cost.get("updates")) is not None], ".0f"),
        spread([x.share.value for x in asked]),
        pooled_ratio([x.share for x in asked]),
        pooled_ratio([r.clean for r in a.records]),
        p_spread([x.p[0] for x in asked]),
        soft_spread([x.soft for x in asked]),
        *_utility(a.records),
        " / ".join(_utility(a.on_base)),
        EMPTY if a.arm == NONE else f"{len(a.counted)} of {n_run}",
    )


def _utility(records: Sequence[Record]) -> tuple[str, str, str]:
    """Perplexity in and out of the domain and accuracy, after the attack."""
    found = []
    for name, form in (("perplexity_in", ".2f"), ("perplexity_out", ".1f"), ("accuracy", ".2f")):
        pairs = [getattr(r, name) for r in records]
        found.append(spread([pair[1] for pair in pairs if pair is not None], form))
    return found[0], found[1], found[2]


def _counting(found: Sequence[Arm]) -> Block:
    """Why results do not count."""
    rows = []
    for a in found:
        run = [r for r in a.records if r.outcome != "not run"]
        if a.arm == NONE or not run:
            continue
        reasons = Counter(reason for r in run for reason in a.against(r))
        why = ", ".join(f"{safe_name(reason, 80)}: {n}" for reason, n in reasons.items()) or "all count"
        if a.by_gate_alone:
            why += "; no control of its rate was run, the resistance gate alone decides"
        rows.append((a.scheme, a.arm, in_words(a.setting), f"{len(a.counted)} of {len(run)}", why))
    return Block("Which results count", ("scheme", "arm", "setting", "count", "why not (cells)"), rows)
