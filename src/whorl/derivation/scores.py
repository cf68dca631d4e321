"""The scores of two models on the same prompts, one table a score: who is compared with the reference, prompt by prompt."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from whorl.derivation.agreement import BEGINNINGS, agreement
from whorl.derivation.alleles import by_prompt, homologous
from whorl.derivation.controls import Parties
from whorl.errors import NotComparable, UsageError, safe_name
from whorl.identity.draws import is_greedy
from whorl.transcripts.answers import Answers, answers
from whorl.transcripts.record import Transcript, digest

ALLELES = "alleles"
SCORES = (*BEGINNINGS, ALLELES)
GENES = "genes"
MIN_PROMPTS = 10


@dataclass(frozen=True)
class ScoreTable:
    """One score of every model with the reference.

    Args:
        score: Which.
        values: Shape (J, M): prompts, and the models of `Parties.others` in their order. Mean over J is the similarity.
        groups: Cluster of each prompt.
        n_draws: Answers per prompt and model that entered.
        prompts_digest: SHA-256 of the prompt ids, hex.
        dropped: Label of a model in the table -> answers left out.
        empty: The same -> share of its answers without any character that shows.
    """

    score: str
    values: NDArray[np.float64]
    groups: tuple[str, ...]
    n_draws: int
    prompts_digest: str
    dropped: Mapping[str, int]
    empty: Mapping[str, float]


def check_score(score: str) -> None:
    """Refuse a score that does not exist.

    Raises:
        UsageError: names those that do.
    """
    if score not in SCORES:
        raise UsageError(f"There is no score '{safe_name(score)}'; there are {', '.join(SCORES)}.")


class Tables:
    """Answers of all models to the same prompts, greedy ones and drawn ones, balanced when first asked for.

    Args:
        found: The models.
        mixed_decoding: Allow different decoding.
    """

    def __init__(self, found: Parties, *, mixed_decoding: bool) -> None:
        self.parties, self.mixed_decoding = found, mixed_decoding

    @cached_property
    def greedy(self) -> Answers:
        """One answer a prompt."""
        return self._balanced(
            [[r for r in party.records if is_greedy(r.decoding)] for party in self.parties.all], "greedy answers", 1
        )

    @cached_property
    def drawn(self) -> Answers:
        """Repeated draws; only prompts of the set `genes` where the reference answered any of it."""
        kept = [[record for record in party.records if not is_greedy(record.decoding)] for party in self.parties.all]
        if any(record.prompt.prompt_set == GENES for record in kept[0]):
            kept = [[record for record in records if record.prompt.prompt_set == GENES] for records in kept]
        _require_independent(self.parties, kept)
        return self._balanced(kept, "answers drawn at random", None)

    def _balanced(self, kept: Sequence[Sequence[Transcript]], what: str, n_draws: int | None) -> Answers:
        for party, records in zip(self.parties.all, kept, strict=True):
            if not any(record.ok for record in records):
                raise NotComparable(f"{party.role} '{safe_name(party.label)}' has no {what}; sample it with them")
        named = chain.from_iterable(
            party.under_its_name(records) for party, records in zip(self.parties.all, kept, strict=True)
        )
        return answers(named, n_draws=n_draws, mixed_decoding=self.mixed_decoding)


def _require_independent(found: Parties, kept: Sequence[Sequence[Transcript]]) -> None:
    """Frequencies of two models multiply without bias only if their draws share no random numbers."""
    seeds = [{record.sampler_seed for record in records} - {None} for records in kept]
    for party, theirs in zip(found.others, seeds[1:], strict=True):
        if seeds[0] & theirs:
            raise UsageError(
                f"The draws of reference '{safe_name(found.reference.label)}' and of {party.role} '{safe_name(party.label)}' "
                "share random numbers, which makes them alike; sample them without --coupled."
            )


def score_table(score: str, tables: Tables) -> ScoreTable:
    """Score every model with the reference.

    Args:
        score: "first-word" and "first-4" of greedy answers, "alleles" of repeated draws.
        tables: Answers of all models.

    Raises:
        NotComparable: too few prompts, or the score is undefined; the message says what is missing.
        NotEnoughEvidence: models did not answer the same prompts.
        UsageError: mixed decoding without the flag.
    """
    table, found = tables.drawn if score == ALLELES else tables.greedy, tables.parties
    if len(table.prompts) < MIN_PROMPTS:
        raise NotComparable(f"{len(table.prompts)} prompts; at least {MIN_PROMPTS} are needed")
    texts = dict(zip(table.models, table.texts, strict=True))
    mine, others = texts[found.reference.name], [texts[party.name] for party in found.others]
    if score == ALLELES:
        values = by_prompt(homologous(mine, others), [party.label for party in found.all])
    else:
        first = [[draws[0] for draws in model] for model in (mine, *others)]
        values = agreement(first[0], first[1:], BEGINNINGS[score])
    prompts = digest([prompt.id for prompt in table.prompts])
    empty = {name: _share_empty(chain.from_iterable(model)) for name, model in texts.items()}
    return ScoreTable(score, values, table.groups, table.n_draws, prompts, table.dropped, empty)


def _share_empty(texts: Iterable[str]) -> float:
    blank = [not text.strip() for text in texts]
    return sum(blank) / len(blank)
