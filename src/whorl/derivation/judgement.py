"""The verdict of the test of derivation, and what is missing when there is none (outputs.md 5.2, statistics.md 1).

related     all three levels are passed
unrelated   S(A, B) lies within the bulk of the controls, and planted derivatives of A show a power of at least 0.9:
            the exact 95 % lower bound of the share found, 29 of 29 at least
undecided   everything else
"""

from collections.abc import Iterator
from dataclasses import dataclass

from whorl.derivation.levels import EDGE, ROUNDING, Levels
from whorl.derivation.power import POWER, Power, more_planted


@dataclass(frozen=True)
class Setting:
    """What was fixed before the data were read, and how much there is of everything.

    Args:
        alpha: Error rate.
        delta: Smallest difference of interest.
        n_lineages: Control lineages.
        needed: Control lineages that the error rate needs.
        n_groups: Clusters of prompts.
        n_candidates: Parents tried.
    """

    alpha: float
    delta: float
    n_lineages: int
    needed: int
    n_groups: int
    n_candidates: int


@dataclass(frozen=True)
class Judgement:
    """Verdict, one sentence, and what would decide it."""

    verdict: str
    why: str
    missing: tuple[str, ...] = ()


def judge(levels: Levels, corrected: float, found: Power, setting: Setting) -> Judgement:
    """The verdict.

    Args:
        levels: The suspect among the controls.
        corrected: p_model after correction for the parents tried.
        found: Planted derivatives that the same test finds.
        setting: The rest.
    """
    passed = levels.p_prompt <= setting.alpha and corrected <= setting.alpha + ROUNDING and _has_size(levels, setting)
    if passed:
        why = (
            f"B begins its answers like A more often than every control, those of {setting.n_lineages} lineages: prompt by "
            f"prompt, by rank, and by more than {setting.delta:g}"
        )
        return Judgement("related", why)
    if levels.in_bulk and found.enough:
        why = (
            f"B is as near to A as the controls are, and {found.found} of {found.n} planted derivatives of A were found"
        )
        return Judgement("unrelated", why)
    missing = tuple(_missing(levels, corrected, found, setting))
    return Judgement("undecided", _open(levels, corrected, setting), missing)


def _has_size(levels: Levels, setting: Setting) -> bool:
    return levels.effect >= setting.delta - ROUNDING


def _open(levels: Levels, corrected: float, setting: Setting) -> str:
    """Why neither verdict can be given."""
    if corrected <= setting.alpha + ROUNDING:
        return "B is nearer to A than all controls, but not on enough prompts or not by enough"
    if levels.effect > 0 and setting.n_lineages < setting.needed:
        return f"B is nearer to A than all controls, but {setting.n_lineages} lineages are too few for this error rate"
    if not levels.in_bulk:
        side = "nearer to A than" if levels.p_model <= EDGE + ROUNDING else "less like A than"
        return f"B is {side} nearly all controls, and neither verdict can be given"
    return "B is as near to A as the controls are, but it was not shown that a derivative would have been found"


def _missing(levels: Levels, corrected: float, found: Power, setting: Setting) -> Iterator[str]:
    """What would decide it, the most pressing first."""
    if setting.n_lineages < setting.needed:
        tried = f" and {setting.n_candidates} parents" if setting.n_candidates > 1 else ""
        more = setting.needed - setting.n_lineages
        yield (
            f"{more} more control lineages: {setting.n_lineages} give no rank p below {1 / (setting.n_lineages + 1):.2g}; "
            f"an error rate of {setting.alpha:g}{tried} needs {setting.needed}"
        )
    if levels.effect > 0:
        yield from _missing_to_related(levels, corrected, setting)
    elif levels.in_bulk:
        yield _missing_power(found)
    elif levels.p_below <= EDGE + ROUNDING:
        yield "a look at template, language and system prompt of B: it is less like A than strangers are"
    else:
        yield "other prompts: B is near A, but a control is nearer"


def _missing_to_related(levels: Levels, corrected: float, setting: Setting) -> Iterator[str]:
    if levels.p_prompt > setting.alpha:
        few = 2.0**-setting.n_groups > setting.alpha
        what = "groups of prompts" if few else "prompts"
        yield f"more {what}: B does not beat every control on these {setting.n_groups} groups (p = {levels.p_prompt:.2g})"
    if not _has_size(levels, setting):
        lead = f"the lead over all controls is {levels.effect:.3f}, below {setting.delta:g}"
        yield f"prompts that models answer more differently: {lead}"
    if corrected > setting.alpha + ROUNDING and setting.n_lineages >= setting.needed:
        yield "a smaller number of candidate parents, or more control lineages"


def _missing_power(found: Power) -> str:
    wanted = f"a power of {POWER:g} at 95 % confidence"
    if found.found == found.n:
        had = f", {found.n} of {found.n} were" if found.n else ""
        return f"{more_planted(found.found, found.n)} more planted derivatives of A, all found{had}; 29 of 29 show {wanted}"
    return (
        f"a sharper test (more prompts or controls): {found.found} of {found.n} planted derivatives of A were found, at least "
        f"{100 * found.lower:.0f} %, and 'unrelated' needs {wanted}"
    )
