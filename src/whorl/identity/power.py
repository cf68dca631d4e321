"""What would have been noticed: planted swaps under the same test, at the same number of prompts and draws (ours).

A planted set is a suspect that is known to differ: another model's answers, or a mixture with honest ones. It is cut into
disjoint sets of the real suspect's size, and each is tested against every allowed variant. Then prompts are drawn anew with
replacement, 2,000 times: the share of draws that pass the critical value against *every* variant is the detection rate.

A bootstrap knows the planted difference only as well as its prompts show it. So the rate is given with the rates at both
ends of the one-sided 95 % interval of the difference, and only the lower end counts as power.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from whorl.errors import UsageError
from whorl.identity.draws import Side
from whorl.identity.permutation import Permuted
from whorl.linalg.blocks import Doubles
from whorl.transcripts.record import ModelId, Transcript

POWER = 0.9
CONFIDENCE = 0.95
N_RESAMPLES = 2_000
MAX_SETS = 8
GROWTH = (1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)  # numbers of prompts that are tried, as multiples


@dataclass(frozen=True)
class Detection:
    """How often a planted difference would be found.

    Args:
        name: What was planted.
        rate: Share of resamples found, in [0, 1].
        lower: The rate at the lower end of the difference's interval: what counts as power.
        upper: The rate at its upper end.
        n_prompts: Prompts of each resample.
        n_sets: Disjoint planted sets of the suspect's size.
        n_draws: Draws of each planted set, over all prompts.
        prompts_needed: Prompts at which `lower` would reach 0.9; None where 16 times as many would not do.
    """

    name: str
    rate: float
    lower: float
    upper: float
    n_prompts: int
    n_sets: int
    n_draws: int
    prompts_needed: int | None

    @property
    def enough(self) -> bool:
        """Whether the difference would have been found."""
        return self.lower >= POWER

    @property
    def undetectable(self) -> bool:
        """Whether many more prompts would not help: it lies below the noise between honest variants."""
        return self.prompts_needed is None


@dataclass(frozen=True)
class _Against:
    """Planted sets against one variant, in units of the null's sd: values (sets, statistics, prompts), critical value."""

    values: Doubles
    critical: float


def detection(
    name: str, runs: Sequence[Sequence[Permuted]], names: Sequence[str], alpha: float, n_draws: int, seed: int
) -> Detection:
    """The detection rate from tests of planted sets.

    Args:
        name: What was planted.
        runs: runs[variant][set], all on the same prompts.
        names: The statistics whose largest standardised value decides (one, unless max-T).
        alpha: Level of each test.
        n_draws: Draws of each planted set.
        seed: Of the resamples.
    """
    against = [_against(sets, names, alpha) for sets in runs]
    weights = runs[0][0].weights
    n = len(weights)
    now = _rates(against, weights, n, seed)
    needed = n if now[1] >= POWER else None
    for factor in GROWTH:
        if needed is None and _rates(against, weights, math.ceil(factor * n), seed)[1] >= POWER:
            needed = math.ceil(factor * n)
    return Detection(name, *now, n, len(runs[0]), n_draws, needed)


def _against(sets: Sequence[Permuted], names: Sequence[str], alpha: float) -> _Against:
    values, critical = [], []
    for run in sets:
        rows = np.stack([run.row(name) for name in names])  # (statistics, b + 1)
        mean, sd = rows.mean(axis=1, keepdims=True), rows.std(axis=1, keepdims=True)
        observed = np.stack([run.observed[run.names.index(name)] for name in names])
        values.append((observed - mean) / sd)
        critical.append(critical_value(((rows - mean) / sd).max(axis=0)[1:], alpha))
    return _Against(np.stack(values), float(np.mean(critical)))


def critical_value(null: Doubles, alpha: float) -> float:
    """The value above which p = (1 + #{null >= value}) / (b + 1) is at most alpha.

    Raises:
        UsageError: even the smallest possible p is above alpha.
    """
    rank = math.floor(alpha * (null.size + 1) + 1e-9)
    if rank < 1:
        raise UsageError(
            f"{null.size} permutations cannot give a p of {alpha}; use at least {math.ceil(1 / alpha) - 1}."
        )
    return float(np.partition(null, null.size - rank)[null.size - rank])


def _rates(against: Sequence[_Against], weights: Doubles, n_prompts: int, seed: int) -> tuple[float, float, float]:
    """Detection rate at `n_prompts` prompts, and at the lower and upper end of the difference's interval."""
    from scipy.stats import t as student

    rng = np.random.default_rng((seed, n_prompts))
    n_sets, n = against[0].values.shape[0], weights.size
    slots = rng.integers(n, size=(N_RESAMPLES, n_prompts))
    sets = rng.integers(n_sets, size=(N_RESAMPLES, n_prompts))
    share = weights[slots] / weights[slots].sum(axis=1, keepdims=True)
    shrink = math.sqrt(n / n_prompts)
    width = float(student.ppf(CONFIDENCE, n - 1)) * shrink
    found = np.ones((3, N_RESAMPLES), dtype=bool)
    for one in against:
        drawn = np.einsum("rp,rps->rs", share, one.values[sets, :, slots])  # (resamples, statistics)
        spread = one.values.mean(axis=0).std(axis=1, ddof=1) / math.sqrt(n)  # of the mean over prompts
        for row, shift in enumerate((0.0, -width, width)):
            found[row] &= (drawn + shift * spread).max(axis=1) > one.critical * shrink
    rate, lower, upper = (float(row.mean()) for row in found)
    return rate, lower, upper


def planted_sets(planted: Side, like: Side) -> tuple[Side, ...]:
    """Disjoint sets of planted answers, each with as many draws a prompt as `like`; at most 8, one if there are too few."""
    common = [key for key in like.by_prompt if key in planted.by_prompt]
    sizes = {key: len(like.by_prompt[key]) for key in common}
    n_sets = min((len(planted.by_prompt[key]) // sizes[key] for key in common), default=0)
    return tuple(
        replace(
            planted, by_prompt={key: planted.by_prompt[key][i * sizes[key] : (i + 1) * sizes[key]] for key in common}
        )
        for i in range(max(1, min(MAX_SETS, n_sets)))
    )


def mixture(
    honest: Iterable[Transcript], foreign: Iterable[Transcript], share: float, *, seed: int = 0
) -> tuple[Transcript, ...]:
    """An endpoint that hands some questions to another model: each answer is foreign with probability `share`.

    Args:
        honest: Spare draws of the reference: none that stand on the reference's side of the test.
        foreign: The other model's draws.
        share: In (0, 1].
        seed: Of the choice; drawn prompt by prompt.

    Returns:
        Per prompt as many draws as both sides have, of one new model id, no draw used twice.

    Raises:
        UsageError: a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise UsageError(f"A mixture has a share of foreign answers above 0 and at most 1, not {share}.")
    sides = [_by_prompt(records) for records in (honest, foreign)]
    rng = np.random.default_rng(seed)
    found: list[Transcript] = []
    for key in sorted(sides[0].keys() & sides[1].keys()):
        both = list(zip(sides[0][key], sides[1][key], strict=False))
        is_foreign = rng.random(len(both)) < share
        for at, (pair, chosen) in enumerate(zip(both, is_foreign, strict=True)):
            record = pair[int(chosen)]
            ref = f"{share:.0%} {sides[1][key][0].model.ref} in {sides[0][key][0].model.ref}"
            found.append(replace(record, model=ModelId(ref), sample_index=at, stream="planted"))
    return tuple(found)


def _by_prompt(records: Iterable[Transcript]) -> dict[str, list[Transcript]]:
    found: dict[str, list[Transcript]] = {}
    for record in sorted((r for r in records if r.ok), key=lambda r: (r.stream, r.sample_index)):
        found.setdefault(record.prompt.id, []).append(record)
    return found
