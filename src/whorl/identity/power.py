"""What would have been noticed: planted swaps under the same test, at the same number of prompts and draws (ours).

A planted set is a suspect that is known to differ: another model's answers, or a mixture with honest ones. It is cut into
disjoint sets of the real suspect's size, and each is tested against every allowed variant. Then 2,000 suspects are put
together from them, and the share that passes the critical value against *every* variant is the detection rate.

    two sets or more   each prompt takes its value from a set of its own choice: prompts stay as they are, draws vary, which
                       is what happens when the same prompts are asked again
    one set            prompts are drawn with replacement, which varies more and so shows less power

The planted difference is only known up to its own noise, so the rate is given with the rates at both ends of its one-sided
95 % interval, and only the lower end counts as power.
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
    resampled = _resampled(against, weights, seed)
    n = len(weights)
    rate, lower, upper = (_found(against, resampled, 1.0, side) for side in (0.0, -1.0, 1.0))
    enough = (f for f in (1.0, *GROWTH) if _found(against, resampled, f, -1.0) >= POWER)
    needed = next((math.ceil(factor * n) for factor in enough), None)
    return Detection(name, rate, lower, upper, n, len(runs[0]), n_draws, needed)


@dataclass(frozen=True)
class _Against:
    """Planted sets against one variant, in units of the null's sd: values (sets, statistics, prompts), critical value."""

    values: Doubles
    critical: float


@dataclass(frozen=True)
class _Resampled:
    """Means over prompts: the planted one (statistics,), of resamples less that (resamples, statistics), half-width."""

    mean: Doubles
    deviations: Doubles
    width: Doubles


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


def _resampled(against: Sequence[_Against], weights: Doubles, seed: int) -> list[_Resampled]:
    """Resamples of the planted value against each variant; the same draws against all."""
    from scipy.stats import t as student

    rng = np.random.default_rng(seed)
    n_sets, n = against[0].values.shape[0], weights.size
    fixed = np.arange(n)[None, :]
    prompts = fixed if n_sets > 1 else rng.integers(n, size=(N_RESAMPLES, n))
    sets = rng.integers(n_sets, size=(N_RESAMPLES, n))
    share = weights[prompts] / weights[prompts].sum(axis=1, keepdims=True)
    found = []
    for one in against:
        mean = one.values.mean(axis=0) @ weights  # (statistics,)
        drawn = np.einsum("rp,rps->rs", np.broadcast_to(share, sets.shape), one.values[sets, :, prompts])
        spread = np.sqrt(n_sets / max(n_sets - 1, 1))  # of n sets around their own mean
        deviations = (drawn - mean) * spread
        freedom = n * (n_sets - 1) if n_sets > 1 else n - 1
        width = student.ppf(CONFIDENCE, freedom) * deviations.std(axis=0) / math.sqrt(n_sets)
        found.append(_Resampled(mean, deviations, width))
    return found


def _found(against: Sequence[_Against], resampled: Sequence[_Resampled], factor: float, side: float) -> float:
    """Share of resamples found against every variant at `factor` times the prompts; side -1, 0, 1 of the interval."""
    found = np.ones(N_RESAMPLES, dtype=bool)
    for one, drawn in zip(against, resampled, strict=True):
        values = drawn.mean + (drawn.deviations + side * drawn.width) / math.sqrt(factor)
        found &= values.max(axis=1) > one.critical / math.sqrt(factor)
    return float(found.mean())


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
