"""The tests of a pair in an exact frame: each gives a `Fact` and, where it has any, evidence of direction (ours)."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from whorl.lineage.differences import TensorDifference, total
from whorl.lineage.direction import Evidence, Side
from whorl.lineage.exact import MANTISSA_BITS
from whorl.lineage.grid import SHARE_ON_GRID, Grid, expected_error, find_grid, name_of
from whorl.lineage.layer_map import LayerMatch
from whorl.lineage.low_rank import LowRank
from whorl.lineage.pruning import MIN_SURVIVOR_COSINE, Subset, Zeros

GRID_ROWS = 32
MAX_STEPS_RMS = 1.0  # round-to-nearest gives 0.289 (1 / sqrt 12), GPTQ up to about twice that (ours)
ROUNDED_SHARE = 0.99  # of values within half a step, for "round to nearest"
TYPE_ERROR = 3.0  # times the Gaussian prediction, for formats named by the file: heavy tails and clipping
SIDES: tuple[Side, Side] = ("a", "b")


@dataclass(frozen=True)
class Fact:
    """One test.

    Args:
        relation: What holds if it does ("requantised", "lora-of", ...).
        holds: Whether it does.
        why: One sentence with the numbers.
        numbers: The numbers by name.
    """

    relation: str
    holds: bool
    why: str
    numbers: Mapping[str, float | int | str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Quantised:
    """The grid of one side.

    Args:
        format: In words, or the stored type.
        bits: Width of the integers.
        n_on_grid: Changed matrices on it.
        n_tested: Changed matrices.
        steps_rms: RMS difference in steps, None when only the type names the format.
        inside: Share of differences within half a step, likewise.
        relative: Relative RMS difference |D| / |W| of the other side.
        from_other: Whether the difference is small enough to be the rounding of the other model's weights.
    """

    format: str
    bits: int
    n_on_grid: int
    n_tested: int
    steps_rms: float | None
    inside: float | None
    relative: float
    from_other: bool


def find_quantised(tensors: Sequence[TensorDifference], side: int) -> Quantised | None:
    """The grid that side 0 (A) or 1 (B) lies on in the matrices that changed; None without one."""
    changed = [t for t in tensors if t.pair.is_layer_matrix and not t.equal]
    if not changed:
        return None
    other = sum((t.aa, t.bb)[1 - side] for t in changed)
    relative = float(np.sqrt(sum(t.dd for t in changed) / other)) if other > 0 else np.inf
    kinds = [(t.pair.a, t.pair.b)[side].dtype for t in changed]
    coded = [kind for kind in kinds if kind not in MANTISSA_BITS]
    if len(coded) >= SHARE_ON_GRID * len(changed):
        bits, expected = _of_type(max(set(coded), key=coded.count))
        fits = relative <= TYPE_ERROR * expected
        return Quantised(name_of(coded), bits, len(coded), len(changed), None, None, relative, fits)
    return _on_grid(changed, side, relative)


def _on_grid(changed: Sequence[TensorDifference], side: int, relative: float) -> Quantised | None:
    grids: list[Grid] = []
    for place, t in enumerate(changed):
        grid = _grid(t, side)
        grids += [grid] if grid is not None else []
        if place + 1 - len(grids) > (1 - SHARE_ON_GRID) * len(changed):
            return None
    # A lattice without rounding (ternary weights of both models) is no quantisation of the other side.
    errors = [g.error for g in grids if g.error is not None]
    insides = [g.inside for g in grids if g.inside is not None]
    rms, inside = float(np.sqrt(np.mean(np.square(errors)))), float(np.mean(insides))
    bits = int(np.median([g.bits for g in grids]))
    fits = rms <= MAX_STEPS_RMS
    return Quantised(name_of([g.format for g in grids]), bits, len(grids), len(changed), rms, inside, relative, fits)


def _grid(t: TensorDifference, side: int) -> Grid | None:
    pair = (t.pair.a, t.pair.b)
    rows = pair[side].sample(GRID_ROWS)
    return find_grid(rows, t.largest[side], pair[side].bits, pair[1 - side].sample(GRID_ROWS))


def _of_type(kind: str) -> tuple[int, float]:
    """Bits and expected relative error of a stored type such as Q4_K, IQ3_S or F8_E4M3."""
    float8 = re.search(r"E\dM(\d)", kind)
    if float8:
        return 8, 2.0 ** -(int(float8[1]) + 1)
    digits = re.search(r"\d+", kind)
    bits = int(digits[0]) if digits else 8
    return bits, expected_error(max(bits, 2), 32)


def requantised(found: tuple[Quantised | None, Quantised | None]) -> tuple[Fact, list[Evidence]]:
    """Fact and evidence from the grids of A and B."""
    name = "requantised"
    on = [side for side in (1, 0) if found[side] is not None]
    if not on:
        return Fact(name, False, "neither model lies on a grid"), []
    if len(on) == 2:
        on.sort(key=lambda side: _bits(found[side]))
    side = on[0]
    q = found[side]
    if q is None:
        raise LookupError("a side without a grid was chosen")
    evidence = [] if len(on) == 2 else [Evidence("grid", SIDES[1 - side], _leaf(q, side))]
    numbers: dict[str, float | int | str] = {
        "format": q.format, "bits": q.bits, "quantised": SIDES[side], "n_on_grid": q.n_on_grid,
        "n_tested": q.n_tested, "relative_error": q.relative,
    }  # fmt: skip
    if q.steps_rms is not None and q.inside is not None:
        numbers |= {"rms_steps": q.steps_rms, "within_half_a_step": q.inside}
    return Fact(name, q.from_other, _grid_sentence(q, side), numbers), evidence


def _bits(q: Quantised | None) -> int:
    return q.bits if q is not None else 99


def _leaf(q: Quantised, side: int) -> str:
    return f"model {SIDES[side].upper()} is quantised ({q.format}), and quantised models are leaves"


def _grid_sentence(q: Quantised, side: int) -> str:
    who = f"{q.n_on_grid} of {q.n_tested} changed matrices of {SIDES[side].upper()} lie on a grid ({q.format})"
    if q.steps_rms is None or q.inside is None:
        size = f"relative difference {q.relative:.2g}"
        return f"{who}; {size} {'fits' if q.from_other else 'is too large for'} its rounding"
    error = f"{q.inside:.1%} of values within half a step, RMS {q.steps_rms:.2g} steps"
    if not q.from_other:
        return f"{who}, but the difference is more than rounding: {error}"
    kind = "round to nearest" if q.inside >= ROUNDED_SHARE else "on the grid, but not to the nearest level (as GPTQ)"
    return f"{who}, {kind}: {error}"


def lora(found: LowRank, tensors: Sequence[TensorDifference], *, blocked: str) -> Fact:
    """Fact from the ranks; norms must be equal, token tables and biases may be replaced whole.

    Args:
        found: The ranks.
        tensors: All measured pairs.
        blocked: Why no adapter can be meant ("" if one can).
    """
    name = "lora-of"
    norms = [t.pair.name for t in tensors if "norm" in t.pair.role and not t.equal]
    others = [t.pair.name for t in tensors if not t.pair.is_layer_matrix and not t.equal]
    ranks = [r.rank for r in found.ranks]
    numbers: dict[str, float | int | str] = {
        "rank": found.rank if found.rank is not None else "not determined", "n_touched": found.n_touched,
        "n_looked_at": len(ranks), "smallest_rank": min(ranks, default=0), "largest_rank": max(ranks, default=0),
        "n_other_changed": len(others),
    }  # fmt: skip
    if blocked:
        return Fact(name, False, blocked, numbers)
    if not found.holds:
        high = "" if others or not found.n_touched else "; all other tensors are equal, as with an adapter of full rank"
        return Fact(name, False, found.why + high, numbers)
    if norms:
        why = f"{found.why}, but {len(norms)} norms changed too, which adapters leave alone"
        return Fact(name, False, why, numbers)
    if found.rank is None and others:
        return Fact(name, False, f"{found.why}, and {len(others)} other tensors changed", numbers)
    rest = f"; {len(others)} other tensors were replaced" if others else ", all other tensors are equal"
    return Fact(name, True, found.why + rest, numbers)


def fine_tuned(tensors: Sequence[TensorDifference], *, blocked: str, also: str) -> Fact:
    """A dense difference with nothing more special behind it.

    Args:
        tensors: All measured pairs.
        blocked: Which other test explains the difference ("" if none does).
        also: Remark to add, such as a grid that B lies on besides.
    """
    n, n_equal, aa, bb, dd, ab = total(t for t in tensors if t.pair.is_layer_matrix)
    cosine = ab / float(np.sqrt(aa * bb)) if aa > 0 and bb > 0 else 0.0
    frozen = [t.pair.name for t in tensors if t.equal and not t.constant]
    changed = sum(not t.equal for t in tensors)
    numbers: dict[str, float | int | str] = {
        "relative_difference": float(np.sqrt(dd / aa)) if aa > 0 else 0.0, "cosine": cosine,
        "share_equal": n_equal / n if n else 0.0, "n_changed": changed, "n_frozen": len(frozen),
        "frozen": ", ".join(frozen),
    }  # fmt: skip
    if blocked or not changed:
        return Fact("fine-tuned", False, blocked or "no tensor differs", numbers)
    some = f"{len(frozen)} tensors are frozen ({_few(frozen)})" if frozen else "no tensor is frozen"
    why = (
        f"the difference is dense, {numbers['relative_difference']:.2g} of the weights, cosine {cosine:.4f}; {some}"
        f"{also}. One was trained from the other, or both from a common base: two models cannot tell"
    )
    return Fact("fine-tuned", True, why, numbers)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def pruned_zeros(found: tuple[Zeros | None, Zeros | None]) -> tuple[Fact, list[Evidence]]:
    """Fact and evidence from the zeros of A and B."""
    side = next((s for s in (1, 0) if found[s] is not None), None)
    z = found[side] if side is not None else None
    if z is None or side is None:
        return Fact("pruned", False, "no side has more zeros than the other"), []
    who = SIDES[side].upper()
    magnitude = "not determined" if z.magnitude is None else f"{z.magnitude:.3f}"
    numbers: dict[str, float | int | str] = {
        "pattern": z.pattern, "pruned": SIDES[side], "share": z.share, "share_other": z.share_other,
        "survivors_equal": z.equal, "survivors_cosine": z.cosine, "smaller_first": magnitude,
    }  # fmt: skip
    rule = "the smallest weights were zeroed" if z.by_magnitude else f"smaller-first probability {magnitude}"
    why = (
        f"{z.share:.1%} of the matrix values of {who} are zero ({z.pattern}) against {z.share_other:.1%}; {z.equal:.1%} "
        f"of the survivors are equal, cosine {z.cosine:.4f}; {rule}"
    )
    holds = z.cosine >= MIN_SURVIVOR_COSINE
    evidence = [Evidence("zeros", SIDES[1 - side], f"{z.share:.0%} of the weights of model {who} are zero")]
    return Fact("pruned", holds, why, numbers), evidence if holds else []


def pruned_parts(subset: Subset, small: Side) -> tuple[Fact, list[Evidence]]:
    """Fact and evidence from neurons, heads or width that only the larger model has."""
    numbers: dict[str, float | int | str] = {
        "pattern": f"structured ({subset.what})", "pruned": small, "n_small": subset.n_small,
        "n_large": subset.n_large, "cosine": subset.cosine, "chance": subset.null,
    }  # fmt: skip
    where = f"the {subset.n_small} {subset.what} of {small.upper()} match {subset.n_large} of the other"
    if subset.what == "width":
        where = f"the {subset.n_small} coordinates of {small.upper()} match some of the other's {subset.n_large}"
    why = f"{where} with median cosine {subset.cosine:.3f} (chance gives at most {subset.null:.2f})"
    parent: Side = "b" if small == "a" else "a"
    evidence = [Evidence("missing parts", parent, f"model {small.upper()} lacks {subset.what} of the other")]
    return Fact("pruned", subset.holds, why, numbers), evidence if subset.holds else []


def layers(match: LayerMatch, idle: tuple[tuple[int, ...], tuple[int, ...]]) -> tuple[list[Fact], list[Evidence]]:
    """Facts and evidence from the layer map.

    Args:
        match: The map.
        idle: Layers of A and of B that write nothing.
    """
    gaps = [tuple(i for i in match.dropped if i not in idle[0]), tuple(j for j in match.inserted if j not in idle[1])]
    depth = match.scores.shape
    facts, evidence = [], list[Evidence]()
    shorter = next((s for s in (0, 1) if depth[s] < depth[1 - s] and gaps[1 - s] and not gaps[s]), None)
    repeats = [match.repeated(0), match.repeated(1)]
    doubled = next((s for s in (0, 1) if repeats[s] and not idle[1 - s]), None)
    if shorter is not None and doubled is None:
        missing = gaps[1 - shorter]
        who = SIDES[shorter].upper()
        why = f"{who} lacks {len(missing)} of {depth[1 - shorter]} layers ({_numbers(missing)}); the others match with "
        why += f"median cosine {match.median:.4f}"
        facts.append(Fact("layers-dropped", True, why, {"dropped": _numbers(missing), "shorter": SIDES[shorter]}))
        evidence.append(Evidence("missing parts", SIDES[1 - shorter], f"model {who} lacks layers {_numbers(missing)}"))
    if doubled is not None:
        twice, child = repeats[doubled], SIDES[1 - doubled]
        why = f"{child.upper()} uses {len(twice)} layers of {SIDES[doubled].upper()} more than once ({_numbers(twice)})"
        facts.append(Fact("layers-duplicated", True, why, {"repeated": _numbers(twice), "deeper": child}))
        evidence.append(Evidence("repeated layers", SIDES[doubled], why))
    for side in (0, 1):
        if idle[side]:
            why = f"layers {_numbers(idle[side])} of {SIDES[side].upper()} write nothing (W_o = W_down = 0)"
            facts.append(Fact("layers-inserted", True, why, {"idle": _numbers(idle[side]), "deeper": SIDES[side]}))
            evidence.append(Evidence("repeated layers", SIDES[1 - side], why))
    if not match.monotone and doubled is None:
        facts.append(Fact("layers-reordered", True, "the layers match in another order", {}))
    return facts, evidence


def _numbers(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
